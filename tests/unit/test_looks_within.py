"""Looks between two steps of a Learn: when they are taken, that they change nothing, and the stability gap made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cl_framework import load_experiment, run
from cl_framework.errors import ConfigurationError
from cl_framework.loading import STEPS_PER_CHUNK, chunk_bounds
from cl_framework.metrics import StabilityGap, stability_gaps, within
from cl_framework.records import RunDirectory
from cl_framework.runner import resume
from cl_framework.stream import Stream

Rows = list[dict[str, Any]]


def experiment(folder: Path, **settings: Any) -> Any:
    base = {
        "benchmark": {"name": "synthetic"},
        "model": {"name": "mlp", "hidden": [16]},
        "strategies": {"er": {"capacity": 20}},
        "batch_size": 4,
        "stream": "L0 L1",
        "out": str(folder),
        "threads": 1,
    }
    return load_experiment({**base, **settings})


def rows_of(path: Path, metric: str) -> Rows:
    return [dict(row) for row in RunDirectory(path).records() if row["metric"] == metric and row["scenario"] == "class_il"]


def test_a_chunk_ends_where_a_look_is_due_wherever_it_begins() -> None:
    assert chunk_bounds(0, 70, 0) == [(0, 32), (32, 64), (64, 70)] and STEPS_PER_CHUNK == 32
    assert chunk_bounds(0, 70, 25) == [(0, 25), (25, 32), (32, 50), (50, 64), (64, 70)]
    assert chunk_bounds(7, 23, 10) == [(7, 10), (10, 20), (20, 23)]
    assert chunk_bounds(10, 21, 10) == [(10, 20), (20, 21)]
    assert chunk_bounds(5, 5, 10) == []
    assert chunk_bounds(3, 10, 0, longest=3) == [(3, 6), (6, 9), (9, 10)]


def test_looks_are_taken_within_each_learn_and_move_no_number(tmp_path: Path) -> None:
    plain = run(experiment(tmp_path / "plain"))
    looked = run(experiment(tmp_path / "looked", evaluate_every=7))
    assert looked.summary is not None and plain.summary is not None
    assert looked.summary["accuracy_matrix"] == plain.summary["accuracy_matrix"]
    looks = rows_of(looked.path, within("accuracy"))
    ends = [row["stream_step"] for row in rows_of(looked.path, "accuracy") if row["event_index"] >= 0 and row["eval_task"] == 0]
    first, steps = ends[0], ends[1] - ends[0]
    expected = [(0, 0, step) for step in range(7, first, 7)]
    expected += [(1, task, first + step) for step in range(7, steps, 7) for task in (0, 1)]
    assert [(row["event_index"], row["eval_task"], row["stream_step"]) for row in looks] == expected and len(expected) == 6
    assert rows_of(plain.path, within("accuracy")) == [] and "stability_gap" not in plain.summary


def test_looks_are_the_same_after_a_stop_between_them(tmp_path: Path) -> None:
    whole = run(experiment(tmp_path / "whole", evaluate_every=7))
    steps = rows_of(whole.path, "accuracy")[-1]["stream_step"]
    for stop in (3, steps // 2 + 2, steps - 3):
        stopped = run(experiment(tmp_path / f"at {stop}", evaluate_every=7), stop_requested=lambda done, stop=stop: done >= stop)
        assert stopped.status == "stopped"
        resumed = resume(stopped.path)
        assert (resumed.path / "records.jsonl").read_bytes() == (whole.path / "records.jsonl").read_bytes()


def made_up(values: Mapping[tuple[int, int], Sequence[tuple[int, float | None]]], metric: str) -> Rows:
    """Rows of each (event, task): looks at stream steps, the last of them the event's end."""
    rows = []
    for (index, task), curve in values.items():
        for place, (step, value) in enumerate(curve):
            name = metric if place == len(curve) - 1 else within(metric)
            row = {"event_index": index, "eval_task": task, "scenario": "class_il", "split": "test", "metric": name}
            rows.append({**row, "value": value, "stream_step": step})
    return rows


def test_depth_recovery_and_area_of_a_gap() -> None:
    stream = Stream.parse("L0 L1 L2", 3)
    values = {
        (0, 0): [(100, 90.0)],
        (0, 1): [(100, 0.0)],
        (1, 0): [(110, 50.0), (120, 80.0), (130, 91.0), (140, 95.0), (150, 85.0)],
        (1, 1): [(110, 10.0), (150, 99.0)],  # the event's own task has no gap
        (2, 0): [(160, 86.0), (170, 88.0)],  # it only gets better
        (2, 1): [(160, 60.0), (170, 70.0)],
    }
    found = stability_gaps(made_up(values, "accuracy"), "class_il", stream, 3, "accuracy")
    assert found == [
        StabilityGap(1, 0, 40.0, 30, (40.0 + 10.0 + 5.0) / 5),
        StabilityGap(2, 0, 0.0, 0, 0.0),
        StabilityGap(2, 1, 39.0, None, (39.0 + 29.0) / 2),
    ]
    later = {**values, (1, 0): [*values[1, 0][:3], (140, 99.0), (150, 99.0)]}
    better = stability_gaps(made_up(later, "accuracy"), "class_il", stream, 3, "accuracy")[0]
    assert (better.depth, better.recovery) == (40.0, 30)  # what comes after the recovery does not count
    assert better.area != found[0].area
    losses = {key: [(step, -value) for step, value in curve] for key, curve in values.items()}
    assert stability_gaps(made_up(losses, "loss"), "class_il", stream, 3, "loss") == found


@pytest.mark.parametrize("lost", [(0, 0), (1, 0)])
def test_a_loss_that_is_no_number_leaves_no_gap_to_be_told(lost: tuple[int, int]) -> None:
    stream = Stream.parse("L0 L1", 2)
    values: dict[tuple[int, int], list[tuple[int, float | None]]] = {(0, 0): [(100, 1.0)], (1, 0): [(110, 3.0), (120, 2.0)]}
    assert stability_gaps(made_up(values, "loss"), "class_il", stream, 2, "loss") == [StabilityGap(1, 0, 2.0, None, 1.5)]
    values[lost][-1] = (values[lost][-1][0], None)
    assert stability_gaps(made_up(values, "loss"), "class_il", stream, 2, "loss") == [StabilityGap(1, 0, None, None, None)]


def test_a_number_of_steps_below_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="evaluate_every must be >= 0, got -1"):
        experiment(tmp_path, evaluate_every=-1)
