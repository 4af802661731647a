"""NPO: lower the likelihood of what is to be forgotten, ever more gently the less likely it is than before the request.

Source: Zhang et al. 2024, "Negative Preference Optimization", eq. 3: L = (2 / beta) mean log(1 + (p / p_ref)^beta), p the likelihood of a
    forget row, p_ref that of the model at the start of the request.
Uses: unlearn, loss, forget, state_dict, load_state_dict
Cost: two forward passes (one without gradient) and one backward pass over the forget rows a step, and a copy of the model.
Differs: nothing for classifiers, where a sequence has length 1; of a text, log-likelihoods are sums over the answers it asks for. Plain
    SGD. Published with beta 0.1, which here stops too late. Seen here (split digits, class-incremental, "L0-4 U1", ER beside it, seeds
    0 and 1) with the defaults: the task falls to 0 %, the others lose 9.0 and 15.4 points.
Interacts: the reference is the evaluated model, and lives as long as its phase does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional

from cl_framework import (
    Batch,
    Context,
    Forgotten,
    Output,
    Phase,
    Strategy,
    Term,
    Traits,
    Unlearn,
    answers_asked,
    check_range,
    forget_phase,
    register,
)


def npo(log_likelihoods: Tensor, reference: Tensor, beta: float) -> Tensor:
    """-(2 / beta) mean log sigmoid(-beta (log p - log p_ref)) of log-likelihoods (B,), of whole sequences where there are any."""
    return -(2 / beta) * functional.logsigmoid(-beta * (log_likelihoods - reference)).mean()


@dataclass(frozen=True)
class NPOConfig:
    beta: float = 1.0  # > 0: how soon it stops by itself; towards 0 it is gradient ascent
    lr: float = 0.005  # > 0
    steps: int = 60  # at most, >= 1
    epochs: int = 3  # over the forget rows, >= 1

    def __post_init__(self) -> None:
        check_range("beta", self.beta, above=0)
        check_range("lr", self.lr, above=0)
        check_range("steps", self.steps, low=1)
        check_range("epochs", self.epochs, low=1)


@register("npo")
class NPO(Strategy):
    """Unlearns by negative preference optimization against the model of the request's start."""

    Config = NPOConfig
    traits = Traits(unlearns=frozenset({"task", "class", "sample"}), unlearning_reads=frozenset({"forget"}), neutral={})

    def __init__(self, config: NPOConfig) -> None:
        super().__init__(config)
        self._reference: dict[str, Tensor] = {}

    def unlearn(self, event: Unlearn, context: Context) -> Sequence[Phase]:
        options = self.config
        self._reference = context.snapshot()
        return [forget_phase("npo", context, lr=options.lr, steps=options.steps, epochs=options.epochs)]

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        if not isinstance(context.position.event, Unlearn):
            return {}

        def value() -> Tensor:
            count = answers_asked(batch.targets)  # the criterion is a mean over them
            before = -context.criterion(context.forward(batch, at=self._reference), batch) * count
            return npo(-context.criterion(output.logits, batch) * count, before, self.config.beta)

        return {"forget": Term(value)}

    def forget(self, forgotten: Forgotten, context: Context) -> None:
        self._reference = {}

    def state_dict(self) -> dict[str, Any]:
        return {"reference": dict(self._reference)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._reference = dict(state["reference"])
