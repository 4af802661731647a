"""Sources of samples: tensors in memory, tensors made when first read, and map-style data sets read by workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from cl_framework.errors import FrameworkError


class TensorSource:
    """Samples held as one tensor: reading is one `index_select`."""

    in_memory = True

    def __init__(self, items: Tensor, targets: Tensor) -> None:
        self.items = items  # (N, ...)
        self.targets = targets.to(torch.int64)  # (N,)

    def __len__(self) -> int:
        return self.targets.shape[0]

    def read(self, rows: Tensor) -> Tensor:
        return self.items.index_select(0, rows)

    def select(self, rows: Tensor) -> Self:
        """Some of the samples as a source of their own."""
        return type(self)(self.items[rows], self.targets[rows])


class LazySource:
    """Samples made as one tensor when first read, and let go by `release`: for tasks that are a transformation of one data set."""

    in_memory = True

    def __init__(self, targets: Tensor, make: Callable[[], Tensor]) -> None:
        self.targets = targets.to(torch.int64)
        self._make = make
        self._items: Tensor | None = None

    def __len__(self) -> int:
        return self.targets.shape[0]

    @property
    def items(self) -> Tensor:
        if self._items is None:
            self._items = self._make()
        return self._items

    def read(self, rows: Tensor) -> Tensor:
        return self.items.index_select(0, rows)

    def release(self) -> None:
        self._items = None


class DatasetSource:
    """A map-style data set, read sample by sample by data-loader workers: for data that does not fit in memory.

    A sample is `dataset[i]`, whose first part is a tensor, an array or a PIL image; `rows` chooses which samples belong here.
    """

    in_memory = False

    def __init__(self, dataset: Any, targets: Tensor, rows: Tensor | None = None) -> None:
        self.dataset = dataset
        self.rows = torch.arange(len(dataset)) if rows is None else rows
        self.targets = targets.to(torch.int64)

    def __len__(self) -> int:
        return self.rows.shape[0]

    def read(self, rows: Tensor) -> Tensor:
        chosen = self.rows[rows].tolist()
        if not chosen:
            first = as_tensor(self.dataset[int(self.rows[0])][0])
            return first.new_empty(0, *first.shape)
        return torch.stack([as_tensor(self.dataset[row][0]) for row in chosen])

    def select(self, rows: Tensor) -> Self:
        """Some of the samples as a source of their own."""
        return type(self)(self.dataset, self.targets[rows], self.rows[rows])


class Selectable(Protocol):
    """A source of which some samples can be taken."""

    targets: Tensor

    def select(self, rows: Tensor) -> Self: ...


AnySource = TypeVar("AnySource", bound=Selectable)


def as_tensor(item: Any) -> Tensor:
    """A raw item as a tensor: a PIL image becomes (C, H, W) uint8."""
    if isinstance(item, Tensor):
        return item
    if hasattr(item, "getbands"):
        from torchvision.transforms.functional import pil_to_tensor

        return pil_to_tensor(item)
    return torch.as_tensor(item)


def targets_of(dataset: Any) -> Tensor:
    """The labels of a map-style data set: its `targets`, else found by one pass over it."""
    targets = getattr(dataset, "targets", None)
    if targets is None:
        targets = [int(dataset[row][1]) for row in range(len(dataset))]
    labels = torch.as_tensor(targets).to(torch.int64)
    if labels.ndim != 1 or len(labels) != len(dataset):
        raise FrameworkError(
            f"the data set has {len(dataset)} samples, but targets of shape {tuple(labels.shape)}: one label a sample is needed."
        )
    return labels


def fits_in_memory(size: int) -> bool:
    """Whether `size` bytes take at most half of this machine's memory."""
    return size <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def materialise(dataset: Any, targets: Tensor, in_memory: str) -> TensorSource | DatasetSource:
    """Hold a data set as tensors if it fits (`auto`) or always, else leave it to workers."""
    if not len(dataset) or in_memory == "never":
        return DatasetSource(dataset, targets)
    first = as_tensor(dataset[0][0])
    if in_memory == "auto" and not fits_in_memory(first.numel() * first.element_size() * len(dataset)):
        return DatasetSource(dataset, targets)
    items = torch.empty(len(dataset), *first.shape, dtype=first.dtype)
    for row in range(len(dataset)):
        item = as_tensor(dataset[row][0])
        if item.shape != first.shape:
            raise FrameworkError(f"sample {row} has shape {tuple(item.shape)}, sample 0 {tuple(first.shape)}: all must have one shape.")
        items[row] = item
    return TensorSource(items, targets)


def divide_classes(
    num_classes: int, tasks: int | None, classes_per_task: int | None, class_order: Sequence[int] | None
) -> list[tuple[int, ...]]:
    """Which classes each task holds, in `class_order`; a remainder is never dropped.

    With `tasks` the first tasks take one class more each (10 in 3: 4, 3, 3); with `classes_per_task` the last task takes what is left.
    """
    order = list(class_order) if class_order is not None else list(range(num_classes))
    if sorted(order) != list(range(num_classes)):
        raise ValueError(f"class_order must hold each class 0 to {num_classes - 1} once, got {order}")
    if classes_per_task is not None:
        return [tuple(order[first : first + classes_per_task]) for first in range(0, num_classes, classes_per_task)]
    tasks = tasks or num_classes
    if not 1 <= tasks <= num_classes:
        raise ValueError(f"tasks must be between 1 and the number of classes {num_classes}, got {tasks}")
    sizes = [num_classes // tasks + (task < num_classes % tasks) for task in range(tasks)]
    ends = [sum(sizes[: task + 1]) for task in range(tasks)]
    return [tuple(order[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def split_by_class(source: AnySource, classes: Sequence[Sequence[int]]) -> list[AnySource]:
    """One source a task, with the samples of its classes in their original order."""
    return [source.select(torch.isin(source.targets, torch.tensor(held)).nonzero().flatten()) for held in map(list, classes)]
