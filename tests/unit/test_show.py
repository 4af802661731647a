"""`clu show`: the recall schedule in words and as a picture, of plans as a run makes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cl_framework.cli import main
from cl_framework.plan import Plan
from cl_framework.show import _spans, describe
from cl_framework.strategy import Context
from cl_framework.testing.laboratory import beside, experiment_of, finish
from cl_framework.testing.neighbours import Neighbour, TwoViews, slot


class Noting(Neighbour):
    """Shuffles every plan anew, by its own random stream, and notes it."""

    def plan(self, plan: Plan, context: Context) -> Plan:
        again = Plan.over(plan.ids.unique(), 8, plan.epochs, context.random("shuffle").generator())
        self.journal.append(again.ids.tolist())
        return again


def recall_of(text: str) -> list[str]:
    return text.partition("\n# recall")[2].splitlines()[1:]


def test_recall_is_told_for_each_learn(tmp_path: Path) -> None:
    experiment = experiment_of({"er": {}}, tmp_path, epochs=2, stream="L0 L1")
    lines = recall_of(describe(beside(experiment, after=[slot(TwoViews)])))
    assert [line.partition(": ")[0] for line in lines] == ["L0", "L0", "L1", "L1"]
    assert lines[0] == "L0: 36 of 36 samples, 2 visits each, 2 views a visit, most steps: 8 visits in 16 rows"
    assert lines[1].startswith("L0: comes back after ")
    plain = recall_of(describe(experiment))
    assert plain[0] == "L0: 36 of 36 samples, 2 visits each, 1 view a visit, most steps: 8 visits in 8 rows"
    assert not list(tmp_path.iterdir())


def test_the_plans_shown_are_those_of_the_run(tmp_path: Path) -> None:
    shown, run, other = slot(Noting, "noting"), slot(Noting, "noting"), slot(Noting, "noting")
    describe(beside(experiment_of({}, tmp_path), after=[shown]))
    finish(beside(experiment_of({}, tmp_path), after=[run]))
    finish(beside(experiment_of({}, tmp_path, seed=1), after=[other]))
    assert len(run.strategy_class.journal) == 2
    assert shown.strategy_class.journal == run.strategy_class.journal != other.strategy_class.journal


def test_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trial.yaml"
    path.write_text("benchmark: {name: synthetic, tasks: 2}\nbatch_size: 20\nepochs: 3\n")
    picture = tmp_path / "folder" / "recall.png"
    assert main(["show", str(path), "seed=1", "--plot", str(picture)]) == 0
    assert f"written: {picture}" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["show", str(path), "--plot", "recall.jpg"]) == 2
    assert "--plot writes PNG files, so its name must end with .png, got recall.jpg." in capsys.readouterr().err


def test_without_the_data_there_is_no_schedule_and_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trial.yaml"
    path.write_text(f"benchmark: {{name: split_mnist}}\ndata: {{root: {tmp_path / 'nowhere'}}}\n")
    assert main(["show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "\n# schedule\nnot known: " in shown and "# recall" not in shown
    assert main(["show", str(path), "--plot", str(tmp_path / "recall.png")]) == 2
    assert "data.root" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))


def test_classes_in_a_row_are_told_by_the_first_and_the_last(tmp_path: Path) -> None:
    experiment = experiment_of({}, tmp_path, benchmark={"name": "synthetic", "tasks": 2, "classes_per_task": 4}, stream="L1 L0")
    assert "L1: classes 4-7; " in describe(experiment)
    assert [_spans(numbers) for numbers in ((), (3,), (0, 1), (0, 1, 2), (5, 6, 7, 2, 9, 10))] == ["", "3", "0,1", "0-2", "5-7,2,9,10"]
