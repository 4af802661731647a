"""The methods this framework is named for, on top of each other: they run, resume bit for bit, and learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cl_framework.assembly import make_benchmark
from cl_framework.config import Experiment
from cl_framework.testing.laboratory import (
    STEPS_A_TASK,
    assert_different_weights,
    assert_equal_outcomes,
    experiment_of,
    finish,
    finish_in_pieces,
)

OUTER: dict[str, dict[str, Any]] = {
    "refresh": {"gamma": 0.0003},  # an ascent must stay well below what Adam moves, on the steep objective of a hypernetwork too
    "view_batch": {"views": 2},
    "half": {},
    "power_law": {"environment": "power_law"},
}
HOSTS: dict[str, dict[str, Any]] = {
    "er": {"capacity": 20},
    "derpp": {"capacity": 20},
    "lwf": {},
    "ewc": {},
    "hypernetwork": {},
}
PAIRS = [(outer, host) for outer in OUTER for host in HOSTS]
FLOOR = 75.0  # task-incremental accuracy, percent, of three tasks of two classes: chance is 50, one task learned of three 66.7
EPOCHS = 10


def stack(*names: str) -> dict[str, dict[str, Any]]:
    return {name: (OUTER | HOSTS)[name] for name in names}


def experiment(folder: Path, *names: str, **settings: Any) -> Experiment:
    scenario = "task_il" if "hypernetwork" in names else "class_il"
    optimizer = {"name": "adam", "lr": 0.003} if "hypernetwork" in names else {"name": "sgd", "lr": 0.1}
    model = {"name": "mlp", "hidden": [16, 16]}
    chosen = {"scenario": scenario, "epochs": EPOCHS, "optimizer": optimizer, "model": model, **settings}
    return experiment_of(stack(*names), folder, **chosen)


def test_how_many_pairs_there_are() -> None:
    assert len(PAIRS) == len(set(PAIRS)) == 20


@pytest.mark.slow
@pytest.mark.parametrize(("outer", "host"), PAIRS)
def test_a_pair_runs_resumes_and_learns(outer: str, host: str, tmp_path: Path) -> None:
    whole = finish(experiment(tmp_path / "whole", outer, host, stream="L0 L1 L2"))
    assert whole.summary["strategies"] == [outer, host]
    figure = "average_accuracy" if host == "hypernetwork" else "average_accuracy_task_il"
    assert whole.summary[figure] >= FLOOR
    again = experiment(tmp_path / "pieces", outer, host, stream="L0 L1 L2")
    every = STEPS_A_TASK * 2 + 3  # never the same place in an epoch
    pieces, stops = finish_in_pieces(again, lambda step: step % every == every - 1, make_benchmark(again))
    assert stops >= 3
    assert_equal_outcomes(whole, pieces, f"{outer} and {host}, stopped {stops} times")
    alone = finish(experiment(tmp_path / "alone", host, stream="L0 L1 L2"))
    assert_different_weights(whole, alone, f"{host} with and without {outer}")


@pytest.mark.slow
def test_all_four_around_a_memory(tmp_path: Path) -> None:
    names = ("power_law", "view_batch", "half", "refresh", "derpp")
    whole = finish(experiment(tmp_path / "whole", *names, stream="L0 L1 L2"))
    assert whole.summary["strategies"] == list(names)
    assert whole.summary["average_accuracy_task_il"] >= FLOOR
    other = finish(experiment(tmp_path / "order", *reversed(names), stream="L0 L1 L2"))
    assert_different_weights(whole, other, "the order of what wraps plans and steps")
