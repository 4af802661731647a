"""The deletion record of a run: `deletion/log.jsonl`, append-only, each line with the hash of the one before.

Every Unlearn writes two lines. `requested` comes before anything is done; `done` when all that was to go is gone and the new state is
safely on disk. A request that is still open when a run goes on tells of a crash in between: the rest is done then. Lines hold what was
asked, by whom it was answered, with which guarantee, digests of the state before and after and of the rows of records and events up to
there, what was purged, and what lies out of reach. `finished` seals what the run wrote up to its end, `audited` the result of an audit.
`done` and `finished` also seal the files of states that the run has then, one by one.
Requests and the end seal the configuration, the environment and the command that the run was started with, too.
Where a run is repeated from its beginning, since no checkpoint of it is whole, `begun again` stands before what is current from there on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cl_framework.errors import FrameworkError
from cl_framework.records import EVENTS, RECORDS, RESTORE_ROWS, Row, RunDirectory, append_rows, read_rows

LOG = "log.jsonl"
STARTED_WITH = ("config.yaml", "env.json", "command.txt")  # what a run writes at its start and never again
_COLUMNS = {"kind": str, "event_index": int, "event": str, "previous": str, "hash": str}  # what every line has
SEALED_ROWS = {RECORDS: "records", EVENTS: "events"}  # files of rows, and the columns of a line that seal them
_ROWS = {"bytes": int, "sha256": str}
_CONTENT: dict[str, dict[str, Any]] = {  # what the lines of a kind hold, and every check relies on; a mapping where that holds more
    "requested": {"ids_sha256": str},
    "done": {
        "state_after": str,
        "purged": list,
        "contains": list,
        "guarantee_achieved": str,
        "canaries": {"searched": int},
        "records": _ROWS,
        "events": _ROWS,
    },
    "finished": {"state_after": str, "records": _ROWS, "events": _ROWS},
    "audited": {"file": str, "sha256": str},
}
_LATER: dict[str, Any] = {"states": {}, "held": {}, "removed": list}  # where they are there: earlier versions did not write them
REQUESTED, DONE = "requested", "done"
BEGUN_AGAIN, FINISHED, AUDITED = "begun again", "finished", "audited"  # of the run, not of a request
FIRST = "0" * 64  # what stands for the hash before the first line


class BrokenChain(FrameworkError):
    """A deletion record that was edited, or of which a part was cut or is missing."""


def sealed(entry: Mapping[str, Any], previous: str) -> Row:
    """The entry with the hash of the line before and its own."""
    row = {**entry, "previous": previous}
    return {**row, "hash": _hash(row)}


def _hash(row: Mapping[str, Any]) -> str:
    text = json.dumps({key: value for key, value in row.items() if key != "hash"}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def check_chain(entries: Sequence[Row], path: Path) -> None:
    """Raise BrokenChain, naming the line, if an entry was changed, taken out, moved or put in."""
    previous, open_request = FIRST, None
    for number, entry in enumerate(entries, start=1):
        if entry.get("hash") != _hash(entry):
            raise BrokenChain(f"{path} was edited: line {number} does not have the hash that it states.")
        if entry["previous"] != previous:
            raise BrokenChain(f"{path} was edited: line {number} does not follow the line before it.")
        previous = entry["hash"]
        if entry["kind"] == REQUESTED:
            if open_request is not None:
                raise BrokenChain(f"{path}: line {number} requests {entry['event']} while the request for {open_request['event']} is open.")
            open_request = entry
        elif entry["kind"] == AUDITED or (entry["kind"] == FINISHED and open_request is None):
            continue
        elif entry["kind"] == BEGUN_AGAIN:
            open_request = None
        elif open_request is None or open_request["event_index"] != entry["event_index"]:
            raise BrokenChain(f"{path}: line {number} reports {entry['event']} as done, which was not requested.")
        else:
            open_request = None


def check_content(entries: Sequence[Row], path: Path) -> None:
    """Raise BrokenChain, naming the line and the column, if an entry lacks what its kind holds, or has something else in its place."""
    for number, entry in enumerate(entries, start=1):
        known = _CONTENT.get(entry["kind"], {}) | {name: kind for name, kind in _LATER.items() if name in entry}
        if "started_with" in entry:
            known["started_with"] = dict.fromkeys(STARTED_WITH, str | None)
        wrong = _misfit(entry, known)
        if wrong:
            raise BrokenChain(
                f"{path} was sealed anew: line {number} ({entry['kind']}) has no {wrong} as this package writes it. {_RESTORE}"
            )


def _misfit(row: Row, known: Mapping[str, Any]) -> str | None:
    """The first of the known columns that is missing or of another type, if there is one."""
    for name, kind in known.items():
        inner = isinstance(kind, Mapping)
        if name not in row or not isinstance(row[name], dict if inner else kind):
            return name
        if inner and (wrong := _misfit(row[name], kind)):
            return f"{name}.{wrong}"
    return None


def sealed_audits(entries: Sequence[Row]) -> dict[str, str]:
    """Digests of the files of audits, by their place in the run's folder, as the entries last had them."""
    return {entry["file"]: entry["sha256"] for entry in entries if entry["kind"] == AUDITED}


def of_requests(entries: Sequence[Row]) -> list[Row]:
    """The entries that tell of a request, without those of the whole run."""
    return [entry for entry in entries if entry["kind"] not in (FINISHED, AUDITED)]


@dataclass(frozen=True)
class DeletionLog:
    """The deletion record in a run's folder `deletion`."""

    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / LOG

    @property
    def half_written(self) -> bool:
        """Whether the last line lacks its end."""
        return self.path.exists() and self.path.read_bytes()[-1:] not in (b"", b"\n")

    @property
    def head(self) -> str:
        """The hash of the last entry, on which all of them bear; `FIRST` where there is none."""
        entries = self.entries()
        return entries[-1]["hash"] if entries else FIRST

    def entries(self) -> list[Row]:
        """All entries, oldest first; a line that a killed process left half-written is no entry. BrokenChain if any was touched."""
        entries = read_rows(self.path, _COLUMNS)
        check_chain(entries, self.path)
        return entries

    def current(self) -> list[Row]:
        """The entries since the run was last begun."""
        entries = self.entries()
        begun = [place for place, entry in enumerate(entries, start=1) if entry["kind"] == BEGUN_AGAIN]
        return entries[begun[-1] :] if begun else entries

    def open_request(self) -> Row | None:
        """The request that was not reported as done yet."""
        last = next(iter(reversed(of_requests(self.current()))), None)
        return last if last is not None and last["kind"] == REQUESTED else None

    def requested(self) -> dict[int, Row]:
        """What it says of each event before anything of it was done."""
        return {entry["event_index"]: entry for entry in self.current() if entry["kind"] == REQUESTED}

    def done(self) -> dict[int, Row]:
        """What it says of each event that it reports as done."""
        return {entry["event_index"]: entry for entry in self.current() if entry["kind"] == DONE}

    def append(self, kind: str, entry: Mapping[str, Any]) -> Row:
        """Seal an entry and write it, flushed to disk."""
        row = sealed({"kind": kind, "time": datetime.now(UTC).isoformat(timespec="seconds"), **entry}, self.head)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._drop_half_written()
        append_rows(self.path, [row])
        return row

    def _drop_half_written(self) -> None:
        if self.path.exists():
            data = self.path.read_bytes()
            os.truncate(self.path, data.rfind(b"\n") + 1)


_RESTORE = f"Restore deletion/{LOG} as it was, or start the run anew with again=true."


def unlearned_in(events: Sequence[Row]) -> dict[int, str]:
    """The Unlearn events among rows of events.jsonl, by their index."""
    return {row["event_index"]: row["event"] for row in events if row["event"].startswith("U")}


def check_complete(directory: RunDirectory, begun: Sequence[Row] | None = None, lengths: Mapping[str, int] | None = None) -> None:
    """Raise BrokenChain unless the record of a run holds all that was unlearned (`check_recorded`) and its rows are as they were sealed.

    `lengths`, of the files of rows, are those that the checkpoint of a run about to be resumed counts on: where it lies before the end
    that was sealed last, rows after it are made again, and that seal holds no longer.
    """
    check_recorded(directory, begun)
    seals = [entry for entry in DeletionLog(directory.path / "deletion").current() if entry["kind"] in (DONE, FINISHED)]
    ends = [entry for entry in seals if entry["kind"] == FINISHED][-1:]
    newest = max((path.name for path in directory.checkpoints.glob("*-*-*.pt")), default="")
    if directory.status != "done" and ends:
        same = lengths == {name: ends[0][key]["bytes"] for name, key in SEALED_ROWS.items()}
        ends = ends if same and f"ckpt/{newest}" in ends[0].get("states", ()) else []
    for seal in [entry for entry in seals if entry["kind"] == DONE] + ends:
        check_rows(directory, seal)


def check_rows(directory: RunDirectory, seal: Row) -> None:
    """Raise BrokenChain if rows were changed, or put in or taken out, in what came before a `done` or `finished` entry; at the end of a
    run nothing may come after, either."""
    for name, key in SEALED_ROWS.items():
        file = directory.path / name
        if digest_of_rows(file, seal[key]["bytes"]) != seal[key]:
            raise BrokenChain(f"{file} was changed in what came before {when(seal)}. {RESTORE_ROWS}")
        if seal["kind"] == FINISHED and file.stat().st_size > seal[key]["bytes"]:
            raise BrokenChain(f"{file} goes on after the end of the run: something was appended to it. {RESTORE_ROWS}")


def when(seal: Row) -> str:
    """What a `done` or `finished` entry stands at the end of."""
    return "the end of the run" if seal["kind"] == FINISHED else f"the end of {seal['event']}"


def check_recorded(directory: RunDirectory, begun: Sequence[Row] | None = None) -> None:
    """Raise BrokenChain unless the deletion record holds the request and the end of every Unlearn that the run has done.

    A finished run's record must say that it is finished, too. `begun` are the events, as rows, that the checkpoint of a run about to be
    resumed knows of: a request may then stand open, if it is the last of all events. That the resume finishes.
    """
    log = DeletionLog(directory.path / "deletion")
    check_content(log.entries(), log.path)
    recorded, standing, finished = log.done(), log.open_request(), directory.status == "done"
    events = [*directory.events(), *(begun or ())]
    open_index = -1 if standing is None else standing["event_index"]
    may_stand = not finished and open_index >= max((row["event_index"] for row in events), default=-1)
    unlearned = unlearned_in(events)
    for index, event in unlearned.items():
        if recorded.get(index, {}).get("event") != event and not (may_stand and index == open_index):
            raise BrokenChain(f"{directory.path}: event {index} ({event}) is in the run, but not whole in the deletion record. {_RESTORE}")
    if standing is not None and not (may_stand and begun is not None):
        remedy = f"Finish it with `clu resume {directory.path}`." if may_stand else _RESTORE
        raise BrokenChain(f"{directory.path}: the request {standing['event']} is open in the deletion record. {remedy}")
    if unlearned and finished and not any(entry["kind"] == FINISHED for entry in log.current()):
        raise BrokenChain(f"{directory.path} is finished, but the deletion record does not say so: its last lines were cut. {_RESTORE}")


def digest_of_rows(path: Path, length: int | None = None) -> dict[str, Any]:
    """Length in bytes and SHA-256 of the first `length` bytes of a file of rows; of all of them by default."""
    data = path.read_bytes() if path.exists() else b""
    part = data if length is None else data[:length]
    return {"bytes": len(part), "sha256": hashlib.sha256(part).hexdigest()}


def file_digest(path: Path) -> str | None:
    """SHA-256 of a file; None where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
