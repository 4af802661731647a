"""The deletion record of a run: `deletion/log.jsonl`, append-only, each line with the hash of the one before.

Every Unlearn writes two lines. `requested` comes before anything is done; `done` when all that was to go is gone and the new state is
safely on disk. A request that is still open when a run goes on tells of a crash in between: the rest is done then. Lines hold what was
asked, by whom it was answered, with which guarantee, digests of the state before and after and of the rows of records and events up to
there, what was purged, and what lies out of reach. `finished` seals what the run wrote up to its end, `audited` the result of an audit.
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
from cl_framework.records import Row, append_rows, read_rows

LOG = "log.jsonl"
REQUESTED, DONE = "requested", "done"
BEGUN_AGAIN, FINISHED, AUDITED = "begun again", "finished", "audited"  # of the run, not of a request
FIRST = "0" * 64  # what stands for the hash before the first line


class BrokenChain(FrameworkError):
    """A deletion record that was edited, or of which a part was cut."""


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

    def entries(self) -> list[Row]:
        """All entries, oldest first; a line that a killed process left half-written is no entry. BrokenChain if any was touched."""
        entries = read_rows(self.path)
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

    def done(self) -> dict[int, Row]:
        """What it says of each event that it reports as done."""
        return {entry["event_index"]: entry for entry in self.current() if entry["kind"] == DONE}

    def append(self, kind: str, entry: Mapping[str, Any]) -> Row:
        """Seal an entry and write it, flushed to disk."""
        entries = self.entries()
        previous = entries[-1]["hash"] if entries else FIRST
        row = sealed({"kind": kind, "time": datetime.now(UTC).isoformat(timespec="seconds"), **entry}, previous)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._drop_half_written()
        append_rows(self.path, [row])
        return row

    def _drop_half_written(self) -> None:
        if self.path.exists():
            data = self.path.read_bytes()
            os.truncate(self.path, data.rfind(b"\n") + 1)


def digest_of_rows(path: Path, length: int | None = None) -> dict[str, Any]:
    """Length in bytes and SHA-256 of the first `length` bytes of a file of rows; of all of them by default."""
    data = path.read_bytes() if path.exists() else b""
    part = data if length is None else data[:length]
    return {"bytes": len(part), "sha256": hashlib.sha256(part).hexdigest()}
