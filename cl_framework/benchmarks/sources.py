"""Sources of samples: tensors in memory, tensors made when first read, and map-style data sets read by workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol, Self, TypeVar

import numpy
import torch
from torch import Tensor

from cl_framework.checks import check_choice
from cl_framework.errors import ConfigurationError, FrameworkError


class TensorSource:
    """Samples held as one tensor: reading is one `index_select`."""

    in_memory = True

    def __init__(self, items: Tensor, targets: Tensor) -> None:
        self.items = items  # (N, ...)
        self.targets = targets.to(torch.int64)  # (N,); (N, L) of texts of L places

    def __len__(self) -> int:
        return self.targets.shape[0]

    def read(self, rows: Tensor) -> Tensor:
        return self.items.index_select(0, rows.to(self.items.device))

    def select(self, rows: Tensor) -> Self:
        """Some of the samples as a source of their own."""
        return type(self)(self.items[rows], self.targets[rows])

    def on(self, device: torch.device) -> TensorSource:
        """The same samples held on `device`; labels stay on the host, where decisions are made."""
        return TensorSource(self.items.to(device), self.targets)


class LazySource:
    """The samples of `base` under a change: for tasks that are a transformation of one data set.

    `change` maps items (B, ...) to items (B, ...), each on its own. All are made and held when first read; `release` lets them go.
    Sources that share a `Turns` hold theirs one at a time, and only once read twice in a row: reads that mix many tasks (joint
    training) change the rows they ask for and nothing else.
    """

    in_memory = True

    def __init__(self, base: TensorSource, change: Callable[[Tensor], Tensor], turns: Turns | None = None) -> None:
        self.targets = base.targets
        self._base = base
        self._change = change
        self._turns = turns
        self._items: Tensor | None = None

    def __len__(self) -> int:
        return self.targets.shape[0]

    @property
    def held(self) -> bool:
        """Whether the changed samples are in memory now."""
        return self._items is not None

    def read(self, rows: Tensor) -> Tensor:
        if self._turns is not None and not self._turns.still(self):
            return self._change(self._base.read(rows))
        if self._items is None:
            self._items = self._change(self._base.items)
        return self._items.index_select(0, rows.to(self._items.device))

    def release(self) -> None:
        self._items = None

    def on(self, device: torch.device, base: TensorSource) -> LazySource:
        """The same samples, made and held on `device` from `base`, which is there."""
        return LazySource(base, self._change, self._turns)

    @property
    def base(self) -> TensorSource:
        return self._base


class Turns:
    """Which of several lazy sources was read last: only that one may hold its samples."""

    def __init__(self) -> None:
        self._last: LazySource | None = None

    def still(self, source: LazySource) -> bool:
        """Whether `source` was the last one read; from now on it is, and what another one held is released."""
        if self._last is source:
            return True
        if self._last is not None:
            self._last.release()
        self._last = source
        return False


class DatasetSource:
    """A map-style data set, read sample by sample by data-loader workers: for data that does not fit in memory.

    A sample is `dataset[i]`, whose first part is a tensor, an array or a PIL image; `rows` chooses which samples belong here.
    Reading raises FrameworkError where an item has another shape or dtype than the data set's first.
    """

    in_memory = False

    def __init__(self, dataset: Any, targets: Tensor, rows: Tensor | None = None) -> None:
        self.dataset = dataset
        self.rows = torch.arange(len(dataset)) if rows is None else rows
        self.targets = targets.to(torch.int64)

    def __len__(self) -> int:
        return self.rows.shape[0]

    @cached_property
    def first(self) -> Tensor:
        """The first item of the whole data set."""
        return item_of(self.dataset, 0)

    def read(self, rows: Tensor) -> Tensor:
        items = self.first.new_empty(len(rows), *self.first.shape)
        for place, row in enumerate(self.rows[rows].tolist()):
            item = item_of(self.dataset, row)
            check_alike(item, f"sample {row}", self.first, "sample 0")
            if item.is_floating_point() and not bool(item.isfinite().all()):
                raise FrameworkError(f"sample {row} holds a value that is no finite number. Mend it, or leave the sample out.")
            items[place] = item
        return items

    def select(self, rows: Tensor) -> Self:
        """Some of the samples as a source of their own."""
        return type(self)(self.dataset, self.targets[rows], self.rows[rows])


class Selectable(Protocol):
    """A source of which some samples can be taken."""

    targets: Tensor

    def select(self, rows: Tensor) -> Self: ...


AnySource = TypeVar("AnySource", bound=Selectable)
AnyKind = TypeVar("AnyKind")


def as_tensor(item: Any) -> Tensor:
    """A raw item as a tensor: a PIL image becomes (C, H, W) uint8, floats of any width float32."""
    if hasattr(item, "getbands"):
        pixels = torch.from_numpy(numpy.array(item))  # (H, W) or (H, W, C); a copy, since the image may be closed
        return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()
    tensor = torch.as_tensor(item)
    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor


def item_of(dataset: Any, row: int) -> Tensor:
    """Sample `row` without its label, as a tensor. FrameworkError where a stranger's data set does not give it."""
    try:
        return as_tensor(dataset[row][0])
    except FrameworkError:
        raise
    except Exception as error:  # whatever it raises, the sample is what must be known
        raise FrameworkError(f"sample {row} of {type(dataset).__name__} cannot be read: {type(error).__name__}: {error}.") from error


def check_alike(item: Tensor, owner: str, first: Tensor, owner_of_first: str) -> None:
    """Raises FrameworkError where an item has another shape or dtype than the first."""
    if item.shape != first.shape:
        raise FrameworkError(f"{owner} has shape {tuple(item.shape)}, {owner_of_first} {tuple(first.shape)}: all must have one shape.")
    if item.dtype != first.dtype:
        raise FrameworkError(
            f"{owner} has dtype {dtype_name(item)}, {owner_of_first} {dtype_name(first)}: all must have one dtype. "
            "Convert to uint8 in 0 .. 255 or to float."
        )


def dtype_name(item: Tensor) -> str:
    return str(item.dtype).removeprefix("torch.")


def targets_of(dataset: Any) -> Tensor:
    """The labels (N,) int64 of a map-style data set: its `targets`, else found by one pass over it.

    Raises FrameworkError where there is no sample, or not one whole number >= 0 a sample.
    """
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise ConfigurationError(f"a data set must have len(data) and data[i] -> item, label; got {type(dataset).__name__}.")
    if not len(dataset):
        raise FrameworkError(f"the data set {type(dataset).__name__} has no samples.")
    targets = getattr(dataset, "targets", None)
    if targets is None:
        targets = [_label_of(dataset, row) for row in range(len(dataset))]
    try:
        labels = targets if isinstance(targets, Tensor) else torch.as_tensor(numpy.asarray(targets))
    except (TypeError, ValueError, RuntimeError) as error:
        raise FrameworkError(f"labels must be whole numbers 0 .. C - 1, got {targets[0]!r} for sample 0.") from error
    labels = labels.flatten() if labels.shape == (len(dataset), 1) else labels
    if labels.ndim != 1 or len(labels) != len(dataset):
        raise FrameworkError(
            f"the data set has {len(dataset)} samples, but targets of shape {tuple(labels.shape)}: one label a sample is needed."
        )
    whole = labels.to(torch.int64)
    wrong = ((whole < 0) | (labels.to(torch.float64) != whole)).nonzero().flatten().tolist()
    if wrong:
        raise FrameworkError(f"labels must be whole numbers 0 .. C - 1, got {labels[wrong[0]].item()} for sample {wrong[0]}.")
    return whole


def _label_of(dataset: Any, row: int) -> Any:
    try:
        return dataset[row][1]
    except Exception as error:  # as for `item_of`
        name = type(dataset).__name__
        raise FrameworkError(
            f"sample {row} of {name} has no label to be read ({type(error).__name__}: {error}): data[i] must be (item, label)."
        ) from error


def fits_in_memory(size: int) -> bool:
    """Whether `size` bytes take at most half of this machine's memory."""
    return size <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def held_on(sources: Sequence[AnyKind], device: torch.device, room: int) -> list[AnyKind | TensorSource | LazySource]:
    """The sources, with what is held as tensors held on `device` as long as it takes at most `room` bytes; else all as they are.

    Sources that share their tensors share them there too. What workers read stays with them.
    """
    tensors = {id(base): base for base in map(_tensors_of, sources) if base is not None}
    if sum(base.items.numel() * base.items.element_size() for base in tensors.values()) > room:
        return list(sources)
    moved = {key: base.on(device) for key, base in tensors.items()}

    def there(source: AnyKind) -> AnyKind | TensorSource | LazySource:
        base = _tensors_of(source)
        if base is None:
            return source
        return source.on(device, moved[id(base)]) if isinstance(source, LazySource) else moved[id(base)]

    return [there(source) for source in sources]


def _tensors_of(source: object) -> TensorSource | None:
    if isinstance(source, LazySource):
        return source.base
    return source if isinstance(source, TensorSource) else None


def materialise(dataset: Any, targets: Tensor, in_memory: str) -> TensorSource | DatasetSource:
    """Hold a data set as tensors if it fits (`auto`) or `always`, else (`never`) leave it to workers."""
    try:
        check_choice("in_memory", in_memory, ("auto", "always", "never"))
    except ValueError as error:
        raise ConfigurationError(f"{error}.") from error
    source = DatasetSource(dataset, targets)
    if in_memory == "never" or (in_memory == "auto" and not fits_in_memory(source.first.nbytes * len(dataset))):
        return source
    return TensorSource(source.read(torch.arange(len(dataset))), targets)


def divide_classes(
    num_classes: int, tasks: int | None, classes_per_task: int | None, class_order: Sequence[int] | None
) -> list[tuple[int, ...]]:
    """Which classes each task holds, in `class_order`; a remainder is never dropped.

    With `tasks` (by default as many as classes) the first tasks take one class more each (10 in 3: 4, 3, 3); with `classes_per_task`
    the last task takes what is left. Raises ValueError with the values allowed.
    """
    order = list(class_order) if class_order is not None else list(range(num_classes))
    if sorted(order) != list(range(num_classes)):
        raise ValueError(f"class_order must hold each class 0 to {num_classes - 1} once, got {order}")
    for option, value in (("tasks", tasks), ("classes_per_task", classes_per_task)):
        if value is not None and type(value) is not int:
            raise ValueError(f"{option} must be a whole number, got {value!r}")
    if classes_per_task is not None:
        if not 1 <= classes_per_task <= num_classes:
            raise ValueError(f"classes_per_task must be between 1 and the number of classes {num_classes}, got {classes_per_task}")
        return [tuple(order[first : first + classes_per_task]) for first in range(0, num_classes, classes_per_task)]
    tasks = num_classes if tasks is None else tasks
    if not 1 <= tasks <= num_classes:
        raise ValueError(f"tasks must be between 1 and the number of classes {num_classes}, got {tasks}")
    sizes = [num_classes // tasks + (task < num_classes % tasks) for task in range(tasks)]
    ends = [sum(sizes[: task + 1]) for task in range(tasks)]
    return [tuple(order[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def split_by_class(source: AnySource, classes: Sequence[Sequence[int]]) -> list[AnySource]:
    """One source a task, with the samples of its classes in their original order."""
    return [source.select(torch.isin(source.targets, torch.tensor(held)).nonzero().flatten()) for held in map(list, classes)]
