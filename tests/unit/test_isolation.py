"""Isolation: no task moves another's part, and a part that goes leaves nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cl_framework import IsolatedModel
from cl_framework.testing.laboratory import Outcome, experiment_of, finish, first_difference
from cl_framework.unlearning.deletion import DeletionLog
from strategies.isolation import Isolation

ROUGH = {"name": "mlp", "hidden": [16], "dropout": 0.2, "batch_norm": True}


def outcome(folder: Path, stream: str, strategies: dict[str, Any] | None = None, part: str = "model", seed: int = 0) -> Outcome:
    stack = {"isolation": {"part": part}, **(strategies or {})}
    return finish(experiment_of(stack, folder, stream=stream, scenario="task_il", model=ROUGH, seed=seed))


def part_of(found: Outcome, task: int) -> dict[str, Any]:
    return {name: value for name, value in found.weights.items() if name.startswith(f"parts.{task}.")}


@pytest.mark.parametrize("part", ["model", "head"])
@pytest.mark.parametrize("strategies", [{}, {"er": {"capacity": 30}}])
def test_a_task_moves_its_own_part_alone(part: str, strategies: dict[str, Any], tmp_path: Path) -> None:
    one, both = outcome(tmp_path / "a", "L0", strategies, part), outcome(tmp_path / "b", "L0 L1", strategies, part)
    assert first_difference(part_of(one, 0), part_of(both, 0)) is None  # statistics of its BatchNorm layers included
    assert first_difference(part_of(one, 1), part_of(both, 1)) is not None
    assert first_difference(part_of(one, 2), part_of(both, 2)) is None


@pytest.mark.parametrize(("part", "seed"), [("model", 0), ("model", 1), ("model", 2), ("head", 0)])
def test_what_goes_leaves_nothing_and_comes_back_as_the_first_time(part: str, seed: int, tmp_path: Path) -> None:
    def weights(stream: str) -> dict[str, torch.Tensor]:
        return outcome(tmp_path / stream.replace(" ", ""), stream, part=part, seed=seed).weights

    never, first = weights("L1"), weights("L0 L1")
    assert first_difference(weights("L0 L1 U0"), never) is None
    assert first_difference(first, never) is not None
    assert first_difference(weights("L0 L1 U0 L0"), first) is None


def test_a_frozen_body_stays_as_it_was(tmp_path: Path) -> None:
    one, other = outcome(tmp_path / "a", "L0", part="head"), outcome(tmp_path / "b", "L0 L1 L2", part="head")
    bodies = [{name: value for name, value in found.weights.items() if name.startswith("body.")} for found in (one, other)]
    assert bodies[0] and first_difference(*bodies) is None


def test_each_row_is_answered_by_its_own_part() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.zeros(1))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs + self.value

    model = IsolatedModel(Constant(), 3)
    with torch.no_grad():
        for task, part in enumerate(model.parts):
            part.value.fill_(10 * task)  # type: ignore[operator,union-attr]
    rows, tasks = torch.arange(4.0).unsqueeze(1), torch.tensor([2, 0, 2, 1])
    assert model(rows, tasks).flatten().tolist() == [20, 1, 22, 13]
    assert model(rows[:2], torch.tensor([1, 1])).flatten().tolist() == [10, 11]
    model.reset(2)
    assert model(rows, tasks).flatten().tolist() == [0, 1, 2, 13]


@pytest.mark.parametrize(("beside", "exact"), [({}, True), ({"half": {}}, True), ({"er": {"capacity": 20}}, False), ({"ewc": {}}, False)])
def test_it_is_exact_only_where_nobody_shows_or_keeps_other_tasks(beside: dict[str, Any], exact: bool, tmp_path: Path) -> None:
    """A memory changes how much the rows of a new task weigh, and so what it leaves after the old one is gone."""
    settings = {"scenario": "task_il"}
    stack = {"isolation": {}, **beside}
    gone = finish(experiment_of(stack, tmp_path / "gone", stream="L0 L1 U0", **settings))
    never = finish(experiment_of(stack, tmp_path / "never", stream="L1", **settings))
    parts = [{name: value for name, value in found.weights.items() if name.startswith("parts.1.")} for found in (gone, never)]
    if exact or "er" in beside:
        assert (first_difference(*parts) is None) is exact
    done = DeletionLog(gone.path / "deletion").done()[2]
    assert done["guarantee_achieved"] == ("exact" if exact else "approximate")


NOT_APART: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {  # beside it, settings, the stream and that without the task
    "a rate by all steps": ({"infinite_rate": {}}, {}, "L0 L1 U0 L2", "L1 L2"),
    "a rate that goes on": ({"rewarm": {"start": "current", "warmup": 0.5}}, {}, "L0 L1 U0 L2", "L1 L2"),
    "moments": ({}, {"optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "reset": "never"}}, "L0 L1 U0 L1 L2", "L1 L1 L2"),
}
APART: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "a rate by the task's steps": ({"rewarm": {"warmup": 0.5}}, {}, "L0 L1 U0 L2", "L1 L2"),
    "moments of an event": ({}, {"optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}}, "L0 L1 U0 L1 L2", "L1 L1 L2"),
    "no moments": ({}, {"optimizer": {"name": "sgd", "lr": 0.05, "reset": "never"}}, "L0 L1 U0 L1 L2", "L1 L1 L2"),
}


@pytest.mark.parametrize("name", [*NOT_APART, *APART])
def test_a_rate_or_moments_that_the_task_has_moved_are_not_exact(name: str, tmp_path: Path) -> None:
    beside, settings, stream, without = (NOT_APART | APART)[name]
    stack = {"isolation": {}, **beside}
    gone, never = (
        finish(experiment_of(stack, tmp_path / words.replace(" ", ""), stream=words, scenario="task_il", **settings))
        for words in (stream, without)
    )
    same = first_difference(gone.weights, never.weights) is None
    (done,) = DeletionLog(gone.path / "deletion").done().values()
    assert same is (name in APART)
    assert done["guarantee_achieved"] == ("exact" if name in APART else "approximate")


@pytest.mark.parametrize("answer", ["rewind", "analytic"])
def test_who_trains_again_or_never_is_exact_with_them(answer: str, tmp_path: Path) -> None:
    beside = {"infinite_rate": {}} if answer == "rewind" else {}
    moments = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "reset": "never"}
    found = finish(experiment_of({answer: {}, **beside}, tmp_path, stream="L0 L1 U0 L2", optimizer=moments))
    (done,) = DeletionLog(found.path / "deletion").done().values()
    assert done["guarantee_achieved"] == "exact"


def test_its_claims() -> None:
    assert Isolation.traits.exact and Isolation.traits.rounding == 0.0 and not Isolation.traits.unlearning_reads
