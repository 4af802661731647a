"""Run directories: whole files or none, exact rows, lengths and digests that a resume holds them against."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from cl_framework import ConfigurationError, FrameworkError
from cl_framework.records import EVENTS, RECORDS, RunDirectory, append_rows, atomic_write, differences, environment, read_rows
from cl_framework.rows import RowsWriter, check_ended


def row(value: float = 0.5, index: int = 0) -> dict[str, Any]:
    """A row of records as a run writes it."""
    names = {"run": "01234567-s7", "event": f"L{index}", "split": "test", "scenario": "class_il", "metric": "accuracy"}
    return {**names, "event_index": index, "eval_task": 0, "value": value, "n": 3, "stream_step": 8}


def full_disk(*arguments: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def killed(*arguments: Any) -> None:
    raise KeyboardInterrupt


def run_directory(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory.create(tmp_path, "trial", "0123456789abcdef", 7)
    directory.write_start("experiment: trial\n", "clu run trial.yaml", {"python": "3.11"})
    return directory


def test_where_a_run_lives_and_its_life(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path, "trial", "0123456789abcdef", 7)
    assert directory.path == tmp_path / "trial" / "01234567-s7"
    assert directory.status == "absent"
    assert not directory.path.exists()
    directory = run_directory(tmp_path)
    assert directory.status == "unfinished"
    directory.mark_failed("reason")
    assert directory.status == "failed"
    directory.mark_done()
    assert directory.status == "done"
    (directory.path / "notes.txt").write_text("mine")
    directory.clear()
    assert directory.status == "absent"
    assert sorted(path.name for path in directory.path.iterdir()) == ["notes.txt"]


def test_where_there_is_no_run_nothing_is_cleared(tmp_path: Path) -> None:
    foreign = RunDirectory(tmp_path)
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "mine.png").write_bytes(b"mine")
    foreign.clear()
    assert (tmp_path / "plots" / "mine.png").exists()
    (tmp_path / "config.yaml").write_text("experiment: trial\n")  # now it is a run
    foreign.clear()
    assert not (tmp_path / "plots").exists()


def test_clearing_that_stops_halfway_leaves_a_run_that_can_be_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = run_directory(tmp_path)
    atomic_write(directory.checkpoints / "old.pt", b"weights")
    append_rows(directory.path / RECORDS, [row()])
    directory.mark_done()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", full_disk)
        with pytest.raises(FrameworkError, match=r"ckpt cannot be removed: No space left on device\. Choose another folder with out=DIR"):
            directory.clear()
    assert directory.status == "unfinished"  # not done, and not absent with an old checkpoint in it
    assert directory.records() == [row()]
    directory.clear()
    assert directory.status == "absent"
    assert not directory.checkpoints.exists()


def test_rows_come_back_exactly(tmp_path: Path) -> None:
    directory = run_directory(tmp_path)
    rows = [{**row(0.1 + 0.2), "task": None}, {**row(1e-300), "text": "ü"}, {**row(), "value": None}]
    append_rows(directory.path / RECORDS, rows[:1])
    append_rows(directory.path / RECORDS, rows[1:])
    assert directory.records() == rows
    assert directory.events() == []
    with pytest.raises(ValueError, match="JSON compliant"):
        append_rows(directory.path / RECORDS, [{"value": float("nan")}])
    assert directory.records() == rows


def test_a_half_written_last_row_is_left_out_and_other_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    append_rows(path, [{"a": 1}, {"a": 2}])
    with path.open("a") as file:
        file.write('{"a": 3')
    assert read_rows(path) == [{"a": 1}, {"a": 2}]
    for damage in (b'{"a": ', b'{"a": "\xff"}', b"3"):
        path.write_bytes(b'{"a": 1}\n' + damage + b'\n{"a": 3}\n')
        with pytest.raises(FrameworkError, match=r"records.jsonl is damaged in line 2: .* Restore it, or start anew with again=true"):
            read_rows(path)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        ({"value": "x"}, "value is 'x'"),
        ({"eval_task": None}, "eval_task is None"),
        ({"stream_step": 1.5}, "stream_step is 1.5"),
    ],
)
def test_rows_of_a_run_have_all_that_figures_are_made_of(tmp_path: Path, damage: dict[str, Any], text: str) -> None:
    directory = run_directory(tmp_path)
    append_rows(directory.path / RECORDS, [row(), {**row(), **damage}])
    with pytest.raises(FrameworkError, match=rf"records.jsonl is damaged in line 2: {text}\. Restore it, or start anew with again=true"):
        directory.records()


@pytest.mark.parametrize("missing", ["event", "kind", "stream_step", "peak_rss_mib"])
def test_a_row_without_a_column_is_named(missing: str, tmp_path: Path) -> None:
    directory = run_directory(tmp_path)
    whole = {"event_index": 0, "event": "L0", "kind": "learn", "stream_step": 8, "steps": 8, "samples": 64}
    whole |= {"train_seconds": 0.1, "eval_seconds": 0, "peak_rss_mib": 300.5}
    append_rows(directory.path / EVENTS, [whole])
    assert directory.events(whole=True) == [whole]
    append_rows(directory.path / EVENTS, [{name: value for name, value in whole.items() if name != missing}])
    with pytest.raises(FrameworkError, match=rf"events.jsonl is damaged in line 2: it has no {missing}\."):
        directory.events(whole=True)


def test_damaged_or_missing_notes_of_a_run_are_named(tmp_path: Path) -> None:
    directory = run_directory(tmp_path)
    assert directory.read_env() == {"python": "3.11"}
    (directory.path / "env.json").write_bytes(b"\xff{")
    with pytest.raises(FrameworkError, match=r"env.json is damaged: "):
        directory.read_env()
    (directory.path / "env.json").unlink()
    with pytest.raises(FrameworkError, match=r"env.json cannot be read: No such file or directory\. Restore it, or start the run anew"):
        directory.read_env()


def test_cut_back_to_what_a_checkpoint_counted_on(tmp_path: Path) -> None:
    directory = run_directory(tmp_path)
    writer = RowsWriter(directory.path)
    writer.append(RECORDS, [row(1.0)])
    noted = writer.noted()
    writer.append(RECORDS, [row(2.0)])
    writer.append(EVENTS, [{"event": "L0"}])
    with (directory.path / RECORDS).open("a") as file:
        file.write('{"half": ')
    RowsWriter(directory.path, noted).cut_back()
    assert directory.records() == [row(1.0)]
    assert directory.events() == []
    (directory.path / "records.jsonl").write_text("")
    with pytest.raises(FrameworkError, match=r"records.jsonl has 0 bytes, but the checkpoint counts on \d+: rows are lost"):
        RowsWriter(directory.path, noted)


def test_the_digest_that_runs_along_is_that_of_the_file_also_after_a_resume(tmp_path: Path) -> None:
    directory = run_directory(tmp_path)
    writer = RowsWriter(directory.path)
    writer.append(EVENTS, [{"event": "ü"}])
    for value in (1.0, 2.0):
        writer.append(RECORDS, [row(value)])
        writer = RowsWriter(directory.path, writer.noted())
    for name in (RECORDS, EVENTS):
        data = (directory.path / name).read_bytes()
        assert writer.noted()["lengths"][name] == len(data) > 0
        assert writer.noted()["digests"][name] == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("name", [RECORDS, EVENTS])
def test_rows_that_are_not_those_noted_are_refused_and_left_as_they_are(name: str, tmp_path: Path) -> None:
    directory = run_directory(tmp_path)
    writer = RowsWriter(directory.path)
    writer.append(name, [row(0.5), row(0.5)])
    noted, file = writer.noted(), directory.path / name
    for value in ("0.7", "0.5000"):  # as long as it was, and longer
        edited = file.read_bytes().replace(b'"value": 0.5', f'"value": {value}'.encode(), 1)
        before = file.read_bytes()
        file.write_bytes(edited)
        text = f"{file} was changed in what came before the checkpoint. Restore it as it was, or start the run anew with again=true."
        with pytest.raises(FrameworkError, match=f"^{re.escape(text)}$"):
            RowsWriter(directory.path, noted)
        assert file.read_bytes() == edited != before
        RowsWriter(directory.path, {"lengths": noted["lengths"]})  # of a checkpoint that noted no digest
        file.write_bytes(before)
    RowsWriter(directory.path, noted)


def test_a_file_that_cannot_be_cut_back_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = run_directory(tmp_path)
    append_rows(directory.path / RECORDS, [{"a": 1}])
    monkeypatch.setattr(os, "truncate", full_disk)
    with pytest.raises(FrameworkError, match=r"records.jsonl cannot be written: No space left on device"):
        RowsWriter(directory.path).cut_back()


@pytest.mark.parametrize("name", [RECORDS, EVENTS])
def test_rows_of_a_finished_run_are_those_it_ended_with(name: str, tmp_path: Path) -> None:
    directory = run_directory(tmp_path)
    writer = RowsWriter(directory.path)
    writer.append(name, [row()])
    directory.mark_done(writer.noted())
    check_ended(directory)
    file = directory.path / name
    whole = file.read_bytes()
    for edited in (whole.replace(b"0.5", b"0.9"), whole * 2, b""):
        file.write_bytes(edited)
        with pytest.raises(
            FrameworkError, match=rf"{name} was changed after the end of the run\. Restore it as it was, or start the run anew"
        ):
            check_ended(directory)
    directory.mark_done()  # as earlier versions did
    check_ended(directory)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where a folder should be")
    directory = RunDirectory.create(tmp_path / "runs", "trial", "0123456789abcdef", 7)
    remedy = r"Mend that or choose another folder \(out=DIR for runs\); nothing written before is lost"
    with pytest.raises(FrameworkError, match=f"cannot be written: .*{remedy}"), directory.lock():
        pass
    with pytest.raises(FrameworkError, match=f"command.txt cannot be written: .*{remedy}"):
        directory.write_start("", "", {})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_a_device_that_is_really_full() -> None:
    with pytest.raises(FrameworkError, match=r"/dev/full cannot be written: No space left on device. Free some space"):
        append_rows(Path("/dev/full"), [{"a": 1}])


def test_what_a_killed_process_left_half_written_goes_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = run_directory(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        patch.setattr(os, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            atomic_write(directory.checkpoints / "one.pt", b"weights")
    (directory.checkpoints / ".mine").write_text("")
    assert len(list(directory.checkpoints.iterdir())) == 2
    with directory.lock():
        assert [path.name for path in directory.checkpoints.iterdir()] == [".mine"]


def test_a_full_disk_leaves_the_old_file_and_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    atomic_write(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        text = f"{path} cannot be written: No space left on device. Free some space; nothing written before is lost."
        with pytest.raises(FrameworkError, match=re.escape(text)):
            atomic_write(path, "new")
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["summary.json"]
    atomic_write(path, "new")
    assert path.read_text() == "new"


def test_rows_that_could_not_be_flushed_are_cut_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "records.jsonl"
    append_rows(path, [{"a": 1}])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(FrameworkError, match="No space left on device"):
            append_rows(path, [{"a": 2}])
    assert read_rows(path) == [{"a": 1}]


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    directory = run_directory(tmp_path)
    with directory.lock(), pytest.raises(ConfigurationError, match="is being run by another process"), directory.lock():
        pass
    with directory.lock():
        pass


def test_differences_between_environments() -> None:
    now = environment("cpu", 1, False)
    assert differences(now, now) == []
    assert differences({**now, "threads": 4}, now) == ["threads was 4 and is 1"]
    assert now["version torch"]
