"""Runs the events of a stream on a learner, one stage and phase after another; begins, stops and goes on at any step. No files.

for event in stream:
    for stage in (begin, own phases, forget and end):   # what the strategies ask for around the event's own phases
        for phase in stage: host.fit_phase(phase)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from cl_framework.cost import Cost, EventTally
from cl_framework.errors import FrameworkError
from cl_framework.history import History
from cl_framework.learner import Learner
from cl_framework.learning_curve import LearningCurve
from cl_framework.parameters import trained_share
from cl_framework.phases import phase_from_state, phase_state
from cl_framework.strategy import Batch, Evaluation, Phase, Replay
from cl_framework.stream import Learn, Unlearn

Stages = Sequence[Callable[[], list[Phase] | Replay]]


class Stopped(Exception):
    """A stop was requested in the middle of a phase; `Walk.inside` tells where."""


class Walk:
    """One walk along a stream. State that must survive a stop is in the learner and in `inside`."""

    def __init__(
        self,
        learner: Learner,
        after_chunk: Callable[[Evaluation, Batch], None] = lambda evaluation, batch: None,
        stop_requested: Callable[[int], bool] = lambda stream_step: False,
        history: History | None = None,
    ) -> None:
        from cl_framework.host import Host

        self.learner = learner
        self._after_chunk = after_chunk
        self._stop_requested = stop_requested
        self._history = history
        self._again: _Again | None = None  # the replay under way
        self.tally = EventTally()
        self._stage = 0
        self._queue: list[Phase] = []
        self._clock, self._counted = time.monotonic(), 0  # up to when and up to which step of the phase the tally is counted
        self._host = Host(learner, after_chunk, lambda: stop_requested(learner.position.stream_step))

    def event(self, index: int, saved: Mapping[str, Any] | None = None) -> None:
        """Run an event of the learner's stream: all of it, or what is left of it after a stop, `saved` by `inside`. Raises `Stopped`.

        The learner's weights and strategies were loaded before; its optimizer's state is in `saved`.
        """
        learner, position = self.learner, self.learner.position
        position.event, position.event_index, position.phase, position.step = learner.stream.events[index], index, None, 0
        learner.new_streams()
        learner.cost, learner.curve, self._clock = Cost(), LearningCurve(), time.monotonic()
        self.tally = EventTally() if saved is None else EventTally(**saved["tally"])
        stages: Stages = (learner.stack.begin, self._own_phases, self._forget_and_end)
        first = 0 if saved is None else saved["stage"]
        for stage in range(first, len(stages)):
            self._stage = stage
            if saved is not None and stage == first and saved["again"] is not None:
                self._replay(saved)
                break
            if saved is not None and stage == first:
                self._queue = [phase_from_state(state, self._own_phase) for state in saved["queue"]]
                self._continue(self._queue[0], saved)
                self._queue.pop(0)
            else:
                position.phase = None
                answer = stages[stage]()
                if isinstance(answer, Replay):
                    self._replay(None)
                    break
                self._queue = answer
            while self._queue:
                self._begin(self._queue[0])
                self._queue.pop(0)
        self._count_outside()

    def inside(self) -> dict[str, Any]:
        """Where in the event we are: the stage, the phases that remain of it (the first one is under way), and the cost so far."""
        learner = self.learner
        untouched = not learner.stack.transforms_plan()
        own = isinstance(learner.position.event, Learn)
        if self._again is not None:
            again = {"event_index": self._again.index, "inside": self._again.walk.inside()}
            cost, tally = asdict(self._again.cost), asdict(self._again.tally)
            return {"stage": self._stage, "queue": [], "tally": tally, "cost": cost, "again": again}
        return {
            "again": None,
            "stage": self._stage,
            "step": learner.position.step,
            "queue": [phase_state(phase, recomputable=untouched and own and phase.owner is None) for phase in self._queue],
            "optimizer": learner.optimizer.state_dict() if learner.optimizer is not None else None,
            "tally": asdict(self.tally),
            "cost": asdict(learner.cost),
            "curve": learner.curve.entries(),
        }

    def count(self) -> None:
        """Add to the tally what was done since it was last counted."""
        if self._again is not None:
            self._again.walk.count()
            return
        learner, position, event = self.learner, self.learner.position, self.learner.position.event
        assert position.phase is not None
        asked = learner.forgotten(event).ids if isinstance(event, Unlearn) else None
        own = learner.training_ids(event.task)
        self.tally.count(position.phase.plan, own, self._counted, position.step, self._lap(), asked)
        self._counted = position.step

    def _count_outside(self) -> None:
        """Add to the tally the time since it was last counted, in which no step was taken."""
        self.tally.seconds += self._lap()

    def _lap(self) -> float:
        """Seconds since the tally was last counted, which it is now."""
        before, self._clock = self._clock, time.monotonic()
        return self._clock - before

    def rest_the_clock(self) -> None:
        """What was done since `count` (a checkpoint) is no time of the event."""
        if self._again is not None:
            self._again.walk.rest_the_clock()
        self._clock = time.monotonic()

    # --- stages ---

    def _own_phases(self) -> list[Phase] | Replay:
        event = self.learner.position.event
        if isinstance(event, Learn):
            return [self.learner.learn_phase(event)]
        return self.learner.stack.unlearn(event)

    def _own_phase(self) -> Phase:
        event = self.learner.position.event
        assert isinstance(event, Learn)  # the plans of all others are stored
        return self.learner.learn_phase(event)

    def _forget_and_end(self) -> list[Phase]:
        """The further phases after an event's own; after an Unlearn they find every memory without what was unlearned."""
        learner = self.learner
        event = learner.position.event
        if isinstance(event, Unlearn):
            forgotten = learner.forgotten(event)
            learner.stack.forget(forgotten)
            learner.drop_optimizer_memory()
            if event.granularity != "task":
                learner.deleted = torch.cat([learner.deleted, forgotten.ids]).unique()
        return learner.stack.end()

    # --- a replay ---

    def _replay(self, saved: Mapping[str, Any] | None) -> None:
        """Run the events since the data were first shown again, without the data, on the learner as it was then."""
        learner, history, whole = self.learner, self._history, self.learner.stream
        index, event = learner.position.event_index, learner.position.event
        assert isinstance(event, Unlearn) and history is not None
        if event.granularity != "task":
            learner.deleted = torch.cat([learner.deleted, learner.forgotten(event).ids]).unique()
        learner.stream, count = whole.without_unlearned(index)
        first = self._start_again(count) if saved is None else saved["again"]["event_index"]
        walk = Walk(learner, self._after_chunk, self._stop_requested, history)
        tally, cost = (EventTally(), Cost()) if saved is None else (self.tally, Cost(**saved["cost"]))
        self._again = _Again(walk, first, tally, cost)
        tally.seconds += self._lap()
        for again in range(first, count):
            self._again.index = again
            walk.event(again, saved["again"]["inside"] if saved is not None and again == first else None)
            tally.add(walk.tally)
            cost.add(learner.cost)
            self._clock = time.monotonic()  # the time up to here is in the other walk's tally
            history.keep(learner.stream, again + 1, learner, learner.state_dict())
            tally.seconds += self._lap()
        self._again = None
        tally.samples_new, tally.samples_past = 0, tally.samples  # it has shown retained data alone
        self.tally, learner.cost, learner.curve, learner.stream = tally, cost, LearningCurve(), whole
        learner.position.event, learner.position.event_index = event, index
        learner.new_streams()

    def _start_again(self, count: int) -> int:
        """Put the learner into the nearest state that never knew the data; how many events led to it."""
        learner = self.learner
        assert self._history is not None
        done, state = self._history.nearest(learner.stream, count, learner)
        if state is None:
            raise FrameworkError(
                f"{self._history.folder} holds no state from before the stream began: {learner.position.event} cannot train again "
                "without the data. Start the run anew with again=true."
            )
        deleted = learner.deleted
        learner.load_state_dict(state)
        learner.deleted = deleted
        return done

    # --- a phase ---

    def _begin(self, phase: Phase) -> None:
        position = self.learner.position
        position.phase, position.step = phase, 0
        self.learner.new_streams()
        self._queue[0] = phase = self.learner.plan_phase(phase)
        position.phase = phase
        self.learner.begin_phase(phase)
        self._fit(phase)

    def _continue(self, phase: Phase, saved: Mapping[str, Any]) -> None:
        position = self.learner.position
        position.phase, position.step = phase, saved["step"]
        self.learner.new_streams()
        self.learner.curve = LearningCurve(saved["curve"])
        self.learner.begin_phase(replace(phase, fresh_model=False))
        self.learner.load_optimizer(saved["optimizer"])
        self.learner.cost = Cost(**saved["cost"])  # only now: what a phase begins with was counted before the stop
        self._fit(phase)

    def _fit(self, phase: Phase) -> None:
        learner, position = self.learner, self.learner.position
        self._count_outside()
        self._counted = position.step
        self._host.fit_phase(phase, position.step)
        self.count()
        if position.step < phase.steps:
            raise Stopped
        rests = [name for name, _ in learner.model.named_parameters() if name not in learner.names_in_play]
        held = {"trained_share": trained_share(learner.model, rests), "optimizer_bytes": learner.optimizer_bytes}
        self.tally.phases.append({"name": phase.name, "steps": phase.steps, **held})
        learner.end_phase(phase)
        position.phase, position.step = None, 0
        learner.new_streams()  # what follows must not depend on which streams the phase has used


@dataclass
class _Again:
    """A replay under way: where it is, and what it has cost up to the event that it is in."""

    walk: Walk
    index: int
    tally: EventTally
    cost: Cost
