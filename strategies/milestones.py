"""Milestones: within each task the learning rate is multiplied by a factor whenever so many epochs are over.

Source: usual for ResNets since He et al. 2016, "Deep residual learning for image recognition", section 4.2. The defaults are those of
    the released code of Wang et al. 2024, a fork of Mammoth, on CIFAR-100: of 50 epochs, times 0.1 at 35 and 45.
Uses: rate
Cost: a number a step.
Differs: nothing that is known; that code makes optimizer and schedule anew for each task, which is `optimizer.reset=event`, the default.
Interacts: multiplies with other schedules. Epochs are those of the plan as it is run, whatever others added to it. Phases that other
    strategies ask for keep their own rate (GDumb's training). Milestones at or past the last epoch are not reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from cl_framework import Context, Strategy, Traits, check_range, register


def milestones_passed(step: int, steps: int, epochs: int, milestones: Sequence[int]) -> int:
    """How many of the milestones, in epochs, lie at or before a step of 0 .. steps, in a phase of so many epochs."""
    return sum(step * epochs >= milestone * steps for milestone in milestones)


@dataclass(frozen=True)
class MilestonesConfig:
    epochs: tuple[int, ...] = (35, 45)  # of a task, after each of which the rate is lowered, >= 1, rising
    factor: float = 0.1  # on the rate at each, > 0; 1 leaves it alone

    def __post_init__(self) -> None:
        for epoch in self.epochs:
            check_range("epochs", epoch, low=1)
        if any(one >= two for one, two in pairwise(self.epochs)):
            raise ValueError(f"epochs must rise from one milestone to the next, got {', '.join(map(str, self.epochs))}")
        check_range("factor", self.factor, above=0)


@register("milestones")
class Milestones(Strategy):
    """The learning rate falls by a factor at given epochs of each task."""

    Config = MilestonesConfig
    traits = Traits(needs_boundaries=True, neutral={"factor": 1.0})

    def rate(self, step: int, steps: int, context: Context) -> float:
        phase = context.position.phase
        assert phase is not None and not isinstance(phase.plan, int)  # a stream's own phase has data
        return self.config.factor ** milestones_passed(step, steps, phase.plan.epochs, self.config.epochs)
