"""The rows that go through the model in one live pass: the stream's, and behind them those of each joined draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cl_framework.batch import Batch, Rows
from cl_framework.inputs import concatenated

TASK = "task"  # the name of the mean loss of the stream's rows


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one owner, and where they lie in the live pass."""

    rows: Rows
    first: int
    last: int


class JoinedRows:
    """What the model and the criterion read of some rows, one after another; raw items and ids stay with their owners."""

    def __init__(self, members: Sequence[Rows]) -> None:
        self._members = members
        self.inputs = concatenated([rows.inputs for rows in members if rows.inputs is not None])
        self.targets = torch.cat([rows.targets for rows in members])

    def __len__(self) -> int:
        return self.targets.shape[0]

    @cached_property
    def task_of_row(self) -> Tensor:
        """Put together only where the scenario or the model asks for it."""
        return torch.cat([rows.task_of_row for rows in self._members])

    @property
    def tasks(self) -> Tensor:
        """As `Rows.tasks`."""
        return torch.cat([rows.tasks for rows in self._members])

    @property
    def host_tasks(self) -> Tensor | None:
        known = [rows.host_tasks for rows in self._members if rows.host_tasks is not None]
        return torch.cat(known) if len(known) == len(self._members) else None


def join(batch: Batch) -> tuple[Rows | JoinedRows, dict[str, Part]]:
    """The rows of the live pass, and which part of them belongs to the stream ("task") and to each joined draw."""
    end = len(batch)
    parts = {TASK: Part(batch, 0, end)}
    members: list[Rows] = [batch] if end else []
    for named in batch.draws.values():
        for draw in named.values():
            count = len(draw.rows)
            if draw.kind == "joined" and count:
                parts[draw.key] = Part(draw.rows, end, end + count)
                end += count
                members.append(draw.rows)
    if len(members) <= 1:
        return (members[0] if members else batch), parts
    return JoinedRows(members), parts
