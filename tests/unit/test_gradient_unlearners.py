"""Gradient ascent, GradDiff, NPO, SimNPO: their losses against the definitions, their limits, and what they do in a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_framework import Batch, ConfigurationError, Context, Output, Plan, Term, Unlearn, forget_phase, retained_terms
from cl_framework.assembly import assemble
from cl_framework.criterion import Criterion
from cl_framework.records import RunDirectory
from cl_framework.rng import RandomStream
from cl_framework.testing.laboratory import Outcome, assert_different_weights, experiment_of, finish, first_difference, in_place_of
from strategies.grad_diff import GradDiff
from strategies.gradient_ascent import ascent
from strategies.npo import NPO, NPOConfig, npo
from strategies.simnpo import SimNPO, SimNPOConfig, simnpo

TRAINED: dict[str, Any] = {"epochs": 10, "optimizer": {"name": "sgd", "lr": 0.1}}
LENDER = {"er": {"capacity": 30}}
METHODS: dict[str, dict[str, Any]] = {
    "gradient_ascent": {"lr": 0.05},
    "grad_diff": {"lr": 0.1, "gamma": 0.5},
    "npo": {"lr": 0.05},
    "simnpo": {"lr": 0.2},
}


def gradient(of: Any, at: Tensor) -> Tensor:
    point = at.clone().requires_grad_()
    (found,) = torch.autograd.grad(of(point), point)
    return found


def test_the_phase_shows_what_is_asked_for_and_nothing_else() -> None:
    ids = torch.arange(10, 20)
    context: Any = SimpleNamespace(requested_ids=ids, batch_size=4, random=lambda purpose: RandomStream(0, purpose))
    phase = forget_phase("npo", context, lr=0.5, steps=5, epochs=2)
    assert isinstance(phase.plan, Plan) and (phase.name, phase.plan.steps, phase.task_term) == ("npo", 5, False)
    assert phase.optimizer == {"name": "sgd", "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0}
    whole = Plan.over(ids, 4, 2, RandomStream(0, "shuffle").generator())  # six steps
    assert torch.equal(phase.plan.ids, whole.ids[:18]) and torch.equal(phase.plan.ids[:10].sort().values, ids)
    assert not torch.equal(phase.plan.ids[:8], phase.plan.ids[10:18])  # shuffled anew


LIKELIHOODS = torch.tensor([-0.1, -2.0, -7.5])


def test_npo_starts_as_ascent_on_log_likelihoods() -> None:
    for beta in (0.1, 1.0, 4.0):
        assert float(npo(LIKELIHOODS, LIKELIHOODS, beta)) == pytest.approx(2 / beta * math.log(2))
        assert torch.allclose(gradient(lambda x, b=beta: npo(x, LIKELIHOODS, b), LIKELIHOODS), gradient(ascent, LIKELIHOODS))


def test_npo_is_bounded_and_stops_by_itself() -> None:
    gone = LIKELIHOODS - 1e3
    assert 0 <= float(npo(gone, LIKELIHOODS, 0.1)) < 1e-6
    assert gradient(lambda x: npo(x, LIKELIHOODS, 0.1), gone).abs().max() < 1e-6
    assert torch.allclose(gradient(ascent, gone), torch.full((3,), 1 / 3))  # the control: ascent never stops


def test_npo_with_a_small_beta_is_ascent() -> None:
    moved = LIKELIHOODS - torch.tensor([0.5, 1.0, 2.0])
    close = gradient(lambda x: npo(x, LIKELIHOODS, 1e-4), moved)
    assert torch.allclose(close, gradient(ascent, moved), atol=1e-3)
    assert not torch.allclose(gradient(lambda x: npo(x, LIKELIHOODS, 1.0), moved), gradient(ascent, moved), atol=1e-3)


def test_npo_by_its_definition() -> None:
    ratios = [math.exp(p - q) for p, q in zip((-1.0, -3.0), (-0.5, -4.0), strict=True)]
    expected = 2 / 0.3 * sum(math.log(1 + ratio**0.3) for ratio in ratios) / 2
    assert float(npo(torch.tensor([-1.0, -3.0]), torch.tensor([-0.5, -4.0]), 0.3)) == pytest.approx(expected)


def test_simnpo_by_its_definition_and_its_limit() -> None:
    nll = torch.tensor([0.2, 3.0])
    expected = -2 / 4.5 * sum(math.log(1 / (1 + math.exp(-4.5 * (value - 0.5)))) for value in nll.tolist()) / 2
    assert float(simnpo(nll, 4.5, 0.5)) == pytest.approx(expected, rel=1e-5)
    assert float(simnpo(nll + 1e3, 4.5, 0.0)) < 1e-6


def forget_term(method: str, logits: Tensor, reference: Tensor, targets: Tensor) -> float:
    """Of rows of texts, with the methods' defaults; logits (B, C, L), those of the request's start beside them, targets (B, L)."""
    strategy = SimNPO(SimNPOConfig()) if method == "simnpo" else NPO(NPOConfig())
    rows = torch.arange(len(targets))
    position, criterion = SimpleNamespace(event=Unlearn(0)), Criterion(None).rows
    context: Any = SimpleNamespace(position=position, criterion=criterion, slot=method, forward=lambda rows, at: reference)
    output: Any = SimpleNamespace(logits=logits)
    return float(strategy.loss(Batch(targets, targets, rows, rows), output, context)["forget"].value())


def texts() -> tuple[Tensor, Tensor, Tensor]:
    """Two texts of three places and four tokens: logits now, logits before, and what is asked for."""
    generator = torch.Generator().manual_seed(5)
    now, before = torch.randn(2, 2, 4, 3, generator=generator).unbind()
    return now, before, torch.randint(4, (2, 3), generator=generator)


def likelihoods(logits: Tensor, targets: Tensor) -> list[list[float]]:
    """Of each token of each text, by the definition of a softmax."""
    return [
        [float(row[token, place].exp() / row[:, place].exp().sum()) for place, token in enumerate(text)]
        for row, text in zip(logits.double(), targets.tolist(), strict=True)
    ]


def test_simnpo_takes_the_mean_over_a_texts_tokens_and_npo_their_sum() -> None:
    now, before, targets = texts()
    nll, reference = ([[-math.log(p) for p in text] for text in likelihoods(logits, targets)] for logits in (now, before))
    by_mean = sum(2 / 4.5 * math.log(1 + math.exp(-4.5 * sum(text) / 3)) for text in nll) / 2
    by_sum = sum(2 * math.log(1 + math.exp(sum(was) - sum(text))) for text, was in zip(nll, reference, strict=True)) / 2
    assert forget_term("simnpo", now, before, targets) == pytest.approx(by_mean, rel=1e-5)
    assert forget_term("npo", now, before, targets) == pytest.approx(by_sum, rel=1e-5)
    of_sums = sum(2 / 4.5 * math.log(1 + math.exp(-4.5 * sum(text))) for text in nll) / 2
    assert by_mean > 2 * of_sums  # the control


def test_a_text_said_twice_is_as_likely_to_simnpo_and_not_to_npo() -> None:
    now, before, targets = texts()
    for method, same in (("simnpo", True), ("npo", False)):
        once = forget_term(method, now, before, targets)
        for twice in ([0, 0, 1, 1, 2, 2], [0, 1, 2, 0, 1, 2]):
            assert (forget_term(method, now[..., twice], before[..., twice], targets[:, twice]) == pytest.approx(once, rel=1e-5)) == same


def accuracies(path: Path) -> list[list[float]]:
    rows = [row for row in RunDirectory(path).records() if (row["scenario"], row["metric"]) == ("class_il", "accuracy")]
    return [[row["value"] for row in rows if row["event_index"] == index] for index in range(3)]


@pytest.mark.parametrize("method", METHODS)
def test_the_task_goes_and_only_the_phase_of_the_unlearn_moves_weights(method: str, tmp_path: Path) -> None:
    stack = {method: METHODS[method], **LENDER}
    outcome = finish(experiment_of(stack, tmp_path / "all", stream="L0 L1 U0", evaluate="seen", **TRAINED))
    _, before, after = accuracies(outcome.path)
    assert before[0] > 80 and after[0] < before[0] - 30, (before, after)
    learned = finish(experiment_of(stack, tmp_path / "learned", stream="L0 L1", **TRAINED))
    plain = finish(experiment_of(LENDER, tmp_path / "plain", stream="L0 L1", **TRAINED))
    assert first_difference(learned.learner["model"], plain.learner["model"], "weights") is None
    assert_different_weights(outcome, learned, "before and after the Unlearn")
    (event,) = [row for row in RunDirectory(outcome.path).events() if row["kind"] == "unlearn"]
    assert event["steps"] > 0 and [phase["name"].split("/")[0] for phase in event["phases"]] == [method]


def loss_on(task: int, outcome: Outcome, folder: Path) -> float:
    """Of the final model on the training samples of a task."""
    learner = assemble(experiment_of({}, folder, stream="L0 L1"))
    learner.model.load_state_dict(outcome.learner["model"])
    rows = learner.read(learner.training_ids(task))
    assert isinstance(rows.inputs, Tensor)
    return float(torch.nn.functional.cross_entropy(learner.model.eval()(rows.inputs), rows.targets).detach())


@pytest.mark.parametrize("method", ["grad_diff", "simnpo"])
def test_lent_samples_hold_what_is_retained(method: str, tmp_path: Path) -> None:
    settings = {"stream": "L0 L1 U0", "evaluate": "seen", **TRAINED}
    held = finish(experiment_of({method: METHODS[method], **LENDER}, tmp_path / "held", **settings))
    loose = finish(experiment_of({method: {**METHODS[method], "alpha": 0.0}, **LENDER}, tmp_path / "loose", **settings))
    assert loss_on(1, held, tmp_path) < 0.8 * loss_on(1, loose, tmp_path)
    with pytest.raises(ConfigurationError, match=rf"strategies\.{method} needs samples of what is retained"):
        finish(experiment_of({method: {}}, tmp_path / "alone", stream="L0 L1 U0"))


class RetainedAlone(GradDiff):
    """Fine-tuning on what is retained, over the same plan."""

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        return retained_terms(batch, output, context) if isinstance(context.position.event, Unlearn) else {}


def test_no_gamma_is_fine_tuning_on_what_is_retained(tmp_path: Path) -> None:
    def left(name: str, gamma: float, kind: type[GradDiff] = GradDiff) -> dict[str, Tensor]:
        experiment = experiment_of({"grad_diff": {"gamma": gamma, "lr": 0.1}, **LENDER}, tmp_path / name, stream="L0 L1 U0", **TRAINED)
        return finish(in_place_of(experiment, kind)).weights

    tuned = left("tuned", 0.5, RetainedAlone)
    assert first_difference(left("none", 0.0), tuned) is None
    assert first_difference(left("some", 0.5), tuned) is not None


def test_steps_are_capped(tmp_path: Path) -> None:
    for cap, steps in ((3, 3), (100, 10)):
        experiment = experiment_of({"gradient_ascent": {"steps": cap, "epochs": 2}}, tmp_path / str(cap), stream="L0 L1 U0")
        assert RunDirectory(finish(experiment).path).events()[-1]["steps"] == steps


def test_the_reference_of_npo_goes_with_its_phase(tmp_path: Path) -> None:
    outcome = finish(experiment_of({"npo": {}}, tmp_path, stream="L0 L1 U0"))
    assert outcome.learner["strategies"]["npo"] == {"reference": {}}


@pytest.mark.parametrize(
    ("method", "options", "text"),
    [
        ("gradient_ascent", {"lr": 0}, "strategies.gradient_ascent.lr must be > 0, got 0.0"),
        ("grad_diff", {"gamma": -1}, "strategies.grad_diff.gamma must be >= 0, got -1.0"),
        ("npo", {"beta": 0}, "strategies.npo.beta must be > 0, got 0.0"),
        ("simnpo", {"steps": 0}, "strategies.simnpo.steps must be >= 1, got 0"),
    ],
)
def test_bad_options_are_refused_by_name(method: str, options: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=text):
        experiment_of({method: options}, tmp_path)
