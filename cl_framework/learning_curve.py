"""How a task is learned: accuracy on its rows in training, measured on outputs that the step has made anyway.

No pass is run for it, only some steps are looked at, and the device is waited for when the event ends or a checkpoint is written.
In a first epoch the rows have not been trained on before, so that this is accuracy on new samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cl_framework.criterion import asked, right

POINTS = 50  # most points of a phase
ROWS = 100  # rows behind a point, at least, where the phase has so many

Entry = Sequence[int]  # first step of its point, correct answers, answers
Point = tuple[int, float, int]  # steps done before it, accuracy in percent, answers it was measured on


class LearningCurve:
    """The curve of one event. `begin` says which steps of a phase are looked at; none before that."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries = [tuple(entry) for entry in entries]
        self._unread: list[tuple[int, Tensor]] = []
        self._spacing, self._width = 1, 0

    def begin(self, steps: int, visits: int) -> None:
        """A phase of `steps` steps with `visits` rows in all begins."""
        self._width = -(-ROWS * steps // max(1, visits))
        self._spacing = max(1, self._width, -(-steps // POINTS))

    def rest(self) -> None:
        """A phase in which nothing is looked at begins."""
        self._width = 0

    def wants(self, step: int) -> bool:
        """Whether this step is looked at: the first ones of every so many."""
        return step % self._spacing < self._width

    def note(self, step: int, logits: Tensor, targets: Tensor, own: Tensor, whole_rows: bool = False) -> None:
        """What the step answered: logits (B, C) and targets (B,), or (B, C, L) and (B, L); own (B,): rows of the event's own task.

        whole_rows: whether an answer is right only when all places of its row are, as in accuracies after events.
        """
        own = own.unsqueeze(1) if targets.ndim == 2 and not whole_rows else own
        counts = torch.stack([(right(logits, targets, whole_rows) & own).sum(), (asked(targets, whole_rows) & own).sum()])
        self._unread.append((step - step % self._spacing, counts))

    def entries(self) -> list[list[int]]:
        """All that was noted, step by step. Waits for the device."""
        if self._unread:
            found = torch.stack([counts for _, counts in self._unread]).tolist()
            self._entries += [(first, *counts) for (first, _), counts in zip(self._unread, found, strict=True)]
            self._unread = []
        return [list(entry) for entry in self._entries]


def points(entries: Iterable[Entry]) -> list[Point]:
    """The entries of each point put together; points without rows are left out."""
    together: dict[int, list[int]] = {}
    for first, correct, rows in entries:
        point = together.setdefault(first, [0, 0])
        point[0] += correct
        point[1] += rows
    return [(first, 100.0 * correct / rows, rows) for first, (correct, rows) in together.items() if rows]
