"""The diagonal of the Fisher information in runs: through the context, where asking leaves no trace, and as a phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_framework import Batch, Closure, Context, Evaluation, FisherPass, Learn, Output, Phase, Rows, StepFn
from cl_framework.assembly import make_benchmark
from cl_framework.testing.laboratory import (
    ROUGH,
    STEPS_A_TASK,
    assert_different_weights,
    assert_equal_outcomes,
    augmented,
    beside,
    experiment_of,
    finish,
    finish_in_pieces,
    first_difference,
)
from cl_framework.testing.neighbours import Neighbour, slot, snapshot

# --- through the context ---


class Asking(Neighbour):
    """Asks for the squared gradients when an event ends, and notes what asking has moved."""

    labels = "given"

    def end(self, context: Context) -> Sequence[Phase]:
        learner = context.learner  # type: ignore[attr-defined]
        rows = context.read(context.ids_of(context.position.event.task))
        if self.labels == "raw":
            rows = replace(rows, inputs=None)
        before, noise = snapshot(learner.state_dict()), torch.get_rng_state()
        modes = [module.training for module in context.model.modules()]
        found = context.squared_gradients(rows, "given" if self.labels == "raw" else self.labels)
        moved = first_difference(before, snapshot(learner.state_dict()))
        if not torch.equal(noise, torch.get_rng_state()) or modes != [module.training for module in context.model.modules()]:
            moved = "the random state or the mode"
        if any(parameter.grad is not None for parameter in context.parameters):
            moved = "a gradient"
        named = dict(zip(context.parameter_names, found, strict=True))
        self.journal.append((snapshot(named), rows, context.model.state_dict(), moved))
        expected = of_rows(context.model, rows_with_inputs(context, rows), context, self.labels)
        for name, value in named.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-8)
        return ()


class AskingExpected(Asking):
    labels = "expected"


class AskingWeighted(Asking):
    labels = "weighted"


class AskingRaw(Asking):
    labels = "raw"


def rows_with_inputs(context: Context, rows: Rows) -> Rows:
    return context.read(rows.ids)


def of_rows(model: nn.Module, rows: Rows, context: Context, labels: str) -> dict[str, Tensor]:
    """By a loop over rows, in evaluation mode, of the model itself."""
    model.eval()
    named = dict(model.named_parameters())
    total = {name: torch.zeros_like(value) for name, value in named.items()}
    assert isinstance(rows.inputs, Tensor)
    for row in range(len(rows)):
        for label in range(context.num_classes) if labels == "expected" else [int(rows.targets[row])]:
            one = replace(rows, targets=torch.tensor([label]), task_of_row=rows.task_of_row[row : row + 1])
            log_p = -context.criterion(model(rows.inputs[row : row + 1]), one)[0]
            factor = 1.0 if labels in ("given", "raw") else float(log_p.detach().exp())
            if factor == 0:
                continue
            for name, gradient in zip(named, torch.autograd.grad(log_p, list(named.values())), strict=True):
                total[name] += factor * gradient.square()
    model.train()
    return total


@pytest.mark.parametrize("kind", [Asking, AskingExpected, AskingWeighted, AskingRaw])
@pytest.mark.parametrize("scenario", ["class_il", "task_il"])
def test_a_strategy_gets_those_of_the_evaluated_model_and_leaves_no_trace(kind: type[Asking], scenario: str, tmp_path: Path) -> None:
    asking = slot(kind)
    finish(beside(experiment_of({}, tmp_path, model=ROUGH, stream="L0 L1", scenario=scenario), after=[asking]))
    journal = asking.strategy_class.journal
    assert [moved for *_, moved in journal] == [None, None]
    for task, (squares, rows, _, _) in enumerate(journal):
        assert len(rows) == 36 and all(bool((value >= 0).all()) and bool(torch.isfinite(value).all()) for value in squares.values())
        others = torch.tensor([label not in (2 * task, 2 * task + 1) for label in range(6)])
        assert bool((squares["head.weight"][~others] > 0).any())
        assert bool((squares["head.weight"][others] == 0).all()) == (scenario == "task_il"), "in task_il other tasks' logits are masked"


class AskingOfTwoTasks(Neighbour):
    """Asks for rows of two tasks together and apart."""

    def end(self, context: Context) -> Sequence[Phase]:
        learner = context.learner  # type: ignore[attr-defined]
        parts = [learner.read(learner.training_ids(task)[:5]) for task in (0, 1)]
        both = learner.read(torch.cat([learner.training_ids(task)[:5] for task in (1, 0)]))
        apart = [context.squared_gradients(rows) for rows in parts]
        for together, one, other in zip(context.squared_gradients(both), *apart, strict=True):
            torch.testing.assert_close(together, one + other)
        self.journal.append(float(sum((one - other).abs().sum() for one, other in zip(*apart, strict=True))))
        return ()


def test_rows_of_several_tasks_are_each_seen_with_their_own(tmp_path: Path) -> None:
    asking = slot(AskingOfTwoTasks)
    finish(beside(experiment_of({}, tmp_path, stream="L0", scenario="task_il"), after=[asking]))
    assert len(asking.strategy_class.journal) == 1 and asking.strategy_class.journal[0] > 0.1


# --- as a phase ---


class Passing(Neighbour):
    """A pass when each event ends; the journal has what it found and the rows it saw."""

    samples: int | None = None

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._pass = FisherPass("given", self.samples)
        self._found: dict[str, Tensor] = {}

    def step(self, inner: StepFn, context: Context) -> StepFn:
        def looked_at(closure: Closure) -> Evaluation:
            return closure.values("task")

        return looked_at if self._pass.under_way(context) else inner

    def end(self, context: Context) -> Sequence[Phase]:
        return [self._pass.phase(context)] if isinstance(context.position.event, Learn) else []

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        if self._pass.under_way(context):
            weights = {name: value.clone() for name, value in context.model.state_dict().items()}
            found = self._pass.add(batch, context)
            self.journal.append((batch.ids.clone(), weights, found))
            self._found = found or self._found

    def state_dict(self) -> dict[str, Any]:
        return {"found": dict(self._found)}


class PassingSome(Passing):
    samples = 10


def test_a_pass_sees_each_sample_of_the_task_once_and_moves_nothing(tmp_path: Path) -> None:
    passing = slot(Passing)
    experiment = beside(experiment_of({}, tmp_path, model=ROUGH), after=[passing])
    outcome = finish(experiment, augmented(experiment))
    journal = passing.strategy_class.journal
    assert len(journal) == 2 * STEPS_A_TASK and outcome.summary["steps"] == 4 * STEPS_A_TASK
    benchmark = make_benchmark(experiment)
    for task in (0, 1):
        of_task = journal[task * STEPS_A_TASK : (task + 1) * STEPS_A_TASK]
        assert torch.equal(torch.cat([ids for ids, *_ in of_task]).sort().values, benchmark.ids_of(task))
        assert all(first_difference(of_task[0][1], weights) is None for _, weights, _ in of_task)
        assert [found is None for *_, found in of_task] == [True] * 4 + [False]
    assert first_difference(journal[0][1], journal[-1][1]) is not None


def test_what_it_finds_is_the_mean_over_the_plain_rows(tmp_path: Path) -> None:
    asking, passing = slot(Asking), slot(Passing)
    experiment = beside(experiment_of({}, tmp_path, model=ROUGH, stream="L0"), after=[asking, passing])
    finish(experiment, augmented(experiment))
    squares, rows, _, _ = asking.strategy_class.journal[0]
    found = passing.strategy_class.journal[-1][2]
    for name, value in squares.items():
        torch.testing.assert_close(found[name], value / len(rows), rtol=1e-4, atol=1e-8)
    assert len(rows) == 36 and not torch.allclose(found["head.weight"], squares["head.weight"] / 35, rtol=1e-3)


def test_a_pass_of_some_samples_shows_so_many_of_them(tmp_path: Path) -> None:
    passing = slot(PassingSome)
    finish(beside(experiment_of({}, tmp_path), after=[passing]))
    journal = passing.strategy_class.journal
    seen = [torch.cat([ids for ids, *_ in part]) for part in (journal[:2], journal[2:])]
    assert len(journal) == 4 and [len(ids.unique()) for ids in seen] == [10, 10]
    assert not torch.equal(seen[0], seen[0].sort().values), "they are chosen at random"
    assert int(seen[0].max()) < 36 <= int(seen[1].min())


def test_a_pass_resumes_where_it_stopped(tmp_path: Path) -> None:
    """Stopped before each step of the passes and nowhere else."""
    experiment = experiment_of({"ewc": {}}, tmp_path / "whole", model=ROUGH)
    data = augmented(experiment)
    whole = finish(experiment, data)
    stop = {*range(STEPS_A_TASK, 2 * STEPS_A_TASK), *range(3 * STEPS_A_TASK, 4 * STEPS_A_TASK)}
    pieces, stops = finish_in_pieces(experiment_of({"ewc": {}}, tmp_path / "pieces", model=ROUGH), stop.__contains__, data)
    assert stops == 2 * STEPS_A_TASK == len(stop) and whole.summary["steps"] == 4 * STEPS_A_TASK
    assert_equal_outcomes(whole, pieces, "stopped within a pass")
    assert whole.learner["strategies"]["ewc"]["fisher"]
    assert_different_weights(whole, finish(experiment_of({}, tmp_path / "plain", model=ROUGH), data), "without a penalty")


def test_a_pass_is_its_own_slots_alone() -> None:
    class Placed:
        def __init__(self, owner: str | None, name: str) -> None:
            self.slot = "ewc"
            self.position = type("P", (), {"phase": Phase(name, 3, owner=owner)})()

    found = {
        (owner, name): FisherPass.under_way(Placed(owner, name))  # type: ignore[arg-type]
        for owner in ("ewc", "refresh", None)
        for name in ("ewc/fisher", "refresh/fisher", "learn", "ewc/other")
    }
    assert [place for place, under_way in found.items() if under_way] == [("ewc", "ewc/fisher"), ("ewc", "refresh/fisher")]
    assert len(found) == 12


def test_two_strategies_make_a_pass_each_and_neither_disturbs_the_other(tmp_path: Path) -> None:
    one, other, alone = slot(Passing, "one"), slot(Passing, "other"), slot(Passing, "one")
    both = finish(beside(experiment_of({}, tmp_path / "both"), after=[one, other]))
    single = finish(beside(experiment_of({}, tmp_path / "alone"), after=[alone]))
    assert both.summary["steps"] == 6 * STEPS_A_TASK and single.summary["steps"] == 4 * STEPS_A_TASK
    assert first_difference(both.weights, single.weights) is None
    found, control = (outcome.learner["strategies"]["one"] for outcome in (both, single))
    assert first_difference(found, control) is None and found["found"]
