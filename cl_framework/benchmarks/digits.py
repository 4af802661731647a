"""Split digits: the 1,797 8x8 handwritten digits that come with scikit-learn, so that a first run needs no download."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cl_framework.augment import digit_views
from cl_framework.benchmarks.base import Benchmark, BenchmarkContext, Scale
from cl_framework.benchmarks.sources import TensorSource, divide_classes, split_by_class
from cl_framework.errors import ConfigurationError
from cl_framework.registry import register_benchmark
from cl_framework.rng import RandomStream

_TEST_SHARE = 4  # one sample in four of each class is a test sample


@dataclass(frozen=True)
class SplitOptions:
    tasks: int = 5  # number of tasks; the first ones take one class more where it does not divide evenly
    classes_per_task: int | None = None  # instead of `tasks`; the last task takes what is left
    class_order: tuple[int, ...] | None = None  # default: 0, 1, 2, ...

    def __post_init__(self) -> None:
        divide_classes(10, self.tasks, self.classes_per_task, self.class_order)


@register_benchmark("split_digits", SplitOptions)
def split_digits(options: SplitOptions, context: BenchmarkContext) -> Benchmark:
    """Split digits: 8x8 digits of scikit-learn by class; a fixed quarter of each class, the same in every run, is the test split."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigurationError("benchmark split_digits needs scikit-learn: pip install scikit-learn.") from error
    images, labels = load_digits(return_X_y=True)
    items = torch.as_tensor(images).to(torch.uint8).view(-1, 1, 8, 8)
    targets = torch.as_tensor(labels).to(torch.int64)
    is_test = _fixed_test_split(targets)
    classes = divide_classes(10, options.tasks, options.classes_per_task, options.class_order)
    return Benchmark(
        name="split_digits",
        num_classes=10,
        classes=tuple(classes),
        train=split_by_class(TensorSource(items[~is_test], targets[~is_test]), classes),
        test=split_by_class(TensorSource(items[is_test], targets[is_test]), classes),
        transform=Scale(maximum=16.0, strengthen=digit_views),
        input_shape=(1, 8, 8),
        scenarios=("class_il", "task_il"),
        notes={"classes": " | ".join(",".join(map(str, held)) for held in classes)},
    )


def _fixed_test_split(targets: torch.Tensor) -> torch.Tensor:
    """(N,) bool, stratified; from a constant seed, not the run's: figures of all runs are about the same test samples."""
    generator = RandomStream("digits", "test split").generator()
    is_test = torch.zeros(len(targets), dtype=torch.bool)
    for label in range(10):
        rows = (targets == label).nonzero().flatten()
        order = rows[torch.randperm(len(rows), generator=generator)]
        is_test[order[: len(rows) // _TEST_SHARE]] = True
    return is_test
