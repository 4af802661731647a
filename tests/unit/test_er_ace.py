"""ER-ACE: which classes incoming rows compete among, the two terms, and that old classes get no gradient from incoming rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_framework import Batch, Closure, ConfigurationError, Context, Evaluation, StepFn
from cl_framework.testing.laboratory import assert_different_weights, beside, experiment_of, finish, first_difference
from cl_framework.testing.neighbours import Neighbour, Oblivious, slot
from strategies.er_ace import ERACE, ERACEConfig, of_batch_or_from_largest, of_batch_or_unseen

CLASSES = 6


def subsets(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Targets of a batch and which classes were seen before it."""
    targets = torch.randint(CLASSES, (4,), generator=generator)
    return targets, torch.rand(CLASSES, generator=generator) < 0.5


# --- candidates ---


def test_candidates_are_the_classes_of_the_batch_and_the_unseen_ones() -> None:
    generator, swept, plain = torch.Generator().manual_seed(0), 0, 0
    for _ in range(200):
        targets, seen = subsets(generator)
        found = of_batch_or_unseen(targets, seen)
        assert found.tolist() == [label in targets.tolist() or not bool(seen[label]) for label in range(CLASSES)]
        swept, plain = swept + 1, plain + bool(found.all())
    assert swept == 200 and plain < 100, "with every class a candidate this shows nothing"


def test_the_released_candidates_reach_from_the_largest_seen_class() -> None:
    generator, swept, differing = torch.Generator().manual_seed(1), 0, 0
    for _ in range(200):
        targets, seen = subsets(generator)
        largest = max([label for label in range(CLASSES) if bool(seen[label])] + targets.tolist())
        expected = [label in targets.tolist() or (label >= largest and largest < CLASSES - 1) for label in range(CLASSES)]
        assert of_batch_or_from_largest(targets, seen).tolist() == expected
        swept, differing = swept + 1, differing + (expected != of_batch_or_unseen(targets, seen).tolist())
    assert swept == 200 and differing > 20
    seen = torch.tensor([True, True, True, True, False, False])
    batch = torch.tensor([1, 1])
    assert of_batch_or_from_largest(batch, seen).tolist() == [False, True, False, True, True, True], "class 3, the largest, gets through"
    assert of_batch_or_unseen(batch, seen).tolist() == [False, True, False, False, True, True]


# --- terms, in runs ---


class Terms(Neighbour):
    """Outermost: notes what each step's terms are and the gradient that incoming rows send to the head."""

    def step(self, inner: StepFn, context: Context) -> StepFn:
        seen: set[int] = set()

        def noted(closure: Closure) -> Evaluation:
            batch: Batch = closure._batch  # type: ignore[attr-defined]
            seen.update(label for task in context.live_tasks[:-1] for label in context.classes_of(task))
            rows = closure.gradients("task").gradients
            weight = context.parameter_names.index("head.weight")
            assert rows is not None
            evaluation = closure.values(*closure.names)
            others = {draw.key: (evaluation.output.of(draw).logits, draw.rows) for d in batch.draws.values() for draw in d.values()}
            self.journal.append(
                {
                    "head": rows[weight],
                    "old": sorted(seen - set(batch.targets.tolist())),
                    "targets": batch.targets.tolist(),
                    "logits": evaluation.output.logits,
                    "terms": evaluation.terms,
                    "others": others,
                    "event": context.position.event_index,
                }
            )
            return inner(closure)

        return noted


def journal_of(folder: Path, options: dict[str, Any], **settings: Any) -> list[dict[str, Any]]:
    spy = slot(Terms)
    settings.setdefault("stream", "L0 L1 L2")
    finish(beside(experiment_of({"ace": options}, folder, **settings), before=[spy]))
    journal: list[dict[str, Any]] = spy.strategy_class.journal
    return journal


def cross_entropy(logits: Tensor, targets: list[int], candidates: list[list[int]]) -> float:
    """By definition: minus the log of the target's share among the candidates of a row."""
    losses = []
    for row, target, allowed in zip(logits.double().tolist(), targets, candidates, strict=True):
        losses.append(-math.log(math.exp(row[target]) / sum(math.exp(row[label]) for label in allowed)))
    return sum(losses) / len(losses)


def test_old_classes_get_exactly_no_gradient_from_incoming_rows(tmp_path: Path) -> None:
    def gradients(options: dict[str, Any]) -> list[Tensor]:
        journal = journal_of(tmp_path / options["use"], options, epochs=2)
        return [entry["head"][entry["old"]] for entry in journal if entry["old"]]

    asymmetric = gradients({"use": "er_ace", "capacity": 20})
    assert len(asymmetric) == 20 and all(not bool(rows.any()) for rows in asymmetric)
    plain = gradients({"use": "er", "capacity": 20})
    assert len(plain) == 20 and all(bool(rows.any()) for rows in plain)


def test_terms_follow_their_definitions(tmp_path: Path) -> None:
    swept = 0
    for entry in journal_of(tmp_path, {"use": "er_ace", "capacity": 20}):
        everything = list(range(CLASSES))
        masked = [label for label in everything if label not in entry["old"]] if entry["others"] else everything
        if entry["event"] or not entry["others"]:  # within the first task its own classes drop out as they are seen: see below
            expected = cross_entropy(entry["logits"], entry["targets"], [masked] * len(entry["targets"]))
            present = set(entry["targets"])
            current = {2 * entry["event"], 2 * entry["event"] + 1}
            if present == current:
                assert float(entry["terms"]["task"]) == pytest.approx(expected, rel=1e-4)
                swept += 1
        for logits, rows in entry["others"].values():
            expected = cross_entropy(logits, rows.targets.tolist(), [everything] * len(rows))
            assert float(entry["terms"]["ace/replay"]) == pytest.approx(expected, rel=1e-4)
            swept += 1
    assert swept > 20


def test_the_released_variant_leaves_the_first_task_alone(tmp_path: Path) -> None:
    first, later = 0, 0
    for entry in journal_of(tmp_path / "released", {"use": "er_ace", "variant": "released", "capacity": 20}):
        if entry["event"] == 0:
            assert not entry["others"]
            expected = cross_entropy(entry["logits"], entry["targets"], [list(range(CLASSES))] * len(entry["targets"]))
            assert float(entry["terms"]["task"]) == pytest.approx(expected, rel=1e-4)
            first += 1
        else:
            assert entry["others"]
            later += 1
    assert (first, later) == (5, 10)
    paper = journal_of(tmp_path / "paper", {"use": "er_ace", "capacity": 20})
    assert [bool(entry["others"]) for entry in paper[:5]] == [False, True, True, True, True]


def test_without_memory_every_variant_is_fine_tuning(tmp_path: Path) -> None:
    plain = finish(experiment_of({}, tmp_path / "plain", stream="L0 L1 L2"))
    for variant in ("paper", "released"):
        found = finish(experiment_of({"er_ace": {"capacity": 0, "variant": variant}}, tmp_path / variant, stream="L0 L1 L2"))
        assert first_difference(found.weights, plain.weights) is None
    assert_different_weights(plain, finish(experiment_of({"er_ace": {"capacity": 9}}, tmp_path / "full", stream="L0 L1 L2")), "memory")


# --- what was seen, and forgetting ---


@pytest.mark.parametrize(
    ("stream", "scenario", "seen"),
    [
        ("L0 L1", "class_il", [0, 1, 2, 3]),
        ("L0 L1 U0", "class_il", [2, 3]),
        ("L0 L1 U0:class=1", "class_il", [0, 2, 3]),
        ("L0 L1 U0:fraction=0.5@seed1", "class_il", [0, 1, 2, 3]),
        ("L0 L1 U0", "domain_il", [0, 1]),
        ("L0 L1 U0 U1", "domain_il", []),
    ],
)
def test_a_class_is_unseen_again_when_no_live_task_has_it(tmp_path: Path, stream: str, scenario: str, seen: list[int]) -> None:
    experiment = beside(experiment_of({"er_ace": {}}, tmp_path, stream=stream, scenario=scenario), after=[slot(Oblivious)])
    assert finish(experiment).learner["strategies"]["er_ace"]["seen"].nonzero().flatten().tolist() == seen


# --- refusals ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": -1}, "capacity must be >= 0, got -1"),
        ({"minibatch": 0}, "minibatch must be >= 1, got 0"),
        ({"variant": "code"}, "variant must be one of paper, released, got 'code'"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ERACEConfig(**options)


def test_the_released_variant_refuses_a_blurry_stream(tmp_path: Path) -> None:
    text = r"strategies.er_ace.variant=released must know when the first task ends.*Use variant=paper or blurry=0"
    with pytest.raises(ConfigurationError, match=text):
        finish(experiment_of({"er_ace": {"variant": "released"}}, tmp_path, blurry=0.2))
    assert finish(experiment_of({"er_ace": {}}, tmp_path, blurry=0.2)).summary["steps"] > 0


def test_two_strategies_that_replace_the_task_term_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="at most one strategy of a stack replaces the task term"):
        finish(experiment_of({"one": {"use": "er_ace"}, "two": {"use": "er_ace"}}, tmp_path))
    assert ERACE.traits.replaces_task_term
