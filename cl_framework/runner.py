"""Walks a stream: one event after another, with evaluation, records and checkpoints; stops and resumes at any step.

for event in stream:
    walk.event(event)                       # its phases, one after another (walk.py); checkpoints while they run
    evaluate, append records, checkpoint    # after an Unlearn no older checkpoint remains
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cl_framework.assembly import assemble, check_without, given, torch_as_configured
from cl_framework.benchmarks.base import Benchmark
from cl_framework.checkpoint import CheckpointStore
from cl_framework.config import NOT_RESUMED, Experiment, load_experiment
from cl_framework.cost import Stopwatch, answer_row, cost_row, peak_rss_mib, stored_bytes
from cl_framework.errors import ConfigurationError
from cl_framework.evaluation import Accuracy, evaluate
from cl_framework.history import History
from cl_framework.learner import Learner
from cl_framework.learning_curve import points
from cl_framework.listeners import Listener, Progress, RunInfo, warn_listeners
from cl_framework.metrics import within
from cl_framework.records import EVENTS, RECORDS, Row, RunDirectory, differences, environment
from cl_framework.representation import probed
from cl_framework.rows import RowsWriter
from cl_framework.same_run import check_same_configuration, check_same_data
from cl_framework.strategy import Batch, Evaluation
from cl_framework.stream import Learn, Stream, Unlearn
from cl_framework.summary import rebuild_summary
from cl_framework.unlearning.ancestry import Ancestry, Movements, Values
from cl_framework.unlearning.certificate import Certifier
from cl_framework.unlearning.deletion import check_complete
from cl_framework.unlearning.fast import ROUNDED_METRIC, retained_after, split_of
from cl_framework.unlearning.quantization import rounded_accuracies
from cl_framework.walk import Stopped, Walk


@dataclass(frozen=True)
class RunResult:
    path: Path
    status: str  # "done" or "stopped"
    summary: dict[str, Any] | None
    earlier: bool = False  # it was finished before, and nothing was run


def run(
    experiment: Experiment,
    *,
    command: str = "",
    listeners: Sequence[Listener] = (),
    benchmark: Benchmark | None = None,
    stop_requested: Callable[[int], bool] = lambda stream_step: False,
) -> RunResult:
    """Run an experiment from its start. A finished run is returned as it is; an unfinished one is refused (see `resume`).

    `benchmark` takes the place of the configured one: a user's own data. `stop_requested` is asked before every step with the
    number of optimizer steps done.
    """
    if benchmark is not None:
        experiment = experiment.with_benchmark(given(benchmark))
    directory = RunDirectory.create(experiment.run.out, experiment.run.experiment, experiment.fingerprint, experiment.run.seed)
    finished = _finished(directory, experiment.run.again)  # asked twice: before the data are read, and when no other process can start
    if finished is not None:
        return finished
    with torch_as_configured(experiment):
        learner = assemble(experiment, benchmark)
        check_without(learner)
        with directory.lock():
            finished = _finished(directory, experiment.run.again)
            if finished is not None:
                return finished
            directory.clear()
            env = {**_environment_of(learner), "benchmark": learner.benchmark.notes}
            directory.write_start(experiment.to_yaml(), command, env)
            return Runner(experiment, directory, RowsWriter(directory.path), learner, listeners, stop_requested).walk(None)


def _finished(directory: RunDirectory, again: bool) -> RunResult | None:
    """The finished run that stands in the way of a start; an unfinished one is refused. None where a run can start."""
    if again or directory.status == "absent":
        return None
    if directory.status == "done":
        return RunResult(directory.path, "done", rebuild_summary(directory.path), earlier=True)
    if directory.status == "failed":
        raise ConfigurationError(
            f"{directory.path} holds a run that failed: {directory.why_failed} Mend that and continue it with `clu resume "
            f"{directory.path}`, or start anew with again=true."
        )
    raise ConfigurationError(
        f"{directory.path} holds an unfinished run. Continue it with `clu resume {directory.path}` or start anew with again=true."
    )


def resume(
    path: Path | str,
    overrides: Sequence[str] = (),
    *,
    listeners: Sequence[Listener] = (),
    benchmark: Benchmark | None = None,
    stop_requested: Callable[[int], bool] = lambda stream_step: False,
) -> RunResult:
    """Continue a run exactly where its newest whole checkpoint stands. FrameworkError if its deletion record lacks what was unlearned."""
    directory = RunDirectory(Path(path))
    if directory.status == "absent":
        raise ConfigurationError(f"{path} is no run directory (it has no config.yaml). Start a run with `clu run`.")
    placed = [override for override in overrides if override.partition("=")[0] in NOT_RESUMED]
    if placed:
        raise ConfigurationError(f"{placed[0]}: a run is resumed where it is. Leave that out, or start a new run with `clu run`.")
    if directory.status == "done" and not overrides:
        return RunResult(directory.path, "done", rebuild_summary(directory.path), earlier=True)
    object_given = None if benchmark is None else given(benchmark)
    experiment = load_experiment(directory.config, overrides, given=object_given)

    def warn(text: str) -> None:
        warn_listeners(listeners, text)

    with directory.lock():
        damaged: list[str] = []
        state = CheckpointStore(directory.checkpoints).load_latest(damaged.append)
        check_same_configuration(experiment, state, directory)
        with torch_as_configured(experiment):
            learner = assemble(experiment, benchmark)
            check_same_data(state, learner, directory)
            check_complete(directory, _begun(state, learner.stream), {} if state is None else state["lengths"])
            for text in damaged:  # only now is it true that the run goes on
                warn(text)
            rows = RowsWriter(directory.path, state)
            for difference in differences(directory.read_env(), _environment_of(learner)):
                warn(f"resume: {difference}; figures may differ in their last bits.")
            directory.unmark()
            return Runner(experiment, directory, rows, learner, listeners, stop_requested).walk(state)


def _begun(state: Mapping[str, Any] | None, stream: Stream) -> list[Row]:
    """The events that a checkpoint knows of: those before it, and the one that it stands inside."""
    count = 0 if state is None else state["position"]["event_index"] + (state["inside"] is not None)
    return [{"event_index": index, "event": str(event)} for index, event in enumerate(stream.events[:count])]


def _environment_of(learner: Learner) -> dict[str, Any]:
    device = learner.device
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return environment(device.type, torch.get_num_threads(), learner.run.deterministic, accelerator)


class Runner:
    """One walk along a stream. State that must survive a stop is in the learner, the tally and the position."""

    def __init__(
        self,
        experiment: Experiment,
        directory: RunDirectory,
        rows: RowsWriter,
        learner: Learner,
        listeners: Sequence[Listener],
        stop_requested: Callable[[int], bool],
    ) -> None:
        self.experiment = experiment
        self.directory = directory
        self.rows = rows
        self.learner = learner
        self.listeners = listeners
        self.store = CheckpointStore(directory.checkpoints)
        self.history = History(directory.checkpoints / "history") if learner.stack.replays else None
        self.certifier = Certifier(directory, learner)
        self._stop_requested = stop_requested
        self._last_checkpoint = time.monotonic()
        self._index = 0  # of the event under way
        self._auditing = Stopwatch()  # of the figures and the deletion record of unlearning, in the event so far
        self._walked = Walk(learner, self._after_chunk, stop_requested, self.history)

    # --- the walk ---

    def walk(self, state: dict[str, Any] | None) -> RunResult:
        """Walk from the start, or from a checkpoint's state, to the end of the stream. The directory's lock is held meanwhile."""
        notes = self.learner.benchmark.notes
        self._tell("on_start", RunInfo(self.experiment, self.directory, self.learner.stream, resumed=state is not None, notes=notes))
        try:
            self._walk(state)
            self.rows.check_untouched()
        except Stopped:
            self._tell("on_stop", self.directory.path)
            return RunResult(self.directory.path, "stopped", None)
        except BaseException as error:
            self._tell("on_failure", str(error))
            if isinstance(error, Exception):
                self.directory.mark_failed(f"{type(error).__name__}: {error}")
            raise
        summary = rebuild_summary(self.directory.path)
        self.certifier.finished()
        self.directory.mark_done(self.rows.noted())
        self._tell("on_finish", summary)
        return RunResult(self.directory.path, "done", summary)

    def _walk(self, state: dict[str, Any] | None) -> None:
        first = 0
        self.rows.cut_back()
        if state is None:
            self.certifier.begin_again()
            self.certifier.note(-1)
            self._record(-1, "init", self.learner.stream.tasks, ())
            if self.history is not None:
                self.history.keep(self.learner.stream, 0, self.learner, self.learner.state_dict())
        else:
            self.certifier.ancestry = Ancestry(state.get("ancestry"))
            self.certifier.movements = Movements(state.get("movements"))
            self.certifier.values = Values(state.get("values"))
            self.learner.load_state_dict(state["learner"])
            first = state["position"]["event_index"]
            self.learner.position.stream_step = state["position"]["stream_step"]
            dropped = self._finish_unlearning(first - 1) if first and state["inside"] is None else []
            self.certifier.finish_open(first, dropped)
        for index in range(first, len(self.learner.stream)):
            self._event(index, state["inside"] if state is not None and index == first else None)
            more = index + 1 < len(self.learner.stream)
            if more and self._stop_requested(self.learner.position.stream_step):  # an event may have no step that asks
                raise Stopped

    def _event(self, index: int, inside: Mapping[str, Any] | None) -> None:
        self._index, self._auditing = index, Stopwatch()
        self._tell("on_event_start", index)
        if isinstance(self.learner.stream.events[index], Unlearn):
            with self._auditing:
                self.certifier.request(index)
        try:
            self._walked.event(index, inside)
        except Stopped:
            self._checkpoint(index, self._walked.inside())
            raise
        self._close(index, self.learner.stream.events[index])

    def _close(self, index: int, event: Learn | Unlearn) -> None:
        learner = self.learner
        finite = all(bool(value.isfinite().all()) for value in learner.model.parameters())
        if not finite:
            remedy = "Lower optimizer.lr or a strategy's weight, or set optimizer.clip."
            text = f"weights are not finite after {event}: training has diverged. {remedy}"
            warn_listeners(self.listeners, text)
        tasks = learner.stream.tasks if self.experiment.run.evaluate == "all" else self._seen(index)
        unlearned, tally = isinstance(event, Unlearn), self._walked.tally
        cost = cost_row(tally, learner.cost)  # before the evaluation, which looks at the model too
        cost |= answer_row(tally, learner.cost) if unlearned else {}
        seconds = self._record(index, str(event), tasks, learner.stream.learned_after[index])
        with self._auditing:
            self.certifier.note(index)
        self.rows.append(
            EVENTS,
            [
                {
                    "event_index": index,
                    "event": str(event),
                    "kind": "learn" if isinstance(event, Learn) else "unlearn",
                    "task": event.task,
                    "stream_step": learner.position.stream_step,
                    **cost,
                    "tokens_a_row": learner.benchmark.tokens_a_row,
                    "learning_curve": points(learner.curve.entries()),
                    "eval_seconds": seconds,
                    "audit_seconds": self._auditing.seconds,
                    "stored_bytes": stored_bytes(learner.stack.state_dict()),
                    "peak_rss_mib": peak_rss_mib(),
                    "finite": finite,
                    "status": "done",
                }
            ],
        )
        if self.history is not None:
            self.history.keep(*learner.stream.without_unlearned(index), learner, learner.state_dict())
        dropped = self._checkpoint(index + 1, None, replace_all=unlearned)
        if unlearned:
            self.certifier.done(index, [*dropped, *self._purge(index)])

    def _finish_unlearning(self, index: int) -> list[str]:
        """What a kill right after an Unlearn has left of older states goes now; their names."""
        if not isinstance(self.learner.stream.events[index], Unlearn):
            return []
        return [*self._checkpoint(index + 1, None, replace_all=True), *self._purge(index)]

    def _purge(self, index: int) -> list[str]:
        """Let go of kept states that knew what the events up to `index` unlearned; their names."""
        if self.history is None or not isinstance(self.learner.stream.events[index], Unlearn):
            return []
        return self.history.purge(*self.learner.stream.without_unlearned(index), self.learner)

    def _seen(self, index: int) -> tuple[int, ...]:
        return tuple(sorted({event.task for event in self.learner.stream.events[: index + 1]}))

    # --- records, checkpoints, news ---

    def _record(self, index: int, event: str, tasks: Sequence[int], live: Sequence[int]) -> float:
        started = time.monotonic()
        accuracies = evaluate(self.learner, tasks, live)
        rows = [self._row(index, event, accuracy, "accuracy", accuracy.percent) for accuracy in accuracies]
        rows += [self._row(index, event, one, "loss", one.loss) for one in accuracies if one.loss is not None]
        for task, probe, value, count in probed(self.learner, tasks, self.experiment.run.probes):
            rows.append(self._row(index, event, Accuracy(task, self.learner.run.scenario, 0, count), probe, value))
        seconds = time.monotonic() - started
        if index >= 0 and isinstance(unlearned := self.learner.stream.events[index], Unlearn):
            told = retained_after(self.learner.stream, index, {(one.task, one.split) for one in accuracies})
            told.append((unlearned.task, split_of(unlearned)))
            rows += [self._row(index, event, one, "chance", one.chance) for one in accuracies if (one.task, one.split) in told]
            with self._auditing:
                found = rounded_accuracies(self.learner, unlearned.task, live)
                rows += [self._row(index, event, one, f"{ROUNDED_METRIC}{name}", one.percent) for name, one in found]
        self.rows.append(RECORDS, rows)
        self._tell("on_evaluation", index, event, rows, self.learner.run.scenario)
        return seconds

    def _row(self, index: int, event: str, accuracy: Accuracy, metric: str, value: float | None) -> Row:
        return {
            "run": self.directory.path.name,
            "event_index": index,
            "event": event,
            "eval_task": accuracy.task,
            "split": accuracy.split,
            "scenario": accuracy.scenario,
            "metric": metric,
            "value": value if value is not None and math.isfinite(value) else None,
            "n": accuracy.count,
            "stream_step": self.learner.position.stream_step,
        }

    def _checkpoint(self, index: int, inside: Mapping[str, Any] | None, *, replace_all: bool = False) -> list[str]:
        """Write a checkpoint from which the event `index` is begun, or gone on with from `inside` it; the names of those it replaces."""
        position = self.learner.position
        state = {
            "format": 2,
            "fingerprint": self.experiment.fingerprint,
            "data": self.learner.benchmark.digests,
            "config": self.experiment.to_dict(),
            "position": {"event_index": index, "stream_step": position.stream_step},
            "inside": inside,
            "learner": self.learner.state_dict(),
            **self.rows.noted(),
            "ancestry": self.certifier.ancestry.born,
            "movements": self.certifier.movements.state_dict(),
            "values": self.certifier.values.born,
        }
        dropped = self.store.save(state, position.stream_step, replace_all=replace_all)
        self._last_checkpoint = time.monotonic()
        return dropped

    def _after_chunk(self, evaluation: Evaluation, batch: Batch) -> None:
        position = self.learner.position
        self._tell("on_progress", Progress(position, evaluation, batch))
        self._look_within()
        due = time.monotonic() - self._last_checkpoint >= self.experiment.run.checkpoint.every_seconds
        if due and position.phase is not None and position.step < position.phase.steps:
            self._walked.count()
            self._checkpoint(self._index, self._walked.inside())
            self._walked.rest_the_clock()

    def _look_within(self) -> None:
        """Evaluate what was seen so far between two steps of a Learn, where `evaluate_every` says so."""
        position, every = self.learner.position, self.experiment.run.evaluate_every
        learns = isinstance(position.event, Learn) and position.event_index == self._index  # and does not live through a replay
        if not every or not learns or position.phase is None or position.phase.owner is not None:
            return
        if position.step % every == 0 and position.step < position.phase.steps:
            self._walked.count()
            live = self.learner.stream.learned_after[self._index]
            found = evaluate(self.learner, self._seen(self._index), live)
            rows = [self._row(self._index, str(position.event), one, within("accuracy"), one.percent) for one in found]
            rows += [self._row(self._index, str(position.event), one, within("loss"), one.loss) for one in found if one.loss is not None]
            self.rows.append(RECORDS, rows)
            self._walked.rest_the_clock()

    def _tell(self, what: str, *news: Any) -> None:
        for listener in self.listeners:
            getattr(listener, what)(*news)
