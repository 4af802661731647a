"""Analytic: the head is the ridge solution on the live data, whatever was learned and unlearned on the way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_framework import ConfigurationError, Context, ContractError, Phase, Plan
from cl_framework.assembly import assemble, make_benchmark, make_stack
from cl_framework.benchmarks.base import Benchmark
from cl_framework.cli import main
from cl_framework.testing.laboratory import Outcome, assert_different_weights, beside, experiment_of, finish, first_difference
from cl_framework.testing.neighbours import Neighbour, slot
from cl_framework.unlearning.audit import audit
from strategies import analytic
from strategies.analytic import solved, statistics

RIDGE = 0.1
EQUAL = 1e-8  # relative


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def outcome(folder: Path, stream: str, **settings: Any) -> Outcome:
    return finish(experiment_of({"analytic": {"ridge": RIDGE}}, folder, stream=stream, model={"name": "mlp", "hidden": [64]}, **settings))


def head(found: Outcome) -> Tensor:
    state = found.learner["strategies"]["analytic"]
    return solved(state["gram"], state["moment"], RIDGE)


def joint(folder: Path, found: Outcome, live: dict[int, Tensor]) -> Tensor:
    """The definition: argmin |X W - Y|^2 + ridge |W|^2 over the rows of each task that are live, by one least-squares problem."""
    benchmark: Benchmark = make_benchmark(experiment_of({"analytic": {}}, folder))
    weights = found.weights
    inputs, labels = [], []
    for task, rows in live.items():
        items, targets, _ = benchmark.read(benchmark.ids_of(task)[rows])
        inputs.append(benchmark.transform(items, None))
        labels.append(targets)
    assert all(isinstance(part, Tensor) for part in inputs)
    flat = torch.cat([part.flatten(1).double() for part in inputs if isinstance(part, Tensor)])
    features = torch.relu(flat @ weights["body.1.weight"].double().T + weights["body.1.bias"].double())
    x = torch.cat([features, torch.ones(len(features), 1)], 1)
    y = torch.nn.functional.one_hot(torch.cat(labels), benchmark.num_classes).double()
    stacked = torch.cat([x, RIDGE**0.5 * torch.eye(x.shape[1], dtype=torch.float64)])
    return torch.linalg.lstsq(stacked, torch.cat([y, y.new_zeros(x.shape[1], y.shape[1])])).solution


def all_rows(task: int) -> Tensor:
    return torch.arange(36)


@pytest.mark.parametrize(
    ("stream", "tasks"),
    [("L0 L1 L2", (0, 1, 2)), ("L0 L1 U0 L2", (1, 2)), ("L2 L0 U2 L1 L2 U0", (1, 2)), ("L0 L0 L1", (0, 1)), ("L0 U0 L0", (0,))],
)
def test_the_head_is_the_joint_solution_on_the_live_tasks(stream: str, tasks: tuple[int, ...], tmp_path: Path) -> None:
    found = outcome(tmp_path, stream)
    assert relative(head(found), joint(tmp_path, found, {task: all_rows(task) for task in tasks})) < EQUAL
    wrong = joint(tmp_path, found, {task: all_rows(task) for task in ((0, 2) if tasks != (0, 2) else (0, 1))})
    assert relative(head(found), wrong) > 1e-3


def test_classes_and_samples_leave_as_well(tmp_path: Path) -> None:
    benchmark = make_benchmark(experiment_of({"analytic": {}}, tmp_path))
    listed = tmp_path / "ids.txt"
    listed.write_text(" ".join(str(int(one)) for one in benchmark.ids_of(0)[:5]))
    found = outcome(tmp_path, f"L0 L1 U1:class=3 U0:ids={listed} L2")
    kept = (benchmark.train[1].targets != 3).nonzero().flatten()
    wanted = joint(tmp_path, found, {0: all_rows(0)[5:], 1: kept, 2: all_rows(2)})
    assert relative(head(found)[:, [0, 1, 2, 4, 5]], wanted[:, [0, 1, 2, 4, 5]]) < EQUAL
    counts = found.learner["strategies"]["analytic"]["counts"]
    assert int(counts[:2].sum()) == 31 and counts[2:].tolist() == [18, 0, 18, 18]


def test_phases_of_others_cannot_change_the_features_under_the_sums(tmp_path: Path) -> None:
    class Training(Neighbour):
        """Trains on the task once more when it is over."""

        def end(self, context: Context) -> Sequence[Phase]:
            ids = context.ids_of(context.position.event.task)
            return [Phase("again", Plan.over(ids, 8, 1, context.random("shuffle").generator()))]

    def trained(strategy: str) -> Outcome:
        return finish(beside(experiment_of({strategy: {}}, tmp_path / strategy, stream="L0"), after=[slot(Training)]))

    start = assemble(experiment_of({"analytic": {}}, tmp_path, stream="L0")).model.state_dict()
    assert first_difference(trained("analytic").weights, start) is None
    once = finish(experiment_of({"do_nothing": {}}, tmp_path / "once", stream="L0"))
    assert_different_weights(trained("do_nothing"), once, "the further phase")


@pytest.mark.parametrize(("other", "parts"), [("half", "mask"), ("ewc", "loss, step"), ("er", "draw"), ("gdumb", "rate, draw, loss, step")])
def test_a_part_in_steps_that_are_never_applied_is_refused(other: str, parts: str, tmp_path: Path) -> None:
    text = (
        "strategies.analytic.step: nothing of the model is trained, "
        f"so what {other} does in steps ({parts}) would have no effect. Remove {other}."
    )
    with pytest.raises(ConfigurationError) as caught:
        make_stack(experiment_of({"analytic": {}, other: {}}, tmp_path))
    assert str(caught.value) == text


def test_what_is_gone_already_is_not_taken_away_twice(tmp_path: Path) -> None:
    found = outcome(tmp_path, "L0 L1 U1:class=3 U1 L2")
    assert relative(head(found), joint(tmp_path, found, {0: all_rows(0), 2: all_rows(2)})) < EQUAL


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_fifty_cycles_of_unlearning_and_relearning(seed: int, tmp_path: Path) -> None:
    cycles = "L0 L1" + " U0 L0" * 50
    never, gone = outcome(tmp_path / "never", "L1 L0", seed=seed), outcome(tmp_path / "gone", "L1", seed=seed)
    for found, wanted in ((cycles, never), (f"{cycles} U0", gone)):
        difference = relative(head(outcome(tmp_path, found, evaluate="seen", seed=seed)), head(wanted))
        print(f"seed {seed}: after 50 cycles, at {found[-2:]}, {difference:.1e} (relative) from a head that never went through them")
        assert difference < EQUAL
    assert relative(head(never), head(gone)) > 1e-3
    assert relative(head(never), head(outcome(tmp_path / "other", "L1 L2", seed=seed))) > 1e-3


@pytest.mark.slow
def test_it_is_audited_though_nothing_of_the_model_is_trained(tmp_path: Path) -> None:
    (request,) = audit(outcome(tmp_path, "L0 L1 U0 L2").path, seeds=2)["requests"]
    assert request["unlearned"] and {figure["verdict"] for figure in request["figures"]} <= {"PASS", "NOT RUN"}
    curves = request["relearning"]  # whoever relearns trains the network, which no data has touched
    assert curves["unlearned"] == curves["oracle"] == curves["before"] and curves["unlearned"][-1] > curves["unlearned"][0]


def test_samples_are_taken_back_whatever_stood_beside_them(tmp_path: Path) -> None:
    """In float32 the features of a row depend on the size of its batch, and fractions are read in other batches than tasks."""
    stream = "L0 L1 " + " ".join(f"U{task}:fraction=0.3@seed{seed}" for seed in range(3) for task in (0, 1))
    found = outcome(tmp_path, stream)
    gone = {}
    experiment = experiment_of({"analytic": {}}, tmp_path, stream=stream)
    learner = assemble(experiment)
    for task in (0, 1):
        ids = torch.cat([learner.forgotten(event).ids for event in learner.stream.unlearns if event.task == task])
        gone[task] = (~torch.isin(learner.benchmark.ids_of(task), ids)).nonzero().flatten()
    assert relative(head(found), joint(tmp_path, found, gone)) < EQUAL


def test_the_order_does_not_count(tmp_path: Path) -> None:
    first = head(outcome(tmp_path / "a", "L0 L1 L2 U1"))
    assert relative(head(outcome(tmp_path / "b", "L1 L2 U1 L0")), first) < EQUAL
    assert relative(head(outcome(tmp_path / "c", "L1 L2 U2 L0")), first) > 1e-3


def test_chunks_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = head(outcome(tmp_path / "whole", "L0 L1 U0 L2"))
    monkeypatch.setattr(analytic, "CHUNK", 7)
    assert relative(head(outcome(tmp_path / "parts", "L0 L1 U0 L2")), whole) < EQUAL


def test_a_class_without_samples_is_never_answered(tmp_path: Path) -> None:
    found = outcome(tmp_path, "L0 L1 L2 U2:class=4", epochs=1)
    rows = [row for row in (found.path / "records.jsonl").read_text().splitlines() if '"test:class=4"' in row and '"event_index": 3' in row]
    accuracies = [row for row in rows if '"metric": "accuracy"' in row]
    assert accuracies and all('"value": 0.0' in row for row in accuracies)


def test_taking_away_what_was_never_learned_is_an_error() -> None:
    generator = torch.Generator().manual_seed(0)
    gram, moment, _ = statistics(torch.randn(40, 5, generator=generator), torch.arange(40) % 3, 3)
    other, _, _ = statistics(3 * torch.randn(40, 5, generator=generator), torch.arange(40) % 3, 3)
    with pytest.raises(ContractError, match="have lost samples that they never held"):
        solved(gram - other, moment, RIDGE)
    eigenvalues = torch.linalg.eigvalsh(torch.linalg.inv(gram + RIDGE * torch.eye(6)))
    assert bool((eigenvalues > 0).all()) and bool((eigenvalues <= 1 / RIDGE + 1e-12).all())


def test_statistics_by_their_definition() -> None:
    features, targets = torch.randn(7, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 2, 2, 0, 2, 0, 0])
    gram, moment, counts = statistics(features, targets, 4)
    x = torch.cat([features.double(), torch.ones(7, 1)], 1)
    assert torch.allclose(gram, sum((row.outer(row) for row in x), torch.zeros(4, 4, dtype=torch.float64)))
    assert torch.allclose(moment[:, 2], x[[1, 2, 4]].sum(0)) and counts.tolist() == [4, 0, 3, 0]


def test_the_model_is_not_trained(tmp_path: Path) -> None:
    one, other = outcome(tmp_path / "a", "L0"), outcome(tmp_path / "b", "L0 L1 L2")
    assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())


def test_a_model_without_features_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trial.yaml"
    path.write_text("benchmark: {name: synthetic, tasks: 2}\nstrategies: {analytic: {ridge: 0}}\n")
    assert main(["run", str(path), f"out={tmp_path}"]) == 2
    assert "strategies.analytic.ridge" in capsys.readouterr().err
