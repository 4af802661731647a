"""A deletion record that was cut or is gone: whoever would build on it says so, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from cl_framework import resume, run
from cl_framework.cli import main
from cl_framework.testing.laboratory import experiment_of
from cl_framework.unlearning.audit import finished as finished_and_whole
from cl_framework.unlearning.deletion import DeletionLog
from tests.unit.deletion_runs import (
    IMAGES,
    cut_record,
    edited_rows,
    empty_record,
    failures,
    finished,
    halve_the_last_line,
    killed_at_its_end,
    remove_record,
)

ROWS = "the end of"  # of a request, or of the run
REMEDY = "Restore deletion/log.jsonl as it was, or start the run anew with again=true."


def content_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != ".lock"}


def edit_a_line(path: Path) -> None:
    file = path / "deletion" / "log.jsonl"
    file.write_text(file.read_text().replace("rewind", "rewound", 1))


def append_a_row(path: Path) -> None:
    file = path / "records.jsonl"
    file.write_text(file.read_text() + file.read_text().splitlines(keepends=True)[-1])


# --- finished runs ---


@pytest.fixture(scope="module")
def rewound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("rewound"))  # two requests and the end, five lines


HARMS: dict[str, tuple[Callable[[Path], None], str]] = {
    "removed": (remove_record, f"event 2 (U0) is in the run, but not whole in the deletion record. {REMEDY}"),
    "emptied": (empty_record, f"event 2 (U0) is in the run, but not whole in the deletion record. {REMEDY}"),
    "one line left": (cut_record(4), f"event 2 (U0) is in the run, but not whole in the deletion record. {REMEDY}"),
    "two lines left": (cut_record(3), f"event 4 (U1:class=3) is in the run, but not whole in the deletion record. {REMEDY}"),
    "end cut": (cut_record(1), f"is finished, but the deletion record does not say so: its last lines were cut. {REMEDY}"),
    "end halved": (halve_the_last_line, f"is finished, but the deletion record does not say so: its last lines were cut. {REMEDY}"),
    "figure of before the request edited": (edited_rows("records.jsonl"), f"records.jsonl was changed in what came before {ROWS}"),
    "cost edited": (edited_rows("events.jsonl", '"samples": ', '"samples": 1'), f"events.jsonl was changed in what came before {ROWS}"),
    "row appended": (append_a_row, "records.jsonl goes on after the end of the run: something was appended to it. Restore it as it was"),
    "edited": (edit_a_line, "log.jsonl was edited: line 1 does not have the hash that it states."),
}
COMMANDS = (["audit", "--again"], ["audit", "--tier", "fast"], ["report"], ["resume"])


@pytest.mark.parametrize("harm", HARMS)
def test_no_command_builds_on_a_record_that_is_not_whole(
    harm: str, rewound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(copytree(rewound, tmp_path / rewound.name))
    spoil, told = HARMS[harm]
    spoil(path)
    before = content_of(path)
    for command, *options in COMMANDS:
        assert main([command, str(path), *options]) == 1, command
        said = capsys.readouterr().err
        assert told.rstrip(".") in said and said.count("\n") == 1, said
    assert content_of(path) == before


def test_every_command_takes_a_record_that_is_whole(rewound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(copytree(rewound, tmp_path / rewound.name))
    assert finished_and_whole(path, ())[0].path == path  # an audit with oracles goes on from here
    for command, *options in COMMANDS[1:]:
        assert main([command, str(path), *options]) == 0, command


# --- runs to be resumed ---


@pytest.mark.parametrize("harm", [remove_record, empty_record, cut_record(1), halve_the_last_line])
def test_a_resume_refuses_a_record_without_what_was_unlearned(
    harm: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = killed_at_its_end(tmp_path, monkeypatch, "L0 L1 U0 L2")
    whole = (path / "deletion" / "log.jsonl").read_bytes()
    harm(path)
    before = content_of(path)
    assert main(["resume", str(path)]) == 1
    assert capsys.readouterr().err == f"clu: {path}: event 2 (U0) is in the run, but not whole in the deletion record. {REMEDY}\n"
    assert content_of(path) == before
    (path / "deletion" / "log.jsonl").write_bytes(whole)
    assert main(["resume", str(path)]) == 0 and failures(path) == {}


@pytest.mark.parametrize("without_done", [False, True])
def test_a_resume_refuses_rows_that_were_sealed_and_edited_since(
    without_done: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those up to a request; and of a run that was sealed as a whole, and only lacks its mark, all of them."""
    path = finished(tmp_path, stream="L0 L1 U0 L2") if without_done else killed_at_its_end(tmp_path, monkeypatch, "L0 L1 U0 L2")
    (path / "DONE").unlink(missing_ok=True)
    whole, event = (path / "records.jsonl").read_bytes(), "L2" if without_done else "U0"
    edited_rows("records.jsonl", f'"event": "{event}"', '"event": "L9"')(path)
    before = content_of(path)
    assert main(["resume", str(path)]) == 1
    assert f"records.jsonl was changed in what came before the end of {'the run' if without_done else 'U0'}." in capsys.readouterr().err
    assert content_of(path) == before
    (path / "records.jsonl").write_bytes(whole)
    assert main(["resume", str(path)]) == 0 and failures(path) == {}


def test_a_resume_inside_an_unlearn_needs_its_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings: dict[str, Any] = {"stream": "L0 L1 U0", "benchmark": IMAGES, "batch_size": 64}

    def while_it_unlearns(stream_step: int) -> bool:
        return any(DeletionLog(folder).open_request() is not None for folder in tmp_path.glob("contract/*/deletion"))

    outcome = run(experiment_of({"rewind": {}}, tmp_path, **settings), stop_requested=while_it_unlearns)
    assert outcome.status == "stopped"
    record = outcome.path / "deletion" / "log.jsonl"
    whole = record.read_bytes()
    empty_record(outcome.path)
    before = content_of(outcome.path)
    assert main(["resume", str(outcome.path)]) == 1
    assert "event 2 (U0) is in the run, but not whole in the deletion record" in capsys.readouterr().err
    assert content_of(outcome.path) == before
    record.write_bytes(whole)
    assert resume(outcome.path).status == "done" and failures(outcome.path) == {}


def test_a_line_that_a_kill_left_half_written_is_told_and_written_again_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = killed_at_its_end(tmp_path, monkeypatch, "L0 L1 U0 L2")
    assert failures(path) == {}
    with (path / "deletion" / "log.jsonl").open("a") as file:
        file.write('{"kind": "finis')
    assert failures(path)["the record is whole"].endswith(f"If so, `clu resume {path}` writes it again.")
    resume(path)
    assert failures(path) == {}
