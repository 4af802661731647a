"""A user's own data as a benchmark: any map-style data set with targets, split by class or given task by task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cl_framework.benchmarks.base import Benchmark, Scale, Source, Transform
from cl_framework.benchmarks.sources import as_tensor, divide_classes, materialise, split_by_class, targets_of
from cl_framework.errors import ConfigurationError, FrameworkError


def from_datasets(
    train: Any,
    test: Any,
    *,
    tasks: int | None = None,
    classes_per_task: int | None = None,
    class_order: Sequence[int] | None = None,
    name: str = "own_data",
    transform: Transform | None = None,
    in_memory: str = "auto",
) -> Benchmark:
    """Split two map-style data sets (`dataset[i]` -> item, label) by class.

    Labels are 0 .. C - 1, from `.targets` or by one pass. Items are tensors, arrays or PIL images of one shape; uint8 items are
    scaled to [0, 1] unless `transform` is given. `in_memory`: auto, always or never (then read by data-loader workers).
    """
    targets, test_targets = targets_of(train), targets_of(test)
    num_classes = int(targets.max()) + 1
    if int(test_targets.max()) >= num_classes:
        raise FrameworkError(f"the test set has label {int(test_targets.max())}, but the training set ends at {num_classes - 1}.")
    try:
        classes = divide_classes(num_classes, tasks, classes_per_task, class_order)
    except ValueError as error:
        raise ConfigurationError(f"{name}: {error}.") from error
    return Benchmark(
        name=name,
        num_classes=num_classes,
        classes=tuple(classes),
        train=split_by_class(materialise(train, targets, in_memory), classes),
        test=split_by_class(materialise(test, test_targets, in_memory), classes),
        transform=transform or natural_transform(as_tensor(train[0][0])),
        input_shape=tuple(as_tensor(train[0][0]).shape),
        scenarios=("class_il", "task_il"),
        notes={"classes": " | ".join(",".join(map(str, held)) for held in classes)},
    )


def from_task_datasets(
    tasks: Sequence[tuple[Any, Any]],
    *,
    name: str = "own_data",
    scenarios: Sequence[str] | None = None,
    transform: Transform | None = None,
    in_memory: str = "auto",
) -> Benchmark:
    """One pair of training and test data sets a task. Tasks that share classes are domain-incremental by default."""
    train: list[Source] = [materialise(part, targets_of(part), in_memory) for part, _ in tasks]
    test: list[Source] = [materialise(part, targets_of(part), in_memory) for _, part in tasks]
    classes = [tuple(sorted(set(source.targets.tolist()))) for source in train]
    shared = len(set().union(*classes)) < sum(map(len, classes))
    first = as_tensor(tasks[0][0][0][0])
    return Benchmark(
        name=name,
        num_classes=max(max(held) for held in classes) + 1,
        classes=tuple(classes),
        train=train,
        test=test,
        transform=transform or natural_transform(first),
        input_shape=tuple(first.shape),
        scenarios=tuple(scenarios or (("domain_il", "task_il") if shared else ("class_il", "task_il"))),
        notes={"classes": " | ".join(",".join(map(str, held)) for held in classes)},
    )


class Unchanged:
    """Items that are model inputs already."""

    random = False

    def __call__(self, items: Any, generator: torch.Generator | None) -> Any:
        return items


def natural_transform(item: Tensor) -> Transform:
    """uint8 items are scaled to [0, 1]; others are taken as they are."""
    return Scale() if item.dtype == torch.uint8 else Unchanged()
