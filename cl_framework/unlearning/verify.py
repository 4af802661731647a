"""`clu verify RUN_DIR`: what the deletion record of a run claims, checked again from what lies on the disk.

Outside of the seal is what is drawn from the records or repeats them for others: `plots/`, `report.html`, files of loggers. What no
record can tell by itself is that its last lines were cut together with all that came after them, or that it was sealed anew as a whole:
that shows against its head, the hash of its last line, if the head was kept elsewhere (`--head`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cl_framework.checkpoint import CheckpointStore, damage, files_of_states, load_state
from cl_framework.digests import digest_of
from cl_framework.errors import ConfigurationError, FrameworkError
from cl_framework.history import History, key_of
from cl_framework.records import PARTIAL, RunDirectory, read_json
from cl_framework.stream import Unlearn
from cl_framework.summary import summary_of, text_of_summary
from cl_framework.unlearning.ancestry import Ancestry, Movements, known_since, still_there
from cl_framework.unlearning.audit import TIERS
from cl_framework.unlearning.deletion import (
    DONE,
    FINISHED,
    STARTED_WITH,
    BrokenChain,
    DeletionLog,
    check_content,
    check_recorded,
    check_rows,
    file_digest,
    sealed_audits,
    unlearned_in,
    when,
)
from cl_framework.unlearning.evidence import Evidence, NotRun
from cl_framework.unlearning.fast import FAIL, NOT_RUN, PASS
from cl_framework.unlearning.samples import Samples, kept_of, samples_in_memory
from cl_framework.unlearning.shadow import artefacts_in_memory, artefacts_on_disk, places_that_name
from cl_framework.unlearning.verdicts import CLAIM

NOTHING_GONE = "all that was unlearned was learned again"


@dataclass(frozen=True)
class Finding:
    """One claim and whether it holds."""

    claim: str
    verdict: str  # PASS, FAIL or NOT RUN
    why: str


def verify(path: Path, head: str | None = None) -> list[Finding]:
    """Check a run's deletion record; `head` is the hash of one of its lines that was kept elsewhere (64 hexadecimal digits).

    ConfigurationError if there is no run, nothing was unlearned in it, or `head` is no hash.
    """
    directory = RunDirectory(path)
    if directory.status == "absent":
        raise ConfigurationError(f"{path} is no run directory (it has no config.yaml).")
    if head is not None and not re.fullmatch("[0-9a-f]{64}", head):
        raise ConfigurationError(f"--head {head} is no hash of a line: 64 hexadecimal digits, as `clu verify` prints them.")
    evidence = Evidence(directory, DeletionLog(path / "deletion"), directory.events(), head)
    if not unlearned_in(evidence.events) and not evidence.log.path.exists():
        raise ConfigurationError(f"{path}: no Unlearn is done in this run, so there is nothing to verify.")
    findings: list[Finding] = []
    for claim, check in CHECKS.items():
        without_ground = any(finding.verdict == FAIL and finding.claim in GROUND for finding in findings)
        findings.append(Finding(claim, NOT_RUN, "it rests on the record") if without_ground else _finding(claim, check, evidence))
    return findings


def _finding(claim: str, check: Callable[[Evidence], str], evidence: Evidence) -> Finding:
    try:
        return Finding(claim, PASS, check(evidence))
    except NotRun as reason:
        return Finding(claim, NOT_RUN, str(reason))
    except FrameworkError as error:
        return Finding(claim, FAIL, str(error))


# --- the checks: each returns how it was shown, or raises FrameworkError ---


def _whole(evidence: Evidence) -> str:
    log, run = evidence.log, evidence.directory
    said = f"{len(evidence.whole)} entries, each with the hash of the one before"
    if log.half_written:
        again = f"clu audit {run.path} --again" if run.status == "done" else f"clu resume {run.path}"
        raise BrokenChain(f"{log.path} ends in half a line: it was cut, or its writer was killed. If so, `{again}` writes it again.")
    check_content(evidence.whole, log.path)
    if evidence.head is None:
        return said
    if evidence.head not in {entry["hash"] for entry in evidence.whole}:
        raise BrokenChain(f"{log.path} has no line with the hash that was kept elsewhere: lines were cut, or all were sealed anew.")
    return f"{said}, one of them with the hash that was kept elsewhere"


def _all_recorded(evidence: Evidence) -> str:
    check_recorded(evidence.directory)
    wanted = unlearned_in(evidence.events)
    invented = [entry for entry in evidence.done if wanted.get(entry["event_index"]) != entry["event"]]
    if invented:
        raise FrameworkError(
            f"the deletion record reports event {invented[0]['event_index']} ({invented[0]['event']}), which events.jsonl does not hold."
        )
    if not wanted:
        path = evidence.directory.path
        raise FrameworkError(f"{path}: nothing is unlearned since the run was begun again. Finish it with `clu resume {path}`.")
    return f"{len(wanted)} of {len(wanted)}"


def _started_so(evidence: Evidence) -> str:
    if not any("started_with" in entry for entry in evidence.entries):
        raise NotRun("the record was written by a version that did not seal them")
    if evidence.changed:
        raise FrameworkError(f"{evidence.changed[0]} was changed or removed after the run was started.")
    return ", ".join(STARTED_WITH)


def _rows_untouched(evidence: Evidence) -> str:
    seals = [*evidence.done, *evidence.ends[-1:]]
    for seal in seals:
        check_rows(evidence.directory, seal)
    return f"up to {when(seals[-1])}"


def _no_older_state(evidence: Evidence) -> str:
    last = evidence.done[-1]
    halves = evidence.directory.status != "done"  # what a killed process leaves half-written goes with the next resume
    files = [path for path in files_of_states(evidence.directory.path) if not (halves and path.name.endswith(PARTIAL))]
    own = _own_states(evidence)
    for path in files:
        if path not in own:
            raise FrameworkError(f"{path} may hold a model, and is no state that this run has written. Remove it, or keep it elsewhere.")
        if damage(path) is not None:
            raise FrameworkError(f"{path} is damaged, or no checkpoint of this run.")
        if path.parent == evidence.directory.checkpoints and load_state(path)["position"]["event_index"] <= last["event_index"]:
            raise FrameworkError(f"{path} is from before {last['event']}: what was unlearned can be resumed from it.")
    return f"{len(files)} files of states, all from after {last['event']} or of a history without it"


def _own_states(evidence: Evidence) -> set[Path]:
    """What lies where the run keeps its states, under such a name."""
    folder = evidence.directory.checkpoints
    return {*CheckpointStore(folder).paths(), *History(folder / "history").paths()}


def _states_as_written(evidence: Evidence) -> str:
    """Files of states are those of the last seal; a run that is not finished may have written later ones since."""
    seal = [entry for entry in evidence.entries if entry["kind"] in (DONE, FINISHED)][-1]
    if "states" not in seal:
        raise NotRun("the record was written by a version that did not seal them")
    folder, sealed = evidence.directory.path, seal["states"]
    since = []
    for path in sorted(_own_states(evidence)):
        place = str(path.relative_to(folder))
        if place in sealed and file_digest(path) != sealed[place]:
            raise FrameworkError(f"{path} was changed after {when(seal)}.")
        if place not in sealed:
            since.append(path)
    last = max((_serial(Path(place)) for place in sealed), default="")
    wrong = [path for path in since if evidence.directory.status == "done" or "" < _serial(path) <= last]
    if wrong:
        raise FrameworkError(f"{wrong[0]} is none of the states that the run had at {when(seal)}: it was put there, or replaced.")
    missing = [place for place in sealed if not (folder / place).exists()]
    if missing and evidence.directory.status == "done" and seal["kind"] == FINISHED:
        raise FrameworkError(f"{folder / missing[0]} is gone, which the run had at {when(seal)}.")
    told = f"{len(sealed)} sealed at {when(seal)}"
    return f"{told}; {len(since)} written since, to be sealed when the run is finished" if since else told


def _serial(path: Path) -> str:
    """The number of a checkpoint, which counts up; "" of a kept state."""
    return "" if path.parent.name == "history" else path.name.partition("-")[0]


def _purged(evidence: Evidence) -> str:
    names = {name for entry in evidence.done for name in entry["purged"]}
    back = [path for path in evidence.directory.path.rglob("*") if path.name in names]
    if any(path.parent.name == "history" for path in back):  # what is learned again may lead to the same state, under the same name
        ways = _ways(evidence)
        back = [path for path in back if path.parent.name != "history" or _way_of(path) not in ways]
    if back:
        raise FrameworkError(f"{back[0]} was purged, and is there again.")
    return f"{len(names)} files"


def _state(evidence: Evidence) -> str:
    seal, last = (evidence.ends or evidence.done)[-1], evidence.events[-1]
    if seal["kind"] == DONE and last["event_index"] != seal["event_index"]:
        raise NotRun(f"{last['event']} came after {seal['event']} and moved the state on, and the run is not finished")
    if digest_of(evidence.state["learner"]) != seal["state_after"]:
        raise FrameworkError(f"the newest checkpoint is not the state at {when(seal)}: its digest differs.")
    return f"digest {seal['state_after'][:16]}"


def _ancestry(evidence: Evidence) -> str:
    """Of each kept state, whether the way that led to it, as its name tells, showed what was unlearned; of the newest, what is in it."""
    history = History(evidence.directory.checkpoints / "history")
    kept = list(history.paths())
    ways = _ways(evidence)
    for path in kept:
        if _way_of(path) not in ways:
            raise FrameworkError(f"{path} is of a history that showed what was unlearned.")
    state, stack = evidence.state["learner"], evidence.learner.stack
    ancestry, movements = Ancestry(evidence.state.get("ancestry")), Movements(evidence.state.get("movements"))
    reported = {entry["event_index"]: entry for entry in evidence.done}
    nothing = torch.empty(0, dtype=torch.int64)
    gone = torch.cat([nothing, *(ids for _, _, ids, _ in evidence.gone)])
    may_stay = kept_of(evidence.learner, evidence.events[-1]["event_index"], gone, state)
    for index, event, ids, canaries in evidence.gone:
        held = artefacts_in_memory(state, canaries, "learner") + places_that_name(ids, state["strategies"], "learner.strategies")
        held += samples_in_memory(state, Samples(evidence.learner, ids), may_stay, "learner")
        since, exact = known_since(evidence.learner.stream, index), evidence.learner.is_exact(event)
        taken = reported.get(index, {}).get("removed", ())
        held += still_there(taken, state, "learner")
        held += [] if exact else ancestry.older(since, index, state, "learner", may_stay)
        if not (exact and stack.unlearner_of(event).strategy.traits.replays):
            held += [f"learner.model.{name}" for name in movements.untreated(since, index, event.task, evidence.learner.model)]
        if held:
            raise FrameworkError(f"the newest checkpoint still holds what {event} unlearned, at {held[0]}.")
        for path, kept_state in history.states() if taken else ():
            if found := still_there(taken, kept_state, "state"):
                raise FrameworkError(f"{path} still holds what {event} unlearned, at {found[0]}.")
    beside = sorted({left for _, _, ids, _ in evidence.gone for left in evidence.learner.benchmark.residual(ids)})
    apart = f"; not made anew: {', '.join(beside)}" if beside else ""
    return f"{len(kept)} kept states by the ways that led to them, and what is in the newest{apart}"


def _way_of(path: Path) -> str:
    """The key of the history that led to a kept state, from its name."""
    return path.stem.split("-")[1]


def _ways(evidence: Evidence) -> set[str]:
    """Keys of the histories since the last Unlearn that showed nothing of what was unlearned."""
    last, now = evidence.done[-1]["event_index"], evidence.events[-1]["event_index"]
    learner = copy(evidence.learner)  # what is deleted is this function's own
    requests = [event for event in learner.stream.events[: now + 1] if isinstance(event, Unlearn) and event.granularity != "task"]
    learner.deleted = torch.cat([learner.deleted, *(learner.forgotten(event).ids for event in requests)]).unique()
    walks = [learner.stream.without_unlearned(index) for index in range(last, now + 1)]
    return {key_of(stream, length, learner) for stream, count in walks for length in range(count + 1)}


def _figures(evidence: Evidence) -> str:
    directory = evidence.directory
    if not directory.summary.exists() and directory.status != "done":
        raise NotRun("the run has no summary.json yet")
    evidence.check_configuration()
    try:
        _rows_untouched(evidence)
    except FrameworkError as error:
        raise NotRun("they rest on records that were changed") from error
    told, text = read_json(directory.summary), text_of_summary(summary_of(directory))
    made, again = json.loads(text), f"`clu resume {directory.path}` makes it again"
    wrong = [key for key in {**made, **told} if key not in made or key not in told or told[key] != made[key]]
    if wrong:
        raise FrameworkError(f"{directory.summary}: {wrong[0]} does not follow from the records. {again}.")
    if directory.summary.read_text() != text:
        raise FrameworkError(f"{directory.summary} was written by another hand: its figures are right, its text is not. {again}.")
    return "summary.json can be made again from them"


def _samples(evidence: Evidence) -> str:
    for _, event, _, canaries in evidence.gone:
        found = artefacts_on_disk(evidence.directory.path, canaries)
        if found:
            raise FrameworkError(f"{evidence.directory.path / found[0]} holds samples that {event} unlearned.")
    if not evidence.gone:
        raise NotRun(NOTHING_GONE)
    searched = sum(canaries.searched for *_, canaries in evidence.gone)
    if not searched:
        raise NotRun("the samples have no unmistakable bytes")
    return f"{searched} samples searched for, byte by byte"


def _audits(evidence: Evidence) -> str:
    path = evidence.directory.path
    latest = sealed_audits(evidence.whole)
    unsealed = [file for file in sorted((path / "audit").glob("*.json")) if f"audit/{file.name}" not in latest]
    if unsealed:
        raise FrameworkError(
            f"{unsealed[0]} has no line in the deletion record: lines were cut, or it is from an audit that did not come to its end. "
            f"Remove it, or make it again with `clu audit {path} --again`."
        )
    if not latest:
        raise NotRun(f"there is none; `clu audit {path}` makes one")
    for name, digest in latest.items():
        if file_digest(path / name) != digest:
            raise FrameworkError(f"{path / name} was changed or removed after it was written.")
    return f"{len(latest)} of {len(latest)}"


def _exact_answers(evidence: Evidence) -> str:
    """What the newest audits, where they are as they were written, say of answers that the record calls exact."""
    path = evidence.directory.path
    called = {entry["event_index"]: entry["event"] for entry in evidence.done if entry["guarantee_achieved"] == "exact"}
    if not called:
        return "no answer is called exact"
    sealed = {path / name: digest for name, digest in sealed_audits(evidence.whole).items() if Path(name).stem in TIERS}
    files = [file for file, digest in sealed.items() if file_digest(file) == digest]
    judged = {
        request["event_index"]: figure["verdict"]
        for file in files
        for request in read_json(file).get("requests", ())
        for figure in request["figures"]
        if figure["name"] == CLAIM
    }
    failed = [event for index, event in called.items() if judged.get(index) == FAIL]
    if failed:
        raise FrameworkError(f"the answer to {failed[0]} is called exact, but its audit finds another model than the oracle.")
    asked = [event for index, event in called.items() if judged.get(index) != PASS]
    if asked:
        raise NotRun(f"no audit has shown it of {', '.join(asked)}; `clu audit {path}` does")
    return f"{len(called)} of {len(called)}, by their audits"


CHECKS: dict[str, Callable[[Evidence], str]] = {
    "the record is whole": _whole,
    "every Unlearn is recorded": _all_recorded,
    "configuration, environment and command are as they were": _started_so,
    "records and events are as they were": _rows_untouched,
    "no older state remains": _no_older_state,
    "files of states are as they were": _states_as_written,
    "what was purged is gone": _purged,
    "the state is the one recorded": _state,
    "no state descends from what was unlearned": _ancestry,
    "the figures follow from the records": _figures,
    "no sample is left in the run's files": _samples,
    "audits are as they were written": _audits,
    "what is called exact is the oracle": _exact_answers,
}
GROUND = ("the record is whole", "every Unlearn is recorded")  # where one of them fails, the others are not asked


CENTRAL = ("no state descends from what was unlearned", "no sample is left in the run's files")  # what a record is there for


def unchecked(findings: Sequence[Finding]) -> str:
    """How many claims were not checked, which and why, in a sentence; "" if there is none."""
    left: dict[str, list[str]] = {}
    for finding in findings:
        if finding.verdict == NOT_RUN:
            left.setdefault(finding.why, []).append(finding.claim)
    told = "; ".join(f"{', '.join(claims)} ({why})" for why, claims in left.items())
    return f"not checked: {sum(map(len, left.values()))} of {len(findings)} claims: {told}." if left else ""


def central_claims_stand_open(findings: Sequence[Finding]) -> bool:
    """Whether one of the claims that a record is there for was not checked, though there is something to check."""
    return any(finding.verdict == NOT_RUN and finding.claim in CENTRAL and finding.why != NOTHING_GONE for finding in findings)


def shown(findings: Sequence[Finding]) -> Any:
    """The findings as a table for the terminal."""
    from rich.table import Table

    table = Table()
    for title in ("claim", "verdict", "why"):
        table.add_column(title, overflow="fold")
    for finding in findings:
        table.add_row(finding.claim, finding.verdict, finding.why)
    return table
