"""Costs in records: passes and rows of known steps, samples new and replayed, the same after stops, and what a report shows of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_framework import Context, Plan, Rows, StepFn, Traits, runner
from cl_framework.assembly import assemble
from cl_framework.collected import collect, comparison, read_csv, to_csv
from cl_framework.config import Experiment
from cl_framework.cost import Cost, EventTally, answer_row, cost_row, stored_bytes
from cl_framework.metrics import answer_figures, summarise
from cl_framework.records import RunDirectory
from cl_framework.report import figures_line
from cl_framework.testing.laboratory import STEPS_A_TASK, augmented, beside, experiment_of, finish, finish_in_pieces
from cl_framework.testing.neighbours import FurtherPhases, Neighbour, Thrice, slot
from cl_framework.walk import Walk
from strategies.analytic import Analytic

ROWS_A_TASK = 36  # of the laboratory's benchmark
COUNTS = ("steps", "samples", "samples_new", "samples_past", "samples_drawn", "forward_passes", "forward_rows", "backward_passes")


def counts(experiment: Experiment, benchmark: Any = None) -> list[tuple[int, ...]]:
    """The columns `COUNTS` of every event of a run."""
    events = RunDirectory(finish(experiment, benchmark).path).events()
    return [tuple(row[column] for column in COUNTS) for row in events]


def test_fine_tuning_shows_new_samples_and_runs_a_pass_a_step(tmp_path: Path) -> None:
    steps = 2 * STEPS_A_TASK
    rows = 2 * ROWS_A_TASK
    assert counts(experiment_of({}, tmp_path, epochs=2)) == [(steps, rows, rows, 0, 0, steps, rows, steps)] * 2


def test_a_joined_memory_shares_the_pass_and_its_rows_are_counted(tmp_path: Path) -> None:
    first, second = counts(experiment_of({"er": {"capacity": 20, "minibatch": 4}}, tmp_path))
    drawn = 4 * (STEPS_A_TASK - 1)  # nothing is drawn from an empty memory in the first step
    assert first == (STEPS_A_TASK, ROWS_A_TASK, ROWS_A_TASK, 0, drawn, STEPS_A_TASK, ROWS_A_TASK + drawn, STEPS_A_TASK)
    assert second[4:6] == (4 * STEPS_A_TASK, STEPS_A_TASK)


def test_a_separate_memory_takes_a_pass_of_its_own(tmp_path: Path) -> None:
    _, second = counts(experiment_of({"der": {"capacity": 20, "minibatch": 4}}, tmp_path))
    assert second[4:] == (4 * STEPS_A_TASK, 2 * STEPS_A_TASK, ROWS_A_TASK + 4 * STEPS_A_TASK, STEPS_A_TASK)


def test_samples_of_earlier_tasks_that_a_plan_shows_are_no_new_ones(tmp_path: Path) -> None:
    first, second = counts(experiment_of({"cumulative": {}}, tmp_path))
    assert first[1:5] == (ROWS_A_TASK, ROWS_A_TASK, 0, 0)
    assert second[1:5] == (2 * ROWS_A_TASK, ROWS_A_TASK, ROWS_A_TASK, 0)


def test_every_call_of_a_closure_is_a_pass(tmp_path: Path) -> None:
    """Beside the live one: values, gradients, and the gradients of one term."""
    plain = counts(experiment_of({}, tmp_path / "plain"))
    wrapped = counts(beside(experiment_of({}, tmp_path / "wrapped"), before=[slot(Thrice)]))
    for alone, thrice in zip(plain, wrapped, strict=True):
        assert thrice[:5] == alone[:5]
        assert (thrice[5], thrice[7]) == (4 * alone[5], 3 * alone[7])


def test_looks_through_the_context_are_passes_and_evaluation_is_none(tmp_path: Path) -> None:
    class Looking(Neighbour):
        """One forward, one features, one gradient and one Fisher pass before each event."""

        traits = Traits(reads_past_data=True, no_neutral="a fixture")

        def end(self, context: Context) -> tuple[()]:
            rows = context.read(context.ids_of(context.position.event.task)[:7])
            context.forward(rows)
            context.features(rows)
            context.forward(rows, at=context.snapshot())
            return ()

        def step(self, inner: StepFn, context: Context) -> StepFn:
            rows = context.read(context.ids_of(context.position.event.task)[:3])
            context.gradient(rows)
            context.squared_gradients(rows)
            context.squared_gradients(rows, "expected")
            return inner

        def predict(self, features: Tensor | None, logits: Tensor, rows: Rows, context: Context) -> Tensor:
            return context.forward(rows)

    experiments = experiment_of({}, tmp_path / "plain"), beside(experiment_of({}, tmp_path / "looking"), before=[slot(Looking)])
    plain, looking = map(counts, experiments)
    classes = 6
    for alone, looked in zip(plain, looking, strict=True):
        assert looked[:5] == alone[:5]
        assert looked[5] == alone[5] + 3 + 3  # of a model of linear modules the expected squares share one forward pass
        assert looked[6] == alone[6] + 3 * 7 + 3 * 3
        assert looked[7] == alone[7] + 2 + classes
    graphs = []
    for experiment in experiments:
        learner = assemble(experiment)
        Walk(learner).event(0)
        graphs.append(learner.cost.graph_passes)
    assert graphs[1] == graphs[0] + 3  # no gradient passes through the others


def test_steps_without_rows_show_no_samples(tmp_path: Path) -> None:
    (first, _) = counts(beside(experiment_of({}, tmp_path), before=[slot(FurtherPhases)]))
    assert first[:4] == (STEPS_A_TASK + 4, ROWS_A_TASK, ROWS_A_TASK, 0)
    assert first[5] == STEPS_A_TASK
    assert first[7] == STEPS_A_TASK + 4


@pytest.mark.slow
@pytest.mark.parametrize("strategies", [{}, {"er": {"capacity": 20}}, {"cumulative": {}, "derpp": {"capacity": 20}}])
def test_stopped_before_every_step_an_event_has_cost_the_same(strategies: Mapping[str, Any], tmp_path: Path) -> None:
    whole = experiment_of(strategies, tmp_path / "whole", stream="L0 L1 L0")
    data = augmented(whole)
    undisturbed = counts(whole, data)
    pieces, stops = finish_in_pieces(experiment_of(strategies, tmp_path / "pieces", stream="L0 L1 L0"), lambda step: True, data)
    events = RunDirectory(pieces.path).events()
    assert stops >= 3 * STEPS_A_TASK
    assert [tuple(row[column] for column in COUNTS) for row in events] == undisturbed
    assert counts(experiment_of(strategies, tmp_path / "longer", stream="L0 L1 L0", epochs=2)) != undisturbed


# --- what an answer to an Unlearn costs ---


def answers(experiment: Experiment) -> list[tuple[int, int]]:
    """Samples to be forgotten and retained ones that each answer of a run has met."""
    events = RunDirectory(finish(experiment).path).events()
    return [(row["samples_forgotten"], row["samples_retained"]) for row in events if row["kind"] == "unlearn"]


@pytest.mark.parametrize(
    ("strategies", "stream", "expected"),
    [
        ({"analytic": {}}, "L0 L1 U0", (ROWS_A_TASK, 0)),
        ({"analytic": {}}, "L0 L1 U0:class=1", (ROWS_A_TASK // 2, 0)),
        ({"analytic": {}}, "L0 L1 U0:fraction=0.25@seed1", (ROWS_A_TASK // 4, 0)),
        ({"do_nothing": {}}, "L0 L1 U0", (0, 0)),
        ({"noise": {}}, "L0 L1 U0", (0, 0)),
        ({"rewind": {}}, "L0 L1 U0", (0, ROWS_A_TASK)),
        ({"rewind": {}}, "L0 L1 U0:class=1", (0, ROWS_A_TASK + ROWS_A_TASK // 2)),
        ({"gradient_ascent": {"steps": 3, "epochs": 1}}, "L0 L1 U0:class=1", (ROWS_A_TASK // 2, 0)),  # in three steps, all of it
        ({"rmu": {"steps": 2}, "er": {"capacity": 20, "minibatch": 16}}, "L0 L1 U0", (1 + 2 * 8, None)),  # one is read for its width
        ({"icarl": {"capacity": 12}, "rewind": {}}, "L0 L1 U0", (0, None)),  # reads again what its exemplars are chosen from
    ],
)
def test_what_an_answer_reads_is_counted_in_steps_and_outside_of_them(
    strategies: dict[str, dict[str, Any]], stream: str, expected: tuple[int, int | None], tmp_path: Path
) -> None:
    ((forgotten, retained),) = answers(experiment_of(strategies, tmp_path, stream=stream))
    assert forgotten == expected[0]
    assert retained > 8 if expected[1] is None else retained == expected[1]


def test_an_answer_that_was_stopped_and_resumed_has_read_as_much(tmp_path: Path) -> None:
    strategies: dict[str, dict[str, Any]] = {"rmu": {"steps": 4, "epochs": 1}, "er": {"capacity": 20, "minibatch": 16}}
    data = augmented(whole := experiment_of(strategies, tmp_path / "whole", stream="L0 L1 U0 L2"))
    pieces, stops = finish_in_pieces(experiment_of(strategies, tmp_path / "pieces", stream="L0 L1 U0 L2"), lambda step: True, data)
    assert stops > 3 * STEPS_A_TASK
    columns = ("samples_forgotten", "samples_retained")
    of_pieces = [row[column] for row in RunDirectory(pieces.path).events() if row["kind"] == "unlearn" for column in columns]
    assert tuple(of_pieces) == answers(whole)[0] != (0, 0)
    strategies["rmu"]["steps"] = 2
    assert answers(experiment_of(strategies, tmp_path / "fewer", stream="L0 L1 U0 L2")) != [tuple(of_pieces)]


@pytest.mark.parametrize("name", ["analytic", "do_nothing"])
def test_the_clock_of_an_answer_runs_outside_of_steps_and_rests_in_evaluations(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, wait = {"analytic": (Analytic, "unlearn"), "do_nothing": (runner, "evaluate")}[name], 0.3

    def waits(original: Any) -> Any:
        def waited(*arguments: Any, **more: Any) -> Any:
            time.sleep(wait)
            return original(*arguments, **more)

        return waited

    monkeypatch.setattr(*slow, waits(getattr(*slow)))
    events = RunDirectory(finish(experiment_of({name: {}}, tmp_path, stream="L0 U0")).path).events()
    assert events[1]["train_seconds"] == 0.0 and "answer_seconds" not in events[0]
    assert events[1]["answer_seconds"] >= wait if name == "analytic" else 0 < events[1]["answer_seconds"] < wait


@pytest.mark.parametrize("more", [1, 2])
def test_the_clock_of_a_replay_is_of_all_its_events(more: int, tmp_path: Path) -> None:
    stream = " ".join(f"L{task}" for task in range(more + 1))
    row = RunDirectory(finish(experiment_of({"rewind": {}}, tmp_path, stream=f"{stream} U0")).path).events()[-1]
    assert row["samples_retained"] == more * ROWS_A_TASK and row["answer_seconds"] > row["train_seconds"] > 0


def test_a_tally_tells_what_is_to_be_forgotten_from_the_rest_of_its_task() -> None:
    plan = Plan(torch.tensor([0, 5, 1, 6, 7, 2]), torch.tensor([0, 2, 4, 6]))
    tally, cost = EventTally(), Cost(drawn_rows=3, read_rows=10, read_forgotten=4)
    tally.count(plan, torch.tensor([0, 1, 2]), 0, 3, 0.5, torch.tensor([1, 7]))
    assert (tally.samples, tally.samples_new, tally.samples_forgotten) == (6, 3, 2)
    assert answer_row(tally, cost) == {"answer_seconds": 0.5, "samples_forgotten": 2 + 4, "samples_retained": 4 + 3 + 6}


def test_the_state_of_strategies_is_weighed(tmp_path: Path) -> None:
    assert stored_bytes({"a": [torch.zeros(3), torch.zeros(2, dtype=torch.int64)], "b": 7, "c": "text"}) == 12 + 16
    assert stored_bytes({}) == 0
    plain = finish(experiment_of({}, tmp_path)).summary
    small, large = (finish(experiment_of({"er": {"capacity": size}}, tmp_path)).summary["stored_bytes"] for size in (10, 20))
    assert plain["stored_bytes"] == 0
    assert small < large < 2 * small + 1000


def test_a_tally_counts_part_of_a_plan() -> None:
    plan = Plan(torch.tensor([0, 5, 1, 6, 7, 2]), torch.tensor([0, 2, 4, 6]))
    tally = EventTally()
    tally.count(plan, torch.tensor([0, 1, 2]), 0, 1, 0.5)
    assert (tally.steps, tally.samples, tally.samples_new, tally.samples_past) == (1, 2, 1, 1)
    tally.count(plan, torch.tensor([0, 1, 2]), 1, 3, 0.5)
    assert (tally.steps, tally.samples, tally.samples_new, tally.samples_past, tally.train_seconds) == (3, 6, 3, 3, 1.0)
    tally.count(4, torch.tensor([0]), 0, 4, 0.0)
    assert (tally.steps, tally.samples) == (7, 6)
    cost = Cost()
    cost.forward(10)
    cost.forward(2, passes=3)
    assert cost_row(tally, cost)["forward_rows"] == 16
    assert cost_row(tally, cost)["forward_passes"] == 4


def test_a_summary_adds_up_and_says_nothing_where_records_are_older(tmp_path: Path) -> None:
    outcome = finish(experiment_of({"cumulative": {}, "er": {"capacity": 20}}, tmp_path))
    directory = RunDirectory(outcome.path)
    events, config = directory.events(), {"experiment": "x", "seed": 0, "scenario": "", "benchmark": {"name": "b"}, "strategies": {}}
    summary = summarise(config, events, directory.records())
    assert summary["samples_new"] == 2 * ROWS_A_TASK
    assert summary["samples_replayed"] == ROWS_A_TASK + sum(row["samples_drawn"] for row in events)
    assert summary["backward_passes"] == summary["steps"]
    older = [{key: value for key, value in row.items() if key not in COUNTS[2:] and key != "stored_bytes"} for row in events]
    found = summarise(config, older, directory.records())
    names = ("samples_new", "samples_replayed", "forward_passes", "backward_passes", "stored_bytes")
    assert [found[name] for name in names] == [None] * 5
    assert (found["steps"], found["average_accuracy"]) == (summary["steps"], summary["average_accuracy"])


@pytest.mark.parametrize("name", ["rewind", "grad_diff", "do_nothing"])
def test_what_answers_take_is_neither_training_nor_replay(name: str, tmp_path: Path) -> None:
    """Beside ER, which draws from its memory in the second Learn alone; `rewind` shows one task again, `grad_diff` takes steps."""
    strategies: dict[str, Any] = {"er": {"capacity": 20}, name: {}}
    outcome = finish(experiment_of(strategies, tmp_path, stream="L0 L1 U0"))
    first, second, answer = RunDirectory(outcome.path).events()
    summary = outcome.summary
    assert summary["samples_replayed"] == first["samples_drawn"] + second["samples_drawn"] > 0
    assert summary["samples_new"] == 2 * ROWS_A_TASK
    assert summary["answer_samples"] == answer["samples_forgotten"] + answer["samples_retained"]
    assert (summary["answer_samples"] > 0) == (name != "do_nothing")
    assert summary["answer_seconds"] == answer["answer_seconds"] > 0
    assert summary["train_seconds"] == first["train_seconds"] + second["train_seconds"]
    assert f"answer s {summary['answer_seconds']:.2f}" in figures_line(summary)
    older = [{key: value for key, value in row.items() if not key.startswith(("answer", "samples_"))} for row in (first, second, answer)]
    assert answer_figures(older) == {"answer_seconds": None, "answer_samples": None}, "what older runs took is not on record"
    learns = finish(experiment_of({"er": {"capacity": 20}}, tmp_path / "learns"))
    assert not {"answer_seconds", "answer_samples"} & learns.summary.keys()
    headers = [comparison(collect([path]).summaries)[0] for path in (outcome.path, learns.path)]
    assert ["answer s" in header and "answer samples" in header for header in headers] == [True, False]
    file = tmp_path / "records.csv"
    file.write_text(to_csv(collect([outcome.path]).summaries))
    assert comparison(read_csv(file)) == comparison(collect([outcome.path]).summaries)


def test_budgets_stand_beside_accuracies(tmp_path: Path) -> None:
    finish(experiment_of({"er": {"capacity": 20}}, tmp_path))
    summaries = collect([tmp_path]).summaries
    header, (row,) = comparison(summaries)
    assert header[-4:] == ["steps", "new samples", "replayed", "seeds"]
    assert row[-3:-1] == [str(2 * ROWS_A_TASK), str(summaries[0]["samples_replayed"])]
    file = tmp_path / "records.csv"
    file.write_text(to_csv(summaries))
    assert comparison(read_csv(file)) == (header, [row])
    lines = [line.split(",") for line in file.read_text().splitlines()]
    kept = [index for index, column in enumerate(lines[0]) if not column.startswith("samples")]
    file.write_text("".join(",".join(line[index] for index in kept) + "\n" for line in lines))  # as before there were such columns
    older, _ = comparison(read_csv(file))
    assert older == [title for title in header if title not in ("new samples", "replayed")]
