"""Stacks of the strategies given, and strategies in the seams that only one of a stack may take."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from cl_framework.stack import Stack
from cl_framework.strategy import Rows, Strategy, Traits

NOTHING = Traits(no_neutral="a fixture")


class Building(Strategy):
    traits = NOTHING

    def build(self, model: nn.Module, context: Any) -> nn.Module:
        return nn.Sequential(model)


class Predicting(Strategy):
    traits = NOTHING

    def predict(self, features: Any, logits: Tensor, rows: Rows, context: Any) -> Tensor:
        return logits + context.bonus


class Replacing(Strategy):
    traits = Traits(replaces_task_term=True, no_neutral="a fixture")


def stack_of(**strategies: Strategy) -> Stack:
    stack = Stack(strategies.items())
    stack.bind({slot: SimpleNamespace(slot=slot) for slot in stack.slots})  # type: ignore[arg-type]
    return stack
