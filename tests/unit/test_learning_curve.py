"""Learning curves: which steps are looked at, what is counted, the same after stops, and at no cost of passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cl_framework import Context, Evaluation, StepFn, registry
from cl_framework.assembly import make_benchmark
from cl_framework.config import Experiment, Slot, load_experiment
from cl_framework.criterion import IGNORED, asked
from cl_framework.learning_curve import POINTS, ROWS, LearningCurve, points
from cl_framework.records import RunDirectory
from cl_framework.strategy import Closure
from cl_framework.testing.laboratory import augmented, beside, experiment_of, finish, finish_in_pieces
from cl_framework.testing.neighbours import FurtherPhases, Neighbour, slot


def curves_of(path: Path) -> list[Any]:
    return [row["learning_curve"] for row in RunDirectory(path).events()]


def run_curves(experiment: Experiment, benchmark: Any = None) -> list[Any]:
    return curves_of(finish(experiment, benchmark).path)


@pytest.mark.parametrize(("steps", "batch"), [(469, 128), (6000, 10), (30, 10), (5, 8), (1, 1), (100_000, 1)])
def test_which_steps_are_looked_at(steps: int, batch: int) -> None:
    """Few steps of a long phase, all of a short one; at most so many points, each of enough rows where there are as many."""
    curve = LearningCurve()
    assert not any(curve.wants(step) for step in range(steps))
    curve.begin(steps, steps * batch)
    looked = [step for step in range(steps) if curve.wants(step)]
    assert looked[0] == 0
    assert len(looked) <= POINTS * max(1, -(-ROWS // batch))
    for step in looked:
        curve.note(step, torch.eye(batch), torch.arange(batch), torch.ones(batch, dtype=torch.bool))
    found = points(curve.entries())
    assert len(found) <= POINTS
    assert all(rows >= ROWS for _, _, rows in found[:-1])
    assert len(found) >= min(POINTS // 2, steps * batch // ROWS)
    curve.rest()
    assert not any(curve.wants(step) for step in range(steps))


def test_known_answers_are_counted() -> None:
    curve = LearningCurve()
    curve.begin(4, 400)
    logits = torch.tensor([[2.0, 1.0], [1.0, 2.0], [2.0, 1.0], [1.0, 2.0]])
    own = torch.tensor([True, True, True, False])
    curve.note(0, logits, torch.tensor([0, 1, 1, 1]), own)  # right, right, wrong; the last row is another task's
    curve.note(1, logits, torch.tensor([1, 0, 1, 0]), own)
    curve.note(2, logits, torch.tensor([0, 1, 0, 1]), torch.zeros(4, dtype=torch.bool))
    assert curve.entries() == [[0, 2, 3], [1, 0, 3], [2, 0, 0]]
    assert points(curve.entries()) == [(0, pytest.approx(200 / 3), 3), (1, 0.0, 3)]
    assert points([]) == []
    assert points([[0, 1, 2], [0, 2, 2], [5, 1, 1]]) == [(0, 75.0, 4), (5, 100.0, 1)]
    again = LearningCurve(curve.entries())
    assert again.entries() == curve.entries()


@pytest.mark.parametrize(("whole", "counts"), [(True, [0, 1, 2]), (False, [0, 3, 4])])
def test_an_answer_that_counts_as_a_whole_is_right_at_all_its_places(whole: bool, counts: list[int]) -> None:
    """Two rows of the own task, two places each: all right, one of two right; one that asks nothing, and one of another task."""
    targets = torch.tensor([[0, 1, IGNORED], [IGNORED, 1, 0], [IGNORED, IGNORED, IGNORED], [0, 1, 0]])
    answers = torch.tensor([[0, 1, 0], [0, 1, 1], [0, 0, 0], [0, 1, 0]])
    curve = LearningCurve()
    curve.note(0, torch.eye(2)[answers].transpose(1, 2), targets, torch.tensor([True, True, True, False]), whole)
    assert curve.entries() == [counts]


@pytest.mark.parametrize("whole", [True, False])
def test_a_curve_of_questions_counts_what_accuracies_count(whole: bool, tmp_path: Path) -> None:
    """Of 40 questions each shown once, 40 whole answers, or all of their tokens."""
    questions = {"name": "arithmetic", "skills": ["add_plain"], "digits": 1, "train": 40, "test": 10}
    run_of = load_experiment({"benchmark": questions, "model": {"name": "decoder", "width": 16}, "batch_size": 8, "out": str(tmp_path)})
    benchmark = dataclasses.replace(make_benchmark(run_of), whole_rows=whole)
    (curve,) = run_curves(run_of, benchmark)
    tokens = int(asked(benchmark.train[0].targets).sum())
    assert sum(answers for *_, answers in curve) == (40 if whole else tokens) and tokens > 40


class Watching(Neighbour):
    """Notes the answers of every step by itself."""

    def step(self, inner: StepFn, context: Context) -> StepFn:
        def wrapped(closure: Closure) -> Evaluation:
            evaluation = inner(closure)
            batch = closure._batch  # type: ignore[attr-defined]
            correct = (evaluation.output.logits.argmax(1) == batch.targets).sum()
            self.journal.append((context.position.event_index, int(correct), len(batch)))
            return evaluation

        return wrapped


@pytest.mark.parametrize("scenario", ["class_il", "domain_il"])
def test_a_curve_is_the_accuracy_of_the_steps_own_outputs(scenario: str, tmp_path: Path) -> None:
    watching = slot(Watching)
    experiment = beside(experiment_of({}, tmp_path, epochs=3, scenario=scenario), after=[watching])
    path = finish(experiment).path
    journal = watching.strategy_class.journal
    swept = 0
    for index, curve in enumerate(curves_of(path)):
        steps = [(correct, rows) for event, correct, rows in journal if event == index]
        starts = [step for step, *_ in curve] + [len(steps)]
        for (first, accuracy, rows), end in zip(curve, starts[1:], strict=True):
            assert rows == sum(one for _, one in steps[first:end])
            assert accuracy == pytest.approx(100 * sum(correct for correct, _ in steps[first:end]) / rows)
            swept += 1
    assert swept == 4  # 15 steps with 108 rows: 14 steps make a point of 100, and one is left


def test_accuracy_rises_while_a_task_is_learned(tmp_path: Path) -> None:
    (curve, _) = run_curves(experiment_of({"er": {"capacity": 20}}, tmp_path, epochs=40))
    assert len(curve) > 10
    assert curve[-1][1] > curve[0][1]


def test_rows_of_other_tasks_are_left_out(tmp_path: Path) -> None:
    for curve in run_curves(experiment_of({"cumulative": {}}, tmp_path, epochs=2)):
        assert sum(rows for *_, rows in curve) == 72


def test_what_trains_without_the_model_has_no_curve(tmp_path: Path) -> None:
    class Never(Neighbour):
        def step(self, inner: StepFn, context: Context) -> StepFn:
            return lambda closure: closure.values()

    assert run_curves(beside(experiment_of({}, tmp_path), after=[slot(Never)])) == [[], []]


@pytest.fixture
def further_phases() -> Iterator[Slot]:
    """A neighbour that a resume finds by its name."""
    neighbour = slot(FurtherPhases)
    registry.strategies.add(neighbour.name, neighbour.strategy_class)
    yield neighbour
    registry.strategies.remove(neighbour.name)


@pytest.mark.slow
def test_a_curve_survives_every_stop_also_in_further_phases(further_phases: Slot, tmp_path: Path) -> None:
    def experiment(name: str, seed: int = 0) -> Experiment:
        return beside(experiment_of({}, tmp_path / name, epochs=8, seed=seed), before=[further_phases])

    data = augmented(experiment("whole"))
    whole = run_curves(experiment("whole"), data)
    assert whole == run_curves(experiment("again"), data)
    pieces, stops = finish_in_pieces(experiment("pieces"), lambda step: True, data)
    assert stops == 2 * (8 * 5 + 4)
    assert curves_of(pieces.path) == whole
    assert all(len(curve) > 1 for curve in whole)
    assert run_curves(experiment("seed", 1), data) != whole
