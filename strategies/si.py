"""Synaptic intelligence: hold the weights whose movement lowered the loss, as firmly as they lowered it.

Source: Zenke et al. 2017 "Continual Learning Through Synaptic Intelligence", eqs. 3 to 5: each step omega += -g dtheta; at a task's end
    Omega += max(omega, 0) / ((theta - theta_start)^2 + xi); L = loss + c sum Omega (theta - theta*)^2.
Uses: step, loss, begin, end, forget, state_dict, load_state_dict
Cost: no further pass; a copy of the weights a step. Four copies of the weights as state.
Differs: g is the gradient of the objective at the weights where it is applied, less that of the penalty, which is known in closed form;
    dtheta is the displacement that the optimizer really makes, momentum, clipping and weight decay included.
    `released` is the code of Buzzega et al. 2020: omega += rate * g^2, the penalty's gradient included, gradients clipped by value to
    [-1, 1] before they are applied, no max(., 0), which such an omega does not need.
    Defaults are that code's for Split-MNIST; it has c 0.5, xi 1 for CIFAR-10. Seen here, 3 seeds: five permutations of 10,000 digits
    76.7 % (76.3 without); split digits, task-incremental, 96.5 % (95.8 without); class-incremental it helps at no setting.
Interacts: terms of other strategies (replay) are part of the loss whose path is followed. A wrapper that moves weights before it calls
    inward (refresh) belongs outside of this one, where its movement is not counted; inside of it the movement is. A wrapper that maps
    gradients (A-GEM) belongs inside of it, where the path is that of the loss and not of the mapped gradient; one that steps several
    times belongs outside, since only the last gradient of a call inward is followed. What a neighbour's phase before the event's own
    moves (LwF's warm-up) counts as displacement and not as path.
    After an Unlearn nothing is held: Omega is a sum over tasks that cannot be taken apart, and the weights that it held the others to
    would pull the unlearned task back. The next Learn begins anew.
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
    WeightedSquares,
    check_choice,
    check_range,
    register,
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
    xi: float = 0.9  # keeps the importance of weights that hardly moved finite, > 0
    variant: str = "paper"  # paper or released

    def __post_init__(self) -> None:
        check_range("c", self.c, low=0)
        check_range("xi", self.xi, above=0)
        check_choice("variant", self.variant, ("paper", "released"))


@register("si")
class SI(Strategy):
    """Synaptic intelligence: importance as the path integral of the loss along the training."""

    Config = SIConfig
    traits = Traits(needs_boundaries=True, consolidates=True, neutral={"c": 0.0})

    def __init__(self, config: SIConfig) -> None:
        super().__init__(config)
        self._path: dict[str, Tensor] = {}  # omega of the task under way
        self._start: dict[str, Tensor] = {}  # the weights it began with
        self._importance: dict[str, Tensor] = {}  # Omega of the tasks that have ended
        self._anchors: dict[str, Tensor] = {}  # theta*
        self._penalty = WeightedSquares((), (), ())  # of the last evaluation: `step` takes its gradient off what is applied
        self._added: tuple[Gradients, Gradients] = ((), ())  # gradients before and after the penalty's was added last

    def begin(self, context: Context) -> Sequence[Phase]:
        if self.config.c and isinstance(context.position.event, Learn):
            self._start = {name: parameter.detach().clone() for name, parameter in context.model.named_parameters()}
            self._path = {name: torch.zeros_like(value) for name, value in self._start.items()}
        return ()

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        if not self._importance:
            return {}
        importances, anchors = self._of(self._importance, context), self._of(self._anchors, context)
        self._penalty = WeightedSquares(context.parameters, anchors, importances)
        return {"penalty": Term(self._penalty.value, self.config.c, self._plus_penalty)}

    def _plus_penalty(self, gradients: Gradients, factor: float) -> Gradients:
        self._added = (gradients, self._penalty.plus_gradient(gradients, factor))
        return self._added[1]

    def _without_penalty(self, gradients: Gradients) -> Gradients:
        before, after = self._added
        return before if gradients is after else self._penalty.plus_gradient(gradients, -self.config.c)

    def step(self, inner: StepFn, context: Context) -> StepFn:
        if not self._path or not context.parameters:
            return inner
        released = self.config.variant == "released"
        parameters, path = list[Tensor](context.parameters), self._of(self._path, context)
        before = [torch.empty_like(value) for value in path]
        seen: list[Tensor] = []  # the gradients whose path is followed

        def look(gradients: Gradients) -> Gradients:
            if released:
                raw = gradients = clipped(gradients)
            elif self._importance:
                raw = self._without_penalty(gradients)
            else:  # what is applied may be clipped in place
                raw = tuple(None if gradient is None else gradient.clone() for gradient in gradients)
            seen[:] = [torch.zeros_like(value) if gradient is None else gradient for gradient, value in zip(raw, before, strict=True)]
            return gradients

        def followed(closure: Closure) -> Evaluation:
            seen.clear()
            with torch.no_grad():
                torch._foreach_copy_(before, parameters)
            evaluation = inner(closure.with_gradients(look))
            self._added = ((), ())
            with torch.no_grad():
                if seen and released:
                    torch._foreach_addcmul_(path, seen, seen, value=context.learning_rate)
                elif seen:
                    torch._foreach_sub_(before, parameters)
                    torch._foreach_addcmul_(path, seen, before)
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
        self._penalty = WeightedSquares((), (), ())  # it holds all of them
        self._added = ((), ())

    def state_dict(self) -> dict[str, Any]:
        parts = {"path": self._path, "start": self._start, "importance": self._importance, "anchors": self._anchors}
        return {part: dict(values) for part, values in parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._path, self._start = dict(state["path"]), dict(state["start"])
        self._importance, self._anchors = dict(state["importance"]), dict(state["anchors"])

    def _of(self, values: Mapping[str, Tensor], context: Context) -> list[Tensor]:
        """What there is for each parameter in play; nothing before the first task has ended."""
        return [values[name] for name in context.parameter_names] if values else []
