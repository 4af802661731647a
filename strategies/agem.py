"""Averaged gradient episodic memory: a step never raises, to first order, the mean loss on a draw from memory.

Source: Chaudhry et al. 2019 "Efficient Lifelong Learning with A-GEM", eq. 11:
    g~ = g - (g . g_ref / g_ref . g_ref) g_ref where g . g_ref < 0, else g; memories as in algorithm 1.
Uses: check, draw, step, commit, end, forget, state_dict, load_state_dict
Cost: a second forward and backward pass, over the reference rows, and a copy of both gradients; memory of `capacity` raw samples.
Differs: what is in memory, by `policy`. task (the default): capacity // tasks samples of each task that has ended, drawn at random from
    it, as published. one_batch: a single mini-batch of it, offered to a reservoir, as in Mammoth's code (which computes that quota and
    does not use it). reservoir: every visit of the stream, the present task's too, as Mammoth's A-GEM-R. The reference pass leaves
    BatchNorm statistics alone, where code bases commonly update them by it.
Interacts: projects the gradient of the whole objective, what other strategies add included; a wrapper inside of it that steps several
    times has each step projected where it is made; clipping comes after the projection. What a mask freezes takes no part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cl_framework import (
    Batch,
    Closure,
    ConfigurationError,
    Context,
    Draw,
    Evaluation,
    Forgotten,
    Gradients,
    Learn,
    Memory,
    Output,
    Phase,
    Setting,
    StepFn,
    Strategy,
    Traits,
    check_choice,
    check_range,
    register,
)


def project(gradient: Tensor, reference: Tensor) -> Tensor:
    """`gradient` (P,) without its part along `reference` (P,) where it points against it."""
    product = torch.dot(gradient, reference)
    share = torch.where(product < 0, product / torch.dot(reference, reference), 0.0)
    return gradient - share * reference


def project_all(gradients: Gradients, reference: Gradients) -> Gradients:
    """`project` of one flat vector of the tensors that both reach; the others are left as they are."""
    pairs = [(place, g, r) for place, (g, r) in enumerate(zip(gradients, reference, strict=True)) if g is not None and r is not None]
    if not pairs:
        return gradients
    flat = project(torch.cat([g.flatten() for _, g, _ in pairs]), torch.cat([r.flatten() for _, _, r in pairs]))
    result = list(gradients)
    for (place, g, _), part in zip(pairs, flat.split([g.numel() for _, g, _ in pairs]), strict=True):
        result[place] = part.view_as(g)
    return tuple(result)


def where_movable(gradients: Gradients, context: Context) -> Gradients:
    """0 at entries that a mask freezes: they do not move, and must not count as if they did."""
    free = context.movable
    return tuple(g if g is None or part is None else g * part for g, part in zip(gradients, free, strict=True))


@dataclass(frozen=True)
class AGEMConfig:
    capacity: int = 500  # samples in memory, >= 0; 0 is fine-tuning
    minibatch: int | None = None  # reference rows a step, >= 1; default: the batch size
    policy: str = "task"  # task, one_batch or reservoir: which samples are in memory

    def __post_init__(self) -> None:
        check_range("capacity", self.capacity, low=0)
        if self.minibatch is not None:
            check_range("minibatch", self.minibatch, low=1)
        check_choice("policy", self.policy, ("task", "one_batch", "reservoir"))


@register("agem")
class AGEM(Strategy):
    """The gradient is projected where it would raise the loss on a draw from memory."""

    Config = AGEMConfig
    traits = Traits(stores_data=True, neutral={"capacity": 0})

    def __init__(self, config: AGEMConfig) -> None:
        super().__init__(config)
        self.memory = Memory(config.capacity)

    def check(self, setting: Setting) -> None:
        policy, capacity = self.config.policy, self.config.capacity
        if policy != "reservoir" and setting.blurry:
            raise ConfigurationError(
                f"policy={policy} must know when a task ends, which a blurry stream does not tell. Use policy=reservoir or blurry=0."
            )
        if policy == "task" and setting.num_tasks is not None and 0 < capacity < setting.num_tasks:
            raise ConfigurationError(
                f"capacity={capacity} leaves no sample for each of {setting.num_tasks} tasks. Raise it or use policy=reservoir."
            )

    def draw(self, batch: Batch, context: Context) -> Mapping[str, Draw]:
        rows = self.memory.sample(self.config.minibatch or context.batch_size, context.random("reference"))
        return {} if rows is None else {"reference": Draw.reference(rows)}

    def step(self, inner: StepFn, context: Context) -> StepFn:
        def projected(closure: Closure) -> Evaluation:
            if not len(self.memory):
                return inner(closure)

            def onto_reference(gradients: Gradients) -> Gradients:
                reference = closure.gradients(f"{context.slot}/reference").gradients
                return gradients if reference is None else project_all(*(where_movable(part, context) for part in (gradients, reference)))

            return inner(closure.with_gradients(onto_reference))

        return projected

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        if self.config.policy == "reservoir":
            self.memory.add(batch, context.random("insert"))

    def end(self, context: Context) -> Sequence[Phase]:
        event, policy = context.position.event, self.config.policy
        if isinstance(event, Learn) and policy != "reservoir" and self.config.capacity:
            ids = context.ids_of(event.task)
            if policy == "task":  # learned again: its place is taken by new samples
                self.memory.forget(ids, context.random("forget"))
            count = context.batch_size if policy == "one_batch" else self.config.capacity // context.num_tasks
            chosen = torch.randperm(len(ids), generator=context.random("choose").generator())[:count]
            self.memory.add(context.read(ids[chosen]), context.random("insert"))
        return ()

    def forget(self, forgotten: Forgotten, context: Context) -> None:
        self.memory.forget(forgotten.ids, context.random("forget"))

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.memory.load_state_dict(state["memory"])
