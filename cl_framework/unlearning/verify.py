"""`clu verify RUN_DIR`: what the deletion record of a run claims, checked again from what lies on the disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cl_framework.assembly import assemble, make_benchmark
from cl_framework.benchmarks.base import Benchmark
from cl_framework.checkpoint import CheckpointStore, damage
from cl_framework.config import Experiment, load_experiment
from cl_framework.digests import digest_of
from cl_framework.errors import ConfigurationError, FrameworkError
from cl_framework.history import History, key_of
from cl_framework.plan import training_partition
from cl_framework.records import EVENTS, RECORDS, Row, RunDirectory, read_json
from cl_framework.report import summary_of
from cl_framework.requests import requested_ids
from cl_framework.stream import Learn, Stream, Unlearn
from cl_framework.unlearning.deletion import (
    AUDITED,
    DONE,
    FINISHED,
    REQUESTED,
    BrokenChain,
    DeletionLog,
    digest_of_rows,
    of_requests,
)
from cl_framework.unlearning.fast import FAIL, NOT_RUN, PASS
from cl_framework.unlearning.shadow import Canaries, artefacts_in_memory, artefacts_on_disk, places_that_name


@dataclass(frozen=True)
class Finding:
    """One claim and whether it holds."""

    claim: str
    verdict: str  # PASS, FAIL or NOT RUN
    why: str


def verify(path: Path) -> list[Finding]:
    """Check a run's deletion record. ConfigurationError if there is no run or nothing was unlearned in it."""
    directory = RunDirectory(path)
    if directory.status == "absent":
        raise ConfigurationError(f"{path} is no run directory (it has no config.yaml).")
    events = directory.events()
    if not any(row["kind"] == "unlearn" for row in events):
        raise ConfigurationError(f"{path}: no Unlearn is done in this run, so there is nothing to verify.")
    log = DeletionLog(path / "deletion")
    try:
        whole, entries = log.entries(), log.current()
    except BrokenChain as error:
        return [Finding("the record is whole", FAIL, str(error))]
    done = [entry for entry in entries if entry["kind"] == DONE]
    ends = [entry for entry in entries if entry["kind"] == FINISHED]
    checks: list[Callable[[], str]] = [
        lambda: _all_recorded(events, entries, directory.status),
        lambda: _rows_untouched(path, [*done, *ends]),
        lambda: _no_older_state(directory, done),
        lambda: _purged(directory, done),
        lambda: _state(directory, events, (ends or done)[-1]),
        lambda: _ancestry(directory, events, entries),
        lambda: _figures(directory),
        lambda: _samples(directory, events, entries),
        lambda: _audits(path, [entry for entry in whole if entry["kind"] == AUDITED]),
    ]
    findings = [Finding("the record is whole", PASS, f"{len(whole)} entries, each with the hash of the one before")]
    for claim, check in zip(CLAIMS, checks, strict=True):
        try:
            findings.append(Finding(claim, PASS, check()))
        except _NotRun as reason:
            findings.append(Finding(claim, NOT_RUN, str(reason)))
        except FrameworkError as error:
            findings.append(Finding(claim, FAIL, str(error)))
    return findings


CLAIMS = (
    "every Unlearn is recorded",
    "records and events are as they were",
    "no older state remains",
    "what was purged is gone",
    "the state is the one recorded",
    "no state descends from what was unlearned",
    "the figures follow from the records",
    "no sample is left in the run's files",
    "audits are as they were written",
)


class _NotRun(Exception):
    """Why a check could not be made."""


def _all_recorded(events: Sequence[Row], entries: Sequence[Row], status: str) -> str:
    wanted = [(row["event_index"], row["event"]) for row in events if row["kind"] == "unlearn"]
    have = [(entry["event_index"], entry["event"]) for entry in entries if entry["kind"] == DONE]
    missing = [event for event in wanted if event not in have]
    if missing:
        raise FrameworkError(f"event {missing[0][0]} ({missing[0][1]}) is done, but the deletion record does not hold it.")
    invented = [event for event in have if event not in wanted]
    if invented:
        raise FrameworkError(f"the deletion record reports event {invented[0][0]} ({invented[0][1]}), which events.jsonl does not hold.")
    last = of_requests(entries)[-1]
    if last["kind"] != DONE and status == "done":
        raise FrameworkError(f"the request {last['event']} is still open, though the run is finished.")
    if status == "done" and not any(entry["kind"] == FINISHED for entry in entries):
        raise FrameworkError("the run is finished, but the deletion record does not say so: its last lines were cut.")
    return f"{len(wanted)} of {len(wanted)}"


def _rows_untouched(path: Path, seals: Sequence[Row]) -> str:
    for entry in seals:
        for name, key in ((RECORDS, "records"), (EVENTS, "events")):
            if digest_of_rows(path / name, entry[key]["bytes"]) != entry[key]:
                raise FrameworkError(f"{path / name} was changed in what came before {_when(entry)}.")
    return f"up to {_when(seals[-1])}"


def _no_older_state(directory: RunDirectory, done: Sequence[Row]) -> str:
    last = done[-1]
    count = 0
    for path in directory.checkpoints.rglob("*.pt"):
        if damage(path) is not None:
            raise FrameworkError(f"{path} is damaged, or no checkpoint of this run.")
        count += 1
        if path.parent == directory.checkpoints:
            position = torch.load(path, map_location="cpu", weights_only=True)["position"]
            if position["event_index"] <= last["event_index"]:
                raise FrameworkError(f"{path} is from before {last['event']}: what was unlearned can be resumed from it.")
    return f"{count} files of states, all from after {last['event']} or of a history without it"


def _purged(directory: RunDirectory, done: Sequence[Row]) -> str:
    names = {name for entry in done for name in entry["purged"]}
    back = [path for path in directory.path.rglob("*") if path.name in names]
    if back:
        raise FrameworkError(f"{back[0]} was purged, and is there again.")
    return f"{len(names)} files"


def _when(seal: Row) -> str:
    return "the end of the run" if seal["kind"] == FINISHED else f"the end of {seal['event']}"


def _state(directory: RunDirectory, events: Sequence[Row], seal: Row) -> str:
    if seal["kind"] == DONE and events[-1]["event_index"] != seal["event_index"]:
        raise _NotRun(f"{events[-1]['event']} came after {seal['event']} and moved the state on, and the run is not finished")
    state = CheckpointStore(directory.checkpoints).load_latest(lambda text: None)
    if state is None:
        raise FrameworkError(f"{directory.checkpoints} holds no whole checkpoint.")
    if digest_of(state["learner"]) != seal["state_after"]:
        raise FrameworkError(f"the newest checkpoint is not the state at {_when(seal)}: its digest differs.")
    return f"digest {seal['state_after'][:16]}"


def _ancestry(directory: RunDirectory, events: Sequence[Row], entries: Sequence[Row]) -> str:
    """Of each kept state, whether the way that led to it, as its name tells, showed what was unlearned; of the newest, what is in it."""
    experiment = load_experiment(directory.config)
    learner = assemble(experiment, _benchmark(experiment))
    requests = [event for event in learner.stream.events[: events[-1]["event_index"] + 1] if isinstance(event, Unlearn)]
    single = [learner.forgotten(event).ids for event in requests if event.granularity != "task"]
    learner.deleted = torch.cat([learner.deleted, *single]).unique()
    ways = set()
    for index in range(_last(entries, DONE)["event_index"], events[-1]["event_index"] + 1):
        stream, count = learner.stream.without_unlearned(index)
        ways |= {key_of(stream, length, learner) for length in range(count + 1)}
    kept = list(History(directory.checkpoints / "history").paths())
    for path in kept:
        if path.stem.split("-")[1] not in ways:
            raise FrameworkError(f"{path} is of a history that showed what was unlearned.")
    state = CheckpointStore(directory.checkpoints).load_latest(lambda text: None)
    if state is None:
        raise FrameworkError(f"{directory.checkpoints} holds no whole checkpoint.")
    for event, ids in _gone(experiment, learner.benchmark, events, entries):
        items, _, _ = learner.benchmark.read(ids)
        held = artefacts_in_memory(state["learner"], Canaries.of_items(items, learner.benchmark.transform(items, None)), "learner")
        held += places_that_name(ids, state["learner"]["strategies"], "learner.strategies")
        if held:
            raise FrameworkError(f"the newest checkpoint still holds what {event} unlearned, at {held[0]}.")
    return f"{len(kept)} kept states by the ways that led to them, and what is in the newest"


def _last(entries: Sequence[Row], kind: str) -> Row:
    return [entry for entry in entries if entry["kind"] == kind][-1]


def _figures(directory: RunDirectory) -> str:
    if not directory.summary.exists():
        raise _NotRun("the run has no summary.json yet")
    told, made = read_json(directory.summary), json.loads(json.dumps(summary_of(directory)))
    for key in ("unlearning", "accuracy_matrix", "average_accuracy"):
        if told.get(key) != made[key]:
            raise FrameworkError(f"{directory.summary}: {key} does not follow from the records.")
    return "summary.json can be made again from them"


def _samples(directory: RunDirectory, events: Sequence[Row], entries: Sequence[Row]) -> str:
    experiment = load_experiment(directory.config)
    benchmark, searched = _benchmark(experiment), 0
    for event, ids in _gone(experiment, benchmark, events, entries):
        items, _, _ = benchmark.read(ids)
        canaries = Canaries.of_items(items, benchmark.transform(items, None))
        found = artefacts_on_disk(directory.path, canaries)
        if found:
            raise FrameworkError(f"{directory.path / found[0]} holds samples that {event} unlearned.")
        searched += canaries.searched
    if not searched:
        raise _NotRun("the samples have no unmistakable bytes, or were learned again")
    return f"{searched} samples searched for, byte by byte"


def _gone(
    experiment: Experiment, benchmark: Benchmark, events: Sequence[Row], entries: Sequence[Row]
) -> Iterator[tuple[Unlearn, torch.Tensor]]:
    """What was unlearned and not learned again since: the requests, last first, and the ids that each named."""
    run = experiment.run
    shown_ids = training_partition([benchmark.ids_of(task) for task in range(benchmark.num_tasks)], run.blurry, run.seed)
    stream = Stream.parse(" ".join(row["event"] for row in events), benchmark.num_tasks)
    asked = {entry["event_index"]: entry for entry in entries if entry["kind"] == REQUESTED}
    learned_again = set()
    for index, event in reversed(list(enumerate(stream))):
        if isinstance(event, Learn):
            learned_again.add(event.task)
        elif event.granularity != "task" or event.task not in learned_again:  # classes and samples stay deleted
            ids = requested_ids(event, benchmark, shown_ids[event.task])
            if index in asked and hashlib.sha256(ids.numpy().tobytes()).hexdigest() != asked[index]["ids_sha256"]:
                raise FrameworkError(f"{event} names other samples here than in the deletion record: the data or its split have changed.")
            yield event, ids


def _audits(path: Path, entries: Sequence[Row]) -> str:
    latest = {entry["file"]: entry["sha256"] for entry in entries}
    if not latest:
        raise _NotRun(f"there is none; `clu audit {path}` makes one")
    for name, digest in latest.items():
        if not (path / name).exists() or hashlib.sha256((path / name).read_bytes()).hexdigest() != digest:
            raise FrameworkError(f"{path / name} was changed or removed after it was written.")
    return f"{len(latest)} of {len(latest)}"


def _benchmark(experiment: Experiment) -> Benchmark:
    try:
        return make_benchmark(experiment)
    except FrameworkError as error:
        raise _NotRun(f"the data are not at hand ({error})") from error


def shown(findings: Sequence[Finding]) -> Any:
    """The findings as a table for the terminal."""
    from rich.table import Table

    table = Table()
    for title in ("claim", "verdict", "why"):
        table.add_column(title, overflow="fold")
    for finding in findings:
        table.add_row(finding.claim, finding.verdict, finding.why)
    return table
