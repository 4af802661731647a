"""A user's own data as a benchmark: any map-style data set with targets, split by class or given task by task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cl_framework.benchmarks.base import Benchmark, Scale, Transform
from cl_framework.benchmarks.sources import check_alike, divide_classes, dtype_name, item_of, materialise, split_by_class, targets_of
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

    Labels are 0 .. C - 1, from `.targets` or by one pass. Items are tensors, arrays or PIL images of one shape and dtype: uint8, scaled
    to [0, 1], or floats, read as float32; with a `transform` of your own, whatever it takes. By default a task holds one class.
    `in_memory`: auto, always or never (then read by data-loader workers). Raises FrameworkError for labels or samples that make no
    benchmark.
    """
    if tasks is not None and classes_per_task is not None:
        raise ConfigurationError(f"{name}: tasks and classes_per_task both say how classes are divided. Give one of them.")
    targets, test_targets = targets_of(train), targets_of(test)
    num_classes = int(targets.max()) + 1
    _check_test_labels(test_targets, num_classes)
    try:
        classes = divide_classes(num_classes, tasks, classes_per_task, class_order)
    except ValueError as error:
        raise ConfigurationError(f"{name}: {error}.") from error
    _check_no_task_is_empty(classes, {"training": targets, "test": test_targets})
    if unseen := sorted(set(range(num_classes)) - set(targets.tolist())):
        raise FrameworkError(
            f"no training sample has label {unseen[0]}, but labels go up to {num_classes - 1}. Number the labels 0 .. C - 1 without a gap."
        )
    first = item_of(train, 0)
    transform = checked_transform(transform, first)
    check_alike(item_of(test, 0), "sample 0 of the test set", first, "sample 0 of the training set")
    return Benchmark(
        name=name,
        num_classes=num_classes,
        classes=tuple(classes),
        train=split_by_class(materialise(train, targets, in_memory), classes),
        test=split_by_class(materialise(test, test_targets, in_memory), classes),
        transform=transform,
        input_shape=tuple(first.shape),
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

    Samples and labels as for `from_datasets`; items of all tasks have one shape and dtype, and a task is tested on classes that it
    trains. Raises FrameworkError where that is not so.
    """
    if not tasks:
        raise ConfigurationError(f"{name}: there are no tasks. Give one pair of training and test data sets a task.")
    targets = [(targets_of(train), targets_of(test)) for train, test in tasks]
    classes = [tuple(labels.unique().tolist()) for labels, _ in targets]
    _check_tested_classes(classes, [labels for _, labels in targets])
    shared = len(set().union(*classes)) < sum(map(len, classes))
    num_classes = max(max(held) for held in classes) + 1
    first = item_of(tasks[0][0], 0)
    transform = checked_transform(transform, first)
    for task, pair in enumerate(tasks):
        for split, part in zip(("training", "test"), pair, strict=True):
            check_alike(item_of(part, 0), f"task {task}'s first {split} sample", first, "task 0's first training sample")
    return Benchmark(
        name=name,
        num_classes=num_classes,
        classes=tuple(classes),
        train=[materialise(train, labels, in_memory) for (train, _), (labels, _) in zip(tasks, targets, strict=True)],
        test=[materialise(test, labels, in_memory) for (_, test), (_, labels) in zip(tasks, targets, strict=True)],
        transform=transform,
        input_shape=tuple(first.shape),
        scenarios=tuple(scenarios or (("domain_il", "task_il") if shared else ("class_il", "task_il"))),
        notes={"classes": " | ".join(",".join(map(str, held)) for held in classes)},
    )


def _check_test_labels(targets: Tensor, num_classes: int) -> None:
    if int(targets.max()) >= num_classes:
        raise FrameworkError(f"the test set has label {int(targets.max())}, but the training set ends at {num_classes - 1}.")


def _check_tested_classes(classes: Sequence[tuple[int, ...]], tested: Sequence[Tensor]) -> None:
    for task, (held, labels) in enumerate(zip(classes, tested, strict=True)):
        strange = labels[~torch.isin(labels, torch.tensor(held))].tolist()
        if strange:
            raise FrameworkError(
                f"task {task}'s test set has label {strange[0]}, which its training set has not. Train on it there, or leave it out."
            )


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


def checked_transform(given: Transform | None, item: Tensor) -> Transform:
    """The transform given, or what suits such items. Raises ConfigurationError for one that is none, and for items without a dimension."""
    if not item.ndim:
        raise ConfigurationError(f"items are single numbers, such as {item.item()}. Give each at least one dimension, as tensor([x]).")
    if given is None:
        return natural_transform(item)
    if not callable(given) or not isinstance(getattr(given, "random", None), bool):
        raise ConfigurationError(
            f"transform must be an object that is called with (items, generator) and says by `random`, True or False, whether it draws; "
            f"got {given!r}."
        )
    return given


def natural_transform(item: Tensor) -> Transform:
    """uint8 items are scaled to [0, 1]; floats are taken as they are. Raises ConfigurationError for items of any other dtype."""
    if item.dtype == torch.uint8:
        return Scale()
    if item.is_floating_point():
        return Unchanged()
    raise ConfigurationError(f"items have dtype {dtype_name(item)}, which models do not take. Convert to uint8 in 0 .. 255 or to float.")
