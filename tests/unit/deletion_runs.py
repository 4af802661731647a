"""Runs with requests to unlearn, what stands in their deletion records, and what `clu verify` finds in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cl_framework import run
from cl_framework.testing.laboratory import experiment_of
from cl_framework.unlearning.certificate import Certifier
from cl_framework.unlearning.deletion import FIRST, DeletionLog, sealed
from cl_framework.unlearning.verify import FAIL, verify

STREAM = "L0 L1 U0 L2 U1:class=3"
IMAGES = {"name": "split_digits"}  # of the synthetic samples some have too few bytes to be canaries


def finished(folder: Path, strategy: str = "rewind", stream: str = STREAM) -> Path:
    settings: dict[str, Any] = {"stream": stream, "benchmark": IMAGES, "epochs": 1, "batch_size": 64}
    return run(experiment_of({strategy: {}}, folder, **settings)).path


def killed_at_its_end(folder: Path, monkeypatch: pytest.MonkeyPatch, stream: str) -> Path:
    """A run that was killed when all but the last line of its record was written."""

    def killed(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Certifier, "finished", killed)
        with pytest.raises(KeyboardInterrupt):
            finished(folder, stream=stream)
    (path,) = (folder / "contract").iterdir()
    return path


def done_in(path: Path) -> list[dict[str, Any]]:
    return [entry for entry in DeletionLog(path / "deletion").entries() if entry["kind"] == "done"]


def failures(path: Path) -> dict[str, str]:
    return {finding.claim: finding.why for finding in verify(path) if finding.verdict == FAIL}


def cut_record(lines: int) -> Callable[[Path], None]:
    """Cut lines off the end of a deletion record."""

    def cut(path: Path) -> None:
        file = path / "deletion" / "log.jsonl"
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:-lines]))

    return cut


def sealed_anew(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Every line of a deletion record changed, and the whole sealed again."""
    log, previous, lines = DeletionLog(path / "deletion"), FIRST, []
    for entry in log.entries():
        row = sealed(change({key: value for key, value in entry.items() if key not in ("hash", "previous")}), previous)
        previous = row["hash"]
        lines.append(json.dumps(row) + "\n")
    log.path.write_text("".join(lines))


def halve_the_last_line(path: Path) -> None:
    file = path / "deletion" / "log.jsonl"
    file.write_bytes(file.read_bytes()[:-40])


def remove_record(path: Path) -> None:
    (path / "deletion" / "log.jsonl").unlink()


def empty_record(path: Path) -> None:
    (path / "deletion" / "log.jsonl").write_bytes(b"")


def edited_rows(name: str, what: str = '"event": "L0"', into: str = '"event": "L1"') -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        file = path / name
        text = file.read_text()
        assert what in text
        file.write_text(into.join(text.rsplit(what, 1)))

    return edit
