"""`clu verify RUN_DIR`: what the deletion record of a run claims, checked again from what lies on the disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cl_framework.assembly import make_benchmark
from cl_framework.benchmarks.base import Benchmark
from cl_framework.checkpoint import CheckpointStore, damage
from cl_framework.config import Experiment, load_experiment
from cl_framework.digests import digest_of
from cl_framework.errors import ConfigurationError, FrameworkError
from cl_framework.plan import training_partition
from cl_framework.records import EVENTS, RECORDS, Row, RunDirectory, read_json
from cl_framework.report import summary_of
from cl_framework.requests import requested_ids
from cl_framework.stream import Learn, Stream
from cl_framework.unlearning.deletion import AUDITED, DONE, REQUESTED, BrokenChain, DeletionLog, digest_of_rows
from cl_framework.unlearning.fast import FAIL, NOT_RUN, PASS
from cl_framework.unlearning.shadow import Canaries, artefacts_on_disk


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
        entries = log.entries()
    except BrokenChain as error:
        return [Finding("the record is whole", FAIL, str(error))]
    done = [entry for entry in entries if entry["kind"] == DONE]
    checks: list[Callable[[], str]] = [
        lambda: _all_recorded(events, entries, directory.status),
        lambda: _rows_untouched(path, done),
        lambda: _no_older_state(directory, done),
        lambda: _purged(directory, done),
        lambda: _state(directory, events, done),
        lambda: _figures(directory),
        lambda: _samples(directory, entries, done),
        lambda: _audits(path, [entry for entry in entries if entry["kind"] == AUDITED]),
    ]
    findings = [Finding("the record is whole", PASS, f"{len(entries)} entries, each with the hash of the one before")]
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
    last = [entry for entry in entries if entry["kind"] != AUDITED][-1]
    if last["kind"] != DONE and status == "done":
        raise FrameworkError(f"the request {last['event']} is still open, though the run is finished.")
    return f"{len(wanted)} of {len(wanted)}"


def _rows_untouched(path: Path, done: Sequence[Row]) -> str:
    for entry in done:
        for name, key in ((RECORDS, "records"), (EVENTS, "events")):
            if digest_of_rows(path / name, entry[key]["bytes"]) != entry[key]:
                raise FrameworkError(f"{path / name} was changed in what came before the end of {entry['event']}.")
    return f"up to the end of {done[-1]['event']}"


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


def _state(directory: RunDirectory, events: Sequence[Row], done: Sequence[Row]) -> str:
    last = done[-1]
    if events[-1]["event_index"] != last["event_index"]:
        raise _NotRun(f"{events[-1]['event']} came after {last['event']} and moved the state on")
    state = CheckpointStore(directory.checkpoints).load_latest(lambda text: None)
    if state is None:
        raise FrameworkError(f"{directory.checkpoints} holds no whole checkpoint.")
    if digest_of(state["learner"]) != last["state_after"]:
        raise FrameworkError(f"the newest checkpoint is not the state after {last['event']}: its digest differs.")
    return f"digest {last['state_after'][:16]}"


def _figures(directory: RunDirectory) -> str:
    if not directory.summary.exists():
        raise _NotRun("the run has no summary.json yet")
    told, made = read_json(directory.summary), json.loads(json.dumps(summary_of(directory)))
    for key in ("unlearning", "accuracy_matrix", "average_accuracy"):
        if told.get(key) != made[key]:
            raise FrameworkError(f"{directory.summary}: {key} does not follow from the records.")
    return "summary.json can be made again from them"


def _samples(directory: RunDirectory, entries: Sequence[Row], done: Sequence[Row]) -> str:
    experiment = load_experiment(directory.config)
    benchmark, searched = _benchmark(experiment), 0
    run = experiment.run
    shown_ids = training_partition([benchmark.ids_of(task) for task in range(benchmark.num_tasks)], run.blurry, run.seed)
    stream = Stream.parse(" ".join(row["event"] for row in directory.events()), benchmark.num_tasks)
    learned_again = set()
    for index, event in reversed(list(enumerate(stream))):
        entry = next((entry for entry in done if entry["event_index"] == index), None)
        if entry is None or isinstance(event, Learn):
            learned_again.add(event.task)
            continue
        if event.granularity == "task" and event.task in learned_again:  # classes and samples stay deleted
            continue
        ids = requested_ids(event, benchmark, shown_ids[event.task])
        asked = next((one for one in entries if one["kind"] == REQUESTED and one["event_index"] == index), None)
        if asked is not None and hashlib.sha256(ids.numpy().tobytes()).hexdigest() != asked["ids_sha256"]:
            raise FrameworkError(f"{event} names other samples here than in the deletion record: the data or its split have changed.")
        items, _, _ = benchmark.read(ids)
        canaries = Canaries.of_items(items, benchmark.transform(items, None))
        found = artefacts_on_disk(directory.path, canaries)
        if found:
            raise FrameworkError(f"{directory.path / found[0]} holds samples that {event} unlearned.")
        searched += canaries.searched
    if not searched:
        raise _NotRun("the samples have no unmistakable bytes, or were learned again")
    return f"{searched} samples searched for, byte by byte"


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
