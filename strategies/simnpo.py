"""SimNPO: NPO without a reference model; the likelihood is normalised by length instead.

Source: Fan et al. 2024, "Simplicity Prevails", eq. 4: L = -(2 / beta) mean log sigmoid(beta (nll - delta)), nll the mean negative
    log-likelihood of a forget row's tokens; beside it the loss of what is retained, gamma L + alpha mean -log p(retained).
Uses: unlearn, loss
Cost: two forward passes a step, over forget rows and over what memories lend; nothing while learning.
Differs: retained rows are drawn from the memories of the stack. Plain SGD, capped steps. Defaults of beta, delta and alpha are those of
    open-unlearning, made for language models; gamma is 0.125 there. Seen here (split digits, class-incremental, "L0-4 U1", ER beside
    it, seeds 0 and 1): the task falls to 10 and 15 %, the others lose 0.0 and 2.6 points.
Interacts: borrows the draws of every memory beside it, without what is forgotten; needs at least one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from cl_framework import Batch, Context, Output, Phase, Strategy, Term, Traits, Unlearn, check_range, forget_phase, register, retained_terms


def simnpo(mean_nll: Tensor, beta: float, delta: float) -> Tensor:
    """-(2 / beta) mean log sigmoid(beta (nll - delta)) of length-normalised negative log-likelihoods (B,)."""
    return -(2 / beta) * functional.logsigmoid(beta * (mean_nll - delta)).mean()


@dataclass(frozen=True)
class SimNPOConfig:
    beta: float = 4.5  # > 0
    delta: float = 0.0  # the loss at which a row counts as half forgotten, >= 0
    gamma: float = 0.25  # weight of forgetting, >= 0
    alpha: float = 1.0  # weight of what is retained, >= 0
    lr: float = 0.1  # > 0
    steps: int = 60  # at most, >= 1
    epochs: int = 3  # over the forget rows, >= 1

    def __post_init__(self) -> None:
        check_range("beta", self.beta, above=0)
        check_range("delta", self.delta, low=0)
        check_range("gamma", self.gamma, low=0)
        check_range("alpha", self.alpha, low=0)
        check_range("lr", self.lr, above=0)
        check_range("steps", self.steps, low=1)
        check_range("epochs", self.epochs, low=1)


@register("simnpo")
class SimNPO(Strategy):
    """Unlearns by length-normalised negative preference optimization, held by lent samples of the rest."""

    Config = SimNPOConfig
    traits = Traits(unlearns=frozenset({"task", "class", "sample"}), unlearning_reads=frozenset({"forget", "memory"}), neutral={})

    def unlearn(self, event: Unlearn, context: Context) -> Sequence[Phase]:
        options = self.config
        return [forget_phase("simnpo", context, lr=options.lr, steps=options.steps, epochs=options.epochs)]

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        if not isinstance(context.position.event, Unlearn):
            return {}
        options = self.config
        forget = {"forget": Term(lambda: simnpo(context.criterion(output.logits, batch), options.beta, options.delta), options.gamma)}
        return forget | retained_terms(batch, output, context, self.config.alpha)
