"""What the memories of a stack lend to a strategy that unlearns: samples of what is retained."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from cl_framework.batch import Batch, Draw
from cl_framework.strategy import Context, Output, Term


def lent(batch: Batch, slot: str) -> list[Draw]:
    """The draws of other slots in a phase of `slot`'s unlearning."""
    return [draw for owner, named in batch.draws.items() if owner != slot for draw in named.values()]


def retained_terms(batch: Batch, output: Output, context: Context, weight: float = 1.0) -> dict[str, Term]:
    """A term for each lent draw: the mean loss of its rows."""

    def mean_loss(draw: Draw) -> Callable[[], Tensor]:
        return lambda: context.criterion(output.of(draw).logits, draw.rows).mean()

    return {f"retain_{number}": Term(mean_loss(draw), weight) for number, draw in enumerate(lent(batch, context.slot))}
