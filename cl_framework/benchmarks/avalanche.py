"""Avalanche benchmarks as streams, and our benchmarks as Avalanche's. Avalanche is imported only when this is used.

What is taken over: samples, labels, their order, the classes of each experience. Avalanche's loaders, templates and loggers are not.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from cl_framework.benchmarks.base import Benchmark, BenchmarkContext
from cl_framework.benchmarks.own_data import from_task_datasets
from cl_framework.benchmarks.torchvision_data import open_data
from cl_framework.checks import check_choice, check_range
from cl_framework.errors import ConfigurationError
from cl_framework.registry import register_benchmark

# Avalanche's class-split classics: torchvision's name of their data, and the number of classes.
_CLASSICS = {
    "SplitMNIST": ("MNIST", 10),
    "SplitFMNIST": ("FashionMNIST", 10),
    "SplitCIFAR10": ("CIFAR10", 10),
    "SplitCIFAR100": ("CIFAR100", 100),
}


@dataclass(frozen=True)
class AvalancheOptions:
    source: str = "SplitMNIST"  # SplitMNIST, SplitFMNIST, SplitCIFAR10 or SplitCIFAR100
    experiences: int = 5  # number of tasks; must divide the number of classes
    class_order: tuple[int, ...] | None = None  # default: 0, 1, 2, ...

    def __post_init__(self) -> None:
        check_choice("source", self.source, _CLASSICS)
        check_range("experiences", self.experiences, low=1)
        count = _CLASSICS[self.source][1]
        if count % self.experiences:
            raise ValueError(f"experiences must divide the {count} classes, or Avalanche drops the remainder; got {self.experiences}")
        if self.class_order is not None and sorted(self.class_order) != list(range(count)):
            raise ValueError(f"class_order must hold each class 0 to {count - 1} once")


def import_avalanche() -> ModuleType:
    """`avalanche.benchmarks`, or one sentence about how to get it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import avalanche.benchmarks as benchmarks
    except ImportError as error:
        raise ConfigurationError(f"Avalanche cannot be imported ({error}). Install it: pip install avalanche-lib==0.6.0.") from error
    return benchmarks


@register_benchmark("avalanche", AvalancheOptions)
def avalanche_benchmark(options: AvalancheOptions, context: BenchmarkContext) -> Benchmark:
    """One of Avalanche's class-split benchmarks, through the adapter."""
    data, count = _CLASSICS[options.source]
    avalanche = import_avalanche()
    open_data(data, context)  # the classics download whatever is missing, asked or not: by now nothing is
    classic = getattr(avalanche, options.source)(
        n_experiences=options.experiences,
        # An order is always given: with a seed instead, Avalanche would reseed torch's global generator.
        fixed_class_order=list(options.class_order or range(count)),
        train_transform=None,
        eval_transform=None,
        dataset_root=context.root,
    )
    return from_avalanche(classic, name=f"avalanche {options.source}", in_memory=context.in_memory)


class ExperienceData:
    """The samples of an Avalanche experience as a map-style data set, with evaluation transforms: item, label."""

    def __init__(self, experience: Any) -> None:
        self._data = experience.dataset.eval()
        self.targets = [int(label) for label in self._data.targets]

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        sample = self._data[row]
        return sample[0], int(sample[1])


def from_avalanche(
    benchmark: Any, *, name: str = "avalanche", scenarios: Sequence[str] | None = None, in_memory: str = "auto"
) -> Benchmark:
    """Any Avalanche benchmark with a train and a test stream of equal length: one task an experience, in its order."""
    train, test = list(benchmark.train_stream), list(benchmark.test_stream)
    if len(train) != len(test):
        raise ConfigurationError(
            f"the Avalanche benchmark has {len(train)} training and {len(test)} test experiences; a stream needs one test experience "
            "a task (make it with complete_test_set_only=False)."
        )
    pairs = [(ExperienceData(one), ExperienceData(other)) for one, other in zip(train, test, strict=True)]
    return from_task_datasets(pairs, name=name, scenarios=scenarios, in_memory=in_memory)


def to_avalanche(benchmark: Benchmark, *, task_labels: bool = False) -> Any:
    """Our benchmark as Avalanche's: model inputs (transformed, un-augmented) and labels, one experience a task, in order.

    `task_labels`: experience t has task label t, as task-incremental runs want; otherwise all have 0.
    """
    avalanche = import_avalanche()
    labels = list(range(benchmark.num_tasks)) if task_labels else [0] * benchmark.num_tasks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return avalanche.tensors_benchmark(
            train_tensors=[_tensors(benchmark, source) for source in benchmark.train],
            test_tensors=[_tensors(benchmark, source) for source in benchmark.test],
            task_labels=labels,
            complete_test_set_only=False,
        )


def _tensors(benchmark: Benchmark, source: Any) -> tuple[Tensor, Tensor]:
    inputs = benchmark.transform(source.read(torch.arange(len(source))), None)
    if not isinstance(inputs, Tensor):
        raise ConfigurationError(f"benchmark {benchmark.name!r} has several inputs a sample; Avalanche's tensor benchmarks take one.")
    return inputs, source.targets
