"""GradDiff: climb the loss of what is to be forgotten while descending on what is retained.

Source: Liu et al. 2022, "Continual Learning and Private Unlearning", and Maini et al. 2024 (TOFU), "gradient difference":
    L = -gamma mean -log p(forget) + alpha mean -log p(retained).
Uses: unlearn, loss
Cost: two forward passes a step, over forget rows and over what memories lend; nothing while learning.
Differs: retained rows are drawn from the memories of the stack, and not one at random for each forget row. Plain SGD, capped steps.
    Of a text both means are over its answered tokens first and then over rows, where the published loss is one over all tokens.
    Published with gamma 1, which here destroys everything within 20 steps. Seen here (split digits, class-incremental, "L0-4 U1", ER
    beside it, seeds 0 and 1) with the defaults: the task falls to 0 %, the others lose 2.5 and 1.7 points.
Interacts: borrows the draws of every memory beside it, without what is forgotten; needs at least one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cl_framework import Batch, Context, Output, Phase, Strategy, Term, Traits, Unlearn, check_range, forget_phase, register, retained_terms


@dataclass(frozen=True)
class GradDiffConfig:
    lr: float = 0.05  # > 0
    steps: int = 40  # at most, >= 1
    epochs: int = 2  # over the forget rows, >= 1
    gamma: float = 0.1  # weight of the ascent, >= 0; 0 is fine-tuning on what is retained
    alpha: float = 1.0  # weight of what is retained, >= 0; 0 is gradient ascent

    def __post_init__(self) -> None:
        check_range("lr", self.lr, above=0)
        check_range("steps", self.steps, low=1)
        check_range("epochs", self.epochs, low=1)
        check_range("gamma", self.gamma, low=0)
        check_range("alpha", self.alpha, low=0)


@register("grad_diff")
class GradDiff(Strategy):
    """Unlearns by ascent on the data named and descent on lent samples of the rest."""

    Config = GradDiffConfig
    traits = Traits(unlearns=frozenset({"task", "class", "sample"}), unlearning_reads=frozenset({"forget", "memory"}), neutral={})

    def unlearn(self, event: Unlearn, context: Context) -> Sequence[Phase]:
        options = self.config
        return [forget_phase("difference", context, lr=options.lr, steps=options.steps, epochs=options.epochs)]

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        if not isinstance(context.position.event, Unlearn):
            return {}
        forget = {"forget": Term(lambda: -context.criterion(output.logits, batch).mean(), self.config.gamma)}
        return forget | retained_terms(batch, output, context, self.config.alpha)
