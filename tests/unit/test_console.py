"""Console: plain lines without a terminal, one bar over the whole stream with one, and few readings of the device."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cl_framework import load_experiment, run
from cl_framework.assembly import make_benchmark
from cl_framework.loggers.console import ConsoleListener
from cl_framework.records import RunDirectory

BASE: dict[str, Any] = {"experiment": "trial", "benchmark": {"name": "synthetic", "tasks": 3}, "batch_size": 10}


def test_plain_lines_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(load_experiment(BASE, [f"out={tmp_path}"]), listeners=[ConsoleListener()])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"running {tmp_path}/trial/")
    assert lines[0].endswith(": 3 events")
    assert [line.partition(":")[0] for line in lines[1:]] == ["data", "event 1/3 L0", "event 2/3 L1", "event 3/3 L2"]


def test_a_long_note_of_the_benchmark_is_cut_on_the_screen_and_whole_in_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = load_experiment(BASE, [f"out={tmp_path}"])
    notes = {"classes": ", ".join(f"class {number}" for number in range(60)), "tokens": "bytes"}
    found = run(experiment, listeners=[ConsoleListener()], benchmark=replace(make_benchmark(experiment), notes=notes))
    _, cut, whole, *_ = capsys.readouterr().err.splitlines()
    assert cut.startswith("classes: class 0, class 1, ") and cut.endswith(" … (whole in env.json)") and len(cut) < 180
    assert whole == "tokens: bytes"
    assert RunDirectory(found.path).read_env()["benchmark"] == notes


def test_a_line_says_what_the_matrix_says_of_a_task_of_which_a_class_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        f"out={tmp_path}",
        "stream=L0 L1 U0:class=1",
        "strategies.rewind={}",
        "strategies.er.capacity=50",
        "benchmark.train_per_class=40",
    ]
    summary = run(load_experiment(BASE, words), listeners=[ConsoleListener()]).summary
    assert summary is not None
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"accuracy by task {' '.join(f'{value:.1f}' for value in summary['accuracy_matrix'][2])} " in line
    whole = [row for row in RunDirectory(next(tmp_path.glob("trial/*"))).records() if row["event_index"] == 2 and row["split"] == "test"]
    assert next(row["value"] for row in whole if row["eval_task"] == 0) != summary["accuracy_matrix"][2][0]


def test_a_run_that_diverges_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(load_experiment(BASE, [f"out={tmp_path}", "stream=L0", "optimizer.lr=1e30"]), listeners=[ConsoleListener()])
    assert "warning: weights are not finite after L0: training has diverged. Lower optimizer.lr" in capsys.readouterr().err
    run(load_experiment(BASE, [f"out={tmp_path}", "stream=L0"]), listeners=[ConsoleListener()])
    assert "warning" not in capsys.readouterr().err


def test_from_python_a_run_that_diverges_is_a_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    with pytest.warns(UserWarning, match="weights are not finite after L0: training has diverged"):
        run(load_experiment(BASE, [f"out={tmp_path}", "stream=L0", "optimizer.lr=1e30"]))
    run(load_experiment(BASE, [f"out={tmp_path}", "stream=L0"]))
    assert not [one for one in recwarn if "diverged" in str(one.message)]


def test_one_bar_over_the_whole_stream_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener, screen = ConsoleListener(), io.StringIO()
    listener._console = Console(file=screen, force_terminal=True, width=120)
    starts: list[Any] = []
    from rich.progress import Progress

    start = Progress.start
    monkeypatch.setattr(Progress, "start", lambda self: (starts.append(self), start(self))[1])
    monkeypatch.setattr("cl_framework.loggers.console._SECONDS_BETWEEN_READINGS", 0.0)
    run(load_experiment(BASE, [f"out={tmp_path}"]), listeners=[listener])
    assert len(starts) == 1
    (task,) = starts[0].tasks
    assert (task.completed, task.total) == (3, 3)
    assert "L2 (3/3)" in screen.getvalue()
    assert "running accuracy" in screen.getvalue()
    assert listener._bar is None
