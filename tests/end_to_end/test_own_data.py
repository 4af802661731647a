"""A user's own data from Python: named after itself, resumed with the same data only; workers give what memory gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from cl_framework import Benchmark, ConfigurationError, from_datasets, load_experiment, resume, run

BASE: dict[str, Any] = {"experiment": "own", "benchmark": {"name": "synthetic"}, "batch_size": 8, "strategies": {"er": {"capacity": 20}}}


def own(seed: int = 0, in_memory: str = "auto") -> Benchmark:
    images = torch.randint(0, 256, (60, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    data = TensorDataset(images, torch.arange(60) % 4)
    return from_datasets(data, data, classes_per_task=2, in_memory=in_memory)


def test_a_run_is_named_after_its_data(tmp_path: Path) -> None:
    experiment = load_experiment(BASE, [f"out={tmp_path}"])
    first = run(experiment, benchmark=own())
    assert first.summary is not None
    assert first.summary["benchmark"] == "own_data"
    assert run(experiment, benchmark=own(seed=1)).path != first.path
    assert run(experiment, benchmark=own()).path == first.path


def test_a_resume_needs_the_same_data(tmp_path: Path) -> None:
    experiment = load_experiment(BASE, [f"out={tmp_path}"])
    stopped = run(experiment, benchmark=own(), stop_requested=lambda step: step == 5)
    assert stopped.status == "stopped"
    with pytest.raises(ConfigurationError, match=r"was given as an object, which a file cannot hold. Continue from Python"):
        resume(stopped.path)
    with pytest.raises(ConfigurationError, match="was started on other data than the benchmark given now"):
        resume(stopped.path, benchmark=own(seed=1))
    done = resume(stopped.path, benchmark=own())
    whole = run(load_experiment(BASE, [f"out={tmp_path / 'whole'}"]), benchmark=own())
    assert (done.path / "records.jsonl").read_bytes() == (whole.path / "records.jsonl").read_bytes()


def test_data_are_known_again_wherever_they_are_held() -> None:
    held, read, other = own(in_memory="always").digests, own(in_memory="never").digests, own(seed=1, in_memory="never").digests
    assert set(held) == {"whole", "ends"} and set(read) == {"ends"}
    assert held["ends"] == read["ends"] != other["ends"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_data_that_does_not_fit_gives_the_same_figures(tmp_path: Path, workers: int) -> None:
    def weights(how: str, seed: int = 0) -> dict[str, torch.Tensor]:
        words = [f"out={tmp_path / how}", f"data.workers={workers}", f"seed={seed}"]
        result = run(load_experiment(BASE, words), benchmark=own(in_memory=how))
        newest = sorted((result.path / "ckpt").iterdir())[-1]
        return torch.load(newest, weights_only=True)["learner"]["model"]

    held, read, other = weights("always"), weights("never"), weights("never", seed=1)
    assert all(torch.equal(held[name], read[name]) for name in held)
    assert not all(torch.equal(held[name], other[name]) for name in held)
