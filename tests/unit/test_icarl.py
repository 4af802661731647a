"""iCaRL: loss, exemplars and classifier by their definitions; what is shown, what is kept, and what is forgotten."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import strategies.hypernetwork  # noqa: F401 - registers it
from cl_framework import Batch, ConfigurationError, Context, Output, Rows, Setting, herding
from cl_framework.testing.laboratory import ROUGH, Outcome, beside, experiment_of, finish, in_place_of
from cl_framework.testing.neighbours import Oblivious, slot
from strategies.icarl import (
    BEYOND,
    FAR,
    ICaRL,
    ICaRLConfig,
    halving_mean,
    mean_direction,
    negative_distances,
    sigmoid_loss,
    sigmoid_targets,
)

# --- the objective ---


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_the_loss_is_the_cross_entropy_of_each_output_summed_over_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64).unbind()
    labels, old = torch.tensor([2, 3, 2, 0, 1]), torch.tensor([0, 1])  # the last two rows are exemplars
    total, swept = 0.0, 0
    for row in range(5):
        for label in range(4):
            wanted = sigmoid(float(teacher[row, label])) if label < 2 else float(labels[row] == label)
            said = sigmoid(float(logits[row, label]))
            total -= wanted * math.log(said) + (1 - wanted) * math.log(1 - said)
            swept += 1
    targets = sigmoid_targets(labels, teacher, old, 4).double()
    assert swept == 20 and float(sigmoid_loss(logits, targets)) == pytest.approx(total / 5, rel=1e-6)
    assert float(sigmoid_loss(logits, targets, "mean")) == pytest.approx(total / 20, rel=1e-6)
    plain = sigmoid_targets(labels, None, old, 4)
    assert torch.equal(plain, functional.one_hot(labels, 4).float())
    assert float(sigmoid_loss(logits, plain.double())) != pytest.approx(total / 5, rel=1e-3)


def test_old_outputs_have_no_gradient_where_the_student_is_the_teacher() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    targets = sigmoid_targets(torch.tensor([0, 1, 2, 3, 2, 3]), logits.detach(), torch.tensor([0, 1]), 4).double()
    sigmoid_loss(logits, targets).backward()
    assert logits.grad is not None
    assert float(logits.grad[:, :2].abs().max()) < 1e-7 and float(logits.grad[:, 2:].abs().min()) > 1e-4


# --- the classifier ---


def test_the_nearest_mean_is_that_of_unit_vectors() -> None:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    classes = [torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(5)]
    scores = negative_distances(features, torch.stack([mean_direction(one) for one in classes]))
    swept = 0
    for row, feature in enumerate(features.tolist()):
        for label, one in enumerate(classes):
            mean = [sum(vector[axis] / math.hypot(*vector) for vector in one.tolist()) / 4 for axis in range(3)]
            unit, direction = [value / math.hypot(*feature) for value in feature], [value / math.hypot(*mean) for value in mean]
            assert float(scores[row, label]) == pytest.approx(-math.dist(unit, direction))
            swept += 1
    assert swept == 35 and float(scores.min()) > -FAR


def test_answers_do_not_depend_on_the_length_of_features() -> None:
    generator = torch.Generator().manual_seed(3)
    features, exemplars = torch.randn(20, 4, generator=generator), torch.randn(3, 6, 4, generator=generator)

    def answers(scale_features: Tensor, scale_exemplars: Tensor, plain: bool = False) -> list[int]:
        seen, kept = features * scale_features, exemplars * scale_exemplars
        if plain:
            return (-torch.cdist(seen, kept.mean(1))).argmax(1).tolist()
        return negative_distances(seen, torch.stack([mean_direction(one) for one in kept])).argmax(1).tolist()

    one = torch.ones(1)
    of_rows, of_exemplars = 10 * torch.rand(20, 1, generator=generator), 10 * torch.rand(3, 6, 1, generator=generator)
    assert answers(of_rows, of_exemplars) == answers(one, one)
    assert answers(of_rows, of_exemplars, plain=True) != answers(one, one, plain=True)


def test_the_older_codes_mean_halves_what_came_before() -> None:
    rows = torch.randn(7, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    by_hand = rows[:3].mean(0) / 4 + rows[3:6].mean(0) / 4 + rows[6] / 2
    assert torch.allclose(halving_mean(rows, 3), by_hand) and not torch.allclose(by_hand, rows.mean(0), atol=1e-2)
    assert torch.allclose(halving_mean(rows, 7), rows.mean(0)) and torch.allclose(halving_mean(rows, 100), rows.mean(0))


# --- in runs ---


class Spied(ICaRL):
    """Notes of each step what it showed and its term, and of each event's end what was kept and how the model answered."""

    steps: list[dict[str, Any]] = []  # noqa: RUF012 - one test at a time reads it
    events: list[dict[str, Any]] = []  # noqa: RUF012
    answers: list[tuple[int, Tensor, Tensor, Tensor]] = []  # noqa: RUF012

    def begin(self, context: Context) -> Any:
        self.began = context.snapshot()
        return super().begin(context)

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        with torch.no_grad():
            value = float(self.loss(batch, output, context)["task"].value())
        event = context.position.event_index
        self.steps.append({"event": event, "batch": batch, "logits": output.logits, "value": value, "began": self.began})

    def end(self, context: Context) -> Any:
        phases = super().end(context)
        kept, means = dict(self.exemplars), dict(self.means)
        self.events.append({"weights": context.snapshot(), "exemplars": kept, "means": means, "state": self.state_dict()})
        return phases

    def predict(self, features: Tensor | None, logits: Tensor, rows: Rows, context: Context) -> Tensor:
        scores = super().predict(features, logits, rows, context)
        if self.events:
            assert features is not None
            self.answers.append((len(self.events) - 1, features, logits, scores))
        else:
            assert scores is logits, "before anything is learned the logits answer"
        return scores


def run_spied(folder: Path, capacity: int, stream: str = "L0 L1 L2", variant: str = "paper", **settings: Any) -> Outcome:
    Spied.steps.clear(), Spied.events.clear(), Spied.answers.clear()
    experiment = experiment_of({"icarl": {"capacity": capacity, "variant": variant}}, folder, stream=stream, **settings)
    return finish(beside(in_place_of(experiment, Spied), after=[slot(Oblivious)]))


def labels_of(ids: Tensor) -> Tensor:
    """(N,) labels, read from what was shown."""
    shown = torch.cat([step["batch"].ids for step in Spied.steps])
    targets = torch.cat([step["batch"].targets for step in Spied.steps])
    return torch.stack([targets[shown == sample][0] for sample in ids])


def items_of(ids: Tensor) -> Tensor:
    """(N, ...) inputs, read from what was shown."""
    shown = torch.cat([step["batch"].ids for step in Spied.steps])
    inputs = torch.cat([step["batch"].inputs for step in Spied.steps])
    return torch.stack([inputs[shown == sample][0] for sample in ids])


def features_of(model: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """Of the plain two-layer model, written out: (B, D)."""
    return functional.relu(inputs.flatten(1) @ model["body.1.weight"].T + model["body.1.bias"])


def logits_of(model: dict[str, Tensor], inputs: Tensor) -> Tensor:
    return features_of(model, inputs) @ model["head.weight"].T + model["head.bias"]


def test_each_epoch_shows_the_new_data_and_all_exemplars_once(tmp_path: Path) -> None:
    run_spied(tmp_path, 13, epochs=2)
    sizes = [sum(len(step["batch"]) for step in Spied.steps if step["event"] == event) for event in range(3)]
    assert sizes == [72, 2 * (36 + 12), 2 * (36 + 12)], "13 // 2 exemplars of two classes, then 13 // 4 of four"
    for event in (1, 2):
        ids = torch.cat([step["batch"].ids for step in Spied.steps if step["event"] == event])
        kept = torch.cat(list(Spied.events[event - 1]["exemplars"].values()))
        own = torch.arange(36) + 36 * event
        expected = torch.cat([own, kept]).sort().values
        for epoch in ids.split(len(ids) // 2):
            assert torch.equal(epoch.sort().values, expected)
        assert not torch.equal(ids[: len(expected)], expected), "it is shuffled"


def test_exemplars_are_herded_cut_from_the_tail_and_never_more_than_the_capacity(tmp_path: Path) -> None:
    run_spied(tmp_path, 13)
    swept = 0
    for event, entry in enumerate(Spied.events):
        quota = 13 // (2 * event + 2)
        assert sorted(entry["exemplars"]) == list(range(2 * event + 2))
        assert sum(map(len, entry["exemplars"].values())) <= 13
        for label, ids in entry["exemplars"].items():
            assert len(ids) == quota and labels_of(ids).tolist() == [label] * quota
            if label < 2 * event:
                assert torch.equal(ids, Spied.events[event - 1]["exemplars"][label][:quota])
            else:
                own = torch.arange(36) + 36 * event
                own = own[labels_of(own) == label]
                directions = functional.normalize(features_of(entry["weights"], items_of(own)))
                assert torch.equal(ids, own[herding(directions, quota)])
                assert not torch.equal(ids, own[:quota])
            swept += 1
    assert swept == 2 + 4 + 6


def test_the_task_term_is_that_of_labels_for_new_and_of_the_old_model_for_old_classes(tmp_path: Path) -> None:
    run_spied(tmp_path, 12)
    swept = of_exemplars = 0
    for step in Spied.steps:
        batch, event = step["batch"], step["event"]
        teacher = logits_of(step["began"], batch.inputs).sigmoid()
        targets = functional.one_hot(batch.targets, 6).float()
        targets[:, : 2 * event] = teacher[:, : 2 * event]
        taught = 2 * event + 2
        terms = functional.binary_cross_entropy(step["logits"].sigmoid()[:, :taught], targets[:, :taught], reduction="none")
        assert step["value"] == pytest.approx(float(terms.sum(1).mean()), rel=1e-4)
        of_exemplars += int((batch.targets < 2 * event).sum())
        swept += 1
    assert swept == 5 + 6 + 6 and of_exemplars == 24


def test_outputs_of_classes_not_yet_taught_do_not_move(tmp_path: Path) -> None:
    outcome = run_spied(tmp_path, 12, "L0 L1", optimizer={"name": "sgd", "lr": 0.05})
    began, moved = Spied.steps[0]["began"]["head.weight"], outcome.weights["head.weight"]
    assert torch.equal(moved[4:], began[4:]) and not torch.isclose(moved[:4], began[:4]).all(1).any()


def test_the_answer_is_the_nearest_mean_of_exemplars(tmp_path: Path) -> None:
    run_spied(tmp_path, 12)
    swept = otherwise = 0
    for event, features, logits, scores in Spied.answers:
        entry = Spied.events[event]
        for label, ids in entry["exemplars"].items():
            directions = functional.normalize(features_of(entry["weights"], items_of(ids)))
            mean = directions.mean(0) / directions.mean(0).norm()
            distances = (features / features.norm(dim=1, keepdim=True) - mean).norm(dim=1)
            torch.testing.assert_close(scores[:, label], -distances, rtol=1e-3, atol=1e-3)
            swept += 1
        unknown = [label for label in range(6) if label not in entry["exemplars"]]
        assert bool((scores[:, unknown] == -FAR).all())
        otherwise += int((scores.argmax(1) != logits.argmax(1)).sum())
    assert swept == 3 * (2 + 4 + 6) and otherwise > 0


def test_the_older_code_herds_and_answers_with_features_as_they_are(tmp_path: Path) -> None:
    run_spied(tmp_path, 40, variant="older_code", batch_size=8)
    swept = otherwise = 0
    for event, entry in enumerate(Spied.events):
        for label, ids in entry["exemplars"].items():
            features = features_of(entry["weights"], items_of(ids))
            torch.testing.assert_close(entry["means"][label], halving_mean(features, 8), rtol=1e-4, atol=1e-5)
            if label >= 2 * event:
                own = torch.arange(36) + 36 * event
                own = own[labels_of(own) == label]
                candidates = features_of(entry["weights"], items_of(own))
                assert torch.equal(ids, own[herding(candidates, len(ids))])
                otherwise += not torch.equal(ids, own[herding(functional.normalize(candidates), len(ids))])
            swept += 1
    assert swept == 2 + 4 + 6 and otherwise > 0
    compared = 0
    for event, features, _, scores in Spied.answers:
        means = Spied.events[event]["means"]
        for label in range(6):
            expected = -(features - means[label]).norm(dim=1) if label in means else torch.full((len(features),), -BEYOND)
            torch.testing.assert_close(scores[:, label], expected, rtol=1e-3, atol=1e-3)
            compared += 1
    assert compared == 3 * 3 * 6


@pytest.mark.parametrize(
    ("event", "classes", "known"),
    [("U0", [2, 3], [2, 3]), ("U1:class=3", [0, 1, 2], [0, 1, 2]), ("U1:fraction=0.5@seed1", [0, 1, 2, 3], [0, 1, 2, 3])],
)
def test_what_is_forgotten_has_no_exemplar_and_no_mean(event: str, classes: list[int], known: list[int], tmp_path: Path) -> None:
    outcome = run_spied(tmp_path, 40, f"L0 L1 {event} L2")
    before, after, _ = Spied.events[1:]
    state = after["state"]
    assert sorted(state["means"]) == sorted(state["exemplars"]) == classes and state["known"] == known
    lost = [int(sample) for label, ids in before["exemplars"].items() for sample in ids if sample not in state["exemplars"].get(label, [])]
    assert len(lost) == {"U0": 20, "U1:class=3": 10}.get(event, len(lost)) and len(lost) > 5
    assert set(torch.cat(list(state["exemplars"].values())).tolist()).isdisjoint(lost)
    assert set(torch.cat([step["batch"].ids for step in Spied.steps if step["event"] == 3]).tolist()).isdisjoint(lost)
    final = outcome.learner["strategies"]["icarl"]
    assert final["teacher"] == {} and final["old"] is None and final["taught"] is None
    assert {len(ids) for ids in final["exemplars"].values()} <= set(range(1, 40 // len(final["known"]) + 1))


def test_a_class_learned_again_is_learned_from_labels_and_herded_anew(tmp_path: Path) -> None:
    run_spied(tmp_path, 12, "L0 L1 L0")
    again = [step for step in Spied.steps if step["event"] == 2]
    step = again[-1]
    targets = functional.one_hot(step["batch"].targets, 6).float()
    targets[:, 2:4] = logits_of(step["began"], step["batch"].inputs).sigmoid()[:, 2:4]
    terms = functional.binary_cross_entropy(step["logits"].sigmoid()[:, :4], targets[:, :4], reduction="none")
    assert step["value"] == pytest.approx(float(terms.sum(1).mean()), rel=1e-4)
    first, last = Spied.events[1]["exemplars"], Spied.events[2]["exemplars"]
    assert torch.equal(first[2], last[2]) and torch.equal(first[3], last[3])
    own = torch.arange(36)[labels_of(torch.arange(36)) == 0]
    directions = functional.normalize(features_of(Spied.events[2]["weights"], items_of(own)))
    assert torch.equal(last[0], own[herding(directions, 3)])


def test_means_are_of_the_model_in_evaluation_mode(tmp_path: Path) -> None:
    found: list[tuple[float, float]] = []

    class Comparing(ICaRL):
        """Compares each mean with that of the model in both modes."""

        def end(self, context: Context) -> Any:
            super().end(context)
            model, trained = context.model, context.snapshot()
            for label, ids in self.exemplars.items():
                inputs = context.read(ids).inputs
                apart = []
                for training in (False, True):
                    with torch.no_grad():
                        mean = mean_direction(model.train(training).features(inputs))  # type: ignore[operator]
                    apart.append(float((mean - self.means[label]).norm()))
                model.load_state_dict(trained)
                found.append((apart[0], apart[1]))
            return ()

    finish(in_place_of(experiment_of({"icarl": {"capacity": 12}}, tmp_path, model=ROUGH), Comparing))
    assert len(found) == 2 + 4 and all(same < 1e-5 < 1e-2 < other for same, other in found)


def test_it_learns_beside_a_hypernetwork_with_the_task_known(tmp_path: Path) -> None:
    small = {"embedding": 8, "chunk_embedding": 8, "hidden": [16], "chunk_size": 100, "sampled_tasks": 1}
    slots = {"icarl": {"capacity": 30}, "hypernetwork": small}
    outcome = finish(experiment_of(slots, tmp_path, stream="L0 L1", scenario="task_il", epochs=6, optimizer={"name": "adam", "lr": 0.01}))
    assert outcome.summary["average_accuracy"] > 75


# --- what is refused ---


def test_what_cannot_work_is_refused_by_name() -> None:
    def setting(model: nn.Module | None = None, classes: int | None = None) -> Setting:
        return Setting("class_il", 10, 1, 0.0, 2, {}, classes_shown=classes, model=model)

    icarl = ICaRL(ICaRLConfig(capacity=5))
    with pytest.raises(
        ConfigurationError, match=r"^capacity=5 cannot hold an exemplar of each of 6 classes\. Raise it to at least that\.$"
    ):
        icarl.check(setting(classes=6))
    headless = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    text = r"^capacity=5: exemplars are chosen and compared by features, but this model has no `features` and `head`\.$"
    with pytest.raises(ConfigurationError, match=text):
        icarl.check(setting(headless))
    icarl.check(setting(classes=5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 0}, "capacity must be >= 1, got 0"),
        ({"reduction": "max"}, "reduction must be one of sum, mean, got 'max'"),
        ({"variant": "released"}, "variant must be one of paper, older_code, got 'released'"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ICaRLConfig(**options)
