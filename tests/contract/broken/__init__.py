"""Strategies with one mistake each, as a plug-in's author would make it, beside the same strategy without it.

A module for each module of checks; its `MISTAKES` name the check that must catch each, and words of what that says. None is registered
but while a test looks at it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cl_framework.strategy import Batch, Context, Draw, Output, Strategy, Term, Traits
from cl_framework.testing.neighbours import NoOptions
from tests.contract.shelf import Shelf, Shelved


@dataclass(frozen=True)
class Mistake:
    """A strategy that breaks the law of a check, and the one it was made from, which keeps it."""

    check: str
    broken: type[Strategy]
    sound: type[Strategy]
    words: str  # a pattern in what the check says of the broken one


class Plain(Strategy):
    """Does nothing."""

    Config = NoOptions
    traits = Traits(neutral={})


class Fading(Plain):
    """A weight decay that fades with the number of steps."""

    traits = Traits(no_neutral="it always pulls at first")

    def __init__(self, config: NoOptions) -> None:
        super().__init__(config)
        self._count = 0

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        return {"norm": Term(lambda: sum_of_squares(context.parameters), 0.1 / (1 + self._count))}

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        self._count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._count = state["count"]


def sum_of_squares(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum()


class Rehearsing(Shelved):
    """A memory, and a term over a draw from it."""

    Config = NoOptions
    traits = Traits(stores_data=True, no_neutral="the memory has a size")

    def __init__(self, config: NoOptions) -> None:
        super().__init__(config)
        self._shelf = Shelf(60, balanced=True)

    def draw(self, batch: Batch, context: Context) -> Mapping[str, Draw]:
        rows = self._shelf.sample(6, context.random("sample").uniform(60))
        return {} if rows is None else {"memory": Draw.separate(rows)}

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        draw = batch.draws.get(context.slot, {}).get("memory")
        return {} if draw is None else {"memory": Term(lambda: context.criterion(output.of(draw).logits, draw.rows).mean())}
