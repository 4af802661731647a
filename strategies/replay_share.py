"""Compute-equivalent replay: a share of every batch comes from the tasks before, in place of as much of the new one.

Source: Ibrahim et al. 2024, "Simple and Scalable Strategies to Continually Pre-train Large Language Models", section 4.2: replay of 0.5 to
    50 % at an equal number of tokens, drawn uniformly from what came before.
Uses: check, plan
Cost: none: as many samples and steps as without it. It reads all of the past.
Differs: there the past is one data set; here it is all live tasks together, so that larger ones come more often.
Interacts: takes the end of each step's shuffled visits, so it is refused behind a strategy whose arrangement it would break (view_batch);
    put it before that. Refused beside others that show past data (joint, power_law). Beside a memory, replayed samples are offered to
    the memory like any others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cl_framework import ConfigurationError, Context, Plan, Setting, Strategy, Traits, check_range, register


def replaced(plan: Plan, past: Tensor, share: float, generator: torch.Generator) -> Plan:
    """The plan with a share of each step's visits, its last ones, replaced by samples drawn uniformly from `past` (N,), with replacement.

    After any number of steps the replaced visits differ from their share of all visits by less than one.
    """
    ends = (share * plan.offsets.double() + 1e-9).floor().long()  # replaced visits before each step; the product may fall a bit short
    counts = ends.diff().repeat_interleave(plan.offsets.diff())
    left = plan.offsets[1:].repeat_interleave(plan.offsets.diff()) - torch.arange(plan.visits)
    place = left <= counts
    picks = past[torch.randint(len(past), (int(place.sum()),), generator=generator)]
    return replace(plan, ids=plan.ids.masked_scatter(place, picks))


@dataclass(frozen=True)
class ReplayShareConfig:
    share: float = 0.05  # of every batch after the first task, [0, 1); 0 is fine-tuning

    def __post_init__(self) -> None:
        check_range("share", self.share, low=0, below=1)


@register("replay_share")
class ReplayShare(Strategy):
    """Replay from whole past tasks in place of new samples: the number of samples and steps stays."""

    Config = ReplayShareConfig
    traits = Traits(reads_past_data=True, keeps="steps", neutral={"share": 0.0})

    def check(self, setting: Setting) -> None:
        others = [slot for slot, traits in setting.slots.items() if traits.reads_past_data and slot != setting.slot]
        if others:
            raise ConfigurationError(f"share: {others[0]} decides which samples of earlier tasks are shown. Keep one of the two.")
        arranged = [slot for slot in setting.slots_before if setting.slots[slot].keeps]
        if arranged:
            raise ConfigurationError(
                f"share: the last visits of every step are replaced, which would break what {arranged[0]} arranged. "
                f"Put this slot before {arranged[0]}."
            )

    def plan(self, plan: Plan, context: Context) -> Plan:
        past = [context.ids_of(task) for task in context.live_tasks if task != context.position.event.task]
        ids = torch.cat(past) if past else torch.empty(0, dtype=torch.int64)
        if not self.config.share or not len(ids) or not plan.visits:
            return plan
        return replaced(plan, ids, self.config.share, context.random("past").generator())
