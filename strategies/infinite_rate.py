"""An infinite schedule: the learning rate warms up, cools down once and then stays on a plateau over all further tasks.

Source: Ibrahim et al. 2024, section 7.4, and Singh et al. 2025, "Beyond Cosine Decay", eq. 1: warm-up, cosine cool-down, constant, and
    exponential annealing when a model is to be shipped.
Uses: rate, end, state_dict, load_state_dict
Cost: a number a step.
Differs: lengths are shares of the first task's steps. The shares of the plateau and of the annealing were not found in print: the
    defaults are ours. The released exponent's denominator is read in two ways; here annealing ends at the minimum, but for `exp_tau`,
    which only nears it. The steepness of the inverse square root was not found in print. Annealing comes with the last task, not on
    call, and waits for the end of the warm-up.
Interacts: multiplies with other schedules. Phases that other strategies ask for keep their own rate. Without annealing nothing depends
    on which task is the last one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cl_framework import LATER, Context, Learn, Phase, Strategy, Traits, check_choice, check_range, register


def plateaued(step: float, warmup: float, cooldown: float, constant: float, steepness: float | None = None) -> float:
    """The factor on the largest rate at a step since the stream began: up to 1 (to `constant` without cool-down), down to `constant`, and
    no further. warmup and cooldown in steps, >= 0; down along a cosine, or as 1 / sqrt(1 + steepness * share), steepness > 0.
    """
    top = 1.0 if cooldown else constant
    if step < warmup:
        return top * step / warmup
    if step >= warmup + cooldown:
        return constant
    if steepness is None:
        return constant + (1.0 - constant) / 2 * (1.0 + math.cos(math.pi * (step - warmup) / cooldown))
    fallen, whole = (1.0 - 1.0 / math.sqrt(1.0 + steepness * share) for share in ((step - warmup) / cooldown, 1.0))
    return 1.0 - (1.0 - constant) * fallen / whole


def annealed(start: float, minimum: float, share: float, form: str = "exp", tau: float = 0.2) -> float:
    """The factor when `share` of the annealing is over, in [0, 1]: from `start` to `minimum`, start >= minimum > 0.

    exp: geometric; exp_tau: what lies above `minimum` shrinks to 1 / e in each share `tau`; linear; rsqrt: 1 / factor grows linearly.
    """
    share = min(1.0, share)
    if form == "exp_tau":
        return minimum + (start - minimum) * math.exp(-share / tau)
    if form == "exp":
        return start * (minimum / start) ** share
    if form == "linear":
        return start + (minimum - start) * share
    return 1.0 / (1.0 / start + (1.0 / minimum - 1.0 / start) * share)


@dataclass(frozen=True)
class InfiniteRateConfig:
    warmup: float = 0.01  # in first tasks' steps, >= 0
    cooldown: float = 0.55  # in first tasks' steps, >= 0
    constant: float = 0.4  # the plateau as a share of the largest rate, (0, 1]
    cooldown_form: str = field(default="cosine", metadata=LATER)  # cosine or rsqrt, an inverse square root
    steepness: float = field(default=10.0, metadata=LATER)  # of cooldown_form=rsqrt, > 0: the larger, the earlier the rate falls
    minimum: float = 0.1  # what annealing ends at, (0, constant]
    anneal: float = 0.12  # share of the last task's steps, its end, over which the rate is annealed, [0, 1]; 0: never
    form: str = "exp"  # of annealing: exp, exp_tau, linear or rsqrt
    tau: float = field(
        default=0.2, metadata=LATER
    )  # of form=exp_tau, > 0: the share of the annealing in which what lies above the minimum shrinks to 1 / e

    def __post_init__(self) -> None:
        check_range("warmup", self.warmup, low=0)
        check_range("cooldown", self.cooldown, low=0)
        check_range("constant", self.constant, above=0, high=1)
        check_range("minimum", self.minimum, above=0, high=1)
        check_range("anneal", self.anneal, low=0, high=1)
        if self.anneal and self.minimum > self.constant:
            raise ValueError(f"minimum must be <= constant={self.constant:g}, from which the rate is annealed, got {self.minimum!r}")
        check_choice("form", self.form, ("exp", "exp_tau", "linear", "rsqrt"))
        check_range("tau", self.tau, above=0)
        check_choice("cooldown_form", self.cooldown_form, ("cosine", "rsqrt"))
        check_range("steepness", self.steepness, above=0)
        annealing = ("anneal above 0", bool(self.anneal))
        cooling = ("cooldown above 0", bool(self.cooldown))
        read_with = {  # option -> what must hold, or it would change nothing
            "minimum": (annealing,),
            "form": (annealing,),
            "tau": (("form=exp_tau", self.form == "exp_tau"), annealing),
            "cooldown_form": (cooling,),
            "steepness": (("cooldown_form=rsqrt", self.cooldown_form == "rsqrt"), cooling),
        }
        for name, needed in read_with.items():
            value = getattr(self, name)
            missing = [what for what, holds in needed if not holds]
            if missing and value != getattr(type(self), name):
                raise ValueError(f"{name}={value} would change nothing without {missing[0]}; leave it out, or set that")


@register("infinite_rate")
class InfiniteRate(Strategy):
    """A learning rate with one warm-up, one cool-down and a plateau that no new task ends."""

    Config = InfiniteRateConfig
    traits = Traits(
        needs_boundaries=True,
        looks_ahead=True,
        neutral={"warmup": 0.0, "cooldown": 0.0, "constant": 1.0, "anneal": 0.0},
        scenarios=("domain_il", "class_il", "task_il"),  # published for the first
    )

    def __init__(self, config: InfiniteRateConfig) -> None:
        super().__init__(config)
        self._before = 0  # steps of the tasks that are over
        self._first = 0  # steps of the first task, 0 before it
        self._steps = 0  # of the task under way

    def rate(self, step: int, steps: int, context: Context) -> float:
        self._steps = steps
        warm = self.config.warmup * (self._first or steps) - self._before  # the step of this task at which the warm-up ends
        first_of_annealing = max(warm, steps - self.config.anneal * steps)
        if not self.config.anneal or not context.is_last_learn or step <= first_of_annealing:
            return self._plateaued(step)
        share = (step - first_of_annealing) / (steps - first_of_annealing)
        return annealed(self._plateaued(first_of_annealing), self.config.minimum, share, self.config.form, self.config.tau)

    def _plateaued(self, step: float) -> float:
        options, first = self.config, self._first or self._steps
        steepness = options.steepness if options.cooldown_form == "rsqrt" else None
        return plateaued(self._before + step, options.warmup * first, options.cooldown * first, options.constant, steepness)

    def end(self, context: Context) -> Sequence[Phase]:
        if isinstance(context.position.event, Learn):
            self._first = self._first or self._steps
            self._before += self._steps
            self._steps = 0
        return ()

    def state_dict(self) -> dict[str, Any]:
        return {"before": self._before, "first": self._first, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._before, self._first, self._steps = state["before"], state["first"], state["steps"]
