"""Cumulative training: at each task, train on all data so far; an upper bound for a model that keeps everything.

Source: the usual upper bound, e.g. "Cumulative" in Lomonaco & Maltoni 2017 (CORe50).
Uses: check, plan
Cost: each Learn event takes the steps of all tasks so far: quadratic in the number of tasks.
Differs: the model is carried on from task to task, not trained afresh.
Interacts: other transformations of the plan see the union; one in an earlier slot would be lost, and is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cl_framework import Context, Plan, Setting, Strategy, Traits, check_first_to_plan, check_range, register


@dataclass(frozen=True)
class CumulativeConfig:
    epochs: int | None = None  # passes over the union, >= 1; default: the run's epochs

    def __post_init__(self) -> None:
        if self.epochs is not None:
            check_range("epochs", self.epochs, low=1)


@register("cumulative")
class Cumulative(Strategy):
    """Cumulative training on the union of the tasks learned so far, at each Learn event."""

    Config = CumulativeConfig
    traits = Traits(
        needs_boundaries=True,
        reads_past_data=True,
        keeps="epochs",
        no_neutral="it shows other samples than the stream does",
    )

    def check(self, setting: Setting) -> None:
        check_first_to_plan(setting)

    def plan(self, plan: Plan, context: Context) -> Plan:
        union = torch.cat([context.ids_of(task) for task in context.live_tasks])
        return Plan.over(union, context.batch_size, self.config.epochs or context.epochs, context.random("shuffle").generator())
