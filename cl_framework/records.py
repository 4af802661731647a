"""A run directory: tidy rows, atomic files, exact readers.

    runs/<experiment>/<fingerprint8>-s<seed>/
      config.yaml  command.txt  env.json  events.jsonl  records.jsonl  summary.json  ckpt/  plots/  DONE or FAILED

`records.jsonl` is the only truth about figures: one row a value (null: no finite number), no times in it. Lines are appended whole; a
checkpoint notes lengths and digests of the files, and a resume cuts them back to it; DONE notes those at the end (rows.py).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from types import NoneType
from typing import Any

from cl_framework.errors import ConfigurationError, FrameworkError

Row = dict[str, Any]
RESTORE_ROWS = "Restore it as it was, or start the run anew with again=true."  # the remedy for rows that were changed

RECORDS = "records.jsonl"
# Beside what stands below: task, cost.cost_row, tokens_a_row, learning_curve, audit_seconds, stored_bytes, finite (weights), status.
EVENTS = "events.jsonl"
_PLACE: dict[str, type | tuple[type, ...]] = {"event_index": int, "event": str, "stream_step": int}
_COLUMNS: dict[str, dict[str, type | tuple[type, ...]]] = {  # what every row of a file has
    RECORDS: {
        "run": str,
        "event_index": int,
        "event": str,
        "eval_task": int,
        "split": str,
        "scenario": str,
        "metric": str,
        "value": (int, float, NoneType),  # null: it was measured, and is no finite number
        "n": int,
        "stream_step": int,
    },
    EVENTS: _PLACE
    | {
        "kind": str,
        "steps": int,
        "samples": int,
        "train_seconds": (int, float),
        "eval_seconds": (int, float),
        "peak_rss_mib": (int, float),
    },
}
PARTIAL = ".partial"  # ends the name of a file that is still being written
_WRITTEN_BY_A_RUN = (  # in the order in which `clear` removes them: stopped anywhere, it leaves a run that can be resumed or cleared
    "DONE",
    "FAILED",
    "ckpt",
    "deletion",
    "audit",
    EVENTS,
    RECORDS,
    "summary.json",
    "report.html",
    "plots",
    "wandb",
    "wandb.json",
    "command.txt",
    "env.json",
    "config.yaml",
)


def atomic_write(path: Path, data: str | bytes) -> None:
    """Write a file whole or not at all: aside, flushed to disk, then renamed. FrameworkError if it cannot be done."""
    raw = data.encode() if isinstance(data, str) else data
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> FrameworkError:
    """One sentence about a file that cannot be written, and the remedy."""
    remedies = {
        errno.ENOSPC: "Free some space",
        errno.EDQUOT: "Free some of your quota",
        errno.EROFS: "Choose a writable folder (out=DIR for runs)",
        errno.EACCES: "Choose a writable folder (out=DIR for runs)",
    }
    remedy = remedies.get(error.errno or 0, "Mend that or choose another folder (out=DIR for runs)")
    return FrameworkError(f"{path} cannot be written: {error.strerror}. {remedy}; nothing written before is lost.")


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run."""

    path: Path

    @classmethod
    def create(cls, out: str | Path, experiment: str, fingerprint: str, seed: int) -> RunDirectory:
        """The directory in which a run of this configuration and seed lives; nothing is made on disk yet."""
        return cls(Path(out) / experiment / f"{fingerprint[:8]}-s{seed}")

    # --- places ---

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def done(self) -> Path:
        """The mark of a finished run; in it, what its rows were then."""
        return self.path / "DONE"

    @property
    def checkpoints(self) -> Path:
        return self.path / "ckpt"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    # --- life ---

    @property
    def status(self) -> str:
        """`absent` (no run here), `unfinished`, `done` or `failed`."""
        if not self.config.exists():
            return "absent"
        if self.done.exists():
            return "done"
        return "failed" if (self.path / "FAILED").exists() else "unfinished"

    def write_start(self, config: str, command: str, env: Mapping[str, Any]) -> None:
        """Make the directory. config.yaml comes last: with it the directory is a run."""
        atomic_write(self.path / "command.txt", command + "\n")
        atomic_write(self.path / "env.json", json.dumps(env, indent=2) + "\n")
        atomic_write(self.config, config)

    def read_env(self) -> dict[str, Any]:
        return read_json(self.path / "env.json")

    def mark_done(self, noted: Mapping[str, Any] | None = None) -> None:
        """`noted`: what is kept of the rows that the run ended with (rows.py); earlier versions kept nothing."""
        self.unmark()
        atomic_write(self.done, "" if noted is None else json.dumps(noted, indent=2) + "\n")

    def mark_failed(self, reason: str) -> None:
        atomic_write(self.path / "FAILED", reason + "\n")

    @property
    def why_failed(self) -> str:
        """The sentence that a failed run ended with."""
        said = read_file(self.path / "FAILED").decode(errors="replace").strip().partition("\n")[0]
        return said if said.endswith((".", "!", "?")) else f"{said}."

    def unmark(self) -> None:
        """It goes on: neither failed nor done."""
        for mark in (self.path / "FAILED", self.done):
            mark.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove what a run wrote here, and nothing else; where there is no run, nothing. For whoever holds the lock."""
        if self.status == "absent":
            return
        for name in _WRITTEN_BY_A_RUN:
            place = self.path / name
            try:
                if place.is_dir():
                    shutil.rmtree(place)
                else:
                    place.unlink(missing_ok=True)
            except OSError as error:
                raise FrameworkError(f"{place} cannot be removed: {error.strerror}. Choose another folder with out=DIR.") from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; another process that tries is refused. Gone with the process, however it ends.

        Whoever holds the run also removes files that a killed process left half-written.
        """
        path = self.path / ".lock"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = path.open("w")
        except OSError as error:
            raise cannot_write(self.path, error) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigurationError(f"{self.path} is being run by another process. Wait for it or stop it.") from error
            for folder in (self.path, self.checkpoints, self.checkpoints / "history", self.plots):
                for partial in folder.glob(f".*{PARTIAL}"):
                    partial.unlink(missing_ok=True)
            yield

    # --- rows ---

    def records(self) -> list[Row]:
        return read_rows(self.path / RECORDS, _COLUMNS[RECORDS])

    def events(self, *, whole: bool = False) -> list[Row]:
        """`whole`: every row must have all that figures are made of, not only its place in the stream."""
        return read_rows(self.path / EVENTS, _COLUMNS[EVENTS] if whole else _PLACE)


def append_rows(path: Path, rows: Iterable[Row]) -> bytes:
    """Append rows as JSON lines in one write, flushed to disk; what was written. If it fails, what was half-written is cut away again."""
    data = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()
    before = size_of(path)
    try:
        with open(path, "ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if size_of(path) > before:
            cut_to(path, before)
        raise cannot_write(path, error) from error
    return data


def cut_to(path: Path, length: int) -> None:
    """Keep the first `length` bytes of a file."""
    try:
        os.truncate(path, length)
    except OSError as error:
        raise cannot_write(path, error) from error


def read_rows(path: Path, columns: Mapping[str, type | tuple[type, ...]] | None = None) -> list[Row]:
    """All rows; a last line without its end (killed while writing) is left out, any other damage is a FrameworkError.

    `columns` are what every row must have, with the types of their values.
    """
    if not path.exists():
        return []
    whole_lines = read_file(path).split(b"\n")[:-1]
    return [_parse_row(path, number, line, columns or {}) for number, line in enumerate(whole_lines, start=1)]


def _parse_row(path: Path, number: int, line: bytes, columns: Mapping[str, type | tuple[type, ...]]) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:  # no JSON, or bytes that are no text
        raise FrameworkError(f"{path} is damaged in line {number}: {error}. Restore it, or start anew with again=true.") from error
    if not isinstance(row, dict):
        raise FrameworkError(f"{path} is damaged in line {number}: it holds no row. Restore it, or start anew with again=true.")
    for column, kind in columns.items():
        if not isinstance(row.get(column), kind):
            found = f"{column} is {row[column]!r}" if column in row else f"it has no {column}"
            raise FrameworkError(f"{path} is damaged in line {number}: {found}. Restore it, or start anew with again=true.")
    return row


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file. FrameworkError if it cannot be read or is damaged."""
    try:
        found = json.loads(read_file(path))
    except ValueError as error:
        raise FrameworkError(f"{path} is damaged: {error}. Restore it, or start the run anew with again=true.") from error
    if not isinstance(found, dict):
        raise FrameworkError(f"{path} is damaged: it holds no mapping. Restore it, or start the run anew with again=true.")
    return found


def read_file(path: Path) -> bytes:
    """What a file of a run holds. FrameworkError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise FrameworkError(f"{path} cannot be read: {error.strerror}. Restore it, or start the run anew with again=true.") from error


def size_of(path: Path) -> int:
    """Bytes in a file; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


_BITS = ("cl-framework", "torch", "torchvision", "pytorch-lightning", "numpy", "transformers", "tokenizers", "peft")  # numbers depend on
_PACKAGES = (*_BITS, "avalanche-lib", "wandb")
_MATTERS = (
    "python",
    "platform",
    "processor",
    "device",
    "accelerator",
    "threads",
    "deterministic",
    *(f"version {name}" for name in _BITS),
)


def environment(device: str, threads: int, deterministic: bool, accelerator: str | None = None) -> dict[str, Any]:
    """What bit-exactness depends on: machine, versions, threads, device; the accelerator's name if there is one."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "device": device,
        "accelerator": accelerator,
        "threads": threads,
        "deterministic": deterministic,
        **{f"version {name}": _version(name) for name in _PACKAGES},
    }


@cache  # the search through all that is installed takes longer than the start of a small run
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two environments, among what can change the last bits of a figure."""
    return [f"{key} was {then.get(key)!r} and is {now.get(key)!r}" for key in _MATTERS if then.get(key) != now.get(key)]
