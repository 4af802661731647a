"""Maximally interfered retrieval: replay the memory rows whose loss the coming step would raise most.

Source: Aljundi et al. 2019 "Online Continual Learning with Maximally Interfered Retrieval", algorithm 1 and the score of section 3.1:
    theta' = theta - eta grad CE(B; theta), s(x) = CE(x; theta') - CE(x; theta); the k rows of largest s are replayed.
Uses: check, draw, commit, forget, state_dict, load_state_dict
Cost: a forward and backward pass over the batch and two forward passes over the candidates, then ER's pass over both; memory of
    `capacity` raw samples.
Differs: the retrieved rows share the batch's forward pass and mean, as ER does here, and are scored without augmentation. The virtual
    step is plain gradient descent at the present rate, as published, whatever the optimizer (momentum, Adam) will do.
Interacts: looks at the loss of the stream's rows alone, not at what other strategies add; leaves parameters and statistics as they are.
    A step without stream rows, or whose candidates are all replayed anyway, makes no virtual step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cl_framework import (
    Batch,
    ConfigurationError,
    Context,
    Draw,
    Forgotten,
    Gradients,
    Memory,
    Output,
    Rows,
    Setting,
    Strategy,
    Traits,
    check_range,
    register,
)


def virtual_step(parameters: Sequence[Tensor], gradients: Gradients, rate: float) -> list[Tensor]:
    """Where a step of gradient descent would lead: new tensors, the parameters stay."""
    return [p.detach() if g is None else p.detach() - rate * g for p, g in zip(parameters, gradients, strict=True)]


def most_interfered(before: Tensor, after: Tensor, count: int) -> Tensor:
    """The rows of (N,) losses that rise most from `before` to `after`: at most `count` row numbers, the largest rise first."""
    return (after - before).topk(min(count, len(before))).indices


@dataclass(frozen=True)
class MIRConfig:
    capacity: int = 500  # samples in memory, >= 0; 0 is fine-tuning
    candidates: int | None = None  # memory rows scored a step, more than are replayed; default: five times as many, 50 as published
    minibatch: int | None = None  # memory rows replayed a step, >= 1; default: the batch size, which was 10 as published

    def __post_init__(self) -> None:
        check_range("capacity", self.capacity, low=0)
        if self.candidates is not None:
            check_range("candidates", self.candidates, low=1)
        if self.minibatch is not None:
            check_range("minibatch", self.minibatch, low=1)


@register("mir")
class MIR(Strategy):
    """Replay of the memory rows whose loss a virtual step on the batch would raise most."""

    Config = MIRConfig
    traits = Traits(stores_data=True, neutral={"capacity": 0})

    def __init__(self, config: MIRConfig) -> None:
        super().__init__(config)
        self.memory = Memory(config.capacity)

    def check(self, setting: Setting) -> None:
        count = self.config.minibatch or setting.batch_size
        if self.config.candidates is not None and self.config.candidates <= count:
            raise ConfigurationError(
                f"candidates={self.config.candidates} are not more than the {count} rows replayed a step, so that none would be chosen. "
                f"Set candidates above {count}, or use er."
            )
        if self.config.candidates is not None and 0 < self.config.capacity < self.config.candidates:
            raise ConfigurationError(
                f"candidates={self.config.candidates} are more than the capacity={self.config.capacity} of the memory that they are drawn "
                "from. Lower candidates or raise capacity."
            )
        if 0 < self.config.capacity <= count:
            raise ConfigurationError(
                f"capacity={self.config.capacity} holds no more than the {count} rows replayed a step, so that none would be chosen. "
                f"Set capacity above {count}, or use er."
            )

    def draw(self, batch: Batch, context: Context) -> Mapping[str, Draw]:
        count = self.config.minibatch or context.batch_size
        asked = self.config.candidates or 5 * count
        candidates = self.memory.sample(asked if len(batch) else count, context.random("candidates"))
        if candidates is None:
            return {}
        if len(candidates) > count:
            candidates = candidates.take(self._most_interfered(candidates, batch, count, context))
        return {"interfered": Draw.joined(candidates)}

    def _most_interfered(self, candidates: Rows, batch: Batch, count: int, context: Context) -> Tensor:
        ahead = virtual_step(context.parameters, context.gradient(batch), context.learning_rate)
        before, after = (context.criterion(context.forward(candidates, at), candidates) for at in (None, ahead))
        return most_interfered(before, after, count)

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        self.memory.add(batch, context.random("insert"))

    def forget(self, forgotten: Forgotten, context: Context) -> None:
        self.memory.forget(forgotten.ids, context.random("forget"))

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.memory.load_state_dict(state["memory"])
