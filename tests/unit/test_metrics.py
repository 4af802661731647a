"""Figures beside brute-force definitions and known answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cl_framework import FrameworkError, Learn, Plan, Stream, from_task_datasets, load_experiment
from cl_framework.assembly import assemble
from cl_framework.cost import EventTally
from cl_framework.evaluation import evaluate, held_out_batches
from cl_framework.learner import Learner
from cl_framework.metrics import (
    accuracy_matrix,
    average_accuracy,
    average_anytime_accuracy,
    baseline,
    bwt,
    confidence_interval,
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


def test_a_task_learned_again_at_the_end_cannot_have_been_forgotten() -> None:
    matrix = [[90.0, 0.0], [40.0, 80.0], [70.0, 50.0]]
    again = Stream.parse("L0 L1 L0", 2)
    assert forgetting(matrix, again) == pytest.approx(80 - 50)
    assert bwt(matrix, again) == pytest.approx(50 - 80)
    # Learned again in the middle, it counts from its first time.
    assert forgetting([*matrix, [60.0, 55.0, 99.0]], Stream.parse("L0 L1 L0 L2", 3)) == pytest.approx(((90 - 60) + (80 - 55)) / 2)


def test_what_was_not_measured_is_never_left_out_of_a_mean() -> None:
    holes: list[list[float | None]] = [[90.0, None, None], [70.0, 80.0, None], [None, 85.0, 95.0]]
    assert average_accuracy(holes[-1], (1, 2)) == 90.0
    assert average_accuracy(holes[-1], (0, 1, 2)) is None
    assert average_anytime_accuracy(holes, STREAM) is None
    assert forgetting(holes, STREAM) is None
    assert bwt(holes, STREAM) is None
    assert fwt(holes, [5.0, 6.0, 7.0], STREAM) is None
    assert fwt(MATRIX, [5.0, 6.0, None], STREAM) is None


def test_unlearned_tasks_do_not_count() -> None:
    stream = Stream.parse("L0 L1 U0", 2)
    assert learned_at(stream) == {1: 1}
    matrix = [[90.0, 10.0], [80.0, 90.0], [10.0, 70.0]]
    assert average_accuracy(matrix[-1], stream.learned_after[-1]) == 70.0
    assert forgetting(matrix, stream) == pytest.approx(20.0)
    nothing_live = Stream.parse("L0 U0 L1", 2)
    assert average_anytime_accuracy([[80.0, 0.0], [10.0, 0.0], [5.0, 60.0]], nothing_live) == pytest.approx((80 + 60) / 2)
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


@st.composite
def histories(draw: st.DrawFn) -> Stream:
    """Streams that repeat tasks and unlearn them."""
    words, live = ["L0"], {0}
    for _ in range(draw(st.integers(0, 7))):
        task = draw(st.integers(0, 3))
        unlearns = task in live and draw(st.booleans())
        (live.discard if unlearns else live.add)(task)
        words.append(f"{'U' if unlearns else 'L'}{task}")
    return Stream.parse(" ".join(words), 4)


def start_of_knowledge(words: list[str], task: int) -> int | None:
    """The definition, looked up backwards: the first L of the task after its last U."""
    after = max((n for n, word in enumerate(words) if word == f"U{task}"), default=-1)
    return next((n for n in range(after + 1, len(words)) if words[n] == f"L{task}"), None)


@given(histories(), st.data())
def test_figures_are_their_definitions_on_any_stream(stream: Stream, data: st.DataObject) -> None:
    row = st.lists(st.integers(0, 100).map(float), min_size=4, max_size=4)
    matrix = data.draw(st.lists(row, min_size=len(stream), max_size=len(stream)))
    words = str(stream).split()
    starts = {task: start for task in range(4) if (start := start_of_knowledge(words, task)) is not None}
    earlier = {task: start for task, start in starts.items() if words[-1] != f"L{task}"}
    last = len(words) - 1
    drops = [max(matrix[n][task] for n in range(start, last + 1)) - matrix[last][task] for task, start in earlier.items()]
    changes = [matrix[last][task] - matrix[start][task] for task, start in earlier.items()]
    gains = [matrix[words.index(f"L{t}") - 1][t] - 7.0 for t in range(4) if f"L{t}" in words[1:] and words[0] != f"L{t}"]
    averages = []
    for n in range(len(words)):
        known = [task for task in range(4) if start_of_knowledge(words[: n + 1], task) is not None]
        if known:
            averages.append(sum(matrix[n][task] for task in known) / len(known))
    assert learned_at(stream) == starts
    for figure, parts in (
        (forgetting(matrix, stream), drops),  # type: ignore[arg-type]
        (bwt(matrix, stream), changes),  # type: ignore[arg-type]
        (fwt(matrix, [7.0] * 4, stream), gains),  # type: ignore[arg-type]
        (average_anytime_accuracy(matrix, stream), averages),  # type: ignore[arg-type]
    ):
        assert figure == (pytest.approx(sum(parts) / len(parts)) if parts else None)
    assert sum(isinstance(event, Learn) for event in stream) >= len(starts)


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
    assert (summary["events"], summary["num_tasks"]) == (["L0", "L1"], 2)
    assert (summary["steps"], summary["train_seconds"], summary["eval_seconds"], summary["peak_rss_mib"]) == (10, 3.0, 1.0, 12.0)


def test_records_that_do_not_fit_the_events_are_refused() -> None:
    config = {"experiment": "x", "seed": 1, "scenario": "", "benchmark": {"name": "b"}, "strategies": {}}
    cost = {"steps": 5, "samples": 50, "train_seconds": 1.5, "eval_seconds": 0.5, "peak_rss_mib": 10.0}
    events = [{"event": f"L{task}", "kind": "learn", **cost} for task in range(3)]
    assert summarise(config, events[:2], rows())["average_accuracy"] == 70.0
    for number, records, end in ((1, rows(), "1"), (3, rows(), "1"), (2, [], "None")):
        text = f"the records end with event {end}, but {number} events are done. Finish the run with `clu resume`"
        with pytest.raises(FrameworkError, match=text):
            summarise(config, events[:number], records)


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


def test_confidence_interval_of_a_mean() -> None:
    """Student's quantiles from the printed tables: 4.303 for two degrees of freedom, 2.776 for four."""
    assert confidence_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3)
    low, high = confidence_interval([1.0, 2.0, 3.0, 4.0, 5.0]) or (0.0, 0.0)
    assert (high - low) / 2 == pytest.approx(2.776 * 2.5**0.5 / 5**0.5, abs=1e-3)
    narrow = confidence_interval([1.0, 2.0, 3.0], level=0.5)
    assert narrow is not None
    assert narrow[1] - narrow[0] < 2
    assert confidence_interval([4.0]) is None


# --- from answers to accuracies: known errors elsewhere ---


WIDTHS = (12, 3, 8)  # classes a task


def labels_of(task: int, *more: int) -> Tensor:
    """Each class of a task once, and some of them again."""
    first = sum(WIDTHS[:task])
    return torch.tensor([*range(first, first + WIDTHS[task]), *more])


def constant(answers: Sequence[int], **settings: Any) -> Learner:
    """A learner on pairs of an item and a label that gives one answer to all inputs, the first of `answers` that is a candidate.

    Tests hold class 11 of task 0 four times in 15, class 14 of task 1 twice in 4, class 15 of task 2 once in 8.
    """
    labels = [labels_of(0, 11, 11, 11), labels_of(1, 14), labels_of(2)]
    pairs = [[TensorDataset(torch.rand(len(own), 1, 2, 2), own) for _ in ("train", "test")] for own in labels]
    options = {"experiment": "pairs", "benchmark": {"name": "synthetic"}, "model": {"name": "mlp"}, "stream": "L0 L1 L2", **settings}
    learner = assemble(load_experiment(options), from_task_datasets([(train, test) for train, test in pairs]))
    head = learner.model.head
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        for place, answer in enumerate(answers):
            head.bias[answer] = 9.0 - place
    return learner


@pytest.mark.parametrize("size", [1, 4, 100])
def test_a_batch_of_pairs_has_as_many_samples_as_it_has_rows_and_not_two(size: int) -> None:
    learner = constant([11], evaluation_batch_size=size)
    batches = list(held_out_batches(learner, 0, torch.arange(15)))
    assert [len(rows) for rows in batches] == [len(rows.targets) for rows in batches]
    assert [len(rows) for rows in batches] == {1: [1] * 15, 4: [4, 4, 4, 3], 100: [15]}[size]
    (accuracy,) = [one for one in evaluate(learner, (0,), (0,)) if one.scenario == "class_il"]
    assert (accuracy.correct, accuracy.count, accuracy.percent) == (4, 15, pytest.approx(400 / 15))


def test_samples_shown_are_those_of_the_plan_whatever_a_batch_holds_beside_them() -> None:
    learner = constant([], batch_size=4, epochs=2)
    tally = EventTally()
    plan = learner.learn_phase(Learn(0)).plan
    assert isinstance(plan, Plan)
    tally.count(plan, learner.training_ids(0), 0, plan.steps, 1.0)
    assert (plan.steps, tally.samples, tally.samples_new) == (8, 30, 30)


def test_an_accuracy_is_among_the_classes_of_its_tasks_however_many_each_has() -> None:
    """Not among ten: classes 10 and 11 belong to the first task, and 15 to 19 to the third."""
    found = {(one.task, one.scenario): one for one in evaluate(constant([11, 14, 15]), (0, 1, 2), (0, 1, 2))}
    by_task = {task: (found[task, "task_il"].correct, found[task, "task_il"].count) for task in range(3)}
    assert by_task == {0: (4, 15), 1: (2, 4), 2: (1, 8)}
    assert [found[task, "task_il"].chance for task in range(3)] == pytest.approx([100 / width for width in WIDTHS])
    assert {task: found[task, "class_il"].correct for task in range(3)} == {0: 4, 1: 0, 2: 0}
    assert [found[task, "class_il"].chance for task in range(3)] == pytest.approx([100 / 23] * 3)
