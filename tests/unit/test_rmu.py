"""RMU: its direction and its loss against the definitions, what holds the rest, and what is left when the request is done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_framework import ConfigurationError, Context
from cl_framework.assembly import assemble
from cl_framework.criterion import IGNORED
from cl_framework.records import RunDirectory
from cl_framework.strategy import Batch, Output, Rows, Setting
from cl_framework.testing.laboratory import (
    ROUGH,
    Outcome,
    assert_different_weights,
    assert_equal_outcomes,
    augmented,
    experiment_of,
    finish,
    finish_in_pieces,
    first_difference,
    in_place_of,
)
from strategies.rmu import RMU, RMUConfig, mean_square, random_direction
from tests.unit.test_text_models import experiment as text_experiment

TRAINED: dict[str, Any] = {"epochs": 10, "optimizer": {"name": "sgd", "lr": 0.1}}
LENDER = {"er": {"capacity": 30}}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the maths ---


def test_the_direction_is_a_positive_unit_vector() -> None:
    drawn = random_direction(50, generator())
    raw = torch.rand(50, generator=generator())
    assert torch.allclose(drawn, raw / raw.square().sum().sqrt())
    assert float(drawn.norm()) == pytest.approx(1.0) and float(drawn.min()) >= 0
    assert not torch.allclose(drawn, random_direction(50, generator(1)))


def test_the_loss_by_its_definition() -> None:
    features, direction = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.0, 0.5]]), torch.tensor([0.6, 0.8])
    by_hand = sum((row[d] - 2 * direction[d]) ** 2 for row in features.tolist() for d in range(2)) / (3 * 2)
    classes = torch.zeros(3, dtype=torch.int64)
    assert float(mean_square(features, 2 * direction, classes)) == pytest.approx(float(by_hand))
    assert float(mean_square((2 * direction).expand(3, 2), 2 * direction, classes)) == 0.0
    assert float(mean_square(features, features, classes)) == 0.0 and float(mean_square(features, features.flip(0), classes)) > 0


def test_prompt_and_padding_contribute_nothing() -> None:
    features, direction = torch.randn(2, 4, 3, generator=generator()), torch.tensor([0.6, 0.8, 0.0])
    targets = torch.tensor([[IGNORED, 5, 6, IGNORED], [7, IGNORED, IGNORED, IGNORED]])
    by_hand = torch.stack([features[0, 1], features[0, 2], features[1, 0]]).sub(direction).square().mean()
    assert float(mean_square(features, direction, targets)) == pytest.approx(float(by_hand))
    assert float(mean_square(features, direction, targets.clamp(min=0))) != pytest.approx(float(by_hand))
    changed = features.clone()
    changed[:, 3] = 99.0
    assert torch.equal(mean_square(changed, direction, targets), mean_square(features, direction, targets))


def test_of_texts_it_is_the_mean_over_the_places_that_ask_picked_by_index() -> None:
    features = torch.randn(3, 5, 4, generator=generator()).requires_grad_()
    wanted, targets = torch.randn(3, 5, 4, generator=generator(1)), torch.randint(2, (3, 5), generator=generator(2))
    targets[torch.rand(3, 5, generator=generator(3)) < 0.4] = IGNORED
    places = targets != IGNORED
    assert 0 < int(places.sum()) < 15
    picked = (features - wanted)[places].square().mean()
    masked = mean_square(features, wanted, targets)
    assert torch.allclose(masked, picked)
    slopes = [torch.autograd.grad(value, features, retain_graph=True)[0] for value in (masked, picked)]
    assert torch.allclose(*slopes) and float(slopes[0][~places].abs().max()) == 0.0
    assert not torch.allclose((features - wanted).square().mean(), picked)  # the control: over all places it is another value
    assert float(mean_square(features.detach(), wanted, torch.full((3, 5), IGNORED))) == 0.0


# --- in a run ---


class Spied(RMU):
    """Works its terms out anew, row by row, from the model itself."""

    journal: list[dict[str, Any]]

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Any]:
        terms = super().loss(batch, output, context)
        if terms:
            assert self._direction is not None
            features = context.model.features(batch.inputs).detach()  # type: ignore[operator]
            wanted = (self.config.c * self._direction).tolist()
            rows = features.tolist()
            forget = sum((row[d] - wanted[d]) ** 2 for row in rows for d in range(len(wanted))) / (len(rows) * len(wanted))
            (draw,) = batch.draws["er"].values()
            lent = draw.rows
            own = context.model.features(lent.inputs).detach()  # type: ignore[operator]
            then = reference_features(self._reference, lent)
            self.journal.append(
                {
                    "terms": {name: float(term.value().detach()) for name, term in terms.items()},
                    "weights": {name: term.weight for name, term in terms.items()},
                    "by hand": {"forget": forget, "retain_0": float(((own - then) ** 2).sum() / own.numel())},
                    "direction": self._direction.clone(),
                    "reference": {name: value.clone() for name, value in self._reference.items()},
                    "forgotten among lent": bool(torch.isin(lent.ids, context.requested_ids).any()),
                }
            )
        return terms


def reference_features(reference: Mapping[str, Tensor], rows: Rows) -> Tensor:
    """Of the laboratory's network with one hidden layer."""
    assert isinstance(rows.inputs, Tensor)
    return (rows.inputs.flatten(1) @ reference["body.1.weight"].T + reference["body.1.bias"]).relu()


def test_its_terms_in_a_run_are_those_of_the_definition(tmp_path: Path) -> None:
    spied: Any = type("RMU", (Spied,), {"journal": []})
    lender = {"er": {"capacity": 60, "minibatch": 30}}  # so many that some of each draw are retained
    experiment = experiment_of({"rmu": {"c": 3.0, "alpha": 0.7}, **lender}, tmp_path, stream="L0 L1 U0", **TRAINED)
    finish(in_place_of(experiment, spied))
    journal = spied.journal
    assert len(journal) >= 15
    for entry in journal:
        assert entry["terms"] == pytest.approx(entry["by hand"], rel=1e-4, abs=1e-9)
        assert entry["weights"] == {"forget": 1.0, "retain_0": 0.7}
        assert torch.equal(entry["direction"], journal[0]["direction"]) and not entry["forgotten among lent"]
        assert first_difference(entry["reference"], journal[0]["reference"]) is None
    assert journal[0]["terms"]["retain_0"] == pytest.approx(0.0, abs=1e-9) and journal[-1]["terms"]["retain_0"] > 1e-6
    assert journal[-1]["terms"]["forget"] < journal[0]["terms"]["forget"]


def accuracies(path: Path) -> list[list[float]]:
    rows = [row for row in RunDirectory(path).records() if (row["scenario"], row["metric"]) == ("class_il", "accuracy")]
    return [[row["value"] for row in rows if row["event_index"] == index] for index in range(3)]


def unlearned(folder: Path, options: Mapping[str, Any], **settings: Any) -> Outcome:
    return finish(experiment_of({"rmu": options, **LENDER}, folder, **{"stream": "L0 L1 U0", "evaluate": "seen", **TRAINED, **settings}))


def features_of(outcome: Outcome, task: int, folder: Path) -> Tensor:
    learner = assemble(experiment_of({}, folder))
    learner.model.load_state_dict(outcome.weights)
    with torch.no_grad():
        return learner.model.eval().features(learner.read(learner.training_ids(task)).inputs)  # type: ignore[operator]


def test_the_task_is_misdirected_and_only_the_phase_of_the_unlearn_moves_weights(tmp_path: Path) -> None:
    found = unlearned(tmp_path / "all", {"c": 10.0, "lr": 1.0})
    learned = unlearned(tmp_path / "learned", {"c": 10.0, "lr": 1.0}, stream="L0 L1")
    plain = finish(experiment_of(LENDER, tmp_path / "plain", stream="L0 L1", evaluate="seen", **TRAINED))
    assert first_difference(learned.weights, plain.weights) is None
    assert_different_weights(found, learned, "before and after the Unlearn")
    heads = [{name: value for name, value in one.weights.items() if name.startswith("head")} for one in (found, learned)]
    assert first_difference(*heads) is None  # features are read before it
    spread = [features_of(one, 0, tmp_path).var(0).sum() / features_of(one, 0, tmp_path).square().sum(1).mean() for one in (found, learned)]
    assert spread[0] < 0.5 * spread[1]  # all of them in one direction
    _, before, after = accuracies(found.path)
    assert after[0] < before[0] - 30, (before, after)


def test_lent_samples_hold_the_features_of_the_rest(tmp_path: Path) -> None:
    before = features_of(unlearned(tmp_path / "before", {}, stream="L0 L1"), 1, tmp_path)
    after = [features_of(unlearned(tmp_path / str(alpha), {"alpha": alpha}), 1, tmp_path) for alpha in (1.0, 0.0)]
    distances = [float((features - before).square().mean()) for features in after]
    assert distances[0] < 0.8 * distances[1], distances
    with pytest.raises(ConfigurationError, match=r"strategies\.rmu needs samples of what is retained"):
        finish(experiment_of({"rmu": {}}, tmp_path / "alone", stream="L0 L1 U0"))


def test_the_direction_belongs_to_the_request(tmp_path: Path) -> None:
    def directions(stream: str, seed: int, place: str) -> list[Tensor]:
        seen: list[Tensor] = []

        class Keeping(RMU):
            def forget(self, forgotten: Any, context: Context) -> None:
                assert self._direction is not None
                seen.append(self._direction.clone())
                super().forget(forgotten, context)

        finish(in_place_of(experiment_of({"rmu": {}, **LENDER}, tmp_path / place, stream=stream, seed=seed), Keeping))
        return seen

    both = directions("L0 L1 L2 U0 U1", 0, "a")
    assert len(both) == 2 and not torch.allclose(*both)
    assert torch.equal(directions("L0 L2 U0", 0, "b")[0], both[0])
    assert not torch.allclose(directions("L0 L2 U0", 1, "c")[0], both[0])


def test_what_it_keeps_goes_with_its_phase_and_resumes_in_the_middle_of_it(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"stream": "L0 L1 U0 L2", "model": ROUGH, "epochs": 2}
    experiment = experiment_of({"rmu": {}, **LENDER}, tmp_path / "whole", **settings)
    data = augmented(experiment)
    whole = finish(experiment, data)
    assert whole.learner["strategies"]["rmu"] == {"direction": None, "reference": {}}
    steps = [row["steps"] for row in RunDirectory(whole.path).events()]
    middle = sum(steps[:2]) + steps[2] // 2
    assert steps[2] == 15
    pieces, stops = finish_in_pieces(
        experiment_of({"rmu": {}, **LENDER}, tmp_path / "pieces", **settings), lambda step: step == middle, data
    )
    assert stops == 1
    assert_equal_outcomes(whole, pieces, "stopped in the middle of unlearning")
    other = finish(experiment_of({"rmu": {"c": 5.0}, **LENDER}, tmp_path / "other", **settings), data)
    assert_different_weights(whole, other, "another c")


@pytest.mark.parametrize("model", [ROUGH, {"name": "slim_resnet18"}])
def test_features_at_a_snapshot(model: dict[str, Any], tmp_path: Path) -> None:
    benchmark = {"name": "split_digits"} if model["name"] != "mlp" else {"name": "synthetic"}
    learner = assemble(experiment_of({"rmu": {}}, tmp_path, model=model, benchmark=benchmark))
    context, rows = learner.stack.context("rmu"), learner.read(learner.training_ids(0)[:6])
    before, then = context.snapshot(), context.features(rows)
    with torch.no_grad():
        for parameter in learner.model.parameters():
            parameter.mul_(1.5)
    changed = learner.model.state_dict()
    kept = {name: value.clone() for name, value in changed.items()}
    assert torch.equal(context.features(rows, at=before), then)
    assert not torch.allclose(context.features(rows), then, rtol=1e-2)
    assert first_difference(kept, dict(learner.model.state_dict())) is None


def test_it_unlearns_texts(tmp_path: Path) -> None:
    def spread(options: Mapping[str, Any], stream: str) -> list[float]:
        """What is left of the forgotten and of the retained task's features beside their size when each task's mean is taken away."""
        experiment = text_experiment(tmp_path / f"{stream}{options}", {"er": {"capacity": 8}, "rmu": options}, stream=stream)
        outcome, learner = finish(experiment), assemble(experiment)
        learner.model.load_state_dict(outcome.weights)
        with torch.no_grad():
            features = [learner.model.eval().features(learner.read(learner.training_ids(task)).inputs) for task in (0, 1)]  # type: ignore[operator]
        return [float(each.var(0).sum() / each.square().sum(1).mean()) for each in features]

    options = {"c": 20.0, "lr": 0.05, "steps": 30}
    before, after = spread(options, "L0 L1"), spread(options, "L0 L1 U0")
    assert after[0] < 0.5 * before[0], (before, after)  # all of them in one direction
    assert after[1] > after[0], (before, after)


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"c": -1}, "strategies.rmu.c must be >= 0, got -1.0"),
        ({"alpha": -1}, "strategies.rmu.alpha must be >= 0, got -1.0"),
        ({"lr": 0}, "strategies.rmu.lr must be > 0, got 0.0"),
        ({"steps": 0}, "strategies.rmu.steps must be >= 1, got 0"),
        ({"epochs": 0}, "strategies.rmu.epochs must be >= 1, got 0"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=text):
        experiment_of({"rmu": options}, tmp_path)


def test_a_model_without_features_is_refused_with_the_remedy() -> None:
    def setting(model: nn.Module | None) -> Setting:
        return Setting("class_il", 8, 1, 0.0, 2, {}, model=model)

    with pytest.raises(ConfigurationError, match=r"the model has no `features` and `head`\. Choose .* model\.name=mlp"):
        RMU(RMUConfig()).check(setting(nn.Linear(2, 2)))
    RMU(RMUConfig()).check(setting(None))


def test_its_claims() -> None:
    assert not RMU.traits.exact and RMU.traits.unlearning_reads == {"forget", "memory"}
