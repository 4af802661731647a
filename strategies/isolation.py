"""Isolation: a part of the model for each task, removed with it; exact by construction.

Source: parameter isolation, e.g. Aljundi et al. 2017 "Expert Gate" and Rusu et al. 2016 "Progressive Neural Networks" without lateral
    connections; as unlearning, the sharding of Bourtoule et al. 2021 "Machine Unlearning" with one shard a task.
Uses: check, build, mask, unlearn
Cost: that of fine-tuning in time. Memory: a copy of the model (part=model) or of its head (part=head) for every task of the benchmark.
    Unlearning takes no step and reads nothing.
Differs: the task of a row is known, not inferred. Every copy starts from the same weights, those of the configured model, so a task learned
    again after it was unlearned is learned as the first time.
Interacts: nothing is shared but a frozen body (part=head: a pretrained backbone, or an untrained one), so tasks neither help nor harm one
    another. Exact by itself; beside a memory, a penalty or a plan that shows earlier tasks it is not, since these change how much the
    rows of a new task weigh, nor beside a learning rate that goes by what was learned before (`infinite_rate`, `rewarm` with
    start=current), nor with moments that outlive an event (`optimizer.reset=never`), which an answer drops for all tasks: the deletion
    record then says approximate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from cl_framework import (
    ConfigurationError,
    Context,
    Done,
    IsolatedModel,
    Learn,
    Setting,
    Strategy,
    Traits,
    Unlearn,
    check_choice,
    register,
)


@dataclass(frozen=True)
class IsolationConfig:
    part: str = "model"  # what a task has of its own: model or head

    def __post_init__(self) -> None:
        check_choice("part", self.part, ("model", "head"))


@register("isolation")
class Isolation(Strategy):
    """A sub-model, or a head over a frozen body, for each task."""

    Config = IsolationConfig
    traits = Traits(
        needs_task_id=True,
        needs_boundaries=True,
        unlearns=frozenset({"task"}),
        exact=True,
        no_neutral="each task is learned by a part of its own, from the start",
        scenarios=("task_il",),
    )

    def check(self, setting: Setting) -> None:
        model = setting.model
        if self.config.part == "head" and model is not None and not (hasattr(model, "features") and hasattr(model, "head")):
            raise ConfigurationError("part: a head a task needs a model with `features` and `head`. Use part=model.")

    def build(self, model: nn.Module, context: Context) -> nn.Module:
        return IsolatedModel(model, context.num_tasks, self.config.part)

    def mask(self, context: Context) -> Mapping[str, bool]:
        event = context.position.event
        own = f"parts.{event.task}." if isinstance(event, Learn) else None
        return {name: own is not None and name.startswith(own) for name, _ in context.model.named_parameters()}

    def unlearn(self, event: Unlearn, context: Context) -> Done:
        model = context.model
        assert isinstance(model, IsolatedModel)
        model.reset(event.task)
        return Done()
