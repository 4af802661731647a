"""Small strategies that stand beside the one under test: one for each kind of seam, and some that watch.

Each keeps a journal of what it saw: `slot(kind)` gives a fresh one in a slot of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cl_framework.config import Slot
from cl_framework.inputs import each
from cl_framework.plan import Plan
from cl_framework.strategy import (
    Batch,
    Closure,
    Context,
    Done,
    Draw,
    Evaluation,
    Output,
    Phase,
    Rows,
    StepFn,
    Strategy,
    Term,
    Traits,
)
from cl_framework.stream import Unlearn
from cl_framework.testing.laboratory import first_difference

Place = tuple[int, str, int]  # event index, phase, step
WATCHES = Traits(neutral={})  # takes part in steps and leaves them as they are


@dataclass(frozen=True)
class NoOptions:
    """A neighbour has none."""


class Neighbour(Strategy):
    """Base: a journal a class, so that a test can read it when the run is over."""

    Config = NoOptions
    traits = Traits(no_neutral="stands beside the strategy under test")
    journal: ClassVar[list[Any]]


def slot(kind: type[Neighbour], name: str = "") -> Slot:
    """A slot with a fresh class of this kind, whose journal is its own."""
    fresh = type(kind.__name__, (kind,), {"journal": [], "__module__": kind.__module__})
    return Slot(name or f"with_{kind.__name__.lower()}", kind.__name__, fresh, NoOptions())


def place_of(context: Context) -> Place:
    position = context.position
    return (position.event_index, position.phase.name if position.phase is not None else "", position.step)


# --- one for each seam ---


class Quiet(Neighbour):
    """Uses random numbers, of its own and torch's global ones, and changes nothing: nobody else may use those."""

    traits = WATCHES

    def begin(self, context: Context) -> Sequence[Phase]:
        torch.rand(1)
        return ()

    def draw(self, batch: Batch, context: Context) -> Mapping[str, Draw]:
        self.journal.append(float(context.random("own").uniform(3).sum()))
        torch.randperm(5, generator=context.random("other").at_step())
        torch.rand(1)
        return {}

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        torch.rand(1)

    def end(self, context: Context) -> Sequence[Phase]:
        torch.rand(1)
        return ()


class Thrice(Neighbour):
    """Calls the closure three times before the step is made."""

    traits = WATCHES

    def step(self, inner: StepFn, context: Context) -> StepFn:
        def wrapped(closure: Closure) -> Evaluation:
            closure.values()
            closure.gradients()
            closure.gradients_by_term()
            self.journal.append(place_of(context))
            return inner(closure)

        return wrapped


class Structural(Neighbour):
    """Puts a layer after the features."""

    def build(self, model: nn.Module, context: Context) -> nn.Module:
        self.journal.append("build")
        return WithAdapter(model)


class WithAdapter(nn.Module):
    """A model with a residual scale on its features."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        head = base.head
        assert isinstance(head, nn.Linear)
        self.scale = nn.Parameter(torch.zeros(head.in_features))
        self.head = head

    def features(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.base.features(inputs)  # type: ignore[operator]
        return features * (1 + self.scale)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(inputs))
        return logits


class TwoViews(Neighbour):
    """Shows each sample twice within its step."""

    def plan(self, plan: Plan, context: Context) -> Plan:
        self.journal.append(plan.visits)
        group = torch.arange(plan.visits).repeat_interleave(2)
        return Plan(plan.ids.repeat_interleave(2), plan.offsets * 2, torch.arange(2).repeat(plan.visits), group, epochs=plan.epochs)


class Freezing(Neighbour):
    """Freezes a last tensor wholly and half of the first one, and watches that they stay where the phase began."""

    freezes: ClassVar[bool] = True

    def mask(self, context: Context) -> Mapping[str, bool | Tensor]:
        named = list(context.model.named_parameters())
        self._any = bool(named)
        if not named:  # a strategy trains nothing of the model: what is frozen rests
            return {}
        self._part_name, part = named[0]
        self._whole_name = next((name for name, value in reversed(named[1:]) if value.any()), named[-1][0])  # zeros hide what shrinks them
        self._moves = torch.arange(part.numel()).reshape(part.shape) % 2 == 0
        self._before = {name: parameter.detach().clone() for name, parameter in named}
        return {self._whole_name: False, self._part_name: self._moves} if self.freezes else {}

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        if not self._any:
            self.journal.append({"place": place_of(context), "whole": True, "part": True, "rest": True})
            return
        now = dict(context.model.named_parameters())
        before, after = self._before[self._part_name], now[self._part_name].detach()
        self.journal.append(
            {
                "place": place_of(context),
                "whole": torch.equal(self._before[self._whole_name], now[self._whole_name].detach()),
                "part": torch.equal(before[~self._moves], after[~self._moves]),
                "rest": torch.equal(before[self._moves], after[self._moves]),
            }
        )


class Watching(Freezing):
    """The negative control of `Freezing`: watches the same entries, freezes none."""

    traits = WATCHES
    freezes = False


class HalfRate(Neighbour):
    """Halves the learning rate."""

    def rate(self, step: int, steps: int, context: Context) -> float:
        self.journal.append((step, steps))
        return 0.5


class Repeating(Neighbour):
    """Keeps the rows of the last step and asks the model for the same answers: draw, loss, commit and state."""

    traits = Traits(stores_data=True, no_neutral="stands beside the strategy under test")

    def __init__(self, config: NoOptions) -> None:
        super().__init__(config)
        self._kept: Rows | None = None
        self._logits: Tensor | None = None

    def draw(self, batch: Batch, context: Context) -> Mapping[str, Draw]:
        if self._kept is None:
            return {}
        kept = self._kept
        return {"last": Draw.separate(Rows(kept.items, kept.targets, kept.ids, kept.task_of_row))}

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        draw = batch.draws.get(context.slot, {}).get("last")
        if draw is None or self._logits is None:
            return {}
        kept = self._logits
        return {"same": Term(lambda: (output.of(draw).logits - kept).square().mean(), 0.1)}

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        self.journal.append(place_of(context))
        if len(batch):
            self._kept, self._logits = batch, output.logits


class Reversing(Repeating):
    """Turns round the rows of whatever is drawn: they stay rows of their draw, and a sum over them stays what it was."""

    def arrange(self, draw: Draw, batch: Batch, context: Context) -> Draw:
        self.journal.append(draw.key)
        rows = draw.rows
        extras = {name: value.flip(0) for name, value in rows.extras.items()}
        items = each(lambda part: part.flip(0), rows.items)
        turned = Rows(items, rows.targets.flip(0), rows.ids.flip(0), rows.task_of_row.flip(0), extras=extras)
        return replace(draw, rows=replace(turned, tasks_readable=rows.tasks_readable))


class FurtherPhases(Neighbour):
    """Asks for two steps without data before an event and two after it, in which it pulls the weights towards 0."""

    def begin(self, context: Context) -> Sequence[Phase]:
        return [Phase("before", 2)]

    def end(self, context: Context) -> Sequence[Phase]:
        return [Phase("after", 2, optimizer={"lr": 0.001})]

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        phase = context.position.phase
        if phase is None or phase.owner != context.slot:
            return {}
        self.journal.append(place_of(context))
        parameters = context.parameters
        return {"pull": Term(lambda: sum((parameter.square().sum() for parameter in parameters), torch.zeros(())))}


class Doubling(Neighbour):
    """Gives twice the logits as scores."""

    def predict(self, features: Tensor | None, logits: Tensor, rows: Rows, context: Context) -> Tensor:
        self.journal.append(len(rows))
        return 2 * logits


class Oblivious(Neighbour):
    """Answers every Unlearn by doing nothing: what is left of the data is then up to the others' `forget`."""

    traits = Traits(unlearns=frozenset({"task", "class", "sample"}), no_neutral="stands beside the strategy under test")

    def unlearn(self, event: Unlearn, context: Context) -> Done:
        self.journal.append(str(event))
        return Done()


# --- those that watch ---


class Counting(Neighbour):
    """Innermost: counts how often a step is called."""

    traits = WATCHES

    def step(self, inner: StepFn, context: Context) -> StepFn:
        def wrapped(closure: Closure) -> Evaluation:
            self.journal.append(place_of(context))
            return inner(closure)

        return wrapped


class Auditing(Neighbour):
    """Outermost: notes where a call of the closure gives another value than the call before, or moves any state."""

    traits = WATCHES

    def step(self, inner: StepFn, context: Context) -> StepFn:
        def wrapped(closure: Closure) -> Evaluation:
            learner = context.learner  # type: ignore[attr-defined]
            before = snapshot(learner.state_dict())
            losses = [closure.values().loss, closure.gradients().loss, closure.values().loss]
            moved = first_difference(before, snapshot(learner.state_dict()))
            values = closure.values()
            repeated = first_difference(values.terms, closure.values().terms, "terms")
            if any(not torch.equal(losses[0], loss) for loss in losses):
                repeated = f"loss: {[float(loss) for loss in losses]}"
            self.journal.append((place_of(context), moved, repeated))
            return inner(closure)

        return wrapped


def snapshot(state: Any) -> Any:
    """A copy of a nested state."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, Mapping):
        return {key: snapshot(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [snapshot(value) for value in state]
    return state


SEAM_NEIGHBOURS: Mapping[str, type[Neighbour]] = {
    "build": Structural,
    "plan": TwoViews,
    "mask": Freezing,
    "rate": HalfRate,
    "draw, loss, commit": Repeating,
    "arrange": Reversing,
    "step": Thrice,
    "begin, end": FurtherPhases,
    "predict": Doubling,
}
