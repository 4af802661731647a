"""On a CUDA device, where there is one: the same bits again and after a stop, and no step waits. `test_elsewhere` stands in elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from cl_framework.config import Experiment
from cl_framework.learner import Learner
from cl_framework.strategy import Batch, Evaluation
from cl_framework.testing.laboratory import (
    ROUGH,
    assert_different_weights,
    assert_equal_outcomes,
    augmented,
    experiment_of,
    finish,
    finish_in_pieces,
)
from tests.unit import text_stacks
from tests.unit.text_stacks import experiment_on_texts, rmu_under_watch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")

STACKS: dict[str, dict[str, dict[str, object]]] = {
    "fine-tuning": {},
    "er": {"er": {"capacity": 20}},
    "derpp and refresh": {"refresh": {"gamma": 0.01}, "derpp": {"capacity": 20}},
    "ewc": {"ewc": {}},
    "mir": {"mir": {"capacity": 30, "minibatch": 4}},
    "views": {"view_batch": {"views": 2}, "er": {"capacity": 20}},
}
MODELS = {"mlp": ROUGH, "resnet": {"name": "slim_resnet18", "width": 4}}


def experiment(stack: str, model: str, folder: Path, **settings: object) -> Experiment:
    settings = {"model": MODELS[model], "stream": "L0 L1 L0", "device": "cuda", **settings}
    if model == "resnet":
        benchmark = {
            "name": "synthetic",
            "tasks": 3,
            "classes_per_task": 2,
            "train_per_class": 18,
            "test_per_class": 20,
            "size": 8,
            "seed": 0,
        }
        settings["benchmark"] = benchmark
    return experiment_of(STACKS[stack], folder, **settings)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stack", STACKS)
def test_the_same_bits_again_and_after_a_stop(stack: str, model: str, tmp_path: Path) -> None:
    first = experiment(stack, model, tmp_path / "first")
    data = augmented(first)
    outcome = finish(first, data)
    assert_equal_outcomes(outcome, finish(experiment(stack, model, tmp_path / "again"), data), "run again it ends elsewhere")
    pieces, stops = finish_in_pieces(experiment(stack, model, tmp_path / "pieces"), lambda step: step % 4 == 1, data)
    assert stops > 2
    assert_equal_outcomes(outcome, pieces, "stopped and resumed it ends elsewhere")
    assert_different_weights(outcome, finish(experiment(stack, model, tmp_path / "seed", seed=1), data), "another seed")


@contextmanager
def nothing_waits() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps refuse to wait; the list counts them."""
    step, steps = Learner.step, [0]

    def watching(learner: Learner, batch: Batch) -> Evaluation:
        steps[0] += 1
        with nothing_waits():
            return step(learner, batch)

    monkeypatch.setattr(Learner, "step", watching)
    return steps


@pytest.mark.parametrize("stack", STACKS)
def test_no_step_waits(stack: str, tmp_path: Path, watched: list[int]) -> None:
    chosen = experiment(stack, "mlp", tmp_path)
    assert finish(chosen, augmented(chosen)).summary["steps"] == watched[0] > 0


@pytest.mark.parametrize("stack", text_stacks.STACKS)
def test_no_step_on_texts_waits(stack: str, tmp_path: Path, watched: list[int]) -> None:
    assert finish(experiment_on_texts(stack, tmp_path, device="cuda")).summary["steps"] == watched[0] > 0


def test_the_terms_of_rmu_on_texts_do_not_wait(tmp_path: Path) -> None:
    chosen, counted = rmu_under_watch(tmp_path, nothing_waits, device="cuda")
    finish(chosen)
    assert counted[0] > 3  # of what is forgotten in each of three steps, and of what is lent where there is any


def test_a_step_that_waits_would_be_seen() -> None:
    there = torch.ones(2, device="cuda")
    with pytest.raises(RuntimeError, match="synchroniz"), nothing_waits():
        float(there.sum())
