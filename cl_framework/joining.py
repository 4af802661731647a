"""The rows that go through the model in one live pass: the stream's, and behind them those of each joined draw."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cl_framework.inputs import concatenated
from cl_framework.strategy import Batch, Rows

TASK = "task"  # the name of the mean loss of the stream's rows


def join(batch: Batch) -> tuple[Rows, dict[str, tuple[int, int]]]:
    """The rows of the live pass, and which part of them belongs to the stream ("task") and to each joined draw."""
    parts = {TASK: (0, len(batch))}
    members: list[Rows] = [batch] if len(batch) else []
    end = len(batch)
    for named in batch.draws.values():
        for draw in named.values():
            if draw.kind == "joined" and len(draw.rows):
                parts[draw.key] = (end, end + len(draw.rows))
                end += len(draw.rows)
                members.append(draw.rows)
    if len(members) <= 1:
        return (members[0] if members else batch), parts
    return concatenate(members), parts


def concatenate(members: Sequence[Rows]) -> Rows:
    """Rows one after another, as the model reads them; the raw items stay with their owners."""
    inputs = concatenated([rows.inputs for rows in members if rows.inputs is not None])
    targets = torch.cat([rows.targets for rows in members])
    ids = torch.cat([rows.ids for rows in members])
    tasks = torch.cat([rows.task_of_row for rows in members])
    known = [rows.host_tasks for rows in members if rows.host_tasks is not None]
    host_tasks = torch.cat(known) if len(known) == len(members) else None
    readable = all(rows.tasks_readable for rows in members)
    return Rows(members[0].items, targets, ids, tasks, inputs, tasks_readable=readable, host_tasks=host_tasks)
