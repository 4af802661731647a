"""Whole runs on images in files: resumed and read by workers bit for bit with augmentation, online and blurry streams. Made-up data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cl_framework.assembly import assemble, make_benchmark
from cl_framework.augment import Augmented
from cl_framework.benchmarks.cifar import _CLASSES
from cl_framework.config import Experiment
from cl_framework.testing.laboratory import (
    Outcome,
    assert_different_weights,
    assert_equal_outcomes,
    experiment_of,
    finish,
    finish_in_pieces,
)
from tests.unit.made_up import write_image

RESNET = {"name": "resnet18", "width": 4}
REPLAY = {"er": {"capacity": 8}}
VIEWS = {"views": {"use": "view_batch", "views": 2}, "derpp": {"capacity": 8}}
TASKS = 5
TRAIN = 3  # images a class


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as the JPEG copy of CIFAR-10, with three training images and a test image a class."""
    folder = tmp_path_factory.mktemp("data")
    for part, count in (("train", TRAIN), ("test", 1)):
        for label, name in enumerate(_CLASSES):
            for number in range(count):
                write_image(folder / "cifar10_jpeg" / part / name / f"{number:04}.jpg", 32, 100 * label + number + 50 * (part == "test"))
    return folder


def on_images(root: Path, out: Path, strategies: dict[str, Any], *overrides: str, **settings: Any) -> Experiment:
    words = [f"data.root={root}", *overrides]
    chosen = {"benchmark": {"name": "split_cifar10_jpeg"}, "model": RESNET, "batch_size": 4, **settings}
    return experiment_of(strategies, out, overrides=words, **chosen)


@pytest.mark.slow
@pytest.mark.parametrize("strategies", [REPLAY, VIEWS], ids=["er", "views_of_derpp"])
def test_a_run_on_images_resumes_and_reads_by_workers_bit_for_bit(strategies: dict[str, Any], root: Path, tmp_path: Path) -> None:
    def prepared(folder: str, *words: str) -> Experiment:
        return on_images(root, tmp_path / folder, strategies, *words, stream="L0 L1")

    whole = finish(prepared("whole"))
    experiment = prepared("pieces")
    benchmark = make_benchmark(experiment)
    assert isinstance(benchmark.transform, Augmented) and benchmark.transform.random
    pieces, stops = finish_in_pieces(experiment, lambda step: step in (1, 2, 3), benchmark)
    assert stops == 3
    assert_equal_outcomes(whole, pieces, "a run in pieces")
    left = prepared("left", "data.in_memory=never", "data.workers=2")
    assert not any(source.in_memory for source in make_benchmark(left).train)
    assert_equal_outcomes(whole, finish(left), "a run read by workers")
    assert_different_weights(whole, finish(prepared("other", "seed=1")), "another seed")


def test_augmentation_repeats_with_its_seed_alone(root: Path, tmp_path: Path) -> None:
    def outcome(folder: str, augmented: bool = True) -> Outcome:
        experiment = on_images(root, tmp_path / folder, {}, stream="L0")
        benchmark = make_benchmark(experiment)
        assert isinstance(benchmark.transform, Augmented)
        plain = replace(benchmark.transform, padding=0, flip=False)
        return finish(experiment, benchmark if augmented else replace(benchmark, transform=plain))

    one = outcome("one")
    assert_equal_outcomes(one, outcome("again"), "the same run")
    assert_different_weights(one, outcome("plain", augmented=False), "augmentation")


def test_what_is_remembered_is_not_augmented(root: Path, tmp_path: Path) -> None:
    experiment = on_images(root, tmp_path, REPLAY, stream="L0", model={"name": "mlp", "hidden": [4]})
    outcome = finish(experiment)
    memory = outcome.learner["strategies"]["er"]
    items = next(value for value in _tensors(memory) if value.ndim == 4)
    seen = {tuple(row.flatten().tolist()) for row in make_benchmark(experiment).train[0].read(torch.arange(2 * TRAIN))}
    kept = {tuple(row.flatten().tolist()) for row in items if bool(row.any())}
    assert items.dtype == torch.uint8 and len(kept) == 2 * TRAIN
    assert kept == seen


def _tensors(state: Any) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else []
    return [tensor for part in parts for tensor in _tensors(part)]


def test_online_and_blurry_streams_of_images(root: Path, tmp_path: Path) -> None:
    small = {"model": {"name": "mlp", "hidden": [4]}, "stream": "L0-4"}
    straight = assemble(on_images(root, tmp_path, {}, "online=true", **small))
    blurry = assemble(on_images(root, tmp_path, {}, "online=true", "blurry=0.5", **small))
    for task in range(TASKS):
        assert torch.equal(straight.training_ids(task), straight.benchmark.ids_of(task))
    shown = [blurry.training_ids(task) for task in range(TASKS)]
    assert torch.equal(torch.cat(shown).sort().values, torch.arange(10 * TRAIN))
    foreign = sum(int((blurry.benchmark.locate(ids)[0] != task).sum()) for task, ids in enumerate(shown))
    assert 5 <= foreign <= 15  # of 30 half are dealt to all tasks, a fifth of them to their own
    finished = {
        words: finish(on_images(root, tmp_path / str(number), REPLAY, *words, **small)).summary
        for number, words in enumerate([("online=true",), ("online=true", "blurry=0.5")])
    }
    for summary in finished.values():
        assert summary["steps"] == TASKS * 2 and summary["samples"] == 10 * TRAIN  # one pass of six images a task, four a step
    assert len(finished) == 2
