"""What a benchmark is: for each task, a training and a test source, and the classes it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from cl_framework.strategy import Inputs


class Source(Protocol):
    """Samples of one split of one task, by row number 0 .. len - 1. Reading is pure: no augmentation, no randomness."""

    targets: Tensor  # (N,) int64 global class labels
    in_memory: bool  # False: read by data-loader workers

    def __len__(self) -> int: ...

    def read(self, rows: Tensor) -> Inputs:
        """Raw items of these rows, (B, ...): one indexed read where the data is in memory."""
        ...


class Transform(Protocol):
    """Raw items to model inputs for a whole batch, on the items' device.

    `generator` is None in evaluation and where a plain reading is meant: then nothing random may be done. `random` says whether
    training batches are augmented; if it is False the result must not depend on the generator.
    """

    random: bool

    def __call__(self, items: Inputs, generator: torch.Generator | None) -> Inputs: ...


@dataclass(frozen=True)
class Benchmark:
    """A sequence of tasks. Sample ids are global: ids of task t are offset(t) .. offset(t) + len(train[t]) - 1."""

    name: str
    num_classes: int  # of the whole benchmark: the head's size
    classes: tuple[tuple[int, ...], ...]  # of each task; a remainder class is never dropped
    train: Sequence[Source]
    test: Sequence[Source]
    transform: Transform
    input_shape: tuple[int, ...]  # of one model input
    scenarios: tuple[str, ...]  # the scenarios it allows; the first is its default
    modality: str = "vision"
    notes: dict[str, str] = field(default_factory=dict)  # e.g. class order, angles: shown by `clu show`

    @property
    def num_tasks(self) -> int:
        return len(self.classes)

    @property
    def offsets(self) -> Tensor:
        """(T + 1,) int64: the first global sample id of each task, and the number of all."""
        lengths = torch.tensor([0, *(len(source) for source in self.train)])
        return lengths.cumsum(0)

    def ids_of(self, task: int) -> Tensor:
        """Global training sample ids of a task, ascending."""
        first = sum(len(source) for source in self.train[:task])
        return torch.arange(first, first + len(self.train[task]))
