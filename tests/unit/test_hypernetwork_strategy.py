"""The hypernetwork strategy in runs: what moves and what is held, whose data is read, which figures are reported, what is forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_framework.assembly import assemble, make_benchmark
from cl_framework.benchmarks.base import BenchmarkContext
from cl_framework.benchmarks.mnist import DomainOptions, perm_mnist
from cl_framework.calls import evaluation_mode
from cl_framework.config import Experiment
from cl_framework.errors import ConfigurationError, ContractError
from cl_framework.evaluation import reported_scenarios
from cl_framework.models.hypernetwork import TaskConditionedModel, mean_squared_distance
from cl_framework.strategy import Batch, Context, Output, Phase, Strategy, Term
from cl_framework.testing.laboratory import (
    ROUGH,
    Outcome,
    assert_different_weights,
    beside,
    experiment_of,
    finish,
    first_difference,
    in_place_of,
)
from cl_framework.testing.neighbours import Neighbour, Oblivious, slot
from strategies.hypernetwork import Hypernetwork, held_tasks
from tests.unit.made_up import write_mnist

SMALL = {"embedding": 4, "chunk_embedding": 4, "hidden": [16], "chunk_size": 50}
ADAM = {"name": "adam", "lr": 0.01, "weight_decay": 0.01, "reset": "never"}


def experiment(folder: Path, options: dict[str, Any] | None = None, **settings: Any) -> Experiment:
    return experiment_of(
        {"hypernetwork": {**SMALL, **(options or {})}}, folder, **{"scenario": "task_il", "optimizer": ADAM, "epochs": 3, **settings}
    )


def model_of(outcome: Outcome, like: Experiment) -> TaskConditionedModel:
    """The model with the weights that a run left."""
    model = assemble(like).model
    assert isinstance(model, TaskConditionedModel)
    model.load_state_dict(outcome.weights)
    return model


def shared(outcome: Outcome) -> dict[str, Tensor]:
    return {name: value for name, value in outcome.weights.items() if name.startswith("hypernetwork")}


def embedding(outcome: Outcome, task: int) -> Tensor:
    return outcome.weights[f"embeddings.{task}"]


# --- what moves ---


@pytest.mark.slow
@pytest.mark.parametrize("replay", [False, True])
def test_old_embeddings_are_bit_identical_after_later_tasks(tmp_path: Path, replay: bool) -> None:
    """With weight decay and moments that live on, and with old tasks replayed."""

    def run(name: str, stream: str) -> Outcome:
        alone = experiment(tmp_path / name, stream=stream, model=ROUGH)
        with_memory = experiment_of(
            {"hypernetwork": SMALL, "er": {"capacity": 20}},
            tmp_path / name,
            stream=stream,
            model=ROUGH,
            scenario="task_il",
            optimizer=ADAM,
            epochs=3,
        )
        return finish(with_memory if replay else alone)

    first, both, again = run("first", "L0"), run("both", "L0 L1"), run("again", "L0 L1 L0")
    assert torch.equal(embedding(first, 0), embedding(both, 0))
    assert torch.equal(embedding(first, 2), embedding(both, 2)), "a task never learned"
    assert not torch.equal(embedding(first, 1), embedding(both, 1))
    assert not torch.equal(embedding(both, 0), embedding(again, 0)) and torch.equal(embedding(both, 1), embedding(again, 1))
    assert first_difference(shared(first), shared(both)) is not None
    mean = "target.model.body.2.running_mean"
    same = torch.equal(first.weights[mean][0], both.weights[mean][0])
    assert same is not replay, "statistics of an old task move when its rows are replayed, and only then"
    assert not torch.equal(first.weights[mean][1], both.weights[mean][1])


def test_without_a_weight_it_is_a_hypernetwork_trained_on_one_task_after_another(tmp_path: Path) -> None:
    class Unheld(Hypernetwork):
        def loss(self, batch: Batch, output: Output, context: Context) -> dict[str, Term]:
            return {}

    free = finish(experiment(tmp_path / "free", {"beta": 0.0}))
    unheld = finish(in_place_of(experiment(tmp_path / "unheld", {"beta": 0.0}), Unheld))
    assert first_difference(free.weights, unheld.weights) is None
    assert_different_weights(free, finish(experiment(tmp_path / "held")), "beta=0 against the default")


def test_a_large_weight_holds_old_weights_while_new_ones_move(tmp_path: Path) -> None:
    like = experiment(tmp_path / "like")
    before = model_of(finish(experiment(tmp_path / "first", stream="L0")), like)

    def moved(beta: float) -> tuple[float, float]:
        after = model_of(finish(experiment(tmp_path / str(beta), {"beta": beta})), like)
        old = mean_squared_distance(after.weights_of([0]), before.weights_of([0])).item()
        new = mean_squared_distance(after.weights_of([1]), before.weights_of([1])).item()
        return old, new

    (free, _), (held, new) = moved(0.0), moved(100.0)
    assert held < free / 30, f"the old task's weights moved by {held}, without the regulariser by {free}"
    assert new > 10 * held


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_term_is_the_distance_of_a_sampled_subset(tmp_path: Path, reduction: str) -> None:
    """Of `sampled_tasks` old tasks, others in other steps, however often the closure is asked; none in the first task."""
    seen: list[tuple[int, tuple[str, ...], list[int], float, float]] = []

    class Noting(Hypernetwork):
        def loss(self, batch: Batch, output: Output, context: Context) -> dict[str, Term]:
            terms = dict(super().loss(batch, output, context))
            if terms:
                model = context.model
                assert isinstance(model, TaskConditionedModel)
                wanted = model.weights_of
                asked: list[list[int]] = []

                def noted(tasks: Sequence[int], shared: Mapping[str, Tensor] | None = None, *, raw: bool = False) -> Tensor:
                    asked.append(list(tasks))
                    return wanted(tasks, shared, raw=raw)

                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(model, "weights_of", noted)
                    value = terms["held"].value().item()
                again = super().loss(batch, output, context)["held"].value().item()
                assert len(asked) == 2 and asked[0] == asked[1] and value == again
                brute = [(wanted([task]) - wanted([task], self.before)).square() for task in asked[0]]
                total = sum(float(part.detach().sum() if reduction == "sum" else part.detach().mean()) for part in brute) / len(brute)
                seen.append((context.position.event_index, tuple(terms), sorted(asked[0]), value, total))
            return terms

    settings: dict[str, Any] = {"benchmark": {"name": "synthetic", "tasks": 5, "train_per_class": 18, "test_per_class": 4, "seed": 0}}
    finish(in_place_of(experiment(tmp_path, {"reduction": reduction}, stream="L0-4", epochs=8, **settings), Noting))
    assert {event for event, *_ in seen} == {1, 2, 3, 4} and {terms for _, terms, *_ in seen} == {("held",)}
    for event, _, tasks, value, total in seen:
        assert len(set(tasks)) == min(2, event) and max(tasks) < event
        assert value == pytest.approx(total, rel=1e-4)
    of_last = {tuple(tasks) for event, _, tasks, *_ in seen if event == 4}
    assert len(of_last) == 6, "forty steps draw from the six pairs of four tasks"
    first_of_event = next(value for event, *_, value, _ in seen if event == 1)
    assert first_of_event == 0.0 and max(value for *_, value, _ in seen) > 0.0


def test_no_data_of_an_old_task_is_read(tmp_path: Path) -> None:
    reads = [0, 0, 0]

    class Counted:
        in_memory = True

        def __init__(self, source: Any, task: int) -> None:
            self.source, self.task, self.targets = source, task, source.targets

        def __len__(self) -> int:
            return len(self.source)

        def read(self, rows: Tensor) -> Any:
            reads[self.task] += len(rows)
            return self.source.read(rows)

    def read_in(stream: str) -> list[int]:
        reads[:] = [0, 0, 0]
        asked = experiment(tmp_path / stream.replace(" ", ""), stream=stream)
        benchmark = make_benchmark(asked)
        counted = replace(benchmark, train=[Counted(source, task) for task, source in enumerate(benchmark.train)])
        finish(asked, counted)
        return list(reads)

    one, three = read_in("L0"), read_in("L0 L1 L2")
    assert three[0] == one[0] and three[1] > one[1]


# --- what is forgotten ---


def test_forgetting_drops_the_snapshot_and_a_tasks_statistics(tmp_path: Path) -> None:
    def run(name: str, stream: str) -> Outcome:
        beside_it = [slot(Oblivious)] if "fraction" in stream else []
        return finish(beside(experiment(tmp_path / name, stream=stream, model=ROUGH), after=beside_it))

    known, gone, partly = run("known", "L0 L1"), run("gone", "L0 L1 U0"), run("partly", "L0 L1 U0:fraction=0.5@seed1")
    assert known.learner["strategies"]["hypernetwork"]["before"]
    assert not gone.learner["strategies"]["hypernetwork"]["before"] and not partly.learner["strategies"]["hypernetwork"]["before"]
    for name, fresh in (("running_mean", 0.0), ("running_var", 1.0)):
        before, after = (outcome.weights[f"target.model.body.2.{name}"] for outcome in (known, gone))
        assert bool((after[0] == fresh).all()) and not bool((before[0] == fresh).all())
        assert torch.equal(before[1], after[1])
        assert torch.equal(before, partly.weights[f"target.model.body.2.{name}"])


def test_what_was_unlearned_is_no_live_task(tmp_path: Path) -> None:
    held: dict[int, set[int]] = {}

    class Noting(Neighbour):
        def commit(self, batch: Batch, output: Output, context: Context) -> None:
            held.setdefault(context.position.event_index, set()).update(held_tasks(context))

    finish(beside(experiment(tmp_path, stream="L0 L1 U0 L2 L0"), after=[slot(Noting)]))
    assert held == {0: set(), 1: {0}, 3: {1}, 4: {1, 2}}


# --- what is reported, what is refused ---


def test_there_is_no_class_incremental_figure(tmp_path: Path) -> None:
    told, untold = experiment(tmp_path / "told"), experiment_of({}, tmp_path / "untold", scenario="task_il")
    assert reported_scenarios(assemble(told)) == ("task_il",)
    assert reported_scenarios(assemble(untold)) == ("task_il", "class_il")
    assert {scenario for *_, scenario, _ in finish(told).records} == {"task_il"}
    assert {scenario for *_, scenario, _ in finish(untold).records} == {"task_il", "class_il"}


@pytest.mark.parametrize("scenario", ["class_il", "domain_il"])
def test_scenarios_without_a_task_id_are_refused(tmp_path: Path, scenario: str) -> None:
    with pytest.raises(ConfigurationError, match=f"strategies.hypernetwork does not work with scenario={scenario}; it allows: task_il."):
        assemble(experiment(tmp_path, scenario=scenario))


def test_a_task_conditioned_model_in_a_stack_that_declares_nothing_is_refused(tmp_path: Path) -> None:
    undeclared = type("Undeclared", (Hypernetwork,), {"traits": replace(Hypernetwork.traits, needs_task_id=False)})
    assert issubclass(undeclared, Strategy)
    with pytest.raises(ContractError, match="none in this stack declares"):
        finish(in_place_of(experiment(tmp_path), undeclared))


def test_permuted_digits_can_be_run_with_the_task_known(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    context = BenchmarkContext(root=tmp_path, download=False, seed=0, scenario="task_il")
    benchmark = perm_mnist(DomainOptions(tasks=2), context)
    assert benchmark.scenarios == ("domain_il", "task_il")
    run = experiment(tmp_path / "runs", benchmark={"name": "perm_mnist", "tasks": 2}, data={"root": str(tmp_path)}, model={"name": "mlp"})
    outcome = finish(run)
    assert [(event, task, scenario) for event, task, scenario, _ in outcome.records if event >= 0] == [
        (event, task, "task_il") for event in range(2) for task in range(2)
    ]
    assert outcome.weights["target.model.body.2.running_mean"].shape[0] == 2 if run.run.model == ROUGH else True


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"beta": -1.0}, "beta must be >= 0, got -1.0"),
        ({"hidden": [0]}, "hidden must be >= 1, got 0"),
        ({"reduction": "max"}, "reduction must be one of sum, mean, got 'max'"),
        ({"chunk_size": 0}, "chunk_size must be >= 1, got 0"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        experiment(tmp_path, options)


# --- what others ask of the model ---


def test_a_snapshot_answers_and_squared_gradients_are_those_of_single_rows(tmp_path: Path) -> None:
    checked: list[int] = []

    class Looking(Neighbour):
        teacher: dict[str, Tensor]

        def end(self, context: Context) -> Sequence[Phase]:
            model, parameters = context.model, [*context.model.parameters()]
            task = context.position.event.task
            rows = context.read(context.ids_of(task)[:5])
            if task == 0:
                self.teacher = context.snapshot()
                self.said = context.forward(rows, self.teacher)
                self.rows = rows
            else:
                assert torch.equal(context.forward(self.rows, self.teacher), self.said)
                assert not torch.allclose(context.forward(self.rows, context.snapshot()), self.said)
            squares = dict(zip(context.parameter_names, context.squared_gradients(rows), strict=True))
            brute = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
            with evaluation_mode(model):
                for row in range(5):
                    assert isinstance(rows.inputs, Tensor)
                    logits = model(rows.inputs[row : row + 1], rows.tasks[row : row + 1])
                    one = replace(rows, targets=rows.targets[row : row + 1], task_of_row=rows.tasks[row : row + 1])
                    gradients = torch.autograd.grad(context.criterion(logits, one).sum(), parameters, allow_unused=True)
                    for name, gradient in zip(brute, gradients, strict=True):
                        brute[name] += 0 if gradient is None else gradient.square()
            for name, value in squares.items():
                torch.testing.assert_close(value, brute[name], rtol=1e-3, atol=1e-6)
            assert float(squares[f"embeddings.{task}"].sum()) > 0
            checked.append(task)
            return ()

    finish(beside(experiment(tmp_path, model=ROUGH), after=[slot(Looking)]))
    assert checked == [0, 1]
