"""What is asked of a row: one class, or one class at each of its places (language modelling), by cross-entropy.

Logits are (B, C) with targets (B,), or (B, C, L) with targets (B, L), classes before places as everywhere in torch; a place whose
target is `IGNORED` asks nothing. A row's loss is the mean over its places, so that a mean over rows means the same for both.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100  # target of a place at which nothing is asked


def row_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each row in nats, (B,); 0 where a row has no place at which something is asked."""
    if targets.ndim == 1:
        return functional.cross_entropy(logits, targets, reduction="none")
    return place_losses(logits, targets).sum(1) / asked(targets).sum(1).clamp(min=1)


def place_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy at each place in nats, (B, L); 0 where nothing is asked. logits (B, C, L), targets (B, L)."""
    flat = logits.transpose(1, 2).reshape(-1, logits.shape[1])  # a language model's logits lie so: a view
    return functional.cross_entropy(flat, targets.reshape(-1), reduction="none", ignore_index=IGNORED).view(targets.shape)


def asked(targets: Tensor, whole_rows: bool = False) -> Tensor:
    """Which places ask for an answer, as bool in the shape of the targets; with `whole_rows` which rows do, (B,)."""
    places = targets != IGNORED
    return places.any(1) if whole_rows else places


def mean_asked(values: Tensor, targets: Tensor) -> Tensor:
    """Of values at places (B, L) each row's mean over those that ask, (B,), 0 where none does; values of whole rows (B,) as they are."""
    if values.ndim == 1:
        return values
    places = asked(targets)
    return values.masked_fill(~places, 0.0).sum(1) / places.sum(1).clamp(min=1)


def squared_distance(logits: Tensor, others: Tensor, targets: Tensor) -> Tensor:
    """The mean squared difference of logits (B, C) from others, a scalar; of (B, C, L) at the places that ask, each row's mean alike."""
    if logits.ndim == 2:
        return functional.mse_loss(logits, others)
    return mean_asked((logits - others).square().mean(1), targets).mean()


def last_asked(targets: Tensor) -> Tensor:
    """The last place of each row (B, L) at which something is asked, (B,): behind it there may be padding. Each row asks at least once."""
    return (asked(targets) * torch.arange(targets.shape[1], device=targets.device)).argmax(1)


def answers_asked(targets: Tensor) -> Tensor:
    """How many answers each row asks for, (B,): one of a class, one at each place of a text that asks."""
    return asked(targets).flatten(1).sum(1) if targets.ndim > 1 else torch.ones_like(targets)


def right(logits: Tensor, targets: Tensor, whole_rows: bool = False) -> Tensor:
    """Which answers are right, as bool in the shape of the targets; with `whole_rows` which rows are, (B,): those right at all places.

    As each place is asked with the right tokens before it, a row is right where greedy decoding would give its answer. False where
    nothing is asked.
    """
    hits = logits.argmax(1) == targets
    if not whole_rows:
        return hits
    places = asked(targets)
    return (hits | ~places).all(1) & places.any(1)


class Labelled(Protocol):
    """Rows, as far as the criterion reads them."""

    @property
    def targets(self) -> Tensor: ...  # (B,) or (B, L) int64

    @property
    def task_of_row(self) -> Tensor: ...  # (B,) int64; read only where the scenario masks


class Criterion:
    """The cross-entropy under a scenario: masked to the classes of a row's task in task-incremental runs."""

    def __init__(self, class_mask: Tensor | None) -> None:
        self.class_mask = class_mask  # (T, C) bool, or None for no masking

    def masked(self, logits: Tensor, tasks: Tensor) -> Tensor:
        """Logits with the classes of other tasks at -inf, where the scenario masks; tasks (B,)."""
        if self.class_mask is None:
            return logits
        return logits.masked_fill(~self.class_mask[tasks], float("-inf"))

    def mean(self, logits: Tensor, rows: Labelled) -> Tensor:
        """The mean over rows, a scalar."""
        if rows.targets.ndim == 1:
            return functional.cross_entropy(self._masked(logits, rows), rows.targets)
        return self.rows(logits, rows).mean()

    def rows(self, logits: Tensor, rows: Labelled) -> Tensor:
        """The loss of each row, (B,)."""
        return row_losses(self._masked(logits, rows), rows.targets)

    def _masked(self, logits: Tensor, rows: Labelled) -> Tensor:
        return logits if self.class_mask is None else self.masked(logits, rows.task_of_row)
