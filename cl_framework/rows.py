"""The rows that a run writes, with a digest that runs along: what a checkpoint and the end of a run note of them, and what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cl_framework.errors import FrameworkError
from cl_framework.records import EVENTS, RECORDS, RESTORE_ROWS, Row, RunDirectory, append_rows, cut_to, read_file, read_json, size_of


class RowsWriter:
    """Appends to the two files of rows of a run, and knows their lengths in bytes and their SHA-256 without reading them again.

    `noted` is what a checkpoint holds of them (see there): the writer goes on after it. None begins with the first row. Nothing on disk
    is changed before `cut_back`. FrameworkError if the files do not begin with what was noted.
    """

    def __init__(self, folder: Path, noted: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self._lengths: dict[str, int] = {}
        self._hashes: dict[str, Any] = {}  # of hashlib, whose class has no public name
        for name in (EVENTS, RECORDS):
            self._lengths[name] = 0 if noted is None else noted["lengths"][name]
            beginning = b"" if noted is None else _beginning(folder / name, self._lengths[name])
            self._hashes[name] = hashlib.sha256(beginning)
            digest = None if noted is None else noted.get("digests", {}).get(name)  # earlier checkpoints noted lengths alone
            if digest not in (None, self._hashes[name].hexdigest()):
                raise FrameworkError(f"{folder / name} was changed in what came before the checkpoint. {RESTORE_ROWS}")

    def append(self, name: str, rows: Iterable[Row]) -> None:
        """Append rows to the file of this name, flushed to disk."""
        data = append_rows(self.folder / name, rows)
        self._lengths[name] += len(data)
        self._hashes[name].update(data)

    def noted(self) -> dict[str, Any]:
        """What a checkpoint, or the end of a run, keeps of the rows: `lengths` in bytes and `digests`, by file."""
        return {"lengths": dict(self._lengths), "digests": {name: found.hexdigest() for name, found in self._hashes.items()}}

    def check_untouched(self) -> None:
        """FrameworkError unless the files hold what was written, and nothing else."""
        for name, length in self._lengths.items():
            found = read_file(self.folder / name)
            if len(found) != length or hashlib.sha256(found).hexdigest() != self._hashes[name].hexdigest():
                raise FrameworkError(f"{self.folder / name} was changed while the run went on. Start it anew with again=true.")

    def cut_back(self) -> None:
        """Cut away what the files hold after the last row noted: a killed run has written it, and it is made again."""
        for name, length in self._lengths.items():
            if size_of(self.folder / name) > length:
                cut_to(self.folder / name, length)


def _beginning(path: Path, length: int) -> bytes:
    """The first `length` bytes. FrameworkError if there are fewer."""
    data = read_file(path) if path.exists() else b""
    if len(data) < length:
        raise FrameworkError(
            f"{path} has {len(data)} bytes, but the checkpoint counts on {length}: rows are lost. Start anew with again=true."
        )
    return data[:length]


def check_ended(directory: RunDirectory) -> None:
    """FrameworkError unless a finished run has the rows that it ended with. One of an earlier version noted none, and passes."""
    if directory.status != "done" or not size_of(directory.done):
        return
    digests = read_json(directory.done).get("digests")
    if not isinstance(digests, dict) or set(digests) != {EVENTS, RECORDS}:
        raise FrameworkError(f"{directory.done} is damaged: it holds no digests of the rows. {RESTORE_ROWS}")
    for name in (EVENTS, RECORDS):
        path = directory.path / name
        data = read_file(path) if path.exists() else b""
        if digests[name] != hashlib.sha256(data).hexdigest():
            raise FrameworkError(f"{path} was changed after the end of the run. {RESTORE_ROWS}")
