"""RMU: drive the features of what is to be forgotten towards one random direction, and hold those of what is retained where they were.

Source: Li et al. 2024, "The WMDP Benchmark", section 4: L = mean (h(forget) - c u)^2 + alpha mean (h(retained) - h_ref(retained))^2, h the
    features, u a unit vector drawn uniform in [0, 1)^d and normalised, h_ref those of the model at the start of the request.
Uses: check, unlearn, loss, forget, state_dict, load_state_dict
Cost: three forward passes a step, over forget rows and twice over what memories lend (once without gradient), one backward pass, and a
    copy of the model while it unlearns; nothing while learning.
Differs: h is what the head reads, where the publication steers a layer in the middle of a language model, token by token; all that lies
    below moves, not three matrices alone. Retained rows are drawn from the memories of the stack. Plain SGD, capped steps.
    The mean is over all places of a batch that ask, so that longer rows weigh more.
    The head gets no gradient: what was forgotten gets the answer that the head gives to c u, which may be a class of the task itself.
    It stays as it was when it knew the data, and the deletion record names it (M11).
    Seen here (split digits, class-incremental, "L0-4 U1", ER beside it, seeds 0 and 1) with the defaults: the task falls from 86 and
    85 % to 0 and 43 %, where most of its rows are given one of its two classes; the others lose 2.0 and 4.8 points. Larger c or rate
    forgets more and costs more: with c = 20 and a rate of 1 it falls to 0 and 8 %, and the others lose 9.1 and 9.8 points.
Interacts: borrows the draws of every memory beside it, without what is forgotten; needs at least one. The reference is the evaluated
    model; it and u live as long as their phase does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cl_framework import (
    Batch,
    ConfigurationError,
    Context,
    Draw,
    Forgotten,
    Output,
    Phase,
    Setting,
    Strategy,
    Term,
    Traits,
    Unlearn,
    asked,
    check_range,
    forget_phase,
    has_features,
    lent,
    register,
)


def random_direction(width: int, generator: torch.Generator) -> Tensor:
    """(D,): uniform in [0, 1)^D, not centred, of length 1."""
    drawn = torch.rand(width, generator=generator)
    return drawn / drawn.norm()


def mean_square(features: Tensor, wanted: Tensor, targets: Tensor) -> Tensor:
    """Mean of the squared difference of features, (B, D) or (B, L, D), and what they shall be, in their shape or (D,).

    Of texts only places that ask for an answer count, targets (B, L): neither what a prompt says nor padding; 0 where none asks.
    """
    differences = features - wanted
    if features.ndim == 2:
        return differences.square().mean()
    places = asked(targets)  # picked by index, an accelerator would stop to count them
    squares = differences.masked_fill(~places.unsqueeze(2), 0.0).square().sum()
    return squares / (places.sum().clamp(min=1) * features.shape[2])


@dataclass(frozen=True)
class RMUConfig:
    c: float = 20.0  # length of what the features of forget rows are driven to, >= 0
    alpha: float = 1.0  # weight of holding the features of what is retained, >= 0
    lr: float = 0.3  # > 0
    steps: int = 60  # at most, >= 1
    epochs: int = 3  # over the forget rows, >= 1

    def __post_init__(self) -> None:
        check_range("c", self.c, low=0)
        check_range("alpha", self.alpha, low=0)
        check_range("lr", self.lr, above=0)
        check_range("steps", self.steps, low=1)
        check_range("epochs", self.epochs, low=1)


@register("rmu")
class RMU(Strategy):
    """Unlearns by misdirecting the features of the data named, held by lent samples of the rest."""

    Config = RMUConfig
    traits = Traits(unlearns=frozenset({"task", "class", "sample"}), unlearning_reads=frozenset({"forget", "memory"}), neutral={})

    def __init__(self, config: RMUConfig) -> None:
        super().__init__(config)
        self._direction: Tensor | None = None  # u, while unlearning
        self._reference: dict[str, Tensor] = {}

    def check(self, setting: Setting) -> None:
        model = setting.model
        if model is not None and not has_features(model):
            raise ConfigurationError(
                "c: features are steered, but the model has no `features` and `head`. Choose a model that has them, such as "
                "model.name=mlp, or an unlearner that needs none, such as grad_diff."
            )

    def unlearn(self, event: Unlearn, context: Context) -> Sequence[Phase]:
        options = self.config
        width = context.features(context.read(context.requested_ids[:1])).shape[-1]
        self._direction = random_direction(width, context.random("direction").generator()).to(context.device)
        self._reference = context.snapshot()
        return [forget_phase("rmu", context, lr=options.lr, steps=options.steps, epochs=options.epochs)]

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        direction = self._direction
        if direction is None or not isinstance(context.position.event, Unlearn):
            return {}
        options, reference = self.config, self._reference

        def moved(draw: Draw) -> Callable[[], Tensor]:
            return lambda: mean_square(output.of(draw).features, context.features(draw.rows, at=reference), draw.rows.targets)

        held = {f"retain_{number}": Term(moved(draw), options.alpha) for number, draw in enumerate(lent(batch, context.slot))}
        return {"forget": Term(lambda: mean_square(output.features, options.c * direction, batch.targets)), **held}

    def forget(self, forgotten: Forgotten, context: Context) -> None:
        self._direction, self._reference = None, {}

    def state_dict(self) -> dict[str, Any]:
        return {"direction": self._direction, "reference": dict(self._reference)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._direction, self._reference = state["direction"], dict(state["reference"])
