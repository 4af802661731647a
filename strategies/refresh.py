"""Refresh learning: before every step a little of the batch is unlearned, then the step relearns it. Wraps any stack's step.

Source: Wang et al. 2024 "A Unified and General Framework for Continual Learning", algorithm 1: J times
    theta <- theta + gamma P grad L(theta) + noise, P = (F + damping)^-1, noise ~ N(0, 2 gamma temperature P); then the host's own step.
Uses: step, commit, end, forget, state_dict, load_state_dict
Cost: `steps` more forward and backward passes a step of all the objective's rows (`released`: one of the stream's rows); when a Learn
    event ends, one pass over its task with a gradient a sample. One copy of the weights.
Differs: of the published text only the form of the ascent is known here, so three things are ours. With damping 1 an F of 0, as it is
    until the first task ends, makes P the identity. F is the mean of squared gradients at the true labels. The noise of the equation
    is that of a posterior with one sample: for a mean loss it drowns the weights, so `temperature` scales it; 1 is the literal equation.
    `released` is the authors' code: ascent on the stream rows' cross-entropy alone, each tensor moved by delta times its own norm,
    noise of the scale of delta, P = 1 / (1 + 0.001 F), F <- 0.00001 F + F_task weighted by the labels' probabilities.
Interacts: sees the whole objective of the stack inside and outside of it. Statistics of BatchNorm, optimizer moments and memories are
    untouched by the ascent; entries that a mask freezes are back after the step. The descent starts where the ascent led: this is not
    SAM, which takes the ascent back.
"""

from __future__ import annotations

import math
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
    FisherPass,
    Forgotten,
    Learn,
    Output,
    Phase,
    StepFn,
    Strategy,
    Traits,
    check_choice,
    check_range,
    register,
)

SIGMA = 1e-3  # released: noise beside the direction, which has the tensor's own norm
DAMP = 1e-3  # released: factor of F in the preconditioner
DECAY = 1e-5  # released: of F from task to task


def preconditioner(fisher: Tensor, damping: float) -> Tensor:
    """(F + damping)^-1, entry by entry."""
    return (fisher + damping).reciprocal()


def released_preconditioner(fisher: Tensor) -> Tensor:
    """1 / (1 + 0.001 F), entry by entry."""
    return (1 + DAMP * fisher).reciprocal()


@torch.no_grad()
def ascend(parameters: list[Tensor], gradients: list[Tensor], scales: list[Tensor], gamma: float, noise: list[Tensor] | None) -> None:
    """theta += gamma * scale * gradient + sqrt(scale) * noise, in place; `noise` has the deviation at scale 1."""
    torch._foreach_addcmul_(parameters, gradients, scales, value=gamma)
    if noise is not None:
        torch._foreach_addcmul_(parameters, torch._foreach_sqrt(scales), noise)


@torch.no_grad()
def ascend_released(parameters: list[Tensor], gradients: list[Tensor], scales: list[Tensor], delta: float, noise: list[Tensor]) -> None:
    """theta += delta * scale * (the gradient at the tensor's own norm + 0.001 noise), in place; a zero gradient gives noise alone."""
    ratios = torch._foreach_div(torch._foreach_norm(parameters), [norm + 1e-20 for norm in torch._foreach_norm(gradients)])
    directions = torch._foreach_mul(gradients, ratios)
    torch._foreach_add_(directions, noise, alpha=SIGMA)
    torch._foreach_addcmul_(parameters, directions, scales, value=delta)


@dataclass(frozen=True)
class RefreshConfig:
    variant: str = "paper"  # paper or released
    gamma: float | None = None  # paper: rate of the ascent, >= 0, default 0.01; 0 is the host without refresh
    steps: int = 1  # paper: ascent steps before each step, J >= 0; 0 is the host without refresh
    damping: float = 1.0  # paper: added to F, > 0
    temperature: float = 1e-6  # paper: of the noise, >= 0; 1 is the published equation
    delta: float | None = None  # released: size of the move relative to each tensor's norm, >= 0, default 0.00001
    samples: int | None = None  # of a task that F is taken from, >= 1; default: all

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, ("paper", "released"))
        if self.variant == "released" and self.gamma is not None:
            raise ValueError("gamma belongs to variant=paper; with variant=released set delta")
        if self.variant == "paper" and self.delta is not None:
            raise ValueError("delta belongs to variant=released; with variant=paper set gamma")
        if self.variant == "released" and self.steps != 1:
            raise ValueError(f"steps must be 1 with variant=released, got {self.steps}")
        for name in ("gamma", "delta"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), low=0)
        check_range("steps", self.steps, low=0)
        check_range("damping", self.damping, above=0)
        check_range("temperature", self.temperature, low=0)
        if self.samples is not None:
            check_range("samples", self.samples, low=1)

    @property
    def rate(self) -> float:
        """gamma or delta, whichever the variant has."""
        if self.variant == "paper":
            return 0.01 if self.gamma is None else self.gamma
        return 1e-5 if self.delta is None else self.delta

    @property
    def idle(self) -> bool:
        """Whether these settings are the host without refresh."""
        return self.rate == 0 or self.steps == 0


@register("refresh")
class Refresh(Strategy):
    """Unlearn a little of each batch, then relearn it."""

    Config = RefreshConfig
    traits = Traits(needs_boundaries=True, neutral={"gamma": 0.0})

    def __init__(self, config: RefreshConfig) -> None:
        super().__init__(config)
        self._pass = FisherPass("given" if config.variant == "paper" else "weighted", config.samples)
        self._fisher: dict[str, Tensor] = {}

    def step(self, inner: StepFn, context: Context) -> StepFn:
        if self._pass.under_way(context):
            return lambda closure: closure.values("task")
        if self.config.idle:
            return inner
        released = self.config.variant == "released"
        scales = dict(zip(context.parameter_names, self._scales(context), strict=True))
        parameters = dict(zip(context.parameter_names, context.parameters, strict=True))

        def refreshed(closure: Closure) -> Evaluation:
            generator = self._generator(context)
            for _ in range(self.config.steps):
                found = closure.gradients("task") if released else closure.gradients()
                reached = {name: g for name, g in zip(parameters, found.gradients or (), strict=True) if g is not None}
                moving = [parameters[name].detach() for name in reached]
                self._ascend(moving, list(reached.values()), [scales[name] for name in reached], generator)
            return inner(closure)

        return refreshed

    def _ascend(self, moving: list[Tensor], gradients: list[Tensor], scales: list[Tensor], generator: torch.Generator) -> None:
        config = self.config
        deviation = 1.0 if config.variant == "released" else math.sqrt(2 * config.rate * config.temperature)
        noise = None
        if deviation:
            noise = [torch.empty_like(tensor).normal_(0, deviation, generator=generator) for tensor in moving]
        if config.variant == "released":
            assert noise is not None
            ascend_released(moving, gradients, scales, config.rate, noise)
        else:
            ascend(moving, gradients, scales, config.rate, noise)

    def _scales(self, context: Context) -> list[Tensor]:
        """The diagonal of P for each parameter in play."""
        fishers = [self._fisher.get(name, torch.zeros_like(p)) for name, p in zip(context.parameter_names, context.parameters, strict=True)]
        if self.config.variant == "released":
            return [released_preconditioner(fisher) for fisher in fishers]
        return [preconditioner(fisher, self.config.damping) for fisher in fishers]

    def _generator(self, context: Context) -> torch.Generator:
        """This step's noise, on the device."""
        numbers = context.random("noise").at_step()
        return numbers if context.device.type == "cpu" else torch.Generator(context.device).manual_seed(numbers.initial_seed())

    def end(self, context: Context) -> Sequence[Phase]:
        learned = isinstance(context.position.event, Learn)
        return [self._pass.phase(context)] if learned and not self.config.idle else []

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        if not self._pass.under_way(context):
            return
        found = self._pass.add(batch, context)
        if found is not None:
            released = self.config.variant == "released"
            kept = {name: DECAY * value for name, value in self._fisher.items()} if released else {}
            self._fisher = {name: value + kept[name] if name in kept else value for name, value in found.items()}

    def forget(self, forgotten: Forgotten, context: Context) -> None:
        self._fisher = {}

    def state_dict(self) -> dict[str, Any]:
        return {"fisher": dict(self._fisher), "pass": self._pass.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._fisher = dict(state["fisher"])
        self._pass.load_state_dict(state["pass"])
