"""Learning without forgetting: on the new data, keep answering for the old classes as the model did before the task.

Source: Li & Hoiem 2016 "Learning without Forgetting": L = task + weight * KD, KD = -sum p~* log p~ with p~ proportional to p^(1/T), T = 2,
    weight 1; p* are the answers, on the same new images, of the model as it was when the task began.
Uses: check, mask, draw, loss, begin, end, forget, state_dict, load_state_dict
Cost: one more forward pass a step, over the stream's rows; a copy of the weights while a task is learned; no data is kept.
Differs: one softmax over all classes learned before; heads=task has one for each task learned before and adds the terms up, as published
    for separate heads. The head has its final width from the start, so there is no head to add. The warm-up, in which only the new
    classes' part of the head moves, is off by default, where it was part of the published procedure; it runs a number of epochs, not
    until convergence, and BatchNorm statistics follow the new data in it. The teacher answers in evaluation mode and sees the inputs
    that the student sees; Mammoth's code computes its answers once, from images neither augmented nor normalised. Nothing is
    multiplied by T^2. Where a task brings known classes (domain-incremental, learned again), they are both learned and held.
Interacts: looks at the stream's rows alone, not at what others replay, but at past samples that joint, cumulative or power_law show.
    A wrapper that calls the closure often pays for the teacher once. On a task-conditioned model (hypernetwork) teacher and student
    both answer as the network of the rows' own task, as which the teacher had learned nothing: the old tasks' networks are held
    by what they share with it alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_framework import (
    Batch,
    ConfigurationError,
    Context,
    Draw,
    Forgotten,
    Learn,
    Output,
    Phase,
    Plan,
    Setting,
    Strategy,
    TaskId,
    Term,
    Traits,
    check_choice,
    check_range,
    register,
)


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The mean over rows of the cross-entropy between two softmaxes of (B, C) logits, both softened; a scalar."""
    return functional.cross_entropy(student / temperature, (teacher / temperature).softmax(1))


@dataclass(frozen=True)
class LwFConfig:
    weight: float = 1.0  # of the distillation term, >= 0; 0 is fine-tuning
    temperature: float = 2.0  # of both softmaxes, > 0
    heads: str = "joint"  # what a softmax runs over: all classes learned before (joint), or those of each task (task)
    warm_up: int = 0  # epochs before each later task in which only the head's part for new classes moves, >= 0

    def __post_init__(self) -> None:
        check_range("weight", self.weight, low=0)
        check_range("temperature", self.temperature, above=0)
        check_choice("heads", self.heads, ("joint", "task"))
        check_range("warm_up", self.warm_up, low=0)


@register("lwf")
class LwF(Strategy):
    """Distillation from the model as it was before the task, on the task's own data."""

    Config = LwFConfig
    traits = Traits(needs_boundaries=True, consolidates=True, neutral={"weight": 0.0})

    def __init__(self, config: LwFConfig) -> None:
        super().__init__(config)
        self.known: list[int] = []  # classes learned before this event
        self.heads: list[Tensor] = []  # of the teacher: classes that share a softmax, (K,) int64 each
        self.teacher: dict[str, Tensor] = {}  # only while a task is learned

    def check(self, setting: Setting) -> None:
        if self.config.warm_up and setting.model is not None:
            _head_of(setting.model, self.config.warm_up)

    # --- the teacher ---

    def begin(self, context: Context) -> Sequence[Phase]:
        event = context.position.event
        if self.config.warm_up:
            _head_of(context.model, self.config.warm_up)  # at the first event already: what `build` made was not known to `check`
        if not isinstance(event, Learn) or not self.known:
            return ()
        if self.config.weight:
            self.teacher = context.snapshot()
            self.heads = [torch.tensor(head, device=context.device) for head in self._classes_by_head(context)]
        return self._warm_up(event.task, context)

    def _classes_by_head(self, context: Context) -> list[tuple[int, ...]]:
        if self.config.heads == "joint":
            return [tuple(self.known)]
        of_tasks = (tuple(label for label in context.classes_of(task) if label in self.known) for task in context.live_tasks)
        return [head for head in dict.fromkeys(of_tasks) if head]

    def draw(self, batch: Batch, context: Context) -> Mapping[str, Draw]:
        if self.teacher and len(batch) and not _own(context):
            batch.extras[context.slot] = context.forward(batch, self.teacher)
        return {}

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        teacher = batch.extras.get(context.slot)
        if teacher is None:
            return {}

        def held() -> Tensor:
            parts = [distillation(output.logits[:, head], teacher[:, head], self.config.temperature) for head in self.heads]
            return torch.stack(parts).sum()

        return {"distillation": Term(held, self.config.weight)}

    def end(self, context: Context) -> Sequence[Phase]:
        event = context.position.event
        if isinstance(event, Learn):
            self.known = sorted({*self.known, *context.classes_of(event.task)})
            self.teacher, self.heads = {}, []
        return ()

    # --- the warm-up of the head ---

    def _warm_up(self, task: TaskId, context: Context) -> Sequence[Phase]:
        if not self.config.warm_up or not self._new_classes(task, context):
            return ()
        plan = Plan.over(context.ids_of(task), context.batch_size, self.config.warm_up, context.random("warm_up").generator())
        return [Phase("warm_up", plan)]

    def _new_classes(self, task: TaskId, context: Context) -> list[int]:
        return [label for label in context.classes_of(task) if label not in self.known]

    def mask(self, context: Context) -> Mapping[str, bool | Tensor]:
        if not _own(context):
            return {}
        head = _head_of(context.model, self.config.warm_up)
        moving: dict[str, bool | Tensor] = {}
        for name, parameter in context.model.named_parameters():
            if parameter is head.weight or parameter is head.bias:
                part = torch.zeros_like(parameter, dtype=torch.bool)
                part[self._new_classes(context.position.event.task, context)] = True
                moving[name] = part
            else:
                moving[name] = False
        return moving

    # --- forgetting and state ---

    def forget(self, forgotten: Forgotten, context: Context) -> None:
        """What the teacher answers for; the teacher itself went when its event ended."""
        event = forgotten.event
        if event.granularity != "sample":
            gone = set(event.classes or context.classes_of(event.task))
            elsewhere = {label for task in context.live_tasks if task != event.task for label in context.classes_of(task)}
            self.known = [label for label in self.known if label not in gone - elsewhere]

    def state_dict(self) -> dict[str, Any]:
        return {"known": list(self.known), "heads": list(self.heads), "teacher": dict(self.teacher)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.known, self.heads, self.teacher = list(state["known"]), list(state["heads"]), dict(state["teacher"])


def _head_of(model: nn.Module, warm_up: int) -> nn.Linear:
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Linear):
        raise ConfigurationError(f"warm_up={warm_up} moves a part of the model's `head`, but this model has no linear one. Set warm_up=0.")
    return head


def _own(context: Context) -> bool:
    """Whether the phase under way is this slot's, the warm-up."""
    phase = context.position.phase
    return phase is not None and phase.owner == context.slot
