"""What came to the contract with views and teachers: `check`, `arrange`, strongly augmented rows, inputs only scaled, snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_framework.assembly import assemble, make_benchmark
from cl_framework.augment import Augmented
from cl_framework.benchmarks.base import Benchmark, Scale, scaled_of, strong_of
from cl_framework.benchmarks.own_data import Unchanged
from cl_framework.benchmarks.text.tokens import TokenInputs
from cl_framework.config import Experiment
from cl_framework.context import SlotContext
from cl_framework.errors import ConfigurationError, ContractError
from cl_framework.learner import Learner
from cl_framework.loading import Chunk, StepReader
from cl_framework.plan import Plan
from cl_framework.stack import Stack
from cl_framework.strategy import Batch, Context, Draw, Phase, Rows, Setting, Strategy, Traits
from cl_framework.testing.laboratory import ROUGH, Jitter, beside, experiment_of, finish
from cl_framework.testing.neighbours import Neighbour, Structural, slot

NOTHING = Traits(no_neutral="a fixture")


# --- check ---


class Picky(Neighbour):
    """Wants an even batch size, and with the benchmark at most five classes; notes what it is told."""

    def check(self, setting: Setting) -> None:
        self.journal.append(setting)
        if setting.batch_size % 2:
            raise ConfigurationError(f"views: 2 does not divide batch_size {setting.batch_size}.")
        if setting.num_classes is not None and setting.num_classes > 6:
            raise ConfigurationError(f"capacity must be at least the number of classes, {setting.num_classes}.")


def test_a_strategy_is_asked_before_the_data_and_with_it(tmp_path: Path) -> None:
    picky = slot(Picky, "picky")
    finish(beside(experiment_of({"er": {}}, tmp_path, stream="L0 L1"), after=[picky]))
    before, after = picky.strategy_class.journal[0], picky.strategy_class.journal[-1]
    assert (before.num_classes, before.model, before.learns, list(before.slots)) == (None, None, 2, ["er", "picky"])
    assert before.slots["er"].stores_data
    assert (after.num_classes, after.num_tasks, after.scenario, after.augmented) == (6, 3, "class_il", False)
    assert after.model is not None


def test_it_is_asked_once_more_about_a_model_that_another_strategy_built(tmp_path: Path) -> None:
    picky, building = slot(Picky, "picky"), slot(Structural)
    assemble(beside(experiment_of({}, tmp_path), after=[picky, building]))
    assert [type(setting.model).__name__ for setting in picky.strategy_class.journal] == ["NoneType", "MLP", "WithAdapter"]
    alone = slot(Picky, "picky")
    assemble(beside(experiment_of({}, tmp_path), after=[alone]))
    assert [type(setting.model).__name__ for setting in alone.strategy_class.journal] == ["NoneType", "MLP"]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"batch_size": 7}, r"strategies\.picky\.views: 2 does not divide batch_size 7\."),
        ({"benchmark": {"name": "synthetic", "tasks": 4, "classes_per_task": 2}}, r"strategies\.picky\.capacity must be at least .* 8\."),
    ],
)
def test_what_it_refuses_names_its_slot_and_nothing_is_written(settings: Mapping[str, Any], text: str, tmp_path: Path) -> None:
    experiment = beside(experiment_of({}, tmp_path, **settings), after=[slot(Picky, "picky")])
    with pytest.raises(ConfigurationError, match=text):
        finish(experiment)
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("upper", ["joint", "cumulative"])
def test_what_plans_all_steps_anew_comes_before_what_transforms_a_plan(upper: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=rf"strategies\.{upper}\.plan: .* view_batch .* would be lost\. Put this slot before"):
        finish(experiment_of({"view_batch": {"views": 2}, upper: {}}, tmp_path / "lost"))
    finish(experiment_of({upper: {}, "view_batch": {"views": 2}, "er": {}}, tmp_path / "kept"))


# --- arrange ---


class Drawing(Strategy):
    traits = NOTHING

    def draw(self, batch: Batch, context: Context) -> Mapping[str, Draw]:
        return {"rows": Draw.joined(rows_of(1, 2))}


class Arranging(Strategy):
    """Puts its own mark in front of the ids of all draws."""

    traits = NOTHING

    def arrange(self, draw: Draw, batch: Batch, context: Context) -> Draw:
        marked = torch.cat([torch.tensor([self.config]), draw.rows.ids])
        return replace(draw, rows=replace(draw.rows, ids=marked))


def rows_of(*ids: int) -> Rows:
    column = torch.tensor(ids)
    return Rows(torch.zeros(len(ids), 2), torch.zeros_like(column), column, torch.zeros_like(column))


def test_arrangements_are_piped_in_slot_order_over_every_draw() -> None:
    stack = Stack([("a", Arranging(7)), ("memory", Drawing(None)), ("b", Arranging(8))])
    stack.bind(dict.fromkeys(stack.slots))  # type: ignore[arg-type]
    batch = Batch(*(getattr(rows_of(0), name) for name in ("items", "targets", "ids", "task_of_row")))
    stack.compile(Phase("learn", 1), lambda closure: None, unlearning=False).draw(batch)  # type: ignore[arg-type, return-value]
    assert batch.draws["memory"]["rows"].rows.ids.tolist() == [8, 7, 1, 2]
    assert batch.draws["memory"]["rows"].key == "memory/rows"
    assert "memory.arrange" not in stack.describe()
    assert "batch.draws = a.arrange(batch.draws)" in stack.describe()


# --- strongly augmented rows ---


class Strengthened(Jitter):
    """An augmentation whose strong rows are those of the weak one, and 100."""

    def strong(self, items: Tensor, generator: torch.Generator) -> Tensor:
        return items.float() / 255 + 0.1 * torch.randn(items.shape, generator=generator) + 100


def learner_with(transform: Any, tmp_path: Path) -> tuple[Learner, Experiment]:
    experiment = experiment_of({}, tmp_path)
    benchmark: Benchmark = replace(make_benchmark(experiment), transform=transform)
    return assemble(experiment, benchmark), experiment


def first_batch(learner: Learner, strong: Tensor | None) -> Batch:
    plan = Plan(torch.arange(4), torch.tensor([0, 4]), strong=strong)
    phase = Phase("learn", plan)
    learner.position.phase = phase
    return StepReader(learner, phase).batch(0, Chunk(0, 1))


def test_only_the_rows_that_a_plan_marks_are_augmented_strongly(tmp_path: Path) -> None:
    learner, _ = learner_with(Strengthened(), tmp_path)
    weak = first_batch(learner, None)
    some = first_batch(learner, torch.tensor([False, True, False, True]))
    others = first_batch(learner, torch.tensor([False, True, True, False]))
    assert isinstance(weak.inputs, Tensor) and isinstance(some.inputs, Tensor) and isinstance(others.inputs, Tensor)
    assert torch.equal(some.inputs[0::2], weak.inputs[0::2])
    assert torch.equal(some.inputs.flatten(1).mean(1) > 50, torch.tensor([False, True, False, True]))
    assert torch.equal(some.inputs[1], others.inputs[1])  # whatever the other rows are
    assert not torch.equal(some.inputs[3], weak.inputs[3])
    assert some.strong is not None and weak.strong is None


def test_without_a_strong_augmentation_marked_rows_are_refused(tmp_path: Path) -> None:
    learner, _ = learner_with(Jitter(), tmp_path)
    with pytest.raises(ContractError, match="strongly augmented rows were asked for, but this benchmark has no strong augmentation"):
        first_batch(learner, torch.tensor([True] * 4))
    first_batch(learner, None)


def test_which_transforms_have_one() -> None:
    assert strong_of(Jitter()) is None
    assert strong_of(Strengthened()) is not None
    assert strong_of(Scale()) is None
    scale = Scale(strengthen=lambda inputs, generator: 1 - inputs, mean=(0.5,), deviation=(0.5,))
    strong = strong_of(scale)
    assert strong is not None
    items = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    assert torch.equal(strong(items, torch.Generator()), -scale(items, None))  # type: ignore[operator]


# --- images only scaled ---


def test_which_transforms_scale_alone() -> None:
    items = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)
    expected = torch.tensor([[[[0.0, 0.2, 1.0]]]])
    for transform in (Scale(), Scale(mean=(0.5,), deviation=(0.5,)), Augmented(2, True, (0.5,), (0.5,))):
        scale = scaled_of(transform)
        assert scale is not None and torch.equal(scale(items), expected)  # type: ignore[arg-type]
        assert torch.equal(transform(items, None), expected) == (not transform.mean)  # type: ignore[arg-type]
    assert [scaled_of(transform) for transform in (Jitter(), Unchanged(), TokenInputs())] == [None] * 3


def test_asking_for_what_the_transform_has_not_is_an_error(tmp_path: Path) -> None:
    learner, _ = learner_with(Jitter(), tmp_path)
    context = SlotContext("looker", Traits(no_neutral="looks"), learner)
    text = r"^strategy 'looker' asks for inputs that are only scaled, but this benchmark's transform has none\.$"
    with pytest.raises(ContractError, match=text):
        context.scaled(first_batch(learner, None))


# --- snapshots ---


def test_a_snapshot_answers_as_the_model_did_whatever_came_after(tmp_path: Path) -> None:
    class Teaching(Neighbour):
        """Takes a snapshot at the first step and asks it again at the last."""

        def draw(self, batch: Batch, context: Context) -> Mapping[str, Draw]:
            if not self.journal:
                snapshot = context.snapshot()
                model = context.model
                model.eval()
                with torch.no_grad():
                    self.journal.append((snapshot, batch, model(batch.inputs)))
                model.train()
            return {}

        def end(self, context: Context) -> tuple[()]:
            snapshot, batch, logits = self.journal[0]
            before = context.snapshot()
            again = context.forward(batch, snapshot)
            assert torch.equal(again, logits)
            assert not torch.equal(context.forward(batch, before), logits)  # the control: the model has moved
            after = context.snapshot()
            assert all(torch.equal(before[name], after[name]) for name in before)
            assert context.model.training
            self.journal.append("asked")
            return ()

    teaching = slot(Teaching)
    finish(beside(experiment_of({}, tmp_path, model=ROUGH, stream="L0"), after=[teaching]))
    assert teaching.strategy_class.journal[-1] == "asked"
