"""The least a memory can be, rows on a shelf, and the least a strategy does with one: for the fakes and the broken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cl_framework.strategy import Batch, Context, Forgotten, Output, Rows, Strategy


def take(rows: Rows, index: Tensor) -> Rows:
    """The rows at `index`, as raw items."""
    assert isinstance(rows.items, Tensor)
    extras = {name: value[index] for name, value in rows.extras.items()}
    return Rows(rows.items[index], rows.targets[index], rows.ids[index], rows.task_of_row[index], extras=extras)


class Shelf:
    """Keeps the rows it is given while there is room; if `balanced`, a full shelf gives up a row of its largest class for a smaller one."""

    def __init__(self, capacity: int, balanced: bool = False) -> None:
        self.capacity = capacity
        self.balanced = balanced
        self.rows: Rows | None = None

    def __len__(self) -> int:
        return 0 if self.rows is None else len(self.rows)

    def add(self, rows: Rows) -> None:
        for index in range(len(rows)):
            self._add_one(take(rows, torch.tensor([index])))

    def _add_one(self, row: Rows) -> None:
        if self.rows is None:
            self.rows = row if self.capacity else None
            return
        if len(self) >= self.capacity:
            labels, counts = self.rows.targets.unique(return_counts=True)
            largest = int(counts.argmax())
            own = int((self.rows.targets == row.targets).sum())
            if not self.balanced or own >= int(counts[largest]):
                return
            out = int((self.rows.targets == labels[largest]).nonzero()[0])
            self.rows = take(self.rows, torch.arange(len(self)) != out)
        self.rows = _concatenate(self.rows, row)

    def sample(self, count: int, uniforms: Tensor) -> Rows | None:
        """At most `count` rows, by the ranks of uniforms (>= capacity,)."""
        return None if self.rows is None else take(self.rows, uniforms[: len(self)].argsort()[:count])

    def forget(self, ids: Tensor) -> None:
        if self.rows is not None:
            kept = take(self.rows, ~torch.isin(self.rows.ids, ids))
            self.rows = kept if len(kept) else None

    def state_dict(self) -> dict[str, Any]:
        rows = self.rows
        return {} if rows is None else {"items": rows.items, "targets": rows.targets, "ids": rows.ids, "tasks": rows.task_of_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows = Rows(state["items"], state["targets"], state["ids"], state["tasks"]) if state else None


def _concatenate(one: Rows, other: Rows) -> Rows:
    assert isinstance(one.items, Tensor) and isinstance(other.items, Tensor)
    return Rows(
        torch.cat([one.items, other.items]),
        torch.cat([one.targets, other.targets]),
        torch.cat([one.ids, other.ids]),
        torch.cat([one.task_of_row, other.task_of_row]),
    )


class Shelved(Strategy):
    """What strategies with a shelf share: it is filled by `commit`, forgets, and is saved."""

    _shelf: Shelf

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        if len(batch):
            self._shelf.add(batch)

    def forget(self, forgotten: Forgotten, context: Context) -> None:
        self._shelf.forget(forgotten.ids)

    def state_dict(self) -> dict[str, Any]:
        return self._shelf.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._shelf.load_state_dict(state)
