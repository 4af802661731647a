"""The Avalanche adapter, sample by sample in both directions."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch

from cl_framework import BenchmarkContext, ConfigurationError
from cl_framework.benchmarks.avalanche import AvalancheOptions, avalanche_benchmark, from_avalanche, to_avalanche
from cl_framework.benchmarks.synthetic import SyntheticOptions, synthetic
from tests.unit.made_up import write_mnist

ORDER = [3, 0, 5, 2, 4, 1]


@pytest.fixture(scope="module")
def images() -> torch.utils.data.TensorDataset:
    generator = torch.Generator().manual_seed(0)
    data = torch.utils.data.TensorDataset(
        torch.randint(0, 256, (30, 1, 3, 3), dtype=torch.uint8, generator=generator), torch.arange(30) % 6
    )
    data.targets = (torch.arange(30) % 6).tolist()  # type: ignore[attr-defined]
    return data


@pytest.mark.slow
def test_from_an_avalanche_benchmark_to_a_stream(images: torch.utils.data.TensorDataset) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from avalanche.benchmarks import nc_benchmark

        theirs = nc_benchmark(images, images, n_experiences=3, task_labels=False, fixed_class_order=ORDER)
    before = torch.random.get_rng_state()
    ours = from_avalanche(theirs)
    assert torch.equal(before, torch.random.get_rng_state())
    assert [set(held) for held in ours.classes] == [{3, 0}, {5, 2}, {4, 1}]
    compared = 0
    for sources, stream in ((ours.train, theirs.train_stream), (ours.test, theirs.test_stream)):
        for task, experience in enumerate(stream):
            assert len(sources[task]) == len(experience.dataset)
            for row in range(len(experience.dataset)):
                item, label, *_ = experience.dataset[row]
                assert torch.equal(sources[task].read(torch.tensor([row]))[0], item)
                assert int(sources[task].targets[row]) == label
                compared += 1
    assert compared == 30 + 30
    assert not torch.equal(ours.train[0].read(torch.tensor([0])), ours.train[1].read(torch.tensor([0])))


@pytest.mark.parametrize("task_labels", [False, True])
def test_from_a_stream_to_an_avalanche_benchmark_and_back(task_labels: bool) -> None:
    ours = synthetic(SyntheticOptions(tasks=3, train_per_class=5, test_per_class=2), BenchmarkContext(Path(), False, 0, ""))
    theirs = to_avalanche(ours, task_labels=task_labels)
    compared = 0
    for sources, stream in ((ours.train, theirs.train_stream), (ours.test, theirs.test_stream)):
        for task, experience in enumerate(stream):
            assert len(experience.dataset) == len(sources[task])
            assert set(experience.classes_in_this_experience) == set(ours.classes[task])
            inputs = ours.transform(sources[task].read(torch.arange(len(sources[task]))), None)
            for row in range(len(experience.dataset)):
                item, label, task_label = experience.dataset[row]
                assert torch.equal(item, inputs[row])
                assert (int(label), task_label) == (int(sources[task].targets[row]), task if task_labels else 0)
                compared += 1
    assert compared == 3 * 2 * (5 + 2)
    back = from_avalanche(theirs)
    assert back.classes == ours.classes
    assert torch.equal(back.train[2].read(torch.arange(10)), ours.transform(ours.train[2].read(torch.arange(10)), None))


def test_a_registered_classic(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    before = torch.random.get_rng_state()
    benchmark = avalanche_benchmark(AvalancheOptions(class_order=(9, 8, 7, 6, 5, 4, 3, 2, 1, 0)), BenchmarkContext(tmp_path, False, 0, ""))
    assert torch.equal(before, torch.random.get_rng_state())
    assert [set(held) for held in benchmark.classes] == [{9, 8}, {7, 6}, {5, 4}, {3, 2}, {1, 0}]
    assert sum(len(source) for source in benchmark.train) == 60


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"MNIST is not in .*MNIST/raw. Set data.download=true .* to where MNIST/raw lies"):
        avalanche_benchmark(AvalancheOptions(), BenchmarkContext(tmp_path, False, 0, ""))
    with pytest.raises(ConfigurationError, match=r"CIFAR10 is not in .* to where cifar-10-batches-py lies"):
        avalanche_benchmark(AvalancheOptions(source="SplitCIFAR10"), BenchmarkContext(tmp_path, False, 0, ""))
    write_mnist(tmp_path)
    (tmp_path / "MNIST/raw/t10k-images-idx3-ubyte").unlink()  # the folder is there, a file is not: Avalanche itself would download
    with pytest.raises(ConfigurationError, match=r"MNIST in .*raw cannot be read: .*Remove it and load it again"):
        avalanche_benchmark(AvalancheOptions(), BenchmarkContext(tmp_path, False, 0, ""))
    with pytest.raises(ValueError, match="experiences must divide the 10 classes, or Avalanche drops the remainder; got 3"):
        AvalancheOptions(experiences=3)


def test_a_machine_without_avalanche_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "avalanche.benchmarks", None)
    ours = synthetic(SyntheticOptions(), BenchmarkContext(Path(), False, 0, ""))
    with pytest.raises(ConfigurationError, match=r"Avalanche cannot be imported \(.*\)\. Install it: pip install avalanche-lib==0.6.0\."):
        to_avalanche(ours)
