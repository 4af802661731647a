"""A-GEM: the projection against its definition, what is in memory under each policy, and where in the step it acts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_framework import Closure, ConfigurationError, Context, Evaluation, Gradients, StepFn
from cl_framework.testing.laboratory import assert_different_weights, beside, experiment_of, finish, first_difference
from cl_framework.testing.neighbours import Neighbour, Oblivious, slot
from strategies.agem import AGEMConfig, project, project_all, where_movable
from tests.unit.elsewhere import ELSEWHERE, Waits, a_device_elsewhere, nothing_waits

# --- the projection ---


def test_the_projection_follows_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    conflicts = 0
    for _ in range(200):
        gradient, reference = torch.randn(2, 7, generator=generator)
        found = project(gradient, reference)
        product = sum(float(g) * float(r) for g, r in zip(gradient, reference, strict=True))
        if product >= 0:
            assert torch.equal(found, gradient)
            continue
        share = product / sum(float(r) ** 2 for r in reference)
        expected = [float(g) - share * float(r) for g, r in zip(gradient, reference, strict=True)]
        assert found.tolist() == pytest.approx(expected, abs=1e-5)
        assert float(found @ reference) == pytest.approx(0, abs=1e-5)
        conflicts += 1
    assert 60 < conflicts < 140


def test_a_reference_of_zeros_changes_nothing() -> None:
    gradient = torch.tensor([1.0, -2.0])
    assert torch.equal(project(gradient, torch.zeros(2)), gradient)


def test_tensors_are_projected_as_one_vector() -> None:
    gradients: Gradients = (torch.tensor([[1.0, 0.0]]), None, torch.tensor([2.0]), torch.tensor([5.0]))
    reference: Gradients = (torch.tensor([[-1.0, 1.0]]), torch.tensor([3.0]), torch.tensor([-1.0]), None)
    found = project_all(gradients, reference)
    assert found[0] is not None and found[2] is not None
    assert found[0].tolist() == [[0.0, 1.0]] and found[2].tolist() == [1.0]  # share -1, over the tensors that both reach
    assert found[1] is None and found[3] is gradients[3]
    assert float((found[0] * reference[0]).sum() + (found[2] * reference[2]).sum()) == 0  # type: ignore[operator]
    first, against = gradients[0], reference[0]
    assert first is not None and against is not None
    alone = project(first.flatten(), against.flatten()).view_as(first)
    assert not torch.equal(alone, found[0]), "tensor by tensor it is another projection"
    assert project_all((None,), (torch.ones(1),)) == (None,)


def test_frozen_entries_do_not_count() -> None:
    gradients, reference = (torch.tensor([1.0, 1.0]), torch.tensor([5.0])), (torch.tensor([-3.0, 2.0]), torch.tensor([1.0]))
    context = SimpleNamespace(movable=[torch.tensor([True, False]), None])
    of_all = project_all(gradients, reference)
    assert of_all is not gradients and torch.equal(torch.cat(of_all), torch.cat(gradients))  # 1*-3 + 1*2 + 5*1 >= 0: nothing to project
    found, looked = (where_movable(part, context) for part in ((torch.tensor([1.0, 9.0]), torch.tensor([2.0])), reference))
    moving = project_all(found, looked)
    assert float(torch.cat(moving) @ torch.cat(looked)) == pytest.approx(0, abs=1e-6)  # 1*-3 + 2*1 < 0, though 9*2 would outweigh it
    assert moving[0][1] == 0


def test_the_projection_never_waits_for_the_device() -> None:
    with a_device_elsewhere():
        gradients = tuple(part.to(ELSEWHERE) for part in (torch.ones(2, 3), torch.ones(4)))
        reference = tuple(part.to(ELSEWHERE) for part in (-torch.ones(2, 3), torch.zeros(4)))
        with nothing_waits():
            found = project_all(gradients, reference)
        assert found[0] is not None and not bool(found[0].any())
        with pytest.raises(Waits), nothing_waits():
            assert gradients[0].sum() > 0


# --- in a step ---


class Applied(Neighbour):
    """Innermost: notes the gradient that is applied, and that of the reference at the same parameters."""

    def step(self, inner: StepFn, context: Context) -> StepFn:
        def noted(closure: Closure) -> Evaluation:
            reference = closure.gradients("agem/reference").gradients if "agem/reference" in closure.names else None
            raw = closure.gradients().gradients
            before = [parameter.detach().clone() for parameter in context.parameters]
            evaluation = inner(closure)
            moved = [was - parameter.detach() for was, parameter in zip(before, context.parameters, strict=True)]
            applied = evaluation.gradients
            self.journal.append(tuple(None if g is None else flat(g) for g in (raw, reference, applied, moved)))
            return evaluation

        return noted


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def applied(folder: Path, options: dict[str, Any], strategies: dict[str, Any] | None = None, **settings: Any) -> list[Any]:
    spy = slot(Applied)
    settings.setdefault("optimizer", {"name": "sgd", "lr": 0.05})
    finish(beside(experiment_of({"agem": options, **(strategies or {})}, folder, stream="L0 L1 L2", **settings), after=[spy]))
    journal: list[Any] = spy.strategy_class.journal
    return journal


@pytest.mark.parametrize("others", [{}, {"derpp": {"capacity": 20}}])
def test_no_applied_gradient_points_against_the_reference(tmp_path: Path, others: dict[str, Any]) -> None:
    projected = 0
    journal = applied(tmp_path, {"capacity": 30}, others, epochs=3)
    for raw, reference, gradient, _ in journal:
        if reference is None:
            assert torch.equal(gradient, raw)
            continue
        scale = float(gradient.norm() * reference.norm())
        assert float(gradient @ reference) >= -1e-6 * max(1.0, scale)
        if float(raw @ reference) >= 0:
            assert torch.equal(gradient, raw)
        else:
            assert abs(float(gradient @ reference)) <= 1e-5 * scale + 1e-7
            projected += 1
    assert len(journal) == 45 and sum(reference is not None for _, reference, _, _ in journal) == 30
    assert projected > 5


class FreezesHalf(Neighbour):
    """Freezes half of the entries of the first weight."""

    def mask(self, context: Context) -> dict[str, bool | Tensor]:
        weight = context.model.get_parameter("body.1.weight")
        return {"body.1.weight": torch.arange(weight.numel()).view_as(weight) % 2 == 0}


def test_frozen_entries_neither_move_nor_count_in_a_step(tmp_path: Path) -> None:
    """Over what may move, no applied gradient points against the reference; a frozen entry has none where there is a reference."""
    spy, freezing = slot(Applied), slot(FreezesHalf)
    settings = {"stream": "L0 L1 L2", "epochs": 3, "optimizer": {"name": "sgd", "lr": 0.05}}
    finish(beside(experiment_of({"agem": {"capacity": 30}}, tmp_path, **settings), before=[freezing], after=[spy]))
    frozen = torch.arange(16 * 16) % 2 == 1  # the first of the flattened parameters
    projected = 0
    for raw, reference, gradient, _ in spy.strategy_class.journal:
        if reference is None:
            assert bool(gradient[:256][frozen].any())
            continue
        assert not bool(gradient[:256][frozen].any())
        movable = torch.cat([~frozen, torch.ones(len(raw) - 256, dtype=torch.bool)])
        against = float(raw[movable] @ reference[movable]) < 0
        assert float(gradient[movable] @ reference[movable]) >= -1e-6 * max(1.0, float(gradient.norm() * reference.norm()))
        assert against != torch.equal(gradient[movable], raw[movable])
        projected += against
    assert projected > 5


def test_clipping_comes_after_the_projection(tmp_path: Path) -> None:
    settings = {"optimizer": {"name": "sgd", "lr": 0.05, "clip": 0.01}, "epochs": 3}
    projected = 0
    for raw, reference, gradient, moved in applied(tmp_path, {"capacity": 30}, **settings):
        assert float(moved.norm()) == pytest.approx(0.05 * 0.01, rel=1e-2)
        if reference is not None and float(raw @ reference) < 0:
            assert float(moved @ reference) / float(moved.norm() * reference.norm()) == pytest.approx(0, abs=1e-3)
            expected = project(raw, reference)
            assert torch.allclose(moved / moved.norm(), expected / expected.norm(), atol=1e-3)
            projected += 1
        assert float(gradient.norm()) > 0
    assert projected > 5


# --- memories ---


def stored(folder: Path, options: dict[str, Any], stream: str, **settings: Any) -> dict[int, list[int]]:
    """Ids in memory after a stream, by task."""
    experiment = experiment_of({"agem": options}, folder, stream=stream, **settings)
    columns = finish(beside(experiment, after=[slot(Oblivious)])).learner["strategies"]["agem"]["memory"]["columns"]
    ids: dict[int, list[int]] = {}
    for sample, task in zip(columns["ids"].tolist(), columns["tasks"].tolist(), strict=True):
        ids.setdefault(task, []).append(sample)
    return ids


def test_each_task_that_has_ended_has_its_share(tmp_path: Path) -> None:
    ids = stored(tmp_path / "once", {"capacity": 25}, "L0 L2")
    assert {task: len(held) for task, held in ids.items()} == {0: 8, 2: 8}  # 25 // 3
    assert all(36 * task <= sample < 36 * (task + 1) for task, held in ids.items() for sample in held)
    again = stored(tmp_path / "again", {"capacity": 25}, "L0 L2 L0")
    assert {task: len(set(held)) for task, held in again.items()} == {0: 8, 2: 8}
    assert sorted(again[2]) == sorted(ids[2]) and sorted(again[0]) != sorted(ids[0]), "learned again: other samples"
    unlearned = stored(tmp_path / "unlearned", {"capacity": 25}, "L0 L2 U0 L1")
    assert {task: len(held) for task, held in unlearned.items()} == {2: 8, 1: 8}


def test_samples_of_a_task_are_drawn_at_random(tmp_path: Path) -> None:
    counts: Counter[int] = Counter()
    for seed in range(6):
        counts.update(stored(tmp_path / str(seed), {"capacity": 30}, "L1", seed=seed)[1])
    assert sum(counts.values()) == 60 and len(counts) > 20 and max(counts.values()) <= 6


def test_the_released_variant_keeps_one_batch_of_each_task(tmp_path: Path) -> None:
    ids = stored(tmp_path / "room", {"capacity": 100, "policy": "one_batch"}, "L0 L1")
    assert {task: len(set(held)) for task, held in ids.items()} == {0: 8, 1: 8}
    full = stored(tmp_path / "full", {"capacity": 10, "policy": "one_batch"}, "L0 L1 L2")
    assert sum(len(held) for held in full.values()) == 10


def test_the_reservoir_holds_the_present_task_too(tmp_path: Path) -> None:
    ids = stored(tmp_path / "reservoir", {"capacity": 500, "policy": "reservoir"}, "L0 L1")
    assert sorted(sample for held in ids.values() for sample in held) == list(range(72))
    now = applied(tmp_path / "now", {"capacity": 500, "policy": "reservoir"})
    later = applied(tmp_path / "later", {"capacity": 500})
    assert [entry[1] is not None for entry in now] == [False] + [True] * 14
    assert [entry[1] is not None for entry in later] == [False] * 5 + [True] * 10


def test_policies_differ_and_an_empty_memory_is_fine_tuning(tmp_path: Path) -> None:
    def outcome(name: str, strategies: dict[str, Any]) -> Any:
        return finish(experiment_of(strategies, tmp_path / name, stream="L0 L1 L2", epochs=2))

    plain = outcome("plain", {})
    for policy in ("task", "one_batch", "reservoir"):
        empty = outcome(f"{policy}-0", {"agem": {"capacity": 0, "policy": policy}})
        assert first_difference(empty.weights, plain.weights) is None
        assert_different_weights(plain, outcome(policy, {"agem": {"capacity": 30, "policy": policy}}), policy)


# --- refusals ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": -1}, "capacity must be >= 0, got -1"),
        ({"minibatch": 0}, "minibatch must be >= 1, got 0"),
        ({"policy": "ring"}, "policy must be one of task, one_batch, reservoir, got 'ring'"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AGEMConfig(**options)


@pytest.mark.parametrize("policy", ["task", "one_batch"])
def test_what_needs_the_end_of_a_task_is_refused_on_a_blurry_stream(tmp_path: Path, policy: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"strategies.agem.policy={policy} must know when a task ends.*Use policy=reservoir"):
        finish(experiment_of({"agem": {"policy": policy}}, tmp_path, blurry=0.2))
    assert finish(experiment_of({"agem": {"policy": "reservoir"}}, tmp_path, blurry=0.2)).summary["steps"] > 0


def test_a_memory_without_a_sample_for_each_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"strategies.agem.capacity=2 leaves no sample for each of 3 tasks. Raise it"):
        finish(experiment_of({"agem": {"capacity": 2}}, tmp_path))
    assert len(stored(tmp_path, {"capacity": 3}, "L0 L1")) == 2
