"""Refresh learning: before every step a little of the batch is unlearned, then the step relearns it. Wraps any stack's step.

Source: Wang et al. 2024 "A Unified and General Framework for Continual Learning", algorithm 1: J times
    theta <- theta + gamma P grad L(theta) + noise, P = (F + damping)^-1, noise ~ N(0, 2 gamma temperature P); then the host's own step.
Uses: check, step, commit, end, forget, state_dict, load_state_dict
Cost: `steps` more forward and backward passes a step over all rows of the objective (`released`: of the stream's rows, in the pass that
    joined rows share), and a random number a weight; when a Learn event ends, one pass over its task with a gradient a sample, and a
    forward pass without one. One copy of the weights.
Differs: of the published text only the form of the ascent is known here, so `gamma`, `damping` and `temperature` are ours. With damping 1
    an F of 0, as it is until the first task ends, makes P the identity, and `gamma` means the same before and after. F is the mean of
    squared gradients at the true labels. Temperature 1 is the equation as it stands, whose noise is that of a single sample's posterior:
    beside the gradient of a mean loss it drowns the weights (chance at gamma 0.01). Its numbers are uniform, not normal: in small steps
    only their covariance counts. `gamma` must stay well below the learning rate, or learning is undone. Seen here on split digits with
    ER, rate 0.1: 90.3 % without, 90.2 at 0.003, 90.4 at 0.01 (10 seeds each, deviation 1.5), chance at 0.1; with DER++ 92.0 % without,
    91.6 at 0.01, 90.8 at 0.03 (3 seeds, deviation 3): no gain seen. Adam's steps do not grow with the gradient, the ascent does: beside a
    hypernetwork under Adam at rate 0.01 on synthetic data, one seed, 93.3 % without, 90.8 at 0.003, chance at 0.01.
    `released` is the authors' code: one ascent on the stream rows' cross-entropy alone, each tensor moved by delta times its own norm
    whatever the gradient's size, noise of 0.001 delta, P = 1 / (1 + 0.001 F), F <- 0.00001 F + F_task weighted by the labels'
    probabilities; but that code takes F from augmented images in training mode, one by one, and this from plain ones in evaluation mode.
Interacts: sees the whole objective of the stack, inside and outside of it. BatchNorm statistics, optimizer moments and memories are
    untouched by the ascent, and what a mask freezes does not take part in it. The descent starts where the ascent led: this is not SAM,
    which takes the ascent back. SI counts its own steps only if it stands inside of this. EWC makes its own pass for its own F.
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
    Gradients,
    Learn,
    Output,
    Phase,
    Setting,
    StepFn,
    Strategy,
    Traits,
    check_choice,
    check_range,
    register,
)

Tensors = list[Tensor]

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "paper": {"gamma": 0.003, "steps": 1, "damping": 1.0, "temperature": 1e-6},
    "released": {"delta": 1e-5},
}
SIGMA = 1e-3  # released: noise beside the direction, which has the tensor's own norm
DAMP = 1e-3  # released: factor of F in the preconditioner
DECAY = 1e-5  # released: of F from task to task
TINY = 1e-20  # released: beside the gradient's norm


def preconditioner(fisher: Tensor, damping: float) -> Tensor:
    """(F + damping)^-1, entry by entry."""
    return (fisher + damping).reciprocal()


def released_preconditioner(fisher: Tensor) -> Tensor:
    """1 / (1 + 0.001 F), entry by entry."""
    return (1 + DAMP * fisher).reciprocal()


@torch.no_grad()
def ascend(
    parameters: Tensors, gradients: Tensors, scales: Tensors, roots: Tensors, gamma: float, temperature: float, noise: Tensors
) -> None:
    """theta += gamma * scale * gradient + sqrt(2 * gamma * temperature * scale) * noise, in place; the noise has variance 1.

    `roots` are those of `scales`, which stay the same for a whole phase.
    """
    torch._foreach_addcmul_(parameters, gradients, scales, value=gamma)
    if temperature:
        torch._foreach_addcmul_(parameters, roots, noise, value=math.sqrt(2 * gamma * temperature))


@torch.no_grad()
def ascend_released(parameters: Tensors, gradients: Tensors, scales: Tensors, delta: float, sigma: float, noise: Tensors) -> None:
    """theta += delta * scale * (gradient * |theta| / |gradient| + sigma * noise), norms by tensor, in place; the noise has variance 1."""
    norms = torch._foreach_add(torch._foreach_norm(gradients), TINY)
    directions = torch._foreach_mul(gradients, torch._foreach_div(torch._foreach_norm(parameters), norms))
    if sigma:
        torch._foreach_add_(directions, noise, alpha=sigma)
    torch._foreach_addcmul_(parameters, directions, scales, value=delta)


def noise_like(tensors: Sequence[Tensor], generator: torch.Generator) -> Tensors:
    """Independent numbers of mean 0 and variance 1 in the shapes of `tensors`: a random byte each, a third of a normal number's cost."""
    sizes = [tensor.numel() for tensor in tensors]
    first, total = tensors[0], sum(sizes)
    words = torch.empty(-(-total // 8), dtype=torch.int64, device=first.device).random_(-(2**63), None, generator=generator)
    flat = torch.empty(total, device=first.device, dtype=first.dtype)
    torch.add(words.view(torch.int8)[:total], 0.5, out=flat).mul_((12 / (256**2 - 1)) ** 0.5)
    return [part.view_as(tensor) for part, tensor in zip(flat.split(sizes), tensors, strict=True)]


def reached(gradients: Gradients, *columns: Sequence[Tensor]) -> tuple[Tensors, ...]:
    """The gradients that there are, and of each column the entries beside them."""
    places = [place for place, gradient in enumerate(gradients) if gradient is not None]
    found = [gradient for gradient in gradients if gradient is not None]
    return (found, *([column[place] for place in places] for column in columns))


@dataclass(frozen=True)
class RefreshConfig:
    variant: str = "paper"  # paper or released
    gamma: float | None = None  # paper: rate of the ascent, >= 0, default 0.003; 0 is the host without refresh
    steps: int | None = None  # paper: ascent steps before each step, J >= 0, default 1; 0 is the host without refresh
    damping: float | None = None  # paper: added to F, > 0, default 1
    temperature: float | None = None  # paper: of the noise, >= 0, default 0.000001; 1 is the published equation, 0 is no noise
    delta: float | None = None  # released: size of the move relative to each tensor's norm, >= 0, default 0.00001; 0 is the host alone
    fisher_samples: int | None = None  # of a task that F is taken from, >= 1; default: all

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, tuple(DEFAULTS))
        for variant, defaults in DEFAULTS.items():
            for name in defaults:
                value = getattr(self, name)
                if value is None:
                    continue
                if variant != self.variant:
                    instead = "delta" if self.variant == "released" else "gamma"
                    raise ValueError(f"{name} belongs to variant={variant}; with variant={self.variant} set {instead}")
                if name == "damping":
                    check_range(name, value, above=0)
                else:
                    check_range(name, value, low=0)
        if self.fisher_samples is not None:
            check_range("fisher_samples", self.fisher_samples, low=1)

    def value(self, name: str) -> Any:
        """An option of the variant, its default where it is not set."""
        given = getattr(self, name)
        return DEFAULTS[self.variant][name] if given is None else given

    @property
    def idle(self) -> bool:
        """Whether these settings are the host without refresh."""
        if self.variant == "released":
            return bool(self.value("delta") == 0)
        return self.value("gamma") == 0 or self.value("steps") == 0


@register("refresh")
class Refresh(Strategy):
    """Unlearn a little of each batch, then relearn it."""

    Config = RefreshConfig
    traits = Traits(needs_boundaries=True, neutral={"gamma": 0.0})

    def __init__(self, config: RefreshConfig) -> None:
        super().__init__(config)
        self._released = config.variant == "released"
        self._pass = FisherPass("weighted" if self._released else "given", config.fisher_samples)
        self._fisher: dict[str, Tensor] = {}

    def check(self, setting: Setting) -> None:
        self._pass.check(setting, "variant", "Set variant=paper.")

    def step(self, inner: StepFn, context: Context) -> StepFn:
        if self._pass.under_way(context):
            return lambda closure: closure.values("task")
        if self.config.idle or not context.parameters:
            return inner
        columns = (context.parameters, scales := self._scales(context), [scale.sqrt() for scale in scales])
        count = 1 if self._released else self.config.value("steps")

        def refreshed(closure: Closure) -> Evaluation:
            generator = self._generator(context)
            for _ in range(count):
                if not self._released:
                    self._ascend(closure.gradients(), columns, generator)
                elif "task" in closure.names:  # a step without stream rows has nothing to unlearn
                    self._ascend(closure.gradients("task"), columns, generator)
            return inner(closure)

        return refreshed

    def _ascend(self, found: Evaluation, columns: tuple[Sequence[Tensor], ...], generator: torch.Generator) -> None:
        """One ascent along what was found; the columns are parameters, their scales and the roots of those."""
        value = self.config.value
        noise = columns[0]  # not read where there is none
        if self._released or value("temperature"):
            noise = noise_like(columns[0], generator)
        gradients, moving, scales, roots, noise = reached(found.gradients or (), *columns, noise)
        if not gradients:  # no term reaches a parameter
            return
        if self._released:
            ascend_released(moving, gradients, scales, value("delta"), SIGMA, noise)
        else:
            ascend(moving, gradients, scales, roots, value("gamma"), value("temperature"), noise)

    def _scales(self, context: Context) -> list[Tensor]:
        """The diagonal of P for each parameter in play, 0 for entries that may not move."""
        scales = []
        for name, parameter, movable in zip(context.parameter_names, context.parameters, context.movable, strict=True):
            fisher = self._fisher.get(name, torch.zeros_like(parameter, requires_grad=False))
            scale = released_preconditioner(fisher) if self._released else preconditioner(fisher, self.config.value("damping"))
            scales.append(scale if movable is None else scale * movable)
        return scales

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
            decay = DECAY if self._released else 0.0
            self._fisher = {name: value + decay * self._fisher[name] if name in self._fisher else value for name, value in found.items()}

    def forget(self, forgotten: Forgotten, context: Context) -> None:
        self._fisher = {}

    def state_dict(self) -> dict[str, Any]:
        return {"fisher": dict(self._fisher), "pass": self._pass.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._fisher = dict(state["fisher"])
        self._pass.load_state_dict(state["pass"])
