"""Dark experience replay++: stored logits for one draw from memory, stored labels for a second, independent one.

Source: Buzzega et al. 2020 "Dark Experience for General Continual Learning", eq. 6.
Uses: draw, loss, commit, forget, state_dict, load_state_dict
Cost: two more forward and backward passes, each over memory rows; memory of `capacity` raw samples and their logits.
Differs: mean-squared error over classes, as in the released code: alpha here is the number of classes times the paper's alpha.
Interacts: beta = 0 is DER; alpha = beta = 0 is fine-tuning; a term of weight 0 costs no pass.
    Of questions only the logits at the places of the answer count, as in the loss of the task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cl_framework import Batch, Context, Draw, Forgotten, Memory, Output, Strategy, Term, Traits, check_range, register, squared_distance


@dataclass(frozen=True)
class DERPPConfig:
    alpha: float = 0.1  # weight of the distance between logits, >= 0
    beta: float = 0.5  # weight of the loss on stored labels, >= 0; 0 is DER
    capacity: int = 500  # samples in memory, >= 0; 0 is fine-tuning
    minibatch: int | None = None  # memory rows a draw, >= 1; default: the batch size

    def __post_init__(self) -> None:
        check_range("alpha", self.alpha, low=0)
        check_range("beta", self.beta, low=0)
        check_range("capacity", self.capacity, low=0)
        if self.minibatch is not None:
            check_range("minibatch", self.minibatch, low=1)


@register("derpp")
class DERPP(Strategy):
    """Dark experience replay++: match stored logits, and learn stored labels."""

    Config = DERPPConfig
    traits = Traits(stores_data=True, neutral={"alpha": 0.0, "beta": 0.0})

    def __init__(self, config: DERPPConfig) -> None:
        super().__init__(config)
        self.memory = Memory(config.capacity)

    def draw(self, batch: Batch, context: Context) -> Mapping[str, Draw]:
        count = self.config.minibatch or context.batch_size
        drawn = {name: self.memory.sample(count, context.random(name)) for name in ("logits", "labels")}
        return {name: Draw.separate(rows) for name, rows in drawn.items() if rows is not None}

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        draws = batch.draws.get(context.slot)
        if draws is None:
            return {}
        stored, labelled = draws["logits"], draws["labels"]
        rows = stored.rows
        return {
            "logits": Term(lambda: squared_distance(output.of(stored).logits, rows.extras["logits"], rows.targets), self.config.alpha),
            "labels": Term(lambda: context.criterion(output.of(labelled).logits, labelled.rows).mean(), self.config.beta),
        }

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
