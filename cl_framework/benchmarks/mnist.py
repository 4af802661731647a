"""MNIST and Fashion-MNIST, through torchvision: split by class, permuted and rotated.

Images are uint8 (1, 28, 28), inputs in [0, 1] without normalisation, as in the published settings of these streams.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cl_framework.augment import digit_views, pixel_views
from cl_framework.benchmarks.base import Benchmark, BenchmarkContext, Scale
from cl_framework.benchmarks.digits import SplitOptions
from cl_framework.benchmarks.sources import LazySource, TensorSource, Turns, divide_classes, split_by_class
from cl_framework.benchmarks.torchvision_data import load_mnist
from cl_framework.checks import check_range
from cl_framework.registry import register_benchmark
from cl_framework.rng import RandomStream

_DIGITS = tuple(range(10))
_PIXELS = 28 * 28


@dataclass(frozen=True)
class SplitMNISTOptions(SplitOptions):
    train_limit: int | None = None  # training images of each task, chosen at random; default: all

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_limit is not None:
            check_range("train_limit", self.train_limit, low=1)


@dataclass(frozen=True)
class DomainOptions:
    tasks: int = 20  # >= 1
    seed: int | None = None  # of the permutations or angles; default: the run's
    train_limit: int | None = None  # training images of each task, chosen at random; default: all 60,000

    def __post_init__(self) -> None:
        check_range("tasks", self.tasks, low=1)
        if self.train_limit is not None:
            check_range("train_limit", self.train_limit, low=1)


@register_benchmark("split_mnist", SplitMNISTOptions)
def split_mnist(options: SplitMNISTOptions, context: BenchmarkContext) -> Benchmark:
    """Split MNIST: digits by class, five tasks of two by default (70,000 images of 28x28)."""
    return _split("split_mnist", "MNIST", options, context)


@register_benchmark("split_fashion_mnist", SplitMNISTOptions)
def split_fashion_mnist(options: SplitMNISTOptions, context: BenchmarkContext) -> Benchmark:
    """Split Fashion-MNIST: clothes by class, five tasks of two by default (70,000 images of 28x28)."""
    return _split("split_fashion_mnist", "FashionMNIST", options, context)


def _split(name: str, data: str, options: SplitMNISTOptions, context: BenchmarkContext) -> Benchmark:
    train, test = load_mnist(data, context)
    classes = divide_classes(10, options.tasks, options.classes_per_task, options.class_order)
    return Benchmark(
        name=name,
        num_classes=10,
        classes=tuple(classes),
        train=[_limited(source, options.train_limit, context.seed, task) for task, source in enumerate(split_by_class(train, classes))],
        test=split_by_class(test, classes),
        transform=Scale(strengthen=digit_views),
        input_shape=(1, 28, 28),
        scenarios=("class_il", "task_il"),
        notes={"classes": " | ".join(",".join(map(str, held)) for held in classes), **_limit_note(options.train_limit)},
    )


@register_benchmark("perm_mnist", DomainOptions)
def perm_mnist(options: DomainOptions, context: BenchmarkContext) -> Benchmark:
    """Permuted MNIST: every task has all digits under its own fixed permutation of the pixels, the first task too."""
    seed = context.seed if options.seed is None else options.seed

    def permuted(task: int) -> Callable[[Tensor], Tensor]:
        order = torch.randperm(_PIXELS, generator=RandomStream("perm_mnist", seed, task).generator())
        return lambda images: images.flatten(1).index_select(1, order.to(images.device)).view(-1, 1, 28, 28)

    changes = [permuted(task) for task in range(options.tasks)]
    return _domains("perm_mnist", changes, pixel_views, options, context, {"permutations": f"of all pixels, seed {seed}"})


@register_benchmark("rot_mnist", DomainOptions)
def rot_mnist(options: DomainOptions, context: BenchmarkContext) -> Benchmark:
    """Rotated MNIST: every task has all digits under its own random angle in [0, 180) degrees."""
    seed = context.seed if options.seed is None else options.seed
    angles = [180.0 * float(RandomStream("rot_mnist", seed, task).uniform(0, 1)) for task in range(options.tasks)]

    def rotated(angle: float) -> Callable[[Tensor], Tensor]:
        def change(images: Tensor) -> Tensor:
            from torchvision.transforms.functional import InterpolationMode, rotate

            parts = [rotate(part, angle, InterpolationMode.BILINEAR) for part in images.split(10_000)]
            return torch.cat(parts)

        return change

    notes = {"angles": ", ".join(f"{angle:.1f}" for angle in angles), "seed": str(seed)}
    return _domains("rot_mnist", [rotated(angle) for angle in angles], digit_views, options, context, notes)


def _domains(
    name: str,
    changes: list[Callable[[Tensor], Tensor]],
    strengthen: Callable[[Tensor, torch.Generator], Tensor],
    options: DomainOptions,
    context: BenchmarkContext,
    notes: dict[str, str],
) -> Benchmark:
    """Tasks that show the same images changed. Of the training sets, 47 MB each, only the one in use is held; all test sets are."""
    train, test = load_mnist("MNIST", context)
    turns = Turns()
    bases = [_limited(train, options.train_limit, context.seed, task) for task in range(options.tasks)]
    return Benchmark(
        name=name,
        num_classes=10,
        classes=(_DIGITS,) * len(changes),
        train=[LazySource(base, change, turns) for base, change in zip(bases, changes, strict=True)],
        test=[LazySource(test, change) for change in changes],
        transform=Scale(strengthen=strengthen),
        input_shape=(1, 28, 28),
        scenarios=("domain_il", "task_il"),  # the task known or not; its candidates are all digits either way
        notes={**notes, **_limit_note(options.train_limit)},
    )


def _limited(source: TensorSource, limit: int | None, seed: int, task: int) -> TensorSource:
    if limit is None or limit >= len(source):
        return source
    rows = torch.randperm(len(source), generator=RandomStream("train_limit", seed, task).generator())[:limit].sort().values
    return source.select(rows)


def _limit_note(limit: int | None) -> dict[str, str]:
    return {} if limit is None else {"train_limit": f"{limit} training images a task"}
