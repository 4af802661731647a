"""Synaptic intelligence: hold the weights whose movement lowered the loss, as firmly as they lowered it.

Source: Zenke et al. 2017 "Continual Learning Through Synaptic Intelligence", eqs. 3 to 5: each step omega += -g dtheta; at a task's end
Omega += max(omega, 0) / ((theta - theta_start)^2 + xi); L = loss + c sum Omega (theta - theta*)^2.
Uses: step, loss, begin, end, forget, state_dict, load_state_dict
Cost: no further pass; a copy of the weights a step. Three copies of the weights as state.
Differs: g is the gradient that was applied, less that of the penalty itself, which is known in closed form; dtheta is the displacement
    that the optimizer really made, momentum and all. `released` is the code of Buzzega et al. 2020: omega += rate * g^2, the penalty's
    gradient included, gradients clipped by value to [-1, 1] before they are applied.
Interacts: terms of other strategies (replay) are part of the loss whose path is followed. A wrapper that moves weights before it calls
    inward (refresh) belongs outside of this one, where its movement is not counted. After an Unlearn nothing is held: Omega is a sum
    over tasks that cannot be taken apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cl_framework import (
    Batch,
    Closure,
    Context,
    Evaluation,
    Forgotten,
    Gradients,
    Learn,
    Output,
    Phase,
    StepFn,
    Strategy,
    Term,
    Traits,
    check_choice,
    check_range,
    register,
    weighted_squares,
)


def consolidated(path: Tensor, moved: Tensor, xi: float) -> Tensor:
    """What a task adds to the importance of weights that moved by `moved`: max(path, 0) / (moved^2 + xi)."""
    return path.clamp(min=0) / (moved.square() + xi)


def clipped(gradients: Gradients) -> Gradients:
    """Each entry in [-1, 1]."""
    return tuple(None if gradient is None else gradient.clamp(-1, 1) for gradient in gradients)


@dataclass(frozen=True)
class SIConfig:
    c: float = 1.0  # weight of the penalty, >= 0; 0 is fine-tuning
    xi: float = 0.1  # keeps the importance of weights that hardly moved finite, > 0
    variant: str = "paper"  # paper or released

    def __post_init__(self) -> None:
        check_range("c", self.c, low=0)
        check_range("xi", self.xi, above=0)
        check_choice("variant", self.variant, ("paper", "released"))


@register("si")
class SI(Strategy):
    """Synaptic intelligence: importance as the path integral of the loss along the training."""

    Config = SIConfig
    traits = Traits(needs_boundaries=True, neutral={"c": 0.0})

    def __init__(self, config: SIConfig) -> None:
        super().__init__(config)
        self._path: dict[str, Tensor] = {}
        self._start: dict[str, Tensor] = {}
        self._importance: dict[str, Tensor] = {}
        self._anchors: dict[str, Tensor] = {}

    def begin(self, context: Context) -> Sequence[Phase]:
        if self.config.c and isinstance(context.position.event, Learn):
            self._start = {name: parameter.detach().clone() for name, parameter in context.model.named_parameters()}
            self._path = {name: torch.zeros_like(value) for name, value in self._start.items()}
        return ()

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        held = self._held(context)
        if not held[0]:
            return {}
        return {"penalty": Term(lambda: weighted_squares(*held), self.config.c)}

    def step(self, inner: StepFn, context: Context) -> StepFn:
        if not self.config.c or not self._path:
            return inner
        released = self.config.variant == "released"
        parameters = context.parameters
        path = [self._path[name] for name in context.parameter_names]
        held = self._held(context)
        places = [place for place, name in enumerate(context.parameter_names) if name in self._importance]

        def followed(closure: Closure) -> Evaluation:
            before = [parameter.detach().clone() for parameter in parameters]
            evaluation = inner(closure.with_gradients(clipped) if released else closure)
            gradients = [
                torch.zeros_like(parameter) if gradient is None else gradient
                for gradient, parameter in zip(evaluation.gradients or [None] * len(before), parameters, strict=True)
            ]
            if released:
                torch._foreach_addcmul_(path, gradients, gradients, value=context.learning_rate)
                return evaluation
            if places:
                own = torch._foreach_mul(torch._foreach_sub([before[place] for place in places], held[1]), held[2])
                for place, part in zip(places, own, strict=True):
                    gradients[place] = gradients[place] - 2 * self.config.c * part
            moved = torch._foreach_sub([parameter.detach() for parameter in parameters], before)
            torch._foreach_addcmul_(path, gradients, moved, value=-1.0)
            return evaluation

        return followed

    def end(self, context: Context) -> Sequence[Phase]:
        if not self.config.c or not isinstance(context.position.event, Learn):
            return ()
        for name, parameter in context.model.named_parameters():
            gained = consolidated(self._path[name], parameter.detach() - self._start[name], self.config.xi)
            self._importance[name] = self._importance[name] + gained if name in self._importance else gained
            self._anchors[name] = parameter.detach().clone()
        self._path, self._start = {}, {}
        return ()

    def forget(self, forgotten: Forgotten, context: Context) -> None:
        self._path, self._start, self._importance, self._anchors = {}, {}, {}, {}

    def state_dict(self) -> dict[str, Any]:
        parts = {"path": self._path, "start": self._start, "importance": self._importance, "anchors": self._anchors}
        return {part: dict(values) for part, values in parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._path, self._start = dict(state["path"]), dict(state["start"])
        self._importance, self._anchors = dict(state["importance"]), dict(state["anchors"])

    def _held(self, context: Context) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Parameters in play that have an importance, where they are held, and that importance."""
        pairs = [(p, name) for p, name in zip(context.parameters, context.parameter_names, strict=True) if name in self._importance]
        return [p for p, _ in pairs], [self._anchors[name] for _, name in pairs], [self._importance[name] for _, name in pairs]
