"""Models to compare an unlearned one with: the run itself, lived through again in memory, and oracles that never saw the data.

An oracle of an event is the state to which the stream leads without what was unlearned up to there: `Stream.without_unlearned`, and
without the samples unlearned one by one. Its states are kept under `OUT/oracles/`, by what led to them, data, code and machine included
(`surroundings`), so that requests, repeated audits and runs that differ only in how they unlearn share what they can. An oracle of one
event knows what a later one unlearns: kept states are no part of the run, and `clu audit` names the folder where some know what was
unlearned since.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_framework.assembly import assemble
from cl_framework.benchmarks.base import Benchmark
from cl_framework.config import Experiment
from cl_framework.digests import digest_of
from cl_framework.errors import FrameworkError
from cl_framework.history import History, key_of, keys_along
from cl_framework.learner import Learner
from cl_framework.records import append_rows, atomic_write, read_rows
from cl_framework.strategy import Traits
from cl_framework.stream import Learn, Stream, Unlearn
from cl_framework.unlearning.kept_measurements import KeptMeasurements
from cl_framework.unlearning.surroundings import surroundings
from cl_framework.walk import Walk

_COSTS = "costs.jsonl"
_MARK = "CONTAINS_DATA.txt"
_MARKED = (
    "Models for comparison. They know what was retained when they were made, and what may have been unlearned since: delete this folder.\n"
)


# --- the run itself ---


def live_again(
    experiment: Experiment,
    benchmark: Benchmark,
    states: Mapping[int, str],
    seen: Callable[[int, Learner], None],
    learned: Learned | None = None,
) -> int:
    """Run an experiment in memory, as it was run; `seen` is called before the first event (-1) and after each. Returns how many it ran.

    states: the digest of the state after some of the events, which must be met. Raises FrameworkError where one is not.
    learned: the state before the first request, where it may be kept; where it is, that much is not run again, and `seen` is first called
    there. Not for strategies that go back to earlier states.
    """
    learner = assemble(experiment, benchmark)
    with tempfile.TemporaryDirectory() as folder:  # for strategies that go back to earlier states; gone at the end
        history = History(Path(folder)) if learner.stack.replays else None
        if history is not None:
            history.keep(learner.stream, 0, learner, learner.state_dict())
            learned = None
        walk = Walk(learner, history=history)
        first = 0 if learned is None else learned.put_into(learner)
        seen(first - 1, learner)
        for index, event in enumerate(learner.stream):
            if index < first:
                continue
            walk.event(index)
            if history is not None:
                history.keep(*learner.stream.without_unlearned(index), learner, learner.state_dict())
            if index in states and digest_of(learner.state_dict()) != states[index]:
                raise FrameworkError(
                    f"the state after {event} (event {index}) is not the one that the run recorded: run again, it gives other bits here. "
                    "Audit it on the machine, with the package versions and the number of threads (threads=N) that it ran with."
                )
            if learned is not None and learned.keeps and index == learned.count - 1:
                learned.keep(learner)
            seen(index, learner)
        return len(learner.stream) - first


@dataclass(frozen=True)
class Learned:
    """The state before a run's first request, beside the states of its oracles: runs that differ only in how they unlearn share it."""

    oracles: Oracles
    count: int  # events before the first request
    digest: str  # of the run's state there, from its deletion record
    keeps: bool  # whether it is kept where it is not yet

    def put_into(self, learner: Learner) -> int:
        """Put a learner into it: how many events that takes the place of; 0, and the learner as it was, where it is not kept."""
        kept = self.oracles.learned(self.count)
        if kept is None or not self.count:
            return 0
        before = deepcopy(learner.state_dict())
        learner.load_state_dict({**kept, "strategies": {**before["strategies"], **kept["strategies"]}})
        if digest_of(learner.state_dict()) == self.digest:
            stand_after(learner, self.count)
            return self.count
        learner.load_state_dict(before)
        return 0

    def keep(self, learner: Learner) -> None:
        """Keep the state of a learner that stands there, without what only unlearns."""
        state = learner.state_dict()
        strategies = {name: value for name, value in state["strategies"].items() if name in self.oracles.slots}
        self.oracles.keep_learned(self.count, {**state, "strategies": strategies})


def stand_after(learner: Learner, count: int) -> None:
    """Let a learner whose state was loaded stand where its stream's first `count` events are done."""
    position = learner.position
    position.event_index, position.phase, position.step = max(0, count - 1), None, 0
    position.event = learner.stream.events[position.event_index]
    learner.new_streams()


# --- oracles ---


@dataclass(frozen=True)
class Trained:
    """What the training of an oracle has cost, whenever that was."""

    seconds: float | None  # None where the cost of an event is not on record
    samples: int | None  # shown by plans, drawn from memories, and read by strategies
    suffix_seconds: float  # of these the events from where it left the run; 0 too where their cost is not on record
    suffix_samples: int
    new_events: int  # trained just now: 0 if all was kept


class Oracles:
    """The oracles of one run under one seed; the data stay those of the run, and so does what a blurry stream deals to which task: dealt
    otherwise, samples of a task that is unlearned would be shown with another one.

    made: folders whose states were trained in this process, to which this one's is added: states kept in others are removed, not taken.
    None: all that is kept is taken.
    """

    def __init__(self, experiment: Experiment, benchmark: Benchmark, seed: int, folder: Path, made: set[Path] | None = None) -> None:
        self.whole = Stream.parse(experiment.run.stream, benchmark.num_tasks)
        learning = learning_part(experiment, self.whole)
        self.learner = assemble(replace(learning, run=replace(learning.run, seed=seed)), benchmark, dealt_by=experiment.run.seed)
        self._never = self.learner.deleted
        numbers = replace(learning, run=replace(learning.run, stream="")).fingerprint
        kept = digest_of([numbers, benchmark.digest, surroundings(learning, self.learner.device)])
        self.history = History(folder / f"{kept[:16]}-s{experiment.run.seed}-o{seed}")
        self.measurements = KeptMeasurements(self.history.folder / "measured")
        if made is not None and self.history.folder not in made:
            for path in [*self.history.paths(), self.history.folder / _COSTS]:
                path.unlink(missing_ok=True)
            self.measurements.remove()
            made.add(self.history.folder)
        self.history.keep(self.learner.stream, 0, self.learner, self.learner.state_dict())
        atomic_write(folder / _MARK, _MARKED)

    def after(self, index: int) -> Trained:
        """Put `learner` into the state of the oracle of the event `index`; trains what is not kept yet."""
        learner, history = self.learner, self.history
        stream, count = self.whole.without_unlearned(index)
        learner.stream, learner.deleted = stream if len(stream) else self.whole, self._deleted(index)
        done, state = history.nearest(stream, count, learner)
        assert state is not None  # the one before any event was kept at the start
        deleted = learner.deleted
        learner.load_state_dict(state)
        learner.deleted = deleted
        walk = Walk(learner)
        for number in range(done, count):
            walk.event(number)
            history.keep(stream, number + 1, learner, learner.state_dict())
            self._note(stream, number + 1, walk)
        stand_after(learner, count)
        return self._cost(stream, count, count - done)

    @property
    def slots(self) -> frozenset[str]:
        """The strategies that oracles have: all but those that only unlearn."""
        return frozenset(member.slot for member in self.learner.stack.members)

    def learned(self, count: int) -> dict[str, Any] | None:
        """The state after the first events of the run's own stream, if it is kept."""
        with deleted_only(self.learner, self._never):
            done, state = self.history.nearest(self.whole, count, self.learner)
        return state if done == count else None

    def keep_learned(self, count: int, state: Mapping[str, Any]) -> None:
        with deleted_only(self.learner, self._never):
            self.history.keep(self.whole, count, self.learner, state)

    def know_unlearned(self) -> bool:
        """Whether a state is kept that the stream led to, or its oracles, and that knows what was unlearned since."""
        ways = [self._way(index) for index in range(len(self.whole))]
        return not self.history.keys().isdisjoint(set().union(*ways) - ways[-1])

    def _way(self, index: int) -> set[str]:
        """The keys of the states that lead to the oracle of an event."""
        stream, count = self.whole.without_unlearned(index)
        with deleted_only(self.learner, self._deleted(index)):
            return keys_along(stream, count, self.learner)

    def _deleted(self, index: int) -> Tensor:
        """Ids of samples that were unlearned one by one up to an event, and of those that the run was never to see."""
        parts = [self._never]
        for event in self.whole.events[: index + 1]:
            if isinstance(event, Unlearn) and event.granularity != "task":
                parts.append(self.learner.forgotten(event).ids)
        return torch.cat(parts).unique()

    def _note(self, stream: Stream, count: int, walk: Walk) -> None:
        tally = walk.tally
        row = {
            "key": key_of(stream, count, self.learner),
            "seconds": tally.seconds,
            "samples": tally.samples + self.learner.cost.drawn_rows + self.learner.cost.read_rows,
        }
        append_rows(self.history.folder / _COSTS, [row])

    def _cost(self, stream: Stream, count: int, new: int) -> Trained:
        path = self.history.folder / _COSTS
        costs = {row["key"]: row for row in read_rows(path)}
        keys = [key_of(stream, number, self.learner) for number in range(1, count + 1)]
        known = [costs.get(key) for key in keys]
        suffix = known[self._shared(keys) :]
        told = [row for row in suffix if row is not None]
        seconds = sum(float(row["seconds"]) for row in told) if len(told) == len(suffix) else 0.0
        whole = [row for row in known if row is not None]
        complete = len(whole) == len(known)
        return Trained(
            sum(float(row["seconds"]) for row in whole) if complete else None,
            sum(int(row["samples"]) for row in whole) if complete else None,
            seconds,
            sum(int(row["samples"]) for row in told),
            new,
        )

    def _shared(self, keys: list[str]) -> int:
        """How many events from the start are those of the run, samples and all."""
        with deleted_only(self.learner, self._never):
            mine = [key_of(self.whole, number, self.learner) for number in range(1, len(self.whole) + 1)]
        count = 0
        while count < len(keys) and keys[count] == mine[count]:
            count += 1
        return count


@contextmanager
def deleted_only(learner: Learner, ids: Tensor) -> Iterator[None]:
    """Meanwhile a learner that never sees these samples, and sees all others."""
    before, learner.deleted = learner.deleted, ids
    try:
        yield
    finally:
        learner.deleted = before


def only_unlearns(traits: Traits) -> bool:
    """Whether a strategy, by its traits, leaves no trace in weights while others learn."""
    return bool(traits.unlearns) and traits.neutral == {}


def learning_part(experiment: Experiment, stream: Stream) -> Experiment:
    """The experiment as far as it learns: without Unlearn events, and without the strategies that do nothing but answer these.

    Random streams belong to a slot, a task and its occurrence, so what remains is trained bit for bit as it was.
    """
    slots = tuple(slot for slot in experiment.strategies if not only_unlearns(slot.strategy_class.traits))
    written = {slot.slot: experiment.run.strategies[slot.slot] for slot in slots}
    learns = " ".join(str(event) for event in stream if isinstance(event, Learn))
    return replace(experiment, run=replace(experiment.run, strategies=written, stream=learns), strategies=slots)
