"""Mistakes in a step: impure losses, draws that write, frozen parameters that move, numbers that break beside a neighbour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cl_framework.strategy import Batch, Closure, Context, Draw, Evaluation, Output, Phase, StepFn, Term, Traits
from cl_framework.testing.neighbours import NoOptions
from tests.contract.broken import Fading, Mistake, Plain, Rehearsing


class CountsInLoss(Fading):
    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        self._count += 1
        return super().loss(batch, output, context)


class CountsInLossUnsaved(CountsInLoss):
    """No state moves that a check could compare, but the values do."""

    def state_dict(self) -> dict[str, Any]:
        return {}


class CountsInDraw(Fading):
    def draw(self, batch: Batch, context: Context) -> Mapping[str, Draw]:
        self._count += 1
        return {}


class DrawsInLoss(Rehearsing):
    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        self.draw(batch, context)
        return super().loss(batch, output, context)


class CommitsInStep(Rehearsing):
    def step(self, inner: StepFn, context: Context) -> StepFn:
        def committed(closure: Closure) -> Evaluation:
            evaluation = inner(closure)
            self.commit(Batch(torch.zeros(0), *[torch.zeros(0, dtype=torch.int64)] * 3), evaluation.output, context)
            return evaluation

        return committed


class NeverSteps(Plain):
    def step(self, inner: StepFn, context: Context) -> StepFn:
        return lambda closure: closure.values()


class Shrinking(Plain):
    """Shrinks after each step what may move."""

    traits = Traits(no_neutral="it always shrinks")

    def step(self, inner: StepFn, context: Context) -> StepFn:
        def shrunk(closure: Closure) -> Evaluation:
            evaluation = inner(closure)
            for parameter in context.parameters:
                parameter.data.mul_(0.99)
            return evaluation

        return shrunk


class ShrinksFrozenTensors(Shrinking):
    def step(self, inner: StepFn, context: Context) -> StepFn:
        def shrunk(closure: Closure) -> Evaluation:
            evaluation = inner(closure)
            for parameter in context.model.parameters():
                parameter.data.mul_(0.99)
            return evaluation

        return shrunk


class ShrinkingLate(Plain):
    """The same, when the step is over and nobody puts back what is frozen."""

    traits = Traits(no_neutral="it always shrinks")

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        for parameter, movable in zip(context.parameters, context.movable, strict=True):
            parameter.data.mul_(0.99 if movable is None else torch.where(movable, 0.99, 1.0))


class ShrinksFrozenEntries(ShrinkingLate):
    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        for parameter in context.parameters:
            parameter.data.mul_(0.99)


class RelativePull(Plain):
    """Pulls each tensor back to where it was when the event began, in proportion to its size."""

    traits = Traits(no_neutral="it always pulls")

    def __init__(self, config: NoOptions) -> None:
        super().__init__(config)
        self._anchors: dict[str, Tensor] = {}

    def begin(self, context: Context) -> Sequence[Phase]:
        self._anchors = {name: parameter.detach().clone() for name, parameter in context.model.named_parameters()}
        return ()

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        pairs = [(parameter, self._anchors[name]) for name, parameter in zip(context.parameter_names, context.parameters, strict=True)]
        return {"pull": Term(lambda: torch.stack([(p - a).square().sum() / self._size(a) for p, a in pairs]).sum(), 0.1)}

    def _size(self, anchor: Tensor) -> Tensor:
        return 1 + anchor.square().sum()

    def state_dict(self) -> dict[str, Any]:
        return dict(self._anchors)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._anchors = dict(state)


class DividesByZero(RelativePull):
    def _size(self, anchor: Tensor) -> Tensor:
        return anchor.square().sum()  # 0 for what a neighbour adds to the model as zeros


MISTAKES = (
    Mistake("loss_is_pure", CountsInLoss, Fading, r"calling the closure at .* moved state.strategies.broken.count"),
    Mistake("loss_is_pure", CountsInLossUnsaved, Fading, "gave another value when asked again"),
    Mistake("one_draw_and_one_commit_a_step", CountsInDraw, Fading, "a draw wrote to the strategy's state at .* state.count"),
    Mistake("one_draw_and_one_commit_a_step", DrawsInLoss, Rehearsing, "draw ran more than once at"),
    Mistake("one_draw_and_one_commit_a_step", CommitsInStep, Rehearsing, "commit ran more than once at"),
    Mistake("frozen_parameters_do_not_move", ShrinksFrozenTensors, Shrinking, "a frozen tensor moved at"),
    Mistake("frozen_parameters_do_not_move", ShrinksFrozenEntries, ShrinkingLate, "frozen entries of a tensor moved at"),
    Mistake("composes_with_each_kind_of_seam", DividesByZero, RelativePull, "neighbour that uses build, before: .* is not finite"),
    Mistake("composes_with_each_kind_of_seam", NeverSteps, Plain, "the neighbour that uses step never acted"),
)
