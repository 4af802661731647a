"""Experience replay: train on the stream and on samples from a memory together.

Source: Rolnick et al. 2019 (CLEAR's replay), Chaudhry et al. 2019 "On Tiny Episodic Memories", eq. 1; reservoir: Vitter 1985.
Uses: check, draw, commit, forget, state_dict, load_state_dict
Cost: one forward and backward pass over twice the rows; memory of `capacity` raw samples.
Differs: stream and memory rows share one forward pass and one mean, as in the released code of Buzzega et al. 2020; "refresh"-style
    code bases use two passes and a weight instead, which changes BatchNorm statistics.
Interacts: anything that wraps the step sees one objective; views of a sample are stored once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
    Traits,
    check_choice,
    check_range,
    register,
)


@dataclass(frozen=True)
class ERConfig:
    capacity: int = 500  # samples in memory, >= 0; 0 is fine-tuning
    minibatch: int | None = None  # memory rows a step, >= 1; default: the batch size
    policy: str = "reservoir"  # reservoir, ring or balanced

    def __post_init__(self) -> None:
        check_range("capacity", self.capacity, low=0)
        if self.minibatch is not None:
            check_range("minibatch", self.minibatch, low=1)
        check_choice("policy", self.policy, ("reservoir", "ring", "balanced"))


@register("er")
class ER(Strategy):
    """Experience replay with a reservoir, ring or class-balanced memory."""

    Config = ERConfig
    traits = Traits(stores_data=True, neutral={"capacity": 0})

    def __init__(self, config: ERConfig) -> None:
        super().__init__(config)
        self.memory = Memory(config.capacity, config.policy)

    def check(self, setting: Setting) -> None:
        capacity, classes = self.config.capacity, setting.classes_shown
        if self.config.policy != "reservoir" and setting.objective == "language_modelling":
            raise ConfigurationError(f"policy: {self.config.policy} shares memory among classes, which texts lack. Set policy=reservoir.")
        if self.config.policy != "reservoir" and classes is not None and 0 < capacity < classes:
            raise ConfigurationError(
                f"capacity: {capacity} samples cannot hold one of each of the stream's {classes} classes, as policy={self.config.policy} "
                f"does. Set capacity to at least {classes}, or policy=reservoir."
            )

    def draw(self, batch: Batch, context: Context) -> Mapping[str, Draw]:
        rows = self.memory.sample(self.config.minibatch or context.batch_size, context.random("sample"))
        return {} if rows is None else {"replay": Draw.joined(rows)}

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        self.memory.add(batch, context.random("insert"))

    def forget(self, forgotten: Forgotten, context: Context) -> None:
        self.memory.forget(forgotten.ids, context.random("forget"))

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.memory.load_state_dict(state["memory"])
