"""Learning without forgetting: on the new data, keep answering for the old classes as the model did before the task.

Source: Li & Hoiem 2016 "Learning without Forgetting": L = task + weight * KD, KD = -sum p~* log p~ with p~ proportional to p^(1/T), T = 2,
    weight 1; p* are the answers, on the same new images, of the model as it was when the task began.
Uses: check, mask, draw, loss, begin, end, forget, state_dict, load_state_dict
Cost: one more forward pass a step, over the stream's rows; the warm-up's steps; a copy of the weights while a task is learned; no data
    is kept.
Differs: one softmax over all classes learned before; heads=task has one for each task learned before and adds the terms up, as published
    for separate heads. The head has its final width from the start, so there is no head to add. The warm-up, in which only the new
    classes' part of the head moves, is off by default, where it was part of the published procedure; it runs a number of epochs, not
    until convergence, and BatchNorm statistics follow the new data in it. The teacher answers in evaluation mode and sees the inputs
    that the student sees. Nothing is multiplied by T^2. Where a task brings known classes (domain-incremental, learned again), they are
    both learned and held.
    `released` is the code of Buzzega et al. 2020 (aimagelab/mammoth): the teacher sees images that are only scaled to [0, 1], neither
    augmented nor normalised, so that its answers are the same in every epoch (computed once there, at each step here, which keeps
    nothing); the warm-up runs for the run's epochs, by plain SGD on features of evaluation mode, its softmax over the task's own
    classes. That code leaves classes to come out of the task's softmax; here the scenario decides. Its default weight is 0.5.
Interacts: looks at the stream's rows alone, not at what others replay, but at past samples that cumulative or power_law show.
    A wrapper that calls the closure often pays for the teacher once. On a task-conditioned model (hypernetwork) teacher and student
    both answer as the network of the rows' own task, as which the teacher had learned nothing: the old tasks' networks are held
    by what they share with it alone. Of questions only the places of the answer count, as in the loss of the task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_framework import (
    LATER,
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
    mean_asked,
    register,
)

PLAIN_SGD = {"name": "sgd", "momentum": 0.0, "weight_decay": 0.0}  # released: of the warm-up


def distillation(student: Tensor, teacher: Tensor, temperature: float, targets: Tensor | None = None) -> Tensor:
    """The mean over rows of the cross-entropy between two softmaxes of (B, C) logits, both softened; a scalar.

    Of (B, C, L) logits each row's mean over the places at which its targets (B, L) ask something, over all of them without targets.
    """
    soft = (teacher / temperature).softmax(1)
    if targets is None or targets.ndim == 1:
        return functional.cross_entropy(student / temperature, soft)
    return mean_asked(functional.cross_entropy(student / temperature, soft, reduction="none"), targets).mean()


def among(logits: Tensor, targets: Tensor, classes: Tensor) -> Tensor:
    """The mean cross-entropy of (B, C) logits with a softmax over `classes` (K,) alone; a scalar."""
    others = torch.full_like(logits, float("-inf"))
    return functional.cross_entropy(others.index_copy(1, classes, logits[:, classes]), targets)


@dataclass(frozen=True)
class LwFConfig:
    weight: float = 1.0  # of the distillation term, >= 0; 0 is fine-tuning, after the warm-up where there is one
    temperature: float = 2.0  # of both softmaxes, > 0
    heads: str = "joint"  # what a softmax runs over: all classes learned before (joint), or those of each task (task, paper only)
    warm_up: int | None = None  # epochs before a task in which only the head's new part moves, >= 0; default: 0, released: the run's
    variant: str = field(default="paper", metadata=LATER)  # paper or released

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, ("paper", "released"))
        check_range("weight", self.weight, low=0)
        check_range("temperature", self.temperature, above=0)
        check_choice("heads", self.heads, ("joint", "task"))
        if self.released and self.heads != "joint":
            raise ValueError(f"heads={self.heads} belongs to variant=paper; with variant=released set heads=joint")
        if self.warm_up is not None:
            check_range("warm_up", self.warm_up, low=0)
        elif not self.released:
            object.__setattr__(self, "warm_up", 0)  # written out, as in the fingerprints of runs from before there were variants

    @property
    def released(self) -> bool:
        return self.variant == "released"

    def warm_up_epochs(self, epochs: int) -> int:
        """Of the warm-up, in a run that learns each task for `epochs`."""
        return epochs if self.warm_up is None else self.warm_up


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
        if self.config.released and setting.scaled is False:
            raise ConfigurationError(
                "variant=released has a teacher that sees images only scaled to [0, 1], which this benchmark's transform does not give. "
                "Set variant=paper."
            )
        if setting.model is not None:
            self._check_head(setting.model, setting.epochs)

    # --- the teacher ---

    def begin(self, context: Context) -> Sequence[Phase]:
        event = context.position.event
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
        if _own(context):
            if self.config.released:
                batch.extras[context.slot] = context.features(batch)
        elif self.teacher and len(batch):
            shown = context.scaled(batch) if self.config.released else batch
            batch.extras[context.slot] = context.forward(shown, self.teacher)
        return {}

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        if _own(context):
            return self._warming(batch, context)
        teacher = batch.extras.get(context.slot)
        if teacher is None:
            return {}

        def held() -> Tensor:
            logits = output.logits
            answers = [(logits.index_select(1, head), teacher.index_select(1, head)) for head in self.heads]
            parts = [distillation(student, told, self.config.temperature, batch.targets) for student, told in answers]
            return torch.stack(parts).sum() if len(parts) > 1 else parts[0]

        return {"distillation": Term(held, self.config.weight)}

    def end(self, context: Context) -> Sequence[Phase]:
        event = context.position.event
        if isinstance(event, Learn):
            self.known = sorted({*self.known, *context.classes_of(event.task)})
            self.teacher, self.heads = {}, []
        return ()

    # --- the warm-up of the head ---

    def _check_head(self, model: nn.Module, epochs: int) -> None:
        warm_up = self.config.warm_up_epochs(epochs)
        if not warm_up:
            return
        if not isinstance(getattr(model, "head", None), nn.Linear):
            raise ConfigurationError(
                f"{self._heading(warm_up)} a part of the model's `head`, but this model has no linear one. Set warm_up=0."
            )
        if self.config.released and not hasattr(model, "features"):
            raise ConfigurationError(
                f"{self._heading(warm_up)} a head over the model's `features`, which this model does not have. Set warm_up=0."
            )

    def _heading(self, warm_up: int) -> str:
        return "variant=released warms up" if self.config.warm_up is None else f"warm_up={warm_up} warms up"

    def _warm_up(self, task: TaskId, context: Context) -> Sequence[Phase]:
        epochs = self.config.warm_up_epochs(context.epochs)
        if not epochs or not self._new_classes(task, context):
            return ()
        plan = Plan.over(context.ids_of(task), context.batch_size, epochs, context.random("warm_up").generator())
        return [Phase("warm_up", plan, optimizer=PLAIN_SGD, task_term=False) if self.config.released else Phase("warm_up", plan)]

    def _warming(self, batch: Batch, context: Context) -> Mapping[str, Term]:
        """The released warm-up's objective, in place of the task term."""
        if not self.config.released:
            return {}
        features = batch.extras[context.slot]
        classes = torch.tensor(context.classes_of(context.position.event.task)).to(context.device, non_blocking=True)
        return {"task_classes": Term(lambda: among(_head_of(context.model)(features), batch.targets, classes))}

    def _new_classes(self, task: TaskId, context: Context) -> list[int]:
        return [label for label in context.classes_of(task) if label not in self.known]

    def mask(self, context: Context) -> Mapping[str, bool | Tensor]:
        if not _own(context):
            return {}
        head = _head_of(context.model)
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


def _head_of(model: nn.Module) -> nn.Linear:
    head = model.head
    assert isinstance(head, nn.Linear)  # `_check_head`
    return head


def _own(context: Context) -> bool:
    """Whether the phase under way is this slot's, the warm-up."""
    phase = context.position.phase
    return phase is not None and phase.owner == context.slot
