"""Joint training: an upper bound that sees all tasks together, shuffled.

Source: the usual upper bound, e.g. "JOINT" in Buzzega et al. 2020, table 2.
Uses: check, plan
Cost: the steps of all tasks together, in the last Learn event; none before.
Differs: nothing is trained before the last Learn event, so the model that sees the union is a fresh one, and reports leave out accuracy
    by lag and how fast tasks are learned.
Interacts: with a memory beside it, the memory is filled in the last event only. A transformation of the plan in an earlier slot would be
    lost, and is refused; so are strategies that keep what each task has taught (EWC, SI, LwF, iCaRL, a hypernetwork; SSD, unless it
    measures at the last Learn).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cl_framework import ConfigurationError, Context, Plan, Setting, Strategy, Traits, check_first_to_plan, check_range, register


@dataclass(frozen=True)
class JointConfig:
    epochs: int | None = None  # passes over the union, >= 1; default: the run's epochs

    def __post_init__(self) -> None:
        if self.epochs is not None:
            check_range("epochs", self.epochs, low=1)


@register("joint")
class Joint(Strategy):
    """Joint training on the union of all live tasks, at the last Learn event."""

    Config = JointConfig
    traits = Traits(
        needs_boundaries=True,
        reads_past_data=True,
        looks_ahead=True,
        no_neutral="it shows other samples than the stream does",
    )

    def check(self, setting: Setting) -> None:
        check_first_to_plan(setting)
        holding = [slot for slot, traits in setting.slots.items() if traits.consolidates]
        if holding:
            raise ConfigurationError(
                f"plan: {holding[0]} keeps what each task has taught, but joint training learns nothing before the last one. "
                f"Remove {holding[0]}, use cumulative, or set what makes {holding[0]} wait for it (as measured=last_learn of ssd)."
            )
        adding = [slot for slot in setting.slots_after if setting.slots[slot].reads_past_data and "plan" in setting.seams.get(slot, ())]
        if adding:
            raise ConfigurationError(f"plan: all tasks are shown already, and {adding[0]} would add nothing to them. Remove {adding[0]}.")

    def plan(self, plan: Plan, context: Context) -> Plan:
        if not context.is_last_learn:
            return Plan.empty()
        union = torch.cat([context.ids_of(task) for task in context.live_tasks])
        return Plan.over(union, context.batch_size, self.config.epochs or context.epochs, context.random("shuffle").generator())
