"""What flows through a step: samples as tensors, and what strategies draw beside them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from cl_framework.errors import ContractError
from cl_framework.inputs import Inputs, each


@dataclass(slots=True)
class Rows:
    """Samples as tensors: row i of every field belongs to sample i.

    `items` are raw and un-augmented (uint8 images, token ids): what a memory may keep. `inputs` are what the model reads; the
    framework makes them from the items of a batch or a draw, augmentation included. `extras` are tensors stored beside the sample.
    """

    items: Inputs  # (B, ...)
    targets: Tensor  # (B,) int64; (B, L) of texts of L places, see `criterion`
    ids: Tensor  # (B,) int64, global sample ids
    task_of_row: Tensor  # (B,) int64; strategies read `tasks`
    inputs: Inputs | None = None  # (B, ...)
    extras: dict[str, Tensor] = field(default_factory=dict)
    view: Tensor | None = None  # (B,) which view of its sample a row is, where rows are views
    group: Tensor | None = None  # (B,) rows of one group show the same sample
    strong: Tensor | None = None  # (B,) bool: rows that are augmented strongly, where a plan or a strategy asks for that
    tasks_readable: bool = True
    host_targets: Tensor | None = None  # copies on the host where the rows came from there, so that no step waits for the device
    host_tasks: Tensor | None = None
    host_group: Tensor | None = None

    @property
    def tasks(self) -> Tensor:
        """The task of each row, (B,) int64. Raises ContractError unless a strategy of the stack declares `needs_task_id`."""
        if not self.tasks_readable:
            raise ContractError("a strategy read batch.tasks, but none in this stack declares Traits(needs_task_id=True).")
        return self.task_of_row

    def __len__(self) -> int:
        return self.targets.shape[0]

    def take(self, index: Tensor) -> Rows:
        """Some of the rows, by number (N,) or by a mask (B,), as raw items: their inputs are made anew."""
        view, group, strong = (None if column is None else column[index] for column in (self.view, self.group, self.strong))
        return Rows(
            each(lambda part: part[index], self.items),
            self.targets[index],
            self.ids[index],
            self.task_of_row[index],
            extras={name: value[index] for name, value in self.extras.items()},
            view=view,
            group=group,
            strong=strong,
            tasks_readable=self.tasks_readable,
        )


@dataclass(slots=True)
class Draw:
    """Rows that a strategy adds to a step, and how they meet the batch.

    `joined`: one forward pass over batch and rows; the rows get their own term, and it and `task` are weighted by their share of
    the rows. `separate`: a pass of their own, run when a term reads it. `reference`: a pass of their own and no weight in the
    objective; the closure evaluates its mean loss when it is asked for by the name "slot/name".
    """

    rows: Rows
    kind: str  # joined, separate or reference
    key: str = ""  # "slot/name", set by the stack

    @classmethod
    def joined(cls, rows: Rows) -> Draw:
        return cls(rows, "joined")

    @classmethod
    def separate(cls, rows: Rows) -> Draw:
        return cls(rows, "separate")

    @classmethod
    def reference(cls, rows: Rows) -> Draw:
        return cls(rows, "reference")


@dataclass(slots=True)
class Batch(Rows):
    """The stream's rows of one step. `draws[slot][name]` is what the strategies drew for it."""

    draws: dict[str, dict[str, Draw]] = field(default_factory=dict)
