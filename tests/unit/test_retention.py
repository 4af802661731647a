"""Retention and facilitation: known answers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from cl_framework.report import markdown_of_run
from cl_framework.retention import (
    change_by_event,
    kept_figures,
    learning_accuracy,
    learning_speed,
    learns_at_the_end,
    living_figures,
    retained_shares,
    retention_curve,
    retention_fit,
    retention_slope,
    slope,
    steps_to_criterion,
)
from cl_framework.stream import Stream
from cl_framework.testing.laboratory import experiment_of, finish


def stream(text: str) -> Stream:
    return Stream.parse(text, None)


def test_accuracy_by_lag() -> None:
    matrix: list[list[float | None]] = [[90, 1, 2], [60, 80, 3], [30, 50, 70]]
    assert retention_curve(matrix, stream("L0 L1 L2")) == [80, 55, 30]  # the diagonals below the main one
    assert retention_curve([[90.0]], stream("L0")) == [90]


def test_lag_counts_from_the_last_time_a_task_was_learned() -> None:
    matrix: list[list[float | None]] = [[90, 0], [60, 80], [95, 50], [70, 85]]
    assert retention_curve(matrix, stream("L0 L1 L0 L1")) == [(90 + 80 + 95 + 85) / 4, (60 + 50 + 70) / 3]


def test_unlearned_tasks_do_not_count_and_an_unlearn_is_no_lag() -> None:
    matrix: list[list[float | None]] = [[90, 0, 0], [60, 80, 0], [10, 70, 0], [11, 50, 75]]
    assert retention_curve(matrix, stream("L0 L1 U0 L2")) == [(90 + 80 + 75) / 3, (60 + 50) / 2]


def test_what_was_not_measured_is_none() -> None:
    curve = retention_curve([[90, None], [None, 80]], stream("L0 L1"))
    assert curve == [85, None]
    assert retention_slope([90, 80, None, 60]) is None
    assert retention_slope([90, 80, 0.0]) is None
    assert retention_slope([90, 80]) is None
    assert retention_slope([]) is None


@pytest.mark.parametrize("exponent", [0.0, 0.5, 2.0])
def test_a_power_of_the_lag_has_its_exponent_as_slope(exponent: float) -> None:
    curve = [99.0, *(80 * lag**-exponent for lag in range(1, 20))]
    assert retention_slope(curve) == pytest.approx(-exponent)


def test_the_fit_is_the_power_itself_and_the_nearest_line_by_logarithms() -> None:
    assert retention_fit([99.0, *(80 * lag**-0.5 for lag in range(1, 20))]) == pytest.approx((80, -0.5))
    assert retention_fit([1.0, *(80 * lag**-0.5 for lag in range(1, 20))]) == pytest.approx((80, -0.5)), "lag 0 has no logarithm"
    accuracies = [90.0, 70.0, 65.0, 20.0]
    fit = retention_fit([99.0, *accuracies])
    assert fit is not None

    def distance(first: float, exponent: float) -> float:
        return sum((math.log(first * lag**exponent) - math.log(value)) ** 2 for lag, value in enumerate(accuracies, 1))

    moved = [distance(fit[0] * first, fit[1] + exponent) for first, exponent in ((1.01, 0), (0.99, 0), (1, 0.01), (1, -0.01))]
    assert all(other > distance(*fit) for other in moved)
    assert retention_fit([99.0, 80.0]) is None and retention_fit([99.0, 80.0, 0.0]) is None and retention_fit([99.0, 80.0, None]) is None


def test_slope_of_a_line() -> None:
    assert slope([0, 1, 2], [1, 3, 5]) == 2
    assert slope([0, 1, 2, 3], [0, 1, 0, 1]) == pytest.approx(0.2)  # by hand: 1 / 5


CURVE = [(0, 10.0, 100), (10, 40.0, 100), (20, 100.0, 100), (30, 60.0, 100), (40, 90.0, 100), (50, 90.0, 100)]


@pytest.mark.parametrize(
    ("criterion", "window", "steps"),
    [(0, 1, 0), (10, 1, 0), (50, 1, 20), (100, 1, 20), (50, 3, 20), (60, 3, 30), (80, 3, 40), (84, 3, None), (100, 2, None)],
)
def test_steps_to_a_criterion(criterion: float, window: int, steps: int | None) -> None:
    assert steps_to_criterion(CURVE, criterion, window) == steps


def test_points_weigh_by_their_rows() -> None:
    assert steps_to_criterion([(0, 0.0, 100), (5, 100.0, 300)], 75, window=2) == 5
    assert steps_to_criterion([(0, 0.0, 100), (5, 100.0, 299)], 75, window=2) is None
    assert steps_to_criterion([], 50) is None


def event(kind: str, curve: list[tuple[int, float, int]]) -> dict[str, Any]:
    return {"kind": kind, "learning_curve": curve}


def test_faster_from_task_to_task_is_facilitation() -> None:
    learns = [event("learn", [(step, 100.0 if step >= first else 0.0, 10) for step in range(0, 50, 10)]) for first in (40, 30, 20)]
    events = [learns[0], event("unlearn", []), *learns[1:]]
    assert learning_speed(events, 90, window=1) == [40, 30, 20]
    assert change_by_event([40, 30, 20]) == -10
    assert learning_accuracy(events) == [20, 40, 60]
    assert change_by_event([20, 40, 60]) == 20
    assert change_by_event([30, 30, 30]) == 0
    assert change_by_event([40, None, 20]) is None
    assert change_by_event([40]) is None
    assert learning_accuracy([event("learn", [])]) == [None]


def test_a_summary_tells_them(tmp_path: Path) -> None:
    outcome = finish(experiment_of({}, tmp_path, stream="L0 L1 L2", epochs=4))
    matrix = outcome.summary["accuracy_matrix"]
    assert outcome.summary["retention"][2] == matrix[2][0]
    assert outcome.summary["retention"][0] == pytest.approx(sum(matrix[task][task] for task in range(3)) / 3)
    assert len(outcome.summary["learning_accuracy"]) == 3
    assert outcome.summary["learning_accuracy_slope"] == change_by_event(outcome.summary["learning_accuracy"])
    older = living_figures([{"kind": "learn"}], [[90.0]], stream("L0"))
    assert older == {"retention": [90.0], "retention_slope": None, "learning_accuracy": None, "learning_accuracy_slope": None} | {
        "steps_to_criterion": None,
        "facilitation_in_steps": None,
    }


@pytest.mark.parametrize("name", ["joint", "cumulative"])
def test_what_is_learned_at_the_end_alone_has_no_curve_by_lag(name: str, tmp_path: Path) -> None:
    outcome = finish(experiment_of({name: {}}, tmp_path, stream="L0 L1 L2", epochs=4))
    at_the_end, told = name == "joint", "Nothing was learned before the last Learn event: accuracy by lag and steps to 80 percent are left"
    assert [outcome.summary[key] is None for key in ("retention", "retention_slope", "learning_accuracy")] == [at_the_end] * 3
    assert ("learns_at_the_end" in outcome.summary) == (told in markdown_of_run(outcome.summary)) == at_the_end
    assert ("by Learn events since a task was learned" in markdown_of_run(outcome.summary).replace("By", "by")) != at_the_end
    assert outcome.summary["average_accuracy"] > 0


def test_a_run_learns_at_its_end_where_no_earlier_learn_took_a_step() -> None:
    def rows(*steps: int) -> list[dict[str, Any]]:
        return [{"kind": "learn", "steps": count} for count in steps]

    assert learns_at_the_end([*rows(0, 5), {"kind": "unlearn", "steps": 3}]) and learns_at_the_end(rows(0, 0, 5))
    assert not any(map(learns_at_the_end, (rows(), rows(5), rows(0), rows(5, 5), rows(0, 5, 5), rows(5, 0), rows(0, 0))))


# --- what a Learn event taught, and what is left of it ---


def looks(shares: dict[int, float], gain: float = 2.0, start: float = 5.0) -> list[tuple[int, int, int, float]]:
    """Of task 1, learned by event 1 up to step 20 after event 0: the loss of each share of the gain, by stream step."""
    later = [(2, 1, step, start - gain * share) for step, share in shares.items()]
    return [(-1, 1, 0, 9.0), (0, 1, 10, start), (1, 1, 15, start - 0.5 * gain), (1, 1, 20, start - gain), *later]


def test_a_share_that_falls_with_the_logarithm_of_steps_gives_back_its_decay() -> None:
    shares = {20 + step: 0.9 - 0.3 * math.log10(step) for step in (1, 3, 10, 40)}
    for gain, start in ((2.0, 5.0), (0.1, 70.0)):  # no change of scale or offset of the loss moves it
        (found,) = retained_shares(looks(shares, gain, start), Stream.parse("L0 L1 L2"))
        assert (found.event_index, found.task) == (1, 1) and found.effectivity == pytest.approx(gain)
        assert [step for step, _ in found.points] == [1, 3, 10, 40]
        assert [share for _, share in found.points] == pytest.approx(list(shares.values()))
        assert found.decay == pytest.approx(0.3, abs=1e-6)


def test_what_taught_nothing_is_left_out_and_what_is_learned_again_counts_anew() -> None:
    stream = Stream.parse("L0 L1 L1 L2")
    assert retained_shares([(0, 1, 10, 5.0), (1, 1, 20, 5.5), (2, 1, 30, 5.6), (3, 1, 40, 5.7)], stream) == []
    first, again = retained_shares([(0, 1, 10, 5.0), (1, 1, 20, 4.0), (2, 1, 30, 3.0), (3, 1, 40, 3.5)], stream)
    assert (first.points, first.decay) == ([], None)
    assert (again.points, again.decay) == ([(10, 0.5)], None)
    assert kept_figures([(0, 1, 10, 5.0), (1, 1, 20, 4.0), (2, 1, 30, 3.0), (3, 1, 40, 3.5)], stream)["retained_share"] == 0.5
    assert kept_figures([], stream) == {}


def test_the_mean_share_is_the_same_however_often_a_run_looks() -> None:
    """The second task is best before the end of its event, the first halfway through the second: neither is what is asked."""
    stream = Stream.parse("L0 L1")
    ends: list[tuple[int, int, int, float | None]] = [(-1, 0, 0, 5.0), (-1, 1, 0, 5.0), (0, 0, 10, 3.0), (0, 1, 10, 4.9)]
    ends += [(1, 0, 20, 4.0), (1, 1, 20, 3.5)]
    within: list[tuple[int, int, int, float | None]] = [(0, 0, 5, 2.0), (1, 0, 15, 3.5), (1, 1, 15, 3.0)]
    often = sorted([*ends, *within], key=lambda look: (look[0], look[2]))
    assert kept_figures(often, stream)["retained_share"] == kept_figures(ends, stream)["retained_share"] == 0.5
    assert len(kept_figures(often, stream)["retained_shares"]) == 2 and len(kept_figures(ends, stream)["retained_shares"]) == 1
    better = [look if look != (1, 0, 20, 4.0) else (1, 0, 20, 2.0) for look in ends]
    assert kept_figures(better, stream)["retained_share"] == 1.5
    assert "retained_share" not in kept_figures([look for look in often if look[1] == 1], stream), "the last Learn alone"


def test_what_is_kept_leaves_out_the_last_learn_and_what_was_unlearned() -> None:
    """Of the last one nothing could be forgotten yet, and what a request takes away is not to be kept."""
    looks: list[tuple[int, int, int, float | None]] = []
    for index, losses in enumerate([(5.0, 5.0, 5.0), (3.0, 5.0, 5.0), (4.0, 3.0, 5.0), (3.5, 4.0, 3.0), (4.5, 5.0, 3.2)], start=-1):
        looks += [(index, task, 10 * (index + 1), loss) for task, loss in enumerate(losses)]
    assert kept_figures(looks, Stream.parse("L0 L1 L2 U1"))["retained_share"] == 0.25
    assert kept_figures(looks, Stream.parse("L0 L1 L2 U1:class=0"))["retained_share"] == (0.25 + 0.5) / 2  # some of it is
    assert "retained_share" not in kept_figures(looks, Stream.parse("L0 L1 U0 U1"))
    again = kept_figures(looks, Stream.parse("L0 L1 L0 L2"))["retained_share"]
    assert again == pytest.approx((0.5 + 0.0 + (4.0 - 4.5) / 0.5) / 3)


def test_a_loss_that_is_no_number_leaves_no_share_to_be_told() -> None:
    stream = Stream.parse("L0 L1 L2 L3")
    told: list[tuple[int, int, int, float | None]] = [(0, 1, 10, 5.0), (1, 1, 20, 4.0), (2, 1, 30, 4.5), (3, 1, 40, 4.75)]
    (whole,) = retained_shares(told, stream)
    assert whole.points == [(10, 0.5), (20, 0.25)] and whole.decay is not None
    assert kept_figures(told, stream)["retained_share"] == 0.25
    diverged = [*told[:3], (3, 1, 40, None)]
    (found,) = retained_shares(diverged, stream)
    assert (found.points, found.decay) == ([(10, 0.5), (20, None)], None)
    assert kept_figures(diverged, stream)["retained_share"] is None  # not what was left at the last look that has one
    assert retained_shares([(0, 1, 10, 5.0), (1, 1, 20, None), (2, 1, 30, None)], stream) == []  # it taught nothing
