"""Synaptic intelligence: the path integral against its definition, under any optimizer and neighbour; importance, penalty, forgetting."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_framework import Closure, Context, Evaluation, StepFn, WeightedSquares
from cl_framework.testing.laboratory import ROUGH, Outcome, beside, experiment_of, finish, first_difference
from cl_framework.testing.neighbours import Neighbour, Oblivious, slot, snapshot
from strategies.si import SIConfig, clipped, consolidated

# --- the equations ---


def test_importance_is_the_gain_of_a_path_over_its_length() -> None:
    path = torch.tensor([2.0, -1.0, 0.0, 0.5])
    moved = torch.tensor([1.0, 3.0, 2.0, 0.0])
    assert consolidated(path, moved, 0.5).tolist() == pytest.approx([2 / 1.5, 0.0, 0.0, 1.0])
    assert consolidated(path, moved, 2.0).tolist() == pytest.approx([2 / 3, 0.0, 0.0, 0.25])


def test_what_is_left_of_a_gradient_without_the_penalty() -> None:
    generator = torch.Generator().manual_seed(0)
    theta, anchor, importance = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    leaf = theta.clone().requires_grad_()
    (raw,) = torch.autograd.grad(leaf.sin().sum(), leaf)
    (whole,) = torch.autograd.grad(leaf.sin().sum() + 0.7 * (importance * (leaf - anchor) ** 2).sum(), leaf)
    (found,) = WeightedSquares([theta], [anchor], [importance]).plus_gradient((whole,), -0.7)
    assert found is not None
    torch.testing.assert_close(found, raw, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(found, whole, rtol=0.01)


def test_clipping_is_by_entry() -> None:
    first, nothing, third = clipped((torch.tensor([-3.0, 0.5]), None, torch.tensor([1.5])))
    assert first is not None and third is not None and nothing is None
    assert first.tolist() == [-1.0, 0.5] and third.tolist() == [1.0]


# --- the path ---


class Watched(Neighbour):
    """Right inside of SI: notes the weights before and after, the objective's gradient without the penalty, and SI's state around it."""

    c = 0.0

    def step(self, inner: StepFn, context: Context) -> StepFn:
        def noted(closure: Closure) -> Evaluation:
            before = weights_of(context)
            whole, penalty = closure.gradients().gradients, None
            assert whole is not None
            if "si/penalty" in closure.names:
                penalty = closure.gradients("si/penalty")
                own = penalty.gradients
                assert own is not None
                whole = tuple(g - self.c * p for g, p in zip(whole, own, strict=True))  # type: ignore[operator]
            state = snapshot(context.learner.stack.state_dict()["si"])  # type: ignore[attr-defined]
            evaluation = inner(closure)
            self.journal.append(
                {
                    "event": context.position.event_index,
                    "before": before,
                    "after": weights_of(context),
                    "raw": dict(zip(context.parameter_names, whole, strict=True)),
                    "state": state,
                    "rate": context.learning_rate,
                    "penalty": penalty,
                }
            )
            return evaluation

        return noted


def weights_of(context: Context) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in zip(context.parameter_names, context.parameters, strict=True)}


def watch(folder: Path, stack: Mapping[str, Any], stream: str = "L0 L1", **settings: Any) -> tuple[list[dict[str, Any]], Outcome]:
    """A run with someone right inside of `si`, wherever that stands."""
    watched = slot(Watched)
    watched.strategy_class.c = stack["si"].get("c", 1.0)  # type: ignore[attr-defined]
    experiment = experiment_of(stack, folder, stream=stream, **settings)
    place = list(stack).index("si") + 1
    inside = replace(experiment, strategies=experiment.strategies[:place])
    outside = experiment.strategies[place:]
    whole = beside(inside, after=[watched, *outside])
    outcome = finish(whole)
    return watched.strategy_class.journal, outcome


SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.5, "weight_decay": 0.001}
OPTIMIZERS = {
    "plain": {"name": "sgd", "lr": 0.05},
    "momentum": SGD,
    "clip": {**SGD, "clip": 0.1},
    "adam": {"name": "adam", "lr": 0.01},
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_path_is_minus_the_raw_gradient_times_the_real_displacement(optimizer: str, tmp_path: Path) -> None:
    journal, _ = watch(tmp_path, {"si": {"c": 2.0}}, optimizer=OPTIMIZERS[optimizer])
    assert len(journal) == 10
    path: dict[str, Tensor] = {}
    swept = as_if_plain = 0
    for number, entry in enumerate(journal):
        if number in (0, 5):
            path = {name: torch.zeros_like(value) for name, value in entry["before"].items()}
            assert first_difference(entry["state"]["start"], entry["before"]) is None
        for name, expected in path.items():
            torch.testing.assert_close(entry["state"]["path"][name], expected, rtol=1e-4, atol=1e-7)
            moved = entry["after"][name] - entry["before"][name]
            as_if_plain += torch.allclose(moved, -entry["rate"] * entry["raw"][name], rtol=1e-3, atol=1e-7)
            path[name] = expected - entry["raw"][name] * moved
            swept += 1
    assert swept == 40
    assert as_if_plain < 10 or optimizer == "plain", "rate times gradient is another displacement"


def test_the_penalty_is_no_part_of_the_path(tmp_path: Path) -> None:
    """With a heavy penalty the applied gradient is another one than the raw one."""
    journal, _ = watch(tmp_path, {"si": {"c": 20.0, "xi": 0.1}}, optimizer=OPTIMIZERS["plain"])
    differing = 0
    for entry in journal[6:]:
        applied = {name: (entry["before"][name] - entry["after"][name]) / 0.05 for name in entry["before"]}
        differing += sum(not torch.allclose(applied[name], entry["raw"][name], rtol=0.05, atol=1e-4) for name in applied)
    assert differing >= 8


@pytest.mark.parametrize("scenario", ["with a memory", "refresh outside"])
def test_the_path_is_right_beside_neighbours(scenario: str, tmp_path: Path) -> None:
    """What refresh moves before SI is called is not counted; replayed terms are part of the loss that is followed."""
    stacks: dict[str, dict[str, Any]] = {
        "with a memory": {"si": {"c": 2.0}, "derpp": {"capacity": 20}},
        "refresh outside": {"refresh": {"gamma": 0.03}, "si": {"c": 2.0}},
    }
    journal, _ = watch(tmp_path, stacks[scenario])
    stream = [entry for entry in journal if entry["state"]["path"]]
    assert len(stream) == 10
    before = {name: torch.zeros_like(value) for name, value in stream[0]["before"].items()}
    with_the_ascent = 0
    for one, other in pairwise(stream[:5]):
        for name in before:
            gained = other["state"]["path"][name] - one["state"]["path"][name]
            torch.testing.assert_close(gained, -one["raw"][name] * (one["after"][name] - one["before"][name]), rtol=1e-4, atol=1e-7)
            from_here_to_there = other["before"][name] - one["before"][name]
            with_the_ascent += torch.allclose(gained, -one["raw"][name] * from_here_to_there, rtol=1e-3, atol=1e-7)
    assert with_the_ascent == (16 if scenario == "with a memory" else 0), "the ascent's own displacement is another one"


def test_with_refresh_inside_the_whole_displacement_is_followed(tmp_path: Path) -> None:
    """The gradient is still that of the weights where it is taken, without the penalty's there."""
    outside, _ = watch(tmp_path / "outside", {"refresh": {"gamma": 0.03}, "si": {"c": 2.0}})
    inside, _ = watch(tmp_path / "inside", {"si": {"c": 2.0}, "refresh": {"gamma": 0.03}})
    first = {name: value - inside[0]["before"][name] for name, value in inside[0]["after"].items()}
    for name, value in first.items():
        torch.testing.assert_close(outside[0]["after"][name], inside[0]["after"][name])
        assert not torch.allclose(value, outside[0]["after"][name] - outside[0]["before"][name], rtol=0.01)
    assert first_difference(inside[1]["state"]["path"], outside[1]["state"]["path"]) is not None


# --- importance and penalty ---


def test_importance_adds_up_over_tasks_and_the_anchors_are_the_last_weights(tmp_path: Path) -> None:
    journal, outcome = watch(tmp_path, {"si": {"c": 2.0, "xi": 0.3}}, stream="L0 L1 L2", model=ROUGH)
    total: dict[str, Tensor] = {}
    swept = 0
    for task in range(3):
        last, begun = journal[5 * task + 4], journal[5 * task]["before"]
        for name, start in begun.items():
            path = last["state"]["path"][name] - last["raw"][name] * (last["after"][name] - last["before"][name])
            gained = path.clamp(min=0) / ((last["after"][name] - start) ** 2 + 0.3)
            total[name] = total.get(name, torch.zeros_like(start)) + gained
            swept += 1
    state = outcome.learner["strategies"]["si"]
    assert swept == 3 * 6 and not state["path"] and not state["start"]
    for name, value in total.items():
        torch.testing.assert_close(state["importance"][name], value, rtol=1e-3, atol=1e-6)
        assert bool((state["importance"][name] >= 0).all()) and bool((value > 0).any())
        assert torch.equal(state["anchors"][name], outcome.weights[name])
    assert not any("running" in name or "num_batches" in name for name in state["importance"])


def test_the_penalty_and_its_gradient_follow_the_equation(tmp_path: Path) -> None:
    journal, _ = watch(tmp_path, {"si": {"c": 3.0}}, stream="L0 L1 L2")
    swept = 0
    for number, entry in enumerate(journal):
        state, found = entry["state"], entry["penalty"]
        if number < 5:
            assert found is None and not state["importance"]
            continue
        moved = {name: entry["before"][name] - state["anchors"][name] for name in state["anchors"]}
        value = sum(float((state["importance"][name] * part.square()).sum()) for name, part in moved.items())
        assert float(found.loss) == pytest.approx(value, rel=1e-4, abs=1e-9)
        assert (value == 0) == (number in (5, 10)), "where a task begins the weights are where they are held"
        for (name, part), gradient in zip(moved.items(), found.gradients, strict=True):
            torch.testing.assert_close(gradient, 2 * state["importance"][name] * part, rtol=1e-4, atol=1e-8)
            assert number not in (5, 10) or not bool(gradient.any())
            swept += 1
    assert swept == 40


def test_entries_that_never_move_gain_no_importance(tmp_path: Path) -> None:
    journal, outcome = watch(tmp_path, {"si": {}}, stream="L0", scenario="task_il", optimizer=OPTIMIZERS["plain"])
    importance = outcome.learner["strategies"]["si"]["importance"]["head.weight"]
    assert len(journal) == 5 and bool((importance[2:] == 0).all()) and bool((importance[:2] > 0).any())


# --- the released form ---


def test_the_released_path_is_rate_times_the_square_of_the_clipped_gradient(tmp_path: Path) -> None:
    journal, _ = watch(tmp_path, {"si": {"c": 20.0, "xi": 0.1, "variant": "released"}}, optimizer=OPTIMIZERS["plain"])
    other = 0
    for one, following in pairwise(journal[5:10]):
        for name, before in one["before"].items():
            gained = following["state"]["path"][name] - one["state"]["path"][name]
            applied = (before - one["after"][name]) / 0.05
            torch.testing.assert_close(gained, 0.05 * applied.square(), rtol=1e-2, atol=1e-6)
            assert bool((applied.abs() <= 1 + 1e-3).all())
            other += not torch.allclose(gained, one["raw"][name] * (before - one["after"][name]), rtol=0.01, atol=1e-5)
    assert other >= 4, "the penalty's gradient is part of it"
    paper, _ = watch(tmp_path / "paper", {"si": {"c": 20.0, "xi": 0.1}}, optimizer=OPTIMIZERS["plain"])
    assert first_difference(paper[4]["state"]["path"], journal[4]["state"]["path"]) is not None


def test_the_released_form_clips_what_is_applied(tmp_path: Path) -> None:
    def largest(variant: str) -> float:
        settings: dict[str, Any] = {"optimizer": {"name": "sgd", "lr": 20.0}}
        journal, _ = watch(tmp_path / variant, {"si": {"variant": variant}}, stream="L0", **settings)
        return max(float((entry["after"][name] - entry["before"][name]).abs().max()) / 20 for entry in journal for name in entry["before"])

    assert largest("released") == pytest.approx(1, rel=1e-3) and largest("paper") > 1.1


# --- cost, forgetting, refusals ---


def test_it_costs_no_pass(tmp_path: Path) -> None:
    def passes(stack: dict[str, Any], name: str) -> list[tuple[int, int]]:
        events = finish(experiment_of(stack, tmp_path / name, stream="L0 L1")).path / "events.jsonl"
        rows = [json.loads(line) for line in events.read_text().splitlines()]
        return [(row["forward_passes"], row["backward_passes"]) for row in rows]

    assert passes({"si": {}}, "si") == passes({}, "plain") == [(5, 5), (5, 5)]
    assert passes({"refresh": {}}, "refresh") != passes({}, "again")


def test_after_an_unlearning_nothing_is_held_until_the_next_task_has_ended(tmp_path: Path) -> None:
    def state(stream: str) -> dict[str, Any]:
        experiment = experiment_of({"si": {}}, tmp_path / stream.replace(" ", "").replace(":", "-"), stream=stream)
        found: dict[str, Any] = finish(beside(experiment, after=[slot(Oblivious)])).learner["strategies"]["si"]
        return found

    assert state("L0 L1")["importance"] and state("L0 L1")["anchors"]
    for event in ("U0", "U1", "U0:fraction=0.5@seed1"):
        assert state(f"L0 L1 {event}") == {"path": {}, "start": {}, "importance": {}, "anchors": {}}
    assert state("L0 L1 U0 L2")["importance"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"c": -1.0}, "c must be >= 0, got -1.0"),
        ({"xi": 0.0}, "xi must be > 0, got 0.0"),
        ({"variant": "mas"}, "variant must be one of paper, released, got 'mas'"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SIConfig(**options)
