"""Dark experience replay: keep the logits of samples in memory where they were when the samples were seen.

Source: Buzzega et al. 2020 "Dark Experience for General Continual Learning", eq. 5.
Uses: draw, loss, commit, forget, state_dict, load_state_dict
Cost: a second forward and backward pass, over the memory rows; memory of `capacity` raw samples and their logits.
Differs: the distance is the mean over classes of squared differences, as in the released code, where the paper's is their sum:
    alpha here is the number of classes times the paper's alpha.
Interacts: the memory rows have a pass of their own, so BatchNorm sees them apart; logits are those the applied gradient was made from.
    Of questions only the logits at the places of the answer count, as in the loss of the task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cl_framework import Batch, Context, Draw, Forgotten, Memory, Output, Strategy, Term, Traits, check_range, register, squared_distance


@dataclass(frozen=True)
class DERConfig:
    alpha: float = 0.3  # weight of the distance between logits, >= 0
    capacity: int = 500  # samples in memory, >= 0; 0 is fine-tuning
    minibatch: int | None = None  # memory rows a step, >= 1; default: the batch size

    def __post_init__(self) -> None:
        check_range("alpha", self.alpha, low=0)
        check_range("capacity", self.capacity, low=0)
        if self.minibatch is not None:
            check_range("minibatch", self.minibatch, low=1)


@register("der")
class DER(Strategy):
    """Dark experience replay: match the logits stored with each memory sample."""

    Config = DERConfig
    traits = Traits(stores_data=True, neutral={"capacity": 0})

    def __init__(self, config: DERConfig) -> None:
        super().__init__(config)
        self.memory = Memory(config.capacity)

    def draw(self, batch: Batch, context: Context) -> Mapping[str, Draw]:
        rows = self.memory.sample(self.config.minibatch or context.batch_size, context.random("logits"))
        return {} if rows is None else {"logits": Draw.separate(rows)}

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        draws = batch.draws.get(context.slot)
        if draws is None:
            return {}
        stored = draws["logits"]
        rows = stored.rows
        return {"logits": Term(lambda: squared_distance(output.of(stored).logits, rows.extras["logits"], rows.targets), self.config.alpha)}

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        if len(batch):  # no pass has run over a step without rows
            self.memory.add(batch, context.random("insert"), logits=output.logits)

    def forget(self, forgotten: Forgotten, context: Context) -> None:
        self.memory.forget(forgotten.ids, context.random("forget"))
        if len(self.memory):
            # Logits of other samples were made by a model that knew the forgotten ones: take the present model's.
            self.memory.replace(logits=context.forward(self.memory.rows()))

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.memory.load_state_dict(state["memory"])
