"""Selective synaptic dampening: selection and factor against the definition, importances against autograd, and whole runs."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_framework import ConfigurationError, Stream
from cl_framework.testing.laboratory import (
    Outcome,
    assert_different_weights,
    assert_equal_outcomes,
    augmented,
    experiment_of,
    finish,
    finish_in_pieces,
    first_difference,
)
from strategies.ssd import dampen, unheld, weighted_mean

GENERATOR = torch.Generator().manual_seed(3)
WEIGHTS, FORGET, KNOWN = (torch.randn(40, generator=GENERATOR), *torch.rand(2, 40, generator=GENERATOR))


def brute(weight: float, forget: float, known: float, alpha: float, strength: float) -> float:
    return weight * min(strength * known / forget, 1) if forget > alpha * known else weight


def outcome(folder: Path, stream: str, options: dict[str, Any] | None = None, **settings: Any) -> Outcome:
    return finish(experiment_of({"ssd": options or {}}, folder, stream=stream, epochs=5, **settings))


@pytest.mark.parametrize(("alpha", "strength"), [(1.0, 0.5), (2.0, 1.0), (0.5, 3.0)])
def test_dampening_by_its_definition(alpha: float, strength: float) -> None:
    expected = [brute(*values, alpha, strength) for values in zip(WEIGHTS.tolist(), FORGET.tolist(), KNOWN.tolist(), strict=True)]
    found = dampen(WEIGHTS, FORGET, KNOWN, alpha, strength)
    assert found.tolist() == pytest.approx(expected)
    selected = alpha * KNOWN < FORGET
    assert 0 < int(selected.sum()) < 40
    assert torch.equal(found[~selected], WEIGHTS[~selected])
    assert (found[selected].abs() <= WEIGHTS[selected].abs() * min(1, strength / alpha) + 1e-6).all()
    assert (found * WEIGHTS >= 0).all()


def test_what_only_the_forgotten_needs_becomes_zero_and_nothing_where_alpha_is_infinite() -> None:
    assert dampen(WEIGHTS, FORGET, torch.zeros(40), 10.0, 1.0).eq(0).all()
    assert torch.equal(dampen(WEIGHTS, FORGET, KNOWN, float("inf"), 1.0), WEIGHTS)
    assert torch.equal(dampen(WEIGHTS, torch.zeros(40), KNOWN, 1.0, 1.0), WEIGHTS)


def test_a_larger_alpha_selects_fewer() -> None:
    chosen = [set((alpha * KNOWN < FORGET).nonzero().flatten().tolist()) for alpha in (0.5, 1.0, 2.0, 4.0)]
    assert all(later < earlier for earlier, later in pairwise(chosen))


def test_known_importance_weighs_tasks_by_their_samples() -> None:
    importances = {0: {"w": torch.tensor([1.0])}, 1: {"w": torch.tensor([4.0])}, 2: {"v": torch.tensor([9.0])}}
    counts = {0: 10, 1: 30, 2: 5}
    mean = weighted_mean(importances, counts, "w")
    assert mean is not None and float(mean) == pytest.approx((10 * 1 + 30 * 4) / 40)
    assert weighted_mean(importances, counts, "u") is None


def test_importances_are_squares_of_batch_gradients(tmp_path: Path) -> None:
    settings = {"stream": "L0", "batch_size": 36}  # one batch: the whole task
    found = outcome(tmp_path, **settings)
    kept = found.learner["strategies"]["ssd"]["importances"][0]
    for name, expected in squares_at(found, tmp_path / "again", settings)[0].items():
        assert torch.allclose(kept[name], expected, rtol=1e-4, atol=1e-10), name
    assert found.learner["strategies"]["ssd"]["counts"] == {0: 36}


def test_importances_of_the_last_learn_are_all_taken_at_its_weights(tmp_path: Path) -> None:
    settings = {"stream": "L0 L1", "batch_size": 36}  # one batch a task
    each, last = (outcome(tmp_path / how, options={"measured": how}, **settings) for how in ("each_learn", "last_learn"))
    assert first_difference(each.learner["model"], last.learner["model"], "weights") is None
    earlier, own = (found.learner["strategies"]["ssd"]["importances"] for found in (each, last))
    assert first_difference(earlier[1], own[1], "importance") is None
    assert first_difference(earlier[0], own[0], "importance") is not None  # the control: those were taken at the weights of then
    assert last.learner["strategies"]["ssd"]["counts"] == each.learner["strategies"]["ssd"]["counts"] == {0: 36, 1: 36}
    for task, found in squares_at(last, tmp_path / "again", settings).items():
        for name, expected in found.items():
            assert torch.allclose(own[task][name], expected, rtol=1e-4, atol=1e-10), (task, name)


def squares_at(found: Outcome, folder: Path, settings: dict[str, Any]) -> dict[int, dict[str, Tensor]]:
    """The squared gradient of the mean loss of each task learned, at the weights that a run ended with."""
    from cl_framework.assembly import assemble

    learner = assemble(experiment_of({"ssd": {}}, folder, **settings))
    learner.model.load_state_dict(found.learner["model"])
    learner.model.eval()
    squares = {}
    for task in found.learner["strategies"]["ssd"]["importances"]:
        rows = learner.read(learner.training_ids(task))
        assert isinstance(rows.inputs, Tensor)
        learner.model.zero_grad()
        torch.nn.functional.cross_entropy(learner.model(rows.inputs), rows.targets).backward()
        named = [(name, parameter.grad) for name, parameter in learner.model.named_parameters()]
        squares[task] = {name: gradient.square() for name, gradient in named if gradient is not None}
        assert len(squares[task]) == len(named)
    return squares


def test_joint_training_asks_for_importances_of_the_last_learn(tmp_path: Path) -> None:
    """It teaches nothing before: those of earlier tasks would be of untrained weights."""

    def joined(name: str, options: dict[str, Any]) -> Outcome:
        return finish(experiment_of({"joint": {}, "ssd": options}, tmp_path / name, stream="L0 L1 U0", epochs=5))

    text = (
        r"^strategies\.joint\.plan: ssd keeps what each task .* use cumulative, or set .* wait for it \(as measured=last_learn of ssd\)\.$"
    )
    with pytest.raises(ConfigurationError, match=text):
        joined("each", {})
    found = joined("last", {"measured": "last_learn", "alpha": 1.0})
    inert = joined("inert", {"measured": "last_learn", "alpha": 1e12})
    assert set(found.learner["strategies"]["ssd"]["importances"]) == {1}
    before, after = (last_accuracies(outcome) for outcome in (inert, found))
    assert before[0] > 80 and before[1] > 80 and after[0] < before[0] - 20


def last_accuracies(found: Outcome) -> list[float]:
    """Accuracy of each task after the last event, in percent."""
    return list(found.summary["accuracy_matrix"][-1])


def test_a_run_stopped_while_it_measures_all_tasks_goes_on(tmp_path: Path) -> None:
    def made(name: str) -> Any:
        return experiment_of({"ssd": {"measured": "last_learn", "alpha": 1.0}}, tmp_path / name, stream="L0 L1 U1", epochs=1)

    undisturbed = finish(made("undisturbed"), augmented(made("undisturbed")))
    pieces, stops = finish_in_pieces(made("pieces"), lambda step: True, augmented(made("pieces")))
    assert stops == undisturbed.summary["steps"] > 10
    assert_equal_outcomes(undisturbed, pieces, "stopped before each step")
    other = finish(experiment_of({"ssd": {"alpha": 1.0}}, tmp_path / "other", stream="L0 L1 U1", epochs=1), augmented(made("other")))
    assert_different_weights(undisturbed, other, "importances of each Learn")


def test_a_request_before_importances_are_taken_is_refused(tmp_path: Path) -> None:
    text = (
        r"ssd\.measured=last_learn: U0 \(event 1\) comes before the last Learn \(event 2\), when importances are taken\. Set measured=each"
    )
    with pytest.raises(ConfigurationError, match=text):
        outcome(tmp_path, "L0 U0 L1", {"measured": "last_learn"})
    assert not list(tmp_path.iterdir())


def test_a_request_moves_weights_once_and_drops_what_was_known_of_the_task(tmp_path: Path) -> None:
    before, after = outcome(tmp_path / "before", "L0 L1"), outcome(tmp_path / "after", "L0 L1 U0", {"alpha": 1.0})
    changed = {name: after.learner["model"][name] != value for name, value in before.learner["model"].items()}
    assert any(part.any() for part in changed.values()) and not all(part.all() for part in changed.values())
    for name, part in changed.items():
        then, now = before.learner["model"][name], after.learner["model"][name]
        assert (now.abs() <= then.abs() + 1e-7).all() and (now[part] * then[part] >= 0).all()
    assert set(after.learner["strategies"]["ssd"]["importances"]) == {1}
    assert set(before.learner["strategies"]["ssd"]["importances"]) == {0, 1}
    inert = outcome(tmp_path / "inert", "L0 L1 U0", {"alpha": 1e12})
    assert first_difference(inert.learner["model"], before.learner["model"], "weights") is None


def test_what_no_other_task_needs_goes_wholly(tmp_path: Path) -> None:
    """Only the task that goes was learned: nobody's importance is zero, and all that it needs is dampened to nothing."""
    before, after = outcome(tmp_path / "before", "L0"), outcome(tmp_path / "after", "L0 U0", {"strength": 1.0, "alpha": 1.0})
    needed = before.learner["strategies"]["ssd"]["importances"][0]
    swept = 0
    for name, importance in needed.items():
        assert bool((after.learner["model"][name][importance > 0] == 0).all()), name
        swept += int((importance > 0).sum())
    assert swept > 100


def test_with_all_as_reference_the_share_of_the_forgotten_bounds_alpha(tmp_path: Path) -> None:
    """Only task 0 was learned: I_f = I_D then, as the batches are the same, and alpha >= 1 selects nothing."""
    settings = {"batch_size": 36}
    before = outcome(tmp_path / "before", "L0", **settings)
    bounded = outcome(tmp_path / "bounded", "L0 U0", {"alpha": 1.0001, "reference": "all"}, **settings)
    assert first_difference(bounded.learner["model"], before.learner["model"], "weights") is None
    below = outcome(tmp_path / "below", "L0 U0", {"alpha": 0.99, "strength": 0.5, "reference": "all"}, **settings)
    assert first_difference(below.learner["model"], before.learner["model"], "weights") is not None


@pytest.mark.parametrize(
    ("stream", "reference", "refused"),
    [
        ("L0 U0:fraction=0.1@seed1 U0:fraction=0.1@seed2", "retained", (2, 1)),
        ("L0 L1 L2 U0:class=0 L3 U0:fraction=0.1@seed2", "retained", (5, 3)),
        ("L0 L1 U0:class=0 L0 U0:fraction=0.1@seed2", "retained", None),  # its importance is taken anew
        ("L0 L1 U0:class=0 U0", "retained", None),  # that of the task is left out of I_D anyway
        ("L0 L1 U0:class=0 U0", "all", (3, 2)),
        ("L0 L1 U0:class=0 U0 L0 U0:class=1", "retained", None),
        ("L0 L1 U0:class=0 U1", "retained", (3, 2)),  # nobody's importance is left, and the rest of task 0 is known
        ("L0 L1 L2 U0:class=0 U1", "retained", None),
        ("L0 L1 U0:class=0 U1:class=2", "retained", None),
        ("L0 L1 L2 U1 L3 U0:class=1 U3:fraction=0.1@seed7 L4", "retained", None),
        ("L0 U0", "retained", None),
        ("L0 U0:class=0 U0", "retained", None),
        ("L0-3 U1 U2 U3", "all", None),
    ],
)
def test_a_request_that_nothing_would_spare_the_rest_from_is_found(stream: str, reference: str, refused: tuple[int, int] | None) -> None:
    assert unheld(Stream.parse(stream, 5), reference) == refused


def test_a_second_request_for_a_part_of_a_task_is_refused_before_any_data_are_read(tmp_path: Path) -> None:
    nowhere: dict[str, Any] = {"benchmark": {"name": "split_mnist"}, "data": {"root": str(tmp_path / "nowhere")}}
    with pytest.raises(ConfigurationError) as refused:
        outcome(tmp_path, "L0 L1 U0:class=0 U0:fraction=0.1@seed2 L2", **nowhere)
    assert str(refused.value) == (
        "strategies.ssd.reference: U0:fraction=0.1@seed2 (event 3) would spare nothing of task 0, whose importance went with U0:class=0 "
        "(event 2). Ask for both at once, in one request, learn task 0 again between them, or choose another unlearner, such as npo."
    )
    for stream, options, text in (
        ("L0 L1 U0:class=0 U0", {"reference": "all"}, "Ask for U0 alone, learn task 0 again"),
        ("L0 L1 U0:class=0 U1", {}, "Ask for U1 before U0:class=0, learn task 0 again"),
    ):
        with pytest.raises(ConfigurationError, match=text):
            outcome(tmp_path, stream, options)
    assert not list(tmp_path.iterdir())
    assert outcome(tmp_path, "L0 L1 U0:class=0 L0 U0:fraction=0.1@seed2").summary["stream"].endswith("seed2")


def test_bad_options_are_refused_by_name(tmp_path: Path) -> None:
    for options, text in (
        ({"alpha": 0}, "ssd.alpha must be > 0"),
        ({"reference": "some"}, "ssd.reference must be one of retained, all"),
        ({"measured": "now"}, "ssd.measured must be one of each_learn, last_learn"),
    ):
        with pytest.raises(ConfigurationError, match=text):
            experiment_of({"ssd": options}, tmp_path)
