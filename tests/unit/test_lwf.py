"""LwF: the distillation term by its definition, who the teacher is, what it sees and for which classes it answers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cl_framework import Batch, ConfigurationError, Learn
from cl_framework.assembly import assemble, make_benchmark
from cl_framework.benchmarks.own_data import Unchanged
from cl_framework.benchmarks.text.tokens import TokenInputs
from cl_framework.config import Experiment
from cl_framework.records import RunDirectory
from cl_framework.strategy import Position
from cl_framework.testing.laboratory import (
    ROUGH,
    Jitter,
    assert_different_weights,
    assert_equal_outcomes,
    beside,
    experiment_of,
    finish,
    finish_in_pieces,
)
from cl_framework.testing.neighbours import Oblivious, Thrice, slot
from strategies.lwf import LwF, LwFConfig, among, distillation
from tests.unit.lwf_runs import PICTURES, RELEASED, on_pictures, run_spied

# --- the term ---


def softened(logits: Tensor, temperature: float) -> list[float]:
    """Probabilities of one row raised to 1 / T and normalised again."""
    powers = [probability ** (1 / temperature) for probability in logits.softmax(0).tolist()]
    return [power / sum(powers) for power in powers]


def test_the_term_is_the_cross_entropy_of_softened_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    swept = 0
    for temperature in (0.5, 1.0, 2.0, 5.0):
        for _ in range(5):
            student, teacher = (3 * torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)).unbind()
            rows = [
                -sum(p * torch.tensor(q).log().item() for p, q in zip(softened(t, temperature), softened(s, temperature), strict=True))
                for s, t in zip(student, teacher, strict=True)
            ]
            found = float(distillation(student, teacher, temperature))
            assert found == pytest.approx(sum(rows) / 6)
            assert found != pytest.approx(float(distillation(student, teacher, temperature + 1)))
            swept += 1
    assert swept == 20


def test_at_temperature_one_it_is_the_cross_entropy_with_soft_labels() -> None:
    student, teacher = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1)).unbind()
    labels = teacher.softmax(1)
    expected = -(labels * student.log_softmax(1)).sum(1).mean()
    assert float(distillation(student, teacher, 1.0)) == pytest.approx(float(expected))
    assert float(distillation(student, teacher, 2.0)) != pytest.approx(float(expected))


def test_its_gradient_is_zero_where_the_student_is_the_teacher() -> None:
    teacher = torch.randn(5, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def gradient(student: Tensor) -> float:
        student = student.clone().requires_grad_()
        distillation(student, teacher, 2.0).backward()
        assert student.grad is not None
        return float(student.grad.abs().max())

    assert gradient(teacher) < 1e-12 and gradient(teacher + 3) < 1e-12  # logits count up to a constant
    assert gradient(teacher * 1.1) > 1e-4


def test_a_softmax_among_some_classes_is_that_of_their_columns() -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(3), requires_grad=True)
    classes, places = torch.tensor([4, 1, 2]), torch.tensor([0, 1, 2, 0, 2, 1])  # in any order
    found = among(logits, classes[places], classes)
    assert found.item() == pytest.approx(functional.cross_entropy(logits[:, classes], places).item())
    assert found.item() != pytest.approx(functional.cross_entropy(logits, classes[places]).item())
    (gradient,) = torch.autograd.grad(found, logits)
    assert bool((gradient[:, [0, 3]] == 0).all()) and bool((gradient[:, classes] != 0).all())


def test_of_texts_the_term_is_the_mean_over_their_places() -> None:
    """Two texts of four places that all ask, of five classes of which three were known."""
    student, teacher = (3 * torch.randn(2, 2, 5, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)).unbind()
    rows, output = torch.arange(2), SimpleNamespace(logits=student)
    batch = Batch(torch.zeros(2, 4), torch.arange(8).view(2, 4) % 5, rows, rows, extras={"lwf": teacher})
    context: Any = SimpleNamespace(slot="lwf", position=Position(Learn(1)))

    def term(head: list[int]) -> float:
        strategy = LwF(LwFConfig())
        strategy.heads = [torch.tensor(head)]
        return float(strategy.loss(batch, output, context)["distillation"].value())  # type: ignore[arg-type]

    known = [0, 2, 3]
    pairs = [(student[row, known, place], teacher[row, known, place]) for row in range(2) for place in range(4)]
    values = [-sum(p * math.log(q) for p, q in zip(softened(t, 2.0), softened(s, 2.0), strict=True)) for s, t in pairs]
    assert term(known) == pytest.approx(sum(values) / 8)
    assert term([0, 1, 2, 3, 4]) > 1.1 * term(known)  # the controls: other classes, and any place alone
    assert all(value != pytest.approx(term(known), rel=1e-2) for value in values)


# --- in runs ---


def answers(model: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """Of the plain two-layer model, written out: (B, C)."""
    hidden = functional.relu(inputs.flatten(1) @ model["body.1.weight"].T + model["body.1.bias"])
    return hidden @ model["head.weight"].T + model["head.bias"]


HEADS = {
    ("class_il", "joint"): {1: [[0, 1]], 2: [[0, 1, 2, 3]]},
    ("class_il", "task"): {1: [[0, 1]], 2: [[0, 1], [2, 3]]},
    ("task_il", "task"): {1: [[0, 1]], 2: [[0, 1], [2, 3]]},
    ("domain_il", "joint"): {1: [[0, 1]], 2: [[0, 1]]},
    ("domain_il", "task"): {1: [[0, 1]], 2: [[0, 1]]},
}


@pytest.mark.parametrize(("scenario", "heads"), HEADS)
def test_the_teacher_is_the_model_before_the_task_and_answers_for_the_classes_before_it(scenario: str, heads: str, tmp_path: Path) -> None:
    journal = run_spied(tmp_path, {"heads": heads, "temperature": 3.0, "weight": 0.5}, scenario=scenario)
    swept = 0
    for entry in journal:
        if entry["event"] == 0:
            assert not entry["terms"] and not entry["state"]["teacher"]
            continue
        teacher = answers(entry["began"], entry["batch"].inputs)
        expected = sum(
            -((teacher[:, head] / 3).softmax(1) * (entry["logits"][:, head] / 3).log_softmax(1)).sum(1).mean()
            for head in HEADS[scenario, heads][entry["event"]]
        )
        assert entry["terms"]["distillation"] == (pytest.approx(float(expected), rel=1e-5), 0.5)
        swept += 1
    assert swept == 10


def test_at_the_first_step_of_a_task_the_term_has_no_gradient(tmp_path: Path) -> None:
    journal = run_spied(tmp_path, {}, "L0 L1")
    values = {}
    for entry in journal[5:]:
        student = entry["logits"][:, :2].clone().requires_grad_()
        teacher = answers(entry["began"], entry["batch"].inputs)[:, :2]
        distillation(student, teacher, 2.0).backward()
        assert student.grad is not None
        values[entry["step"]] = float(student.grad.abs().max())
    assert values[0] < 1e-7 and min(values[step] for step in (1, 2, 3, 4)) > 1e-5


def test_a_wrapper_that_calls_often_pays_for_the_teacher_once(tmp_path: Path) -> None:
    def forward_passes(name: str, weight: float, *others: Any) -> list[int]:
        outcome = finish(beside(experiment_of({"lwf": {"weight": weight}}, tmp_path / name), before=list(others)))
        return [row["forward_passes"] for row in RunDirectory(outcome.path).events()]

    assert forward_passes("plain", 0.0) == [5, 5] and forward_passes("alone", 1.0) == [5, 10]
    assert forward_passes("wrapped", 1.0, slot(Thrice)) == [20, 25], "four passes of the student a step, one of the teacher"


@pytest.mark.parametrize("options", [{}, RELEASED], ids=["paper", "released"])
def test_the_teacher_leaves_when_its_task_ends_and_what_is_forgotten_is_not_answered_for(options: dict[str, Any], tmp_path: Path) -> None:
    def left(stream: str, name: str) -> Any:
        experiment = experiment_of({"lwf": options}, tmp_path / name, stream=stream)
        return finish(beside(experiment, after=[slot(Oblivious)])).learner["strategies"]["lwf"]

    assert left("L0 L1", "learned") == {"known": [0, 1, 2, 3], "heads": [], "teacher": {}}
    assert left("L0 L1 U0", "task")["known"] == [2, 3]
    assert left("L0 L1 U1:class=3", "class")["known"] == [0, 1, 2]
    assert left("L0 L1 U1:fraction=0.5", "sample")["known"] == [0, 1, 2, 3]
    journal = run_spied(tmp_path / "again", {**options, "warm_up": 0}, "L0 L1 U0 L2 L1")
    heads = {entry["event"]: [head.tolist() for head in entry["state"]["heads"]] for entry in journal}
    assert heads == {0: [], 1: [[0, 1]], 3: [[2, 3]], 4: [[2, 3, 4, 5]]}, "known classes are held when they are learned again"


def test_classes_that_another_task_has_are_not_forgotten_with_one(tmp_path: Path) -> None:
    experiment = experiment_of({"lwf": {}}, tmp_path, stream="L0 L1 U0", scenario="domain_il")
    outcome = finish(beside(experiment, after=[slot(Oblivious)]))
    assert outcome.learner["strategies"]["lwf"]["known"] == [0, 1]


# --- what the teacher sees ---


def held(entry: dict[str, Any], inputs: Tensor) -> float:
    """The term of a step after the first task with a teacher that sees these inputs."""
    return float(distillation(entry["logits"][:, :2], answers(entry["began"], inputs)[:, :2], 2.0))


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_released_teacher_sees_images_neither_augmented_nor_normalised(variant: str, tmp_path: Path) -> None:
    journal = run_spied(tmp_path, {"variant": variant, "warm_up": 0}, "L0 L1", pictures=True, epochs=2)
    first_answers: dict[int, Tensor] = {}
    apart, repeated = 0.0, []
    for entry in journal[10:]:
        batch = entry["batch"]
        seen = {"paper": batch.inputs, "released": batch.items.float() / 255, "normalised": PICTURES(batch.items, None)}
        terms = {what: held(entry, inputs) for what, inputs in seen.items()}
        found = entry["terms"]["distillation"][0]
        assert found == pytest.approx(terms.pop(variant), rel=1e-5)
        apart = max(apart, min(abs(found / other - 1) for other in terms.values()))
        for sample, answer in zip(batch.ids.tolist(), batch.extras["lwf"], strict=True):
            repeated.append(torch.allclose(first_answers.setdefault(sample, answer), answer, atol=1e-6))
    assert apart > 1e-2
    assert len(first_answers) == 36 and len(repeated) == 72
    assert all(repeated) == (variant == "released"), "the answers to an image are the same in every epoch: as if computed once"


def test_on_plain_inputs_the_variants_differ_in_the_warm_up_alone(tmp_path: Path) -> None:
    def outcome(name: str, pictures: bool, **options: Any) -> Any:
        experiment = experiment_of({"lwf": options}, tmp_path / name)
        return finish(experiment, on_pictures(experiment) if pictures else None)

    plain = outcome("paper", False)
    assert_equal_outcomes(plain, outcome("released", False, **RELEASED, warm_up=0), "without a warm-up")
    assert_different_weights(plain, outcome("warmed", False, **RELEASED), "with it")
    assert_different_weights(outcome("pictures", True), outcome("scaled", True, **RELEASED, warm_up=0), "normalised images")


def test_a_released_run_resumes_after_a_stop_at_any_step(tmp_path: Path) -> None:
    def prepared(name: str, *words: str) -> Experiment:
        return experiment_of({"lwf": RELEASED}, tmp_path / name, overrides=words, stream="L0 L1", model=ROUGH)

    whole = prepared("whole")
    expected = finish(whole, on_pictures(whole))
    experiment = prepared("pieces")
    found, stops = finish_in_pieces(experiment, lambda step: step > 0, on_pictures(experiment))
    assert stops == 14, "five steps of each task, five of the warm-up"
    assert_equal_outcomes(expected, found, "a run in pieces")
    assert_different_weights(expected, finish(other := prepared("other", "seed=1"), on_pictures(other)), "another seed")


@pytest.mark.parametrize("slots", [{}, {"views": {"use": "view_batch", "views": 2}, "derpp": {"capacity": 8}}], ids=["alone", "composed"])
def test_what_the_benchmark_cannot_give_is_refused_before_training(slots: dict[str, Any], tmp_path: Path) -> None:
    text = (
        r"variant=released has a teacher that sees images only scaled to \[0, 1\], which this benchmark's transform does not give\. "
        r"Set variant=paper\.$"
    )

    def assembled(transform: Any, **options: Any) -> None:
        experiment = experiment_of({"lwf": options, **slots}, tmp_path)
        assemble(experiment, replace(make_benchmark(experiment), transform=transform))

    for unknown in (Jitter(), Unchanged(), TokenInputs()):  # of one's own, floats as they are, text
        with pytest.raises(ConfigurationError, match=text):
            assembled(unknown, **RELEASED)
    assembled(Jitter())
    assembled(PICTURES, **RELEASED)
    assert not list(tmp_path.iterdir())
