"""Gradient ascent: climb the loss of what is to be forgotten.

Source: the baseline of machine unlearning, e.g. Golatkar et al. 2020, "NegGrad". L = -mean over forget rows of -log p(y|x).
Uses: unlearn, loss
Cost: one forward and one backward pass over the forget rows a step; nothing while learning.
Differs: steps are capped (`steps`), since the loss has no lower bound and the model is destroyed if it goes on. The optimizer is plain
    SGD at a rate of its own. Of a text the mean is over its answered tokens first and then over rows, where the usual one is over all
    tokens. Approximate: what comes out depends on the path that was learned along. Seen here (split digits, class-incremental,
    "L0-4 U1", ER beside it, seeds 0 and 1): the task falls from 85 and 90 % to 30 and 26, the others lose 2.5 and 5.3 points; at four
    times the rate everything is at 0.
Interacts: replayed samples of other strategies take no part, so that what is retained is not held by anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from cl_framework import Batch, Context, Output, Phase, Strategy, Term, Traits, Unlearn, check_range, forget_phase, register


def ascent(log_likelihoods: Tensor) -> Tensor:
    """The mean log-likelihood of forget rows (B,): descending on it climbs their loss."""
    return log_likelihoods.mean()


@dataclass(frozen=True)
class GradientAscentConfig:
    lr: float = 0.005  # > 0
    steps: int = 20  # at most, >= 1: an epoch over the forget rows may have fewer
    epochs: int = 1  # over the forget rows, >= 1

    def __post_init__(self) -> None:
        check_range("lr", self.lr, above=0)
        check_range("steps", self.steps, low=1)
        check_range("epochs", self.epochs, low=1)


@register("gradient_ascent")
class GradientAscent(Strategy):
    """Unlearns by gradient ascent on the data named."""

    Config = GradientAscentConfig
    traits = Traits(unlearns=frozenset({"task", "class", "sample"}), unlearning_reads=frozenset({"forget"}), neutral={})

    def unlearn(self, event: Unlearn, context: Context) -> Sequence[Phase]:
        options = self.config
        return [forget_phase("ascent", context, lr=options.lr, steps=options.steps, epochs=options.epochs)]

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        if not isinstance(context.position.event, Unlearn):
            return {}
        return {"forget": Term(lambda: ascent(-context.criterion(output.logits, batch)))}
