"""The command line: help that answers at once, lists, `show`, and what `run` leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cl_framework.cli import main, parser

HEAVY = ("torch", "pytorch_lightning", "omegaconf", "wandb", "avalanche", "numpy", "rich", "matplotlib", "sklearn")


@pytest.mark.slow
def test_help_loads_nothing_heavy() -> None:
    program = f"""
import sys
from cl_framework.cli import main
try:
    main(["--help"])
except SystemExit as end:
    assert end.code == 0
print(sorted(set({HEAVY!r}) & set(sys.modules)))
import torch
print(sorted(set({HEAVY!r}) & set(sys.modules))[-1])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    *_, loaded, control = done.stdout.strip().splitlines()
    assert loaded == "[]"
    assert control == "torch"


def test_every_command_is_there() -> None:
    text = parser().format_help()
    for command in ("list", "show", "run", "resume", "report", "sweep", "reproduce", "bench", "new"):
        assert f"\n    {command}" in text


def test_lists(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for what, names in (
        ("strategies", ("er", "der", "derpp", "joint", "cumulative")),
        ("benchmarks", ("split_digits", "split_mnist", "perm_mnist", "rot_mnist", "split_fashion_mnist", "synthetic")),
        ("models", ("mlp",)),
    ):
        assert main(["list", what]) == 0
        shown = capsys.readouterr().out
        assert all(f"│ {name} " in shown for name in names)
        assert "cl-framework 0.1.0" in shown
    assert main(["list", "experiments"]) == 0
    assert "experiments/digits_er.yaml" in capsys.readouterr().out


def test_the_list_of_strategies_says_what_each_reads_to_unlearn(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "strategies"]) == 0
    header, *lines = [line.split("│") for line in capsys.readouterr().out.replace("┃", "│").splitlines() if line[0] in "│┃"]
    column = [cell.strip() for cell in header].index("unlearning reads")
    told = {line[1].strip(): line[column].strip() for line in lines}
    assert {name: told[name] for name in ("er", "hypernetwork", "npo", "finetune_retain", "grad_diff", "rewind")} == {
        "er": "",
        "hypernetwork": "nothing",
        "npo": "forget data",
        "finetune_retain": "retained data from the buffer",
        "grad_diff": "forget data and retained data from the buffer",
        "rewind": "all retained data",
    }
    assert main(["list", "models"]) == 0
    assert "unlearning reads" not in capsys.readouterr().out


def test_show_prints_the_step_and_the_schedule(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trial.yaml"
    path.write_text("benchmark: {name: synthetic, tasks: 2}\nbatch_size: 20\nstrategies: {derpp: {capacity: 7}, er: {}}\n")
    monkeypatch.chdir(tmp_path)
    assert main(["show", str(path), "strategies.cumulative={}"]) == 0
    shown = capsys.readouterr().out
    assert "capacity: 7" in shown
    assert "plan  = shuffle -> cumulative" in shown
    assert "batch.draws['derpp'] = derpp.draw(batch)\n    batch.draws['er'] = er.draw(batch)" in shown
    assert "derpp.commit(batch, output)\n    er.commit(batch, output)" in shown
    assert "L0: classes 0,1; 80 visits in 4 steps\nL1: classes 2,3; 80 visits and 80 of earlier tasks in 8 steps" in shown
    assert "an Unlearn" not in shown
    assert [one.name for one in tmp_path.iterdir()] == ["trial.yaml"]
    assert main(["show", str(path), "strategies.rewind={}", "stream=L0 L1 U0"]) == 0
    shown = capsys.readouterr().out
    assert "an Unlearn: rewind (class, sample, task), then forget(forgotten)   # derpp, er\n" in shown
    assert "U0: unlearn, answered by rewind" in shown


def test_run_leaves_what_it_promises(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trial.yaml"
    path.write_text("benchmark: {name: synthetic, tasks: 2}\nbatch_size: 20\nthreads: 1\n")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "trial.yaml", "seed=3", "stream=L0 L1"]) == 0
    captured = capsys.readouterr()
    assert "average accuracy" in captured.out
    assert captured.err.startswith("running runs/trial/")
    assert "event 2/2 L1: accuracy by task" in captured.err
    chatter = ("GPU available", "TPU", "max_epochs", "Tip", "Warning", "warning")
    assert not [word for word in chatter if word in captured.err + captured.out]
    (run_dir,) = (tmp_path / "runs" / "trial").iterdir()
    assert run_dir.name.endswith("-s3")
    names = {one.name for one in run_dir.iterdir()}
    assert names >= {
        "config.yaml",
        "command.txt",
        "env.json",
        "events.jsonl",
        "records.jsonl",
        "summary.json",
        "report.html",
        "ckpt",
        "plots",
        "DONE",
    }
    assert (run_dir / "command.txt").read_text() == "clu run trial.yaml seed=3 'stream=L0 L1'\n"
    summary = json.loads((run_dir / "summary.json").read_text())
    assert set(summary) >= {
        "experiment",
        "seed",
        "stream",
        "strategies",
        "average_accuracy",
        "average_accuracy_task_il",
        "forgetting",
        "bwt",
        "accuracy_matrix",
        "train_seconds",
        "eval_seconds",
        "steps",
        "peak_rss_mib",
    }
    rows = [json.loads(line) for line in (run_dir / "records.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * 2 * 2  # untrained and two events, two tasks, two scenarios
    fields = {"run", "event_index", "event", "eval_task", "split", "scenario", "metric", "value", "n", "stream_step"}
    assert all(set(row) == fields for row in rows)
