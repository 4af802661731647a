"""Figures beside brute-force definitions and known answers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cl_framework import Stream
from cl_framework.metrics import (
    accuracy_matrix,
    average_accuracy,
    average_anytime_accuracy,
    baseline,
    bwt,
    forgetting,
    fwt,
    learned_at,
    mean_and_deviation,
    summarise,
    wilson_interval,
)

MATRIX: list[list[float | None]] = [[90.0, 10.0, 20.0], [70.0, 80.0, 30.0], [60.0, 85.0, 95.0]]
STREAM = Stream.parse("L0 L1 L2", 3)


def test_known_answers() -> None:
    assert average_accuracy(MATRIX[-1], (0, 1, 2)) == pytest.approx(80.0)
    assert average_anytime_accuracy(MATRIX, STREAM) == pytest.approx((90 + 75 + 80) / 3)
    # Task 1 was best at the end (85), so it was not forgotten; the last task cannot have been and does not count.
    assert forgetting(MATRIX, STREAM) == pytest.approx(((90 - 60) + 0) / 2)
    assert bwt(MATRIX, STREAM) == pytest.approx(((60 - 90) + (85 - 80)) / 2)
    assert fwt(MATRIX, [5.0, 6.0, 7.0], STREAM) == pytest.approx(((10 - 6) + (30 - 7)) / 2)


def test_bwt_counts_every_task_but_the_last() -> None:
    """A known error elsewhere skips one task too many."""
    dropped = [[100.0, 0.0, 0.0], [0.0, 100.0, 0.0], [0.0, 40.0, 100.0]]
    assert bwt(dropped, STREAM) == pytest.approx((-100 - 60) / 2)
    assert forgetting(dropped, STREAM) == pytest.approx((100 + 60) / 2)


def test_accuracy_before_a_task_was_learned_is_no_forgetting() -> None:
    lucky = [[50.0, 99.0], [50.0, 60.0], [50.0, 60.0]]
    assert forgetting(lucky, Stream.parse("L0 L1 L0", 2)) == pytest.approx(0.0)


def test_one_event_says_nothing_of_forgetting() -> None:
    one = Stream.parse("L0", 1)
    assert average_accuracy([42.0], (0,)) == 42.0
    assert forgetting([[42.0]], one) is None
    assert bwt([[42.0]], one) is None
    assert fwt([[42.0]], [10.0], one) is None
    assert average_accuracy([None], (0,)) is None


def test_unlearned_tasks_do_not_count() -> None:
    stream = Stream.parse("L0 L1 U0", 2)
    assert learned_at(stream) == {1: 1}
    matrix = [[90.0, 10.0], [80.0, 90.0], [10.0, 70.0]]
    assert average_accuracy(matrix[-1], stream.learned_after[-1]) == 70.0
    assert forgetting(matrix, stream) == pytest.approx(20.0)
    again = Stream.parse("L0 L1 U0 L0 L1", 2)
    assert learned_at(again) == {1: 1, 0: 3}


tables = st.lists(st.lists(st.floats(0, 100), min_size=4, max_size=4), min_size=4, max_size=4)


@given(tables)
def test_figures_are_their_definitions(matrix: list[list[float]]) -> None:
    stream = Stream.parse("L0-3", 4)
    drops = [max(matrix[n][t] for n in range(t, 4)) - matrix[3][t] for t in range(3)]
    changes = [matrix[3][t] - matrix[t][t] for t in range(3)]
    assert forgetting(matrix, stream) == pytest.approx(sum(drops) / 3)  # type: ignore[arg-type]
    assert bwt(matrix, stream) == pytest.approx(sum(changes) / 3)  # type: ignore[arg-type]
    assert average_accuracy(matrix[3], range(4)) == pytest.approx(sum(matrix[3]) / 4)


def rows() -> list[dict[str, Any]]:
    made = []
    for index, values in enumerate([[1.0, 2.0], [90.0, 5.0], [60.0, 80.0]], start=-1):
        for task, value in enumerate(values):
            for scenario, extra in (("class_il", 0.0), ("task_il", 10.0)):
                made.append(
                    {
                        "event_index": index,
                        "event": "init" if index < 0 else f"L{index}",
                        "eval_task": task,
                        "split": "test",
                        "scenario": scenario,
                        "metric": "accuracy",
                        "value": value + extra,
                        "n": 10,
                    }
                )
    return made


def test_from_rows_to_a_matrix() -> None:
    assert accuracy_matrix(rows(), "class_il", 2, 2) == [[90.0, 5.0], [60.0, 80.0]]
    assert accuracy_matrix(rows(), "task_il", 2, 3) == [[100.0, 15.0, None], [70.0, 90.0, None]]
    assert baseline(rows(), "class_il", 2) == [1.0, 2.0]


def test_a_summary_has_what_it_promises() -> None:
    config = {"experiment": "x", "seed": 1, "scenario": "", "benchmark": {"name": "b"}, "strategies": {"outer": {}, "inner": {}}}
    cost = {"steps": 5, "samples": 50, "train_seconds": 1.5, "eval_seconds": 0.5, "peak_rss_mib": 10.0}
    events = [{"event": "L0", "kind": "learn", **cost}, {"event": "L1", "kind": "learn", **cost, "peak_rss_mib": 12.0}]
    summary = summarise(config, events, rows())
    assert summary["average_accuracy"] == 70.0
    assert summary["average_accuracy_task_il"] == 80.0
    assert summary["forgetting"] == 30.0
    assert summary["bwt"] == -30.0
    assert summary["fwt"] == 3.0
    assert summary["accuracy_matrix"] == [[90.0, 5.0], [60.0, 80.0]]
    assert summary["strategies"] == ["outer", "inner"]
    assert (summary["stream"], summary["scenario"], summary["seed"]) == ("L0 L1", "class_il", 1)
    assert (summary["steps"], summary["train_seconds"], summary["eval_seconds"], summary["peak_rss_mib"]) == (10, 3.0, 1.0, 12.0)


def test_wilson_interval_known_answers() -> None:
    low, high = wilson_interval(5, 10)
    assert (low, high) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(10, 10)[1] == 1.0
    with pytest.raises(ValueError, match="between 0 and n"):
        wilson_interval(3, 2)


def test_mean_and_deviation() -> None:
    assert mean_and_deviation([1.0, 3.0]) == (2.0, pytest.approx(2**0.5), 2)
    assert mean_and_deviation([4.0]) == (4.0, None, 1)
