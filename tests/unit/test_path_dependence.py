"""Path dependence: the linear identity that the audit's distances must reproduce, and networks after six orders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cl_framework import Context, Done, Learn, Strategy, Traits, Unlearn, register, run
from cl_framework.assembly import assemble, make_benchmark
from cl_framework.learner import Learner
from cl_framework.stream import Stream
from cl_framework.testing.laboratory import experiment_of
from cl_framework.testing.neighbours import NoOptions
from cl_framework.unlearning.audit import audit
from cl_framework.unlearning.fast import FAIL, INVALID, NOT_RUN, PASS
from cl_framework.unlearning.judging import LEAST
from cl_framework.unlearning.oracle import live_again
from cl_framework.unlearning.orders import Route, distinct_orders, mean_pairwise_distance, path_dependence

FEATURES, RIDGE, STEP = 12, 0.5, 0.05


def stage(x: Tensor, y: Tensor, start: Tensor) -> Tensor:
    """Ridge regression pulled towards where the stage before has led: argmin |X w - y|^2 + mu |w - start|^2."""
    return torch.linalg.solve(x.T @ x + RIDGE * torch.eye(FEATURES, dtype=x.dtype), x.T @ y + RIDGE * start)


def ascended(weights: Tensor, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """Gradient ascent on the mean squared error of what is to be unlearned."""
    for _ in range(steps):
        weights = weights + STEP * 2 / len(x) * x.T @ (x @ weights - y)
    return weights


def problem(seed: int) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def data(rows: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(rows, FEATURES, generator=generator, dtype=torch.float64)
        return x, torch.randn(rows, generator=generator, dtype=torch.float64)

    return {"a": data(20), "b": data(20), "forget": data(5)}, data(30)[0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("steps", [0, 1, 7, 40])
def test_two_paths_drift_apart_as_the_linear_identity_says(steps: int, seed: int) -> None:
    """Yu et al. 2025: Delta_t = (I + M)^t Delta_0 with M = (2 eta / k) X_U' X_U, whatever the labels."""
    parts, test = problem(seed)
    start = torch.zeros(FEATURES, dtype=torch.float64)
    ab = stage(*parts["b"], stage(*parts["a"], start))
    ba = stage(*parts["a"], stage(*parts["b"], start))
    x, y = parts["forget"]
    growth = torch.eye(FEATURES, dtype=torch.float64) + 2 * STEP / len(x) * x.T @ x
    told = torch.linalg.matrix_power(growth, steps) @ (ab - ba)
    after = [ascended(weights, x, y, steps) for weights in (ab, ba)]
    assert torch.allclose(after[0] - after[1], told, rtol=1e-10, atol=1e-12)
    measured = mean_pairwise_distance([(test @ weights).unsqueeze(1) for weights in after])
    assert measured == pytest.approx(float((test @ told).square().mean()), rel=1e-10)
    if steps:
        assert measured > mean_pairwise_distance([(test @ weights).unsqueeze(1) for weights in (ab, ba)])


@register("fake_stages")
class Stages(Strategy):
    """The linear model of the identity as a learner in a stream: a ridge stage an event, and ascent to unlearn, both in float64."""

    Config = NoOptions
    traits = Traits(unlearns=frozenset({"task"}), unlearning_reads=frozenset({"forget"}), no_neutral="the weights are solved for")
    steps = 7

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.solution: Tensor | None = None  # (D, C)

    def mask(self, context: Context) -> dict[str, bool]:
        return {name: False for name, _ in context.model.named_parameters()}

    def end(self, context: Context) -> tuple[()]:
        if isinstance(context.position.event, Learn):
            x, y = design(context, context.ids_of(context.position.event.task))
            start = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64) if self.solution is None else self.solution
            ridge = x.T @ x + RIDGE * torch.eye(x.shape[1], dtype=torch.float64)
            self._set(torch.linalg.solve(ridge, x.T @ y + RIDGE * start), context)
        return ()

    def unlearn(self, event: Unlearn, context: Context) -> Done:
        assert self.solution is not None
        self._set(ascended(self.solution, *design(context, context.requested_ids), self.steps), context)
        return Done()

    @torch.no_grad()
    def _set(self, solution: Tensor, context: Context) -> None:
        self.solution = solution
        for name, parameter in context.model.named_parameters():
            parameter.copy_(solution.T) if name.endswith("weight") else parameter.zero_()

    def state_dict(self) -> dict[str, Any]:
        return {"solution": self.solution}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.solution = state["solution"]


def design(context: Context, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and one-hot targets of samples, (N, D) and (N, C) float64; inputs at a tenth, so that ascent stays small."""
    rows = context.read(ids)
    assert isinstance(rows.inputs, Tensor)
    return rows.inputs.flatten(1).double() / 10, functional.one_hot(rows.targets, context.num_classes).double()


@pytest.mark.parametrize("seed", range(3))
def test_the_audit_s_orders_of_a_stream_drift_apart_as_the_linear_identity_says(seed: int, tmp_path: Path) -> None:
    """Six orders of three tasks, lived through as the audit does: each pair ends where the identity takes it."""
    settings = {"model": {"name": "mlp", "hidden": []}, "epochs": 1}
    data = [f"benchmark.seed={seed}"]  # the weights are solved for: of the run's own seed nothing depends
    experiment = experiment_of({"fake_stages": {}}, tmp_path, stream="L0 L1 L2 U1", overrides=data, **settings)
    benchmark = make_benchmark(experiment)
    found: list[tuple[Tensor, Tensor]] = []
    orders = distinct_orders(Stream.parse("L0 L1 L2 U1", 3), 3, 6, experiment.run.seed)
    assert len(orders) == 6
    for order in orders:
        solutions: dict[int, Tensor] = {}

        def look(index: int, learner: Learner, solutions: dict[int, Tensor] = solutions) -> None:
            solutions[index] = learner.stack.state_dict()["fake_stages"]["solution"]  # type: ignore[index]

        live_again(replace(experiment, run=replace(experiment.run, stream=str(order))), benchmark, {}, look)
        found.append((solutions[2], solutions[3]))
    items, _, _ = benchmark.read(assemble(experiment, benchmark).training_ids(1))
    x = benchmark.transform(items, None).flatten(1).double() / 10
    growth = torch.eye(x.shape[1], dtype=torch.float64) + 2 * STEP / len(x) * x.T @ x
    grown, once_more = (torch.linalg.matrix_power(growth, Stages.steps + more) for more in (0, 1))
    pairs = list(combinations(found, 2))
    assert len(pairs) == 15
    for (before, after), (other_before, other_after) in pairs:
        assert float((before - other_before).norm()) > 1e-3, "orders lead elsewhere"
        torch.testing.assert_close(after - other_after, grown @ (before - other_before), rtol=1e-9, atol=1e-12)
        assert not torch.allclose(after - other_after, once_more @ (before - other_before), rtol=1e-9, atol=1e-12)
    apart = [mean_pairwise_distance([x @ one[moment] for one in found]) for moment in (0, 1)]
    told = mean([float((x @ grown @ (one[0] - other[0])).square().sum(1).mean()) for one, other in pairs])
    print(f"seed {seed}: {apart[0]:.3f} between orders before, {apart[1]:.3f} after, {abs(apart[1] / told - 1):.0e} from the identity")
    assert apart[1] == pytest.approx(told, rel=1e-9) and apart[1] > apart[0]


def test_the_distance_is_bounded_from_below() -> None:
    """d_t >= sigma^2 |P Delta_0|^2 (1 + rho)^2t / (4 m) from some step on."""
    parts, test = problem(4)
    start = torch.zeros(FEATURES, dtype=torch.float64)
    delta = stage(*parts["b"], stage(*parts["a"], start)) - stage(*parts["a"], stage(*parts["b"], start))
    x, _ = parts["forget"]
    growth = 2 * STEP / len(x) * x.T @ x
    projector = torch.linalg.pinv(x) @ x
    seen = projector @ delta
    rate = float(seen @ growth @ seen / seen.square().sum())
    sigma = float(torch.linalg.svdvals(test @ projector)[: len(x)].min())
    for steps in range(60, 100):
        drift = torch.linalg.matrix_power(torch.eye(FEATURES, dtype=torch.float64) + growth, steps) @ delta
        distance = float((test @ drift).square().mean())
        assert distance >= sigma**2 * float(seen.square().sum()) * (1 + rate) ** (2 * steps) / (4 * len(test))


def test_the_distance_of_models() -> None:
    zero, one = torch.zeros(3, 2), torch.tensor([[1.0, 1.0], [0.0, 0.0], [2.0, 0.0]])
    assert mean_pairwise_distance([zero, one]) == pytest.approx((2 + 0 + 4) / 3)
    assert mean_pairwise_distance([zero, zero, one]) == pytest.approx(2 / 3 * 2)
    assert mean_pairwise_distance([one]) == 0.0


def routes(apart: float, oracles_apart: float = 0.0, gaps: Sequence[float] = (0.0, 0.0, 0.0), void: str = "") -> list[Route]:
    """After three orders, all answers of the third moved by `apart` from one class to another, and those of its oracle likewise."""
    even = torch.tensor([[0.5, 0.5, 0.0]])
    moved, oracle_moved = (even + by * torch.tensor([[1.0, -1.0, 0.0]]) for by in (apart, oracles_apart))
    answers = [(even, even), (even, even), (moved, oracle_moved)]
    return [
        Route(Stream.parse("L0 L1 U1", 2), {"M1": gap, "M4": None, "M6": 1.0, "M9": None}, even, after, oracle, void)
        for gap, (after, oracle) in zip(gaps, answers, strict=True)
    ]


def test_one_order_says_nothing_of_others() -> None:
    assert path_dependence(routes(0.0)[:1]).verdict == NOT_RUN
    assert path_dependence(routes(0.0)[:2]).verdict == PASS


def test_models_that_end_apart_fail_though_none_of_them_knows_the_task() -> None:
    """The distance of a pair is 2 x 0.3^2, and two of the three pairs have it; all lie at the oracle's accuracy."""
    found = path_dependence(routes(0.3))
    assert found.verdict == FAIL and found.value == found.details["distance_after"] == pytest.approx(2 / 3 * 0.18)
    assert found.details["M1_range"] == found.details["distance_oracle"] == 0.0 and found.bound == LEAST["M7"]


def test_they_may_lie_as_far_apart_as_models_that_never_saw_the_data() -> None:
    found = path_dependence(routes(0.3, oracles_apart=0.3))
    assert found.verdict == PASS and found.bound == pytest.approx(0.18) and found.details["distance_oracle"] == found.value
    assert path_dependence(routes(0.4, oracles_apart=0.3)).verdict == FAIL  # 2 / 3 x 0.32 > 0.18
    assert (path_dependence(routes(0.06)).verdict, path_dependence(routes(0.07)).verdict) == (PASS, FAIL)  # 4 / 3 x 0.07^2 > 0.005


def test_accuracy_that_depends_on_the_order_fails_as_well() -> None:
    assert path_dependence(routes(0.0, gaps=(50.0, 10.0, 10.0))).verdict == FAIL
    assert path_dependence(routes(0.0, gaps=(2.0, -2.0, 0.0))).verdict == PASS
    assert path_dependence(routes(0.0, gaps=(2.1, -2.0, 0.0))).verdict == FAIL


def test_a_request_that_is_void_after_some_order_does_not_pass() -> None:
    found = path_dependence(routes(0.0, void="it was not known just before"))
    assert (found.verdict, found.why) == (INVALID, "after L0 L1 U1: it was not known just before")
    assert path_dependence(routes(0.3, void="the model does not know what it retains")).verdict == FAIL


def test_models_that_have_diverged_leave_an_audit_that_can_be_read(tmp_path: Path) -> None:
    ascent = {"gradient_ascent": {"lr": 1e30, "epochs": 3}}
    path = run(experiment_of(ascent, tmp_path, stream="L0 L1 L2 U1", epochs=5)).path
    audit(path, "full", seeds=1)
    (request,) = json.loads((path / "audit" / "full.json").read_text())["requests"]
    figure = next(one for one in request["figures"] if one["name"] == "M7")
    assert (figure["value"], figure["verdict"]) == (None, INVALID)
    assert figure["why"] == "after L0 L1 L2 U1: the model has diverged: its answers are not numbers"
    assert [row["M6"] for row in request["orders"]] == [None, None, None]


def over_orders(folder: Path, unlearner: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """Verdict and details of M7 over all six orders of three tasks of split digits."""
    settings: dict[str, Any] = {"benchmark": {"name": "split_digits"}, "epochs": 10, "batch_size": 32, "optimizer": {"lr": 0.1}}
    experiment = experiment_of({"er": {"capacity": 100}, **unlearner}, folder, stream="L0 L1 L2 U1", **settings)
    (request,) = audit(run(experiment).path, "full", seeds=1, orders=6)["requests"]
    assert len({row["stream"] for row in request["orders"]}) == 6
    figure = next(figure for figure in request["figures"] if figure["name"] == "M7")
    return figure["verdict"], figure["details"]


@pytest.mark.slow
def test_a_network_is_unlearned_differently_after_each_of_six_orders(tmp_path: Path) -> None:
    """Ascent until nothing is left: no order knows the task, and yet where they end lies farther apart than retraining leads."""
    verdict, local = over_orders(tmp_path / "local", {"gradient_ascent": {"lr": 0.05, "steps": 60, "epochs": 10}})
    assert local["M1_range"] == 0.0 and local["distance_after"] > 3 * local["distance_oracle"] and verdict == FAIL
    verdict, exact = over_orders(tmp_path / "exact", {"rewind": {}})
    assert exact["M1_range"] == exact["M6_range"] == 0.0 and exact["distance_after"] == exact["distance_oracle"] > 0 and verdict == PASS
