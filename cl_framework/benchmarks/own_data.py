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
    scaled to [0, 1] unless `transform` is given. By default a task holds one class. `in_memory`: auto, always or never (then read by
    data-loader workers). Raises FrameworkError for labels or samples that make no benchmark.
    """
    targets, test_targets = targets_of(train), targets_of(test)
    num_classes = int(targets.max()) + 1
    _check_test_labels(test_targets, num_classes)
    try:
        classes = divide_classes(num_classes, tasks, classes_per_task, class_order)
    except ValueError as error:
        raise ConfigurationError(f"{name}: {error}.") from error
    _check_no_task_is_empty(classes, {"training": targets, "test": test_targets})
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
    """One pair of training and test data sets a task, in order. Tasks that share classes are domain-incremental by default.

    Samples and labels as for `from_datasets`; items of all tasks have one shape. Raises FrameworkError where they do not.
    """
    if not tasks:
        raise ConfigurationError(f"{name}: there are no tasks. Give one pair of training and test data sets a task.")
    train: list[Source] = [materialise(part, targets_of(part), in_memory) for part, _ in tasks]
    test: list[Source] = [materialise(part, targets_of(part), in_memory) for _, part in tasks]
    classes = [tuple(sorted(set(source.targets.tolist()))) for source in train]
    shared = len(set().union(*classes)) < sum(map(len, classes))
    num_classes = max(max(held) for held in classes) + 1
    for source in test:
        _check_test_labels(source.targets, num_classes)
    first = as_tensor(tasks[0][0][0][0])
    for task, pair in enumerate(tasks):
        for shape in (tuple(as_tensor(part[0][0]).shape) for part in pair):
            if shape != tuple(first.shape):
                raise FrameworkError(
                    f"task {task} has items of shape {shape}, task 0 of shape {tuple(first.shape)}: all must have one shape."
                )
    return Benchmark(
        name=name,
        num_classes=num_classes,
        classes=tuple(classes),
        train=train,
        test=test,
        transform=transform or natural_transform(first),
        input_shape=tuple(first.shape),
        scenarios=tuple(scenarios or (("domain_il", "task_il") if shared else ("class_il", "task_il"))),
        notes={"classes": " | ".join(",".join(map(str, held)) for held in classes)},
    )


def _check_test_labels(targets: Tensor, num_classes: int) -> None:
    if int(targets.max()) >= num_classes:
        raise FrameworkError(f"the test set has label {int(targets.max())}, but the training set ends at {num_classes - 1}.")


def _check_no_task_is_empty(classes: Sequence[Sequence[int]], targets: dict[str, Tensor]) -> None:
    for task, held in enumerate(classes):
        for split, labels in targets.items():
            if not torch.isin(labels, torch.tensor(held)).any():
                raise FrameworkError(
                    f"task {task} (classes {', '.join(map(str, held))}) has no {split} samples. "
                    "Number the labels 0 .. C - 1 without a gap, or put more classes in a task."
                )


class Unchanged:
    """Items that are model inputs already."""

    random = False

    def __call__(self, items: Any, generator: torch.Generator | None) -> Any:
        return items


def natural_transform(item: Tensor) -> Transform:
    """uint8 items are scaled to [0, 1]; others are taken as they are."""
    return Scale() if item.dtype == torch.uint8 else Unchanged()
