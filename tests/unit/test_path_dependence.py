"""Path dependence: the linear identity that the audit's distances must reproduce, and networks after six orders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_framework import run
from cl_framework.stream import Stream
from cl_framework.testing.laboratory import experiment_of
from cl_framework.unlearning.audit import audit
from cl_framework.unlearning.fast import FAIL, NOT_RUN, PASS
from cl_framework.unlearning.orders import Route, mean_pairwise_distance, path_dependence

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


@pytest.mark.parametrize("steps", [0, 1, 7, 40])
def test_two_paths_drift_apart_as_the_linear_identity_says(steps: int) -> None:
    """Yu et al. 2025: Delta_t = (I + M)^t Delta_0 with M = (2 eta / k) X_U' X_U, whatever the labels."""
    parts, test = problem(3)
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


def test_one_order_says_nothing_of_others() -> None:
    route = Route(Stream.parse("L0 U0"), {"M1": 50.0, "M4": None, "M6": 1.0, "M9": None}, *(torch.zeros(2, 3),) * 3)
    assert path_dependence([route]).verdict == NOT_RUN
    other = Route(Stream.parse("L0 L1 U0"), {**route.figures, "M1": 10.0}, *(torch.zeros(2, 3),) * 3)
    found = path_dependence([route, other])
    assert (found.value, found.verdict) == (40.0, FAIL)
    assert path_dependence([route, route]).verdict == PASS


def orders_of(folder: Path, unlearner: dict[str, Any]) -> dict[str, float]:
    settings: dict[str, Any] = {"benchmark": {"name": "split_digits"}, "epochs": 10, "batch_size": 32, "optimizer": {"lr": 0.1}}
    experiment = experiment_of({"er": {"capacity": 100}, **unlearner}, folder, stream="L0 L1 L2 U1", **settings)
    (request,) = audit(run(experiment).path, "full", seeds=1, orders=6)["requests"]
    assert len({row["stream"] for row in request["orders"]}) == 6  # all that three tasks have
    details: dict[str, float] = next(figure["details"] for figure in request["figures"] if figure["name"] == "M7")
    return details


@pytest.mark.slow
def test_a_network_is_unlearned_differently_after_each_of_six_orders(tmp_path: Path) -> None:
    local = orders_of(tmp_path / "local", {"gradient_ascent": {"lr": 0.05, "steps": 60, "epochs": 10}})
    exact = orders_of(tmp_path / "exact", {"rewind": {}})
    assert exact["M1_range"] == exact["M6_range"] == 0.0 and exact["distance_after"] == exact["distance_oracle"] > 0
    assert local["M6_range"] > 0.1 and local["distance_after"] != pytest.approx(local["distance_oracle"])
