"""A control of unlearning: go on training on what is retained, and hope.

Source: EVALUATION's controls: "fine-tune on what is retained", e.g. Golatkar et al. 2020, "fine-tuning".
Uses: unlearn, loss
Cost: one forward and one backward pass over lent rows a step; nothing while learning.
Differs: retained rows are drawn from the memories of the stack. Plain SGD.
    Seen here (split digits, class-incremental, "L0-4 U1", ER beside it, seeds 0 and 1): the task falls from 85 and 90 % to 66 and 67.
Interacts: borrows the draws of every memory beside it, without what is forgotten; needs at least one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cl_framework import Batch, Context, Output, Phase, Strategy, Term, Traits, Unlearn, check_range, register, retained_terms


@dataclass(frozen=True)
class FinetuneRetainConfig:
    lr: float = 0.1  # > 0
    steps: int = 60  # >= 1

    def __post_init__(self) -> None:
        check_range("lr", self.lr, above=0)
        check_range("steps", self.steps, low=1)


@register("finetune_retain")
class FinetuneRetain(Strategy):
    """Answers every request by training on lent samples of the rest."""

    Config = FinetuneRetainConfig
    traits = Traits(unlearns=frozenset({"task", "class", "sample"}), unlearning_reads=frozenset({"memory"}), neutral={})

    def unlearn(self, event: Unlearn, context: Context) -> Sequence[Phase]:
        sgd = {"name": "sgd", "lr": self.config.lr, "momentum": 0.0, "weight_decay": 0.0}
        return [Phase("finetune", self.config.steps, optimizer=sgd, task_term=False)]

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        if not isinstance(context.position.event, Unlearn):
            return {}
        return retained_terms(batch, output, context)
