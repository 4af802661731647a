"""Re-warming and re-decaying: at each new task the learning rate rises again and decays along a cosine.

Source: Ibrahim et al. 2024, "Simple and Scalable Strategies to Continually Pre-train Large Language Models", section 4.1: linear
    warm-up over a share of the steps, then cosine to a minimum. `warmup=0` is the plain cosine restart.
Uses: rate, end, state_dict, load_state_dict
Cost: a number a step.
Differs: nothing that is known; the schedule is in shares of a task's steps, so that tasks of other lengths follow the same curve.
Interacts: multiplies with other schedules. Phases that other strategies ask for keep their own rate. `optimizer.reset=never` keeps
    moments across tasks, as one long pre-training does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cl_framework import Context, Learn, Phase, Strategy, Traits, check_choice, check_range, register


def rewarmed(step: int, steps: int, warmup: float, minimum: float, start: float) -> float:
    """The factor on the largest rate at a step, 0 .. steps: linear from `start` to 1, then half a cosine to `minimum`.

    warmup, the share of the steps that the rise takes, in [0, 1); minimum and start in [0, 1].
    """
    rise = warmup * steps
    if step < rise:
        return start + (1.0 - start) * step / rise
    return minimum + (1.0 - minimum) / 2 * (1.0 + math.cos(math.pi * (step - rise) / (steps - rise)))


@dataclass(frozen=True)
class RewarmConfig:
    warmup: float = 0.01  # share of a task's steps over which the rate rises, [0, 1); 0: it starts at the top, a cosine restart
    minimum: float = 0.1  # share of the largest rate at a task's end, [0, 1]
    start: str = "zero"  # where the rise begins: zero, or current, the end of the task before (zero for the first)

    def __post_init__(self) -> None:
        check_range("warmup", self.warmup, low=0, below=1)
        check_range("minimum", self.minimum, low=0, high=1)
        check_choice("start", self.start, ("zero", "current"))


@register("rewarm")
class Rewarm(Strategy):
    """Linear re-warming and cosine re-decaying of the learning rate at each task."""

    Config = RewarmConfig
    traits = Traits(needs_boundaries=True, neutral={"warmup": 0.0, "minimum": 1.0})

    def __init__(self, config: RewarmConfig) -> None:
        super().__init__(config)
        self.traits = replace(self.traits, steady_rate=config.start == "zero")
        self._decayed = False  # whether a task has ended

    def rate(self, step: int, steps: int, context: Context) -> float:
        start = self.config.minimum if self.config.start == "current" and self._decayed else 0.0
        return rewarmed(step, steps, self.config.warmup, self.config.minimum, start)

    def end(self, context: Context) -> Sequence[Phase]:
        self._decayed |= isinstance(context.position.event, Learn)
        return ()

    def state_dict(self) -> dict[str, Any]:
        return {"decayed": self._decayed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._decayed = state["decayed"]
