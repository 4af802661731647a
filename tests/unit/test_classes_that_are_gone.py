"""Classes that a request took away count neither as live nor as retained afterwards: in averages, in the fast tier, and in audits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from cl_framework.assembly import assemble, make_benchmark
from cl_framework.loggers.wandb import evaluation_row
from cl_framework.metrics import average_anytime_accuracy, bwt, forgetting, learned_at, matrices, stream_of
from cl_framework.records import Row
from cl_framework.retention import retention_curve
from cl_framework.stream import Stream, Unlearn
from cl_framework.testing.laboratory import experiment_of, finish
from cl_framework.unlearning.fast import FAIL, INVALID, NOT_RUN, PASS, Figure, Recorded, figures_of
from cl_framework.unlearning.measure import Question

Columns = Mapping[tuple[int, str], Sequence[float | None]]  # task and split -> accuracy after each event; None: not measured


def rows_of(columns: Columns, metric: str = "accuracy") -> list[Row]:
    return [
        {
            "event_index": index,
            "eval_task": task,
            "split": split,
            "scenario": "class_il",
            "metric": metric,
            "value": value,
            "n": 1000,
            "stream_step": 10 * index,
        }
        for (task, split), values in columns.items()
        for index, value in enumerate(values)
        if value is not None
    ]


def events_of(stream: str) -> list[Row]:
    return [{"event": event} for event in stream.split()]


# --- averages ---

ALL = "L0 L1 U0:class=0,1 L2"
ALL_GONE: Columns = {
    (0, "test"): [90.0, 80.0, 8.0, 6.0],
    (0, "test:class=0,1"): [90.0, 80.0, 8.0, 6.0],
    (1, "test"): [0.0, 70.0, 60.0, 50.0],
    (2, "test"): [0.0, 0.0, 0.0, 100.0],
}
SOME = "L0 L1 U0:class=0 L2"
SOME_GONE: Columns = {
    (0, "test"): [90.0, 80.0, 8.0, 6.0],
    (0, "test:class=0"): [100.0, 90.0, 0.0, 0.0],
    (0, "test:class!=0"): [80.0, 70.0, 16.0, 12.0],
    **{place: values for place, values in ALL_GONE.items() if place[0]},
}


def test_a_task_without_a_class_left_counts_in_no_average() -> None:
    records = rows_of(ALL_GONE)
    stream = stream_of(events_of(ALL), records)
    assert stream.live_after == ((0,), (0, 1), (1,), (1, 2)) and stream.learned_after[-1] == (0, 1, 2), "it is a candidate still"
    then, at_the_end = matrices(records, "class_il", stream, 3)
    assert average_anytime_accuracy(then, stream) == pytest.approx((90 + (80 + 70) / 2 + 60 + (50 + 100) / 2) / 4)
    assert learned_at(stream) == {1: 1, 2: 3}
    assert forgetting(at_the_end, stream) == pytest.approx(70 - 50) and bwt(at_the_end, stream) == pytest.approx(50 - 70)
    assert retention_curve(then, stream) == [pytest.approx((90 + 70 + 100) / 3), pytest.approx((80 + 50) / 2)]
    told = evaluation_row(records, Stream.parse(ALL), 3, 3, "class_il")
    assert (told["average_accuracy"], told["forgetting"]) == (pytest.approx(75.0), pytest.approx(20.0))


def test_a_task_with_a_class_left_counts_by_it() -> None:
    records = rows_of(SOME_GONE)
    stream = stream_of(events_of(SOME), records)
    assert stream.live_after == stream.learned_after == ((0,), (0, 1), (0, 1), (0, 1, 2))
    then, at_the_end = matrices(records, "class_il", stream, 3)
    assert average_anytime_accuracy(then, stream) == pytest.approx((90 + (80 + 70) / 2 + (16 + 60) / 2 + (12 + 50 + 100) / 3) / 4)
    assert forgetting(at_the_end, stream) == pytest.approx(((80 - 12) + (70 - 50)) / 2)
    assert evaluation_row(records, Stream.parse(SOME), 3, 3, "class_il")["average_accuracy"] == pytest.approx((12 + 50 + 100) / 3)


def test_a_task_goes_with_the_last_of_its_classes() -> None:
    columns: Columns = {
        (0, "test"): [90.0, 50.0, 5.0],
        (0, "test:class=0"): [90.0, 1.0, 1.0],
        (0, "test:class!=0"): [90.0, 99.0, 9.0],
        (0, "test:class=1"): [90.0, 99.0, 9.0],
        (0, "test:class!=1"): [90.0, 1.0, 1.0],
        (0, "test:class=0,1"): [90.0, 50.0, 5.0],
    }
    assert stream_of(events_of("L0 U0:class=0 U0:class=1"), rows_of(columns)).live_after == ((0,), (0,), ())


def test_a_run_leaves_such_a_task_out(tmp_path: Path) -> None:
    averages = {}
    for classes in ("0,1", "0"):
        summary = finish(experiment_of({"rewind": {}}, tmp_path, stream=f"L0 L1 U0:class={classes} L2", epochs=3)).summary
        row = summary["accuracy_matrix"][-1]
        averages[classes] = summary["average_accuracy"], sum(row[1:]) / 2, sum(row) / 3
    average, without, of_all = averages["0,1"]
    assert average == pytest.approx(without) and average != pytest.approx(of_all)
    average, without, of_all = averages["0"]
    assert average == pytest.approx(of_all) and average != pytest.approx(without)


# --- the fast tier ---


def figures(stream: str, columns: Columns, index: int, *more: Row) -> dict[str, Figure]:
    found = figures_of(Recorded.of([*rows_of(columns), *more], "class_il"), Stream.parse(stream), index)
    return {figure.name: figure for figure in found}


def test_what_was_unlearned_before_is_no_spill() -> None:
    """What little the model still knew of a class that is gone may go as well."""
    columns: Columns = {
        (0, "test"): [100.0, 100.0, 80.0, 50.0],
        (0, "test:class=0"): [100.0, 100.0, 60.0, 0.0],
        (0, "test:class!=0"): [100.0, 100.0, 100.0, 100.0],
        (1, "test"): [0.0, 100.0, 100.0, 0.0],
    }
    found = figures("L0 L1 U0:class=0 U1", columns, 3)["M2"]
    assert (found.value, found.worst, found.verdict) == (0.0, 0.0, PASS)
    spilled = {**columns, (0, "test:class!=0"): [100.0, 100.0, 100.0, 70.0]}
    found = figures("L0 L1 U0:class=0 U1", spilled, 3)["M2"]
    assert (found.value, found.worst, found.verdict) == (30.0, 30.0, FAIL)


def test_of_the_own_task_classes_that_went_before_are_not_retained_either() -> None:
    columns: Columns = {
        (0, "test"): [100.0, 90.0, 30.0],
        (0, "test:class=1"): [100.0, 80.0, 0.0],
        (0, "test:class!=1"): [100.0, 95.0, 45.0],
        (0, "test:class=0"): [100.0, 95.0, 0.0],
        (0, "test:class!=0"): [100.0, 90.0, 45.0],
        (0, "test:class=0,1"): [100.0, 85.0, 0.0],
        (0, "test:class!=0,1"): [100.0, 95.0, 93.0],
    }
    assert figures("L0 U0:class=1 U0:class=0", columns, 2)["M2"].value == 2.0
    assert figures("L0 U0:class=1 U0:fraction=0.1@seed0", columns, 2)["M2"].value == 50.0, "of classes 0 and 2"


def test_a_task_without_a_class_left_is_not_retained() -> None:
    columns: Columns = {**{place: values[:3] for place, values in ALL_GONE.items()}, (1, "test"): [0.0, 70.0, 70.0]}
    gone: Columns = {place: [*values, 0.0] for place, values in columns.items()}
    assert figures("L0 L1 U0:class=0,1 U1", gone, 3)["M2"].verdict == NOT_RUN
    left: Columns = {**gone, (0, "test:class!=0,1"): [90.0, 90.0, 90.0, 45.0]}
    assert figures("L0 L1 U0:class=0,1 U1", left, 3)["M2"].value == 45.0


def test_a_rounded_model_is_asked_about_what_is_left() -> None:
    """Of a class that is gone nothing can be lost when weights are rounded: counted, it would hide that all else is."""
    columns: Columns = {
        (0, "test"): [100.0, 100.0, 50.0, 10.0],
        (0, "test:class=0"): [100.0, 100.0, 0.0, 0.0],
        (0, "test:class!=0"): [100.0, 100.0, 100.0, 20.0],
        (1, "test"): [0.0, 100.0, 100.0, 0.0],
    }
    for lost, verdict in ((15.0, INVALID), (5.0, PASS)):
        rounded: Columns = {
            (0, "test"): [None, None, None, 10.0 - lost / 2],
            (0, "test:class!=0"): [None, None, None, 20.0 - lost],
            (1, "test"): [None, None, None, 0.0],
        }
        assert figures("L0 L1 U0:class=0 U1", columns, 3, *rows_of(rounded, "accuracy_int8"))["M8"].verdict == verdict


# --- audits ---


@pytest.mark.parametrize(
    ("stream", "retained"),
    [
        ("L0 L1 L2 U1", {0: {0, 1}, 2: {4, 5}}),
        ("L0 L1 L2 U0:class=0 U1", {0: {1}, 2: {4, 5}}),
        ("L0 L1 L2 U0:class=0,1 U1", {2: {4, 5}}),
        ("L0 L1 L2 U0:class=0 U2:class=5", {0: {1}, 1: {2, 3}, 2: {4}}),
        ("L0 L1 U0:class=0 U0:class=1", {1: {2, 3}}),
        ("L0 L1 U0:class=0 U0:fraction=0.3@seed5", {1: {2, 3}, 0: {1}}),
        ("L0 U0:class=0 U0:class=1", {}),
    ],
)
def test_an_audit_asks_nothing_of_classes_that_are_gone(stream: str, retained: dict[int, set[int]], tmp_path: Path) -> None:
    experiment = experiment_of({"rewind": {}}, tmp_path, stream=stream, benchmark={"name": "split_digits"})
    learner = assemble(experiment, make_benchmark(experiment))
    index, event = len(learner.stream) - 1, learner.stream.events[-1]
    assert isinstance(event, Unlearn)
    question = Question.of(learner, event, index, learner.stream)
    assert {samples.task: set(samples.targets(learner).tolist()) for samples in question.retained} == retained
    assert [samples.task for samples in question.retained][-1:] != [event.task] or event.granularity != "task"
    counts = {
        task: int(sum((learner.benchmark.test[task].targets == label).sum() for label in labels)) for task, labels in retained.items()
    }
    assert {samples.task: len(samples) for samples in question.retained} == counts
