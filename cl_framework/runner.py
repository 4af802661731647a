"""Walks a stream: one event after another, with evaluation, records and checkpoints; stops and resumes at any step.

for event in stream:
    for stage in (begin, own phases, end):          # what the strategies ask for around the event's own phases
        for phase in stage: host.fit_phase(phase)   # checkpoints while it runs
    evaluate, append records, checkpoint            # after an Unlearn, forget came before end
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cl_framework.assembly import assemble, given
from cl_framework.benchmarks.base import Benchmark
from cl_framework.checkpoint import CheckpointStore
from cl_framework.config import GIVEN, Experiment, GivenOptions, load_experiment
from cl_framework.cost import Cost, EventTally, cost_row, peak_rss_mib, stored_bytes
from cl_framework.errors import ConfigurationError
from cl_framework.evaluation import evaluate
from cl_framework.learner import Learner
from cl_framework.learning_curve import LearningCurve, points
from cl_framework.listeners import Listener, Progress, RunInfo
from cl_framework.phases import phase_from_state, phase_state
from cl_framework.records import RunDirectory, differences, environment
from cl_framework.report import rebuild_summary
from cl_framework.strategy import Batch, Evaluation, Phase
from cl_framework.stream import Learn, Unlearn

Stages = Sequence[Callable[[], list[Phase]]]


class Stopped(Exception):
    """A stop was requested; a checkpoint was written."""


@dataclass(frozen=True)
class RunResult:
    path: Path
    status: str  # "done" or "stopped"
    summary: dict[str, Any] | None


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
        with directory.lock():
            finished = _finished(directory, experiment.run.again)
            if finished is not None:
                return finished
            directory.clear()
            env = environment(learner.device.type, torch.get_num_threads(), experiment.run.deterministic)
            directory.write_start(experiment.to_yaml(), command, env)
            return Runner(experiment, directory, learner, listeners, stop_requested).walk(None)


def _finished(directory: RunDirectory, again: bool) -> RunResult | None:
    """The finished run that stands in the way of a start; an unfinished one is refused. None where a run can start."""
    if again or directory.status == "absent":
        return None
    if directory.status == "done":
        return RunResult(directory.path, "done", rebuild_summary(directory.path))
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
    """Continue a run exactly where its newest whole checkpoint stands."""
    directory = RunDirectory(Path(path))
    if directory.status == "absent":
        raise ConfigurationError(f"{path} is no run directory (it has no config.yaml). Start a run with `clu run`.")
    placed = [override for override in overrides if override.partition("=")[0] in ("out", "experiment", "again")]
    if placed:
        raise ConfigurationError(f"{placed[0]}: a run is resumed where it is. Leave that out, or start a new run with `clu run`.")
    object_given = None if benchmark is None else given(benchmark)
    experiment = load_experiment(directory.config, overrides, given=object_given)
    if directory.status == "done" and not overrides:
        return RunResult(directory.path, "done", rebuild_summary(directory.path))

    def warn(text: str) -> None:
        for listener in listeners:
            listener.on_warning(text)

    with directory.lock():
        state = CheckpointStore(directory.checkpoints).load_latest(warn)
        check_same(experiment, state, directory)
        with torch_as_configured(experiment):
            learner = assemble(experiment, benchmark)
            here = environment(learner.device.type, torch.get_num_threads(), experiment.run.deterministic)
            for difference in differences(directory.read_env(), here):
                warn(f"resume: {difference}; figures may differ in their last bits.")
            directory.unmark_failed()
            return Runner(experiment, directory, learner, listeners, stop_requested).walk(state)


def check_same(experiment: Experiment, state: dict[str, Any] | None, directory: RunDirectory) -> None:
    """Refuse to continue under another configuration or seed, and name the key that differs."""
    remedy = "Undo that, or start a new run."
    if state is None:
        here = RunDirectory.create("", "", experiment.fingerprint, experiment.run.seed).path.name
        if directory.path.name != here:
            raise ConfigurationError(f"{directory.path} was started under another configuration (this one's is {here}). {remedy}")
        return
    object_given = experiment.benchmark if isinstance(experiment.benchmark.options, GivenOptions) else None
    if object_given is not None and state["config"]["benchmark"].get(GIVEN) != object_given.options.given:
        raise ConfigurationError(f"{directory.path} was started on other data than the benchmark given now. {remedy}")
    started = load_experiment(state["config"], given=object_given)
    keys = experiment.differing_keys(started)
    if experiment.run.seed != started.run.seed:
        keys.insert(0, f"seed is {experiment.run.seed}, was {started.run.seed}")
    if keys:
        raise ConfigurationError(f"{directory.path} was started under another configuration: {'; '.join(keys)}. {remedy}")


@contextmanager
def torch_as_configured(experiment: Experiment) -> Iterator[None]:
    """Threads and determinism as the run wants them; afterwards as the caller had them."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(experiment.run.threads or threads)
    torch.use_deterministic_algorithms(experiment.run.deterministic)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


class Runner:
    """One walk along a stream. State that must survive a stop is in the learner, the tally and the position."""

    def __init__(
        self,
        experiment: Experiment,
        directory: RunDirectory,
        learner: Learner,
        listeners: Sequence[Listener],
        stop_requested: Callable[[int], bool],
    ) -> None:
        from cl_framework.host import Host

        self.experiment = experiment
        self.directory = directory
        self.learner = learner
        self.listeners = listeners
        self.store = CheckpointStore(directory.checkpoints)
        self.tally = EventTally()
        self.stage = 0
        self.queue: list[Phase] = []
        self._stop_requested = stop_requested
        self._last_checkpoint = time.monotonic()
        self._clock, self._counted = time.monotonic(), 0  # when and at which step of the phase the tally was last counted
        self.host = Host(learner, self._after_chunk, lambda: self._stop_requested(learner.position.stream_step))

    # --- the walk ---

    def walk(self, state: dict[str, Any] | None) -> RunResult:
        """Walk from the start, or from a checkpoint's state, to the end of the stream. The directory's lock is held meanwhile."""
        self._tell("on_start", RunInfo(self.experiment, self.directory, self.learner.stream, resumed=state is not None))
        try:
            self._walk(state)
        except Stopped:
            self._tell("on_stop", self.directory.path)
            return RunResult(self.directory.path, "stopped", None)
        except BaseException as error:
            self._tell("on_failure", str(error))
            if isinstance(error, Exception):
                self.directory.mark_failed(f"{type(error).__name__}: {error}")
            raise
        summary = rebuild_summary(self.directory.path)
        self.directory.mark_done()
        self._tell("on_finish", summary)
        return RunResult(self.directory.path, "done", summary)

    def _walk(self, state: dict[str, Any] | None) -> None:
        first = 0
        if state is None:
            self.directory.cut_back({})
            self._record(-1, "init", self.learner.stream.tasks, ())
        else:
            self.directory.cut_back(state["lengths"])
            self.learner.load_state_dict(state["learner"])
            first = state["position"]["event_index"]
            self.learner.position.stream_step = state["position"]["stream_step"]
        for index in range(first, len(self.learner.stream)):
            self._event(index, state if index == first else None)
            more = index + 1 < len(self.learner.stream)
            if more and self._stop_requested(self.learner.position.stream_step):  # an event may have no step that asks
                raise Stopped

    def _event(self, index: int, state: dict[str, Any] | None) -> None:
        learner, position = self.learner, self.learner.position
        event = learner.stream.events[index]
        position.event, position.event_index, position.phase, position.step = event, index, None, 0
        learner.new_streams()
        inside = state is not None and state["inside"] is not None
        learner.cost, learner.curve = Cost(), LearningCurve()
        self.tally = EventTally(**state["inside"]["tally"]) if state is not None and inside else EventTally()
        stages: Stages = (learner.stack.begin, self._own_phases, self._forget_and_end)
        first = state["inside"]["stage"] if state is not None and inside else 0
        self._tell("on_event_start", index)
        for stage in range(first, len(stages)):
            self.stage = stage
            if state is not None and inside and stage == first:
                self.queue = [phase_from_state(saved, lambda: self._own_phases()[0]) for saved in state["inside"]["queue"]]
                self._continue(self.queue[0], state)
                self.queue.pop(0)
            else:
                position.phase = None
                self.queue = stages[stage]()
            while self.queue:
                self._begin(self.queue[0])
                self.queue.pop(0)
        self._close(index, event)

    def _own_phases(self) -> list[Phase]:
        event = self.learner.position.event
        if isinstance(event, Learn):
            return [self.learner.learn_phase(event)]
        return self.learner.stack.unlearn(event)

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

    def _begin(self, phase: Phase) -> None:
        position = self.learner.position
        position.phase, position.step = phase, 0
        self.learner.new_streams()
        self.queue[0] = phase = self.learner.plan_phase(phase)
        position.phase = phase
        self.learner.begin_phase(phase)
        self._fit(phase)

    def _continue(self, phase: Phase, state: dict[str, Any]) -> None:
        position = self.learner.position
        position.phase, position.step = phase, state["position"]["step"]
        self.learner.new_streams()
        self.learner.curve = LearningCurve(state["inside"]["curve"])
        self.learner.begin_phase(replace(phase, fresh_model=False))
        self.learner.load_optimizer(state["learner"]["optimizer"])
        self.learner.cost = Cost(**state["inside"]["cost"])  # only now: what a phase begins with was counted before the stop
        self._fit(phase)

    def _fit(self, phase: Phase) -> None:
        learner, position = self.learner, self.learner.position
        self._start_counting()
        self.host.fit_phase(phase, position.step)
        self._count()
        if position.step < phase.steps:
            self._checkpoint(inside=True)
            raise Stopped
        self.tally.phases.append({"name": phase.name, "steps": phase.steps})
        learner.end_phase(phase)
        position.phase, position.step = None, 0
        learner.new_streams()  # what follows must not depend on which streams the phase has used

    def _close(self, index: int, event: Learn | Unlearn) -> None:
        learner = self.learner
        tasks = learner.stream.tasks if self.experiment.run.evaluate == "all" else self._seen(index)
        cost = cost_row(self.tally, learner.cost)  # before the evaluation, which looks at the model too
        seconds = self._record(index, str(event), tasks, learner.stream.learned_after[index])
        self.directory.append_events(
            [
                {
                    "event_index": index,
                    "event": str(event),
                    "kind": "learn" if isinstance(event, Learn) else "unlearn",
                    "task": event.task,
                    "stream_step": learner.position.stream_step,
                    **cost,
                    "learning_curve": points(learner.curve.entries()),
                    "eval_seconds": seconds,
                    "stored_bytes": stored_bytes(learner.stack.state_dict()),
                    "peak_rss_mib": peak_rss_mib(),
                    "status": "done",
                }
            ]
        )
        self._checkpoint(inside=False, replace_all=isinstance(event, Unlearn))

    def _seen(self, index: int) -> tuple[int, ...]:
        return tuple(sorted({event.task for event in self.learner.stream.events[: index + 1]}))

    # --- records, checkpoints, news ---

    def _record(self, index: int, event: str, tasks: Sequence[int], live: Sequence[int]) -> float:
        started = time.monotonic()
        accuracies = evaluate(self.learner, tasks, live)
        seconds = time.monotonic() - started
        rows = [
            {
                "run": self.directory.path.name,
                "event_index": index,
                "event": event,
                "eval_task": accuracy.task,
                "split": "test",
                "scenario": accuracy.scenario,
                "metric": "accuracy",
                "value": accuracy.percent,
                "n": accuracy.count,
                "stream_step": self.learner.position.stream_step,
            }
            for accuracy in accuracies
        ]
        self.directory.append_records(rows)
        self._tell("on_evaluation", index, event, rows, self.learner.run.scenario)
        return seconds

    def _checkpoint(self, *, inside: bool, replace_all: bool = False) -> None:
        position = self.learner.position
        state = {
            "format": 1,
            "fingerprint": self.experiment.fingerprint,
            "config": self.experiment.to_dict(),
            "position": {
                "event_index": position.event_index + (0 if inside else 1),
                "step": position.step,
                "stream_step": position.stream_step,
            },
            "inside": self._inside() if inside else None,
            "learner": self.learner.state_dict(),
            "lengths": self.directory.lengths(),
        }
        self.store.save(state, position.stream_step, replace_all=replace_all)
        self._last_checkpoint = time.monotonic()

    def _inside(self) -> dict[str, Any]:
        """Where in the event we are: the stage, the phases that remain of it (the first one is under way), and the cost so far."""
        event = self.learner.position.event
        untouched = not self.learner.stack.transforms_plan()
        return {
            "stage": self.stage,
            "queue": [
                phase_state(phase, recomputable=untouched and isinstance(event, Learn) and phase.owner is None) for phase in self.queue
            ],
            "tally": asdict(self.tally),
            "cost": asdict(self.learner.cost),
            "curve": self.learner.curve.entries(),
        }

    def _after_chunk(self, evaluation: Evaluation, batch: Batch) -> None:
        position = self.learner.position
        self._tell("on_progress", Progress(position, evaluation, batch))
        due = time.monotonic() - self._last_checkpoint >= self.experiment.run.checkpoint.every_seconds
        if due and position.phase is not None and position.step < position.phase.steps:
            self._count()
            self._checkpoint(inside=True)
            self._clock = time.monotonic()

    def _start_counting(self) -> None:
        self._clock, self._counted = time.monotonic(), self.learner.position.step

    def _count(self) -> None:
        """Add to the tally what was done since it was last counted."""
        position, now = self.learner.position, time.monotonic()
        assert position.phase is not None
        own = self.learner.training_ids(position.event.task)
        self.tally.count(position.phase.plan, own, self._counted, position.step, now - self._clock)
        self._clock, self._counted = now, position.step

    def _tell(self, what: str, *news: Any) -> None:
        for listener in self.listeners:
            getattr(listener, what)(*news)
