"""Experience replay with asymmetric cross-entropy: incoming rows never push down the logits of classes learned before.

Source: Caccia et al. 2022 "New Insights on Reducing Abrupt Representation Change in Online Continual Learning", ER-ACE's objective:
    L = CE(B; classes of B and classes not seen yet) + CE(B_M; all classes).
Uses: check, draw, loss, commit, forget, state_dict, load_state_dict
Cost: a second forward and backward pass, over the memory rows; memory of `capacity` raw samples.
Differs: variant=paper (the default) restricts from the first step that has memory rows on. variant=released does as the code of
    Buzzega et al.'s Mammoth: neither restriction nor replay while the first task is learned, and "not seen yet" is read as
    class >= the largest one seen, which presumes ascending class numbers and lets that largest class through as well. Its newer
    versions also put a cosine classifier (scale 10) in place of the linear head; here the head is the model's: model.head=cosine on a
    resnet18 or slim_resnet18.
    Where there is no memory row there is nothing to hold old classes up, and the loss is the plain one: capacity 0 is fine-tuning.
Interacts: replaces the task term, so at most one such strategy a stack; the memory rows have a pass of their own, so BatchNorm sees
    them apart; in task-incremental runs the scenario's mask holds besides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cl_framework import (
    Batch,
    ConfigurationError,
    Context,
    Draw,
    Forgotten,
    Memory,
    Output,
    Setting,
    Strategy,
    Term,
    Traits,
    check_choice,
    check_range,
    register,
)


def of_batch_or_unseen(targets: Tensor, seen: Tensor) -> Tensor:
    """Which classes incoming rows compete among, (C,) bool: those of the batch and those not `seen` (C,) bool."""
    return (~seen).index_fill(0, targets, True)


def of_batch_or_from_largest(targets: Tensor, seen: Tensor) -> Tensor:
    """The released code's (C,) bool: classes of the batch, and those from the largest seen one on unless that is the last of all."""
    classes = torch.arange(len(seen), device=seen.device)
    largest = torch.where(seen.index_fill(0, targets, True), classes, 0).max()
    beyond = (classes >= largest) & (largest < len(seen) - 1)
    return beyond.index_fill(0, targets, True)


CANDIDATES = {"paper": of_batch_or_unseen, "released": of_batch_or_from_largest}


@dataclass(frozen=True)
class ERACEConfig:
    capacity: int = 500  # samples in memory, >= 0; 0 is fine-tuning
    minibatch: int | None = None  # memory rows a step, >= 1; default: the batch size
    variant: str = "paper"  # paper or released: which classes incoming rows compete among, and from when on

    def __post_init__(self) -> None:
        check_range("capacity", self.capacity, low=0)
        if self.minibatch is not None:
            check_range("minibatch", self.minibatch, low=1)
        check_choice("variant", self.variant, CANDIDATES)


@register("er_ace")
class ERACE(Strategy):
    """Experience replay in which incoming rows compete among their own and unseen classes only."""

    Config = ERACEConfig
    traits = Traits(stores_data=True, replaces_task_term=True, neutral={"capacity": 0}, objectives=("classification",))

    def __init__(self, config: ERACEConfig) -> None:
        super().__init__(config)
        self.memory = Memory(config.capacity)
        self.seen: Tensor | None = None  # (C,) bool: classes that the stream has shown

    def check(self, setting: Setting) -> None:
        if self.config.variant == "released" and setting.blurry:
            raise ConfigurationError(
                "variant=released must know when the first task ends, which a blurry stream does not tell. Use variant=paper or blurry=0."
            )

    def draw(self, batch: Batch, context: Context) -> Mapping[str, Draw]:
        if self.config.variant == "released" and context.live_tasks == (context.position.event.task,):
            return {}
        rows = self.memory.sample(self.config.minibatch or context.batch_size, context.random("sample"))
        return {} if rows is None else {"replay": Draw.separate(rows)}

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        terms = {}
        replay = batch.draws.get(context.slot, {}).get("replay")
        if replay is not None:
            terms["replay"] = Term(lambda: context.criterion(output.of(replay).logits, replay.rows).mean())
        if len(batch):
            terms["task"] = Term(lambda: self._asymmetric(batch, output, context, replay))
        return terms

    def _asymmetric(self, batch: Batch, output: Output, context: Context, replay: Draw | None) -> Tensor:
        logits = output.logits
        if replay is not None and self.seen is not None:
            logits = logits.masked_fill(~CANDIDATES[self.config.variant](batch.targets, self.seen), float("-inf"))
        return context.criterion(logits, batch).mean()

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        self.memory.add(batch, context.random("insert"))
        if self.seen is None:
            self.seen = torch.zeros(context.num_classes, dtype=torch.bool, device=context.device)
        self.seen = self.seen.index_fill(0, batch.targets, True)

    def forget(self, forgotten: Forgotten, context: Context) -> None:
        self.memory.forget(forgotten.ids, context.random("forget"))
        if self.seen is not None and forgotten.event.granularity != "sample":
            gone = set(forgotten.event.classes or context.classes_of(forgotten.event.task))
            gone -= {label for task in context.live_tasks if task != forgotten.event.task for label in context.classes_of(task)}
            self.seen = self.seen.index_fill(0, torch.tensor(sorted(gone), dtype=torch.int64, device=context.device), False)

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory.state_dict(), "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.memory.load_state_dict(state["memory"])
        self.seen = state["seen"]
