"""Gaussian blobs as small uint8 images: a benchmark of seconds, for tests and for trying a strategy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cl_framework.benchmarks.base import Benchmark, BenchmarkContext, Scale
from cl_framework.benchmarks.sources import TensorSource
from cl_framework.checks import check_range
from cl_framework.registry import register_benchmark
from cl_framework.rng import RandomStream

SCENARIOS = ("class_il", "task_il", "domain_il")


@dataclass(frozen=True)
class SyntheticOptions:
    tasks: int = 3  # >= 1
    classes_per_task: int = 2  # >= 2
    train_per_class: int = 40  # >= 1
    test_per_class: int = 20  # >= 1
    size: int = 4  # side of an image in pixels, >= 2
    noise: float = 40.0  # standard deviation of a pixel, in grey levels, >= 0
    seed: int | None = None  # of the data; default: the run's

    def __post_init__(self) -> None:
        for name in ("tasks", "train_per_class", "test_per_class"):
            check_range(name, getattr(self, name), low=1)
        check_range("classes_per_task", self.classes_per_task, low=2)
        check_range("size", self.size, low=2)
        check_range("noise", self.noise, low=0)


@register_benchmark("synthetic", SyntheticOptions)
def synthetic(options: SyntheticOptions, context: BenchmarkContext) -> Benchmark:
    """Gaussian blobs as small uint8 images; in domain-incremental runs every task has the same classes around other centres."""
    seed = context.seed if options.seed is None else options.seed
    shared = context.scenario == "domain_il"
    count = options.classes_per_task
    classes = [tuple(range(count)) if shared else tuple(range(task * count, (task + 1) * count)) for task in range(options.tasks)]
    generator = RandomStream("synthetic", seed).generator()
    train, test = [], []
    for held in classes:
        centres = torch.randint(0, 256, (count, options.size**2), generator=generator).float()
        train.append(_blobs(held, centres, options.train_per_class, options, generator))
        test.append(_blobs(held, centres, options.test_per_class, options, generator))
    return Benchmark(
        name="synthetic",
        num_classes=count if shared else count * options.tasks,
        classes=tuple(classes),
        train=train,
        test=test,
        transform=Scale(),
        input_shape=(1, options.size, options.size),
        scenarios=("domain_il",) if shared else ("class_il", "task_il"),
        notes={"data": f"Gaussian blobs, seed {seed}"},
    )


def _blobs(held: tuple[int, ...], centres: Tensor, per_class: int, options: SyntheticOptions, generator: torch.Generator) -> TensorSource:
    targets = torch.tensor(held).repeat_interleave(per_class)
    noise = torch.randn(len(targets), centres.shape[1], generator=generator) * options.noise
    pixels = (centres.repeat_interleave(per_class, 0) + noise).clamp(0, 255).to(torch.uint8)
    return TensorSource(pixels.view(-1, 1, options.size, options.size), targets)
