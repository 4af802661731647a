"""Built-in benchmarks: no class dropped, ids a partition, transformations what they say, errors that help."""

from __future__ import annotations

import builtins
import gzip
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cl_framework import Benchmark, BenchmarkContext, ConfigurationError
from cl_framework.benchmarks.base import Scale
from cl_framework.benchmarks.digits import SplitOptions, split_digits
from cl_framework.benchmarks.mnist import (
    DomainOptions,
    SplitMNISTOptions,
    perm_mnist,
    rot_mnist,
    split_fashion_mnist,
    split_mnist,
)
from cl_framework.benchmarks.sources import LazySource, divide_classes
from cl_framework.benchmarks.synthetic import SyntheticOptions, synthetic
from tests.unit.made_up import write_mnist


def context(root: Path, **changes: Any) -> BenchmarkContext:
    return BenchmarkContext(**{"root": root, "download": False, "seed": 0, "scenario": "", **changes})


def all_rows(source: Any) -> torch.Tensor:
    return source.read(torch.arange(len(source)))


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    write_mnist(tmp_path)
    write_mnist(tmp_path, "FashionMNIST")
    return tmp_path


# --- which classes ---


def test_a_remainder_class_is_never_dropped() -> None:
    assert divide_classes(10, 5, None, None) == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    assert divide_classes(10, 3, None, None) == [(0, 1, 2, 3), (4, 5, 6), (7, 8, 9)]
    assert divide_classes(10, None, 4, None) == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)]
    assert divide_classes(4, 2, None, (3, 1, 0, 2)) == [(3, 1), (0, 2)]
    with pytest.raises(ValueError, match="tasks must be between 1 and the number of classes 10, got 11"):
        divide_classes(10, 11, None, None)
    with pytest.raises(ValueError, match="class_order must hold each class 0 to 3 once"):
        divide_classes(4, 2, None, (0, 1, 2, 2))
    with pytest.raises(ValueError, match="tasks must be between 1 and the number of classes 4, got 0"):
        divide_classes(4, 0, None, None)
    for wrong in (0, -1, 5):
        with pytest.raises(ValueError, match=f"classes_per_task must be between 1 and the number of classes 4, got {wrong}"):
            divide_classes(4, None, wrong, None)


@given(st.integers(1, 12), st.data())
def test_any_division_is_a_partition_in_order(num_classes: int, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(num_classes)))
    by_tasks = divide_classes(num_classes, data.draw(st.integers(1, num_classes)), None, order)
    by_size = divide_classes(num_classes, None, data.draw(st.integers(1, num_classes)), order)
    for held in (by_tasks, by_size):
        assert [label for task in held for label in task] == order
        assert all(held)
    assert max(map(len, by_tasks)) - min(map(len, by_tasks)) <= 1


def test_digits_hold_every_sample_once() -> None:
    benchmark = split_digits(SplitOptions(tasks=3), context(Path()))
    counts = sum(len(source) for source in [*benchmark.train, *benchmark.test])
    assert counts == 1797
    for held, train, test in zip(benchmark.classes, benchmark.train, benchmark.test, strict=True):
        assert set(train.targets.tolist()) == set(test.targets.tolist()) == set(held)
    inputs = benchmark.transform(all_rows(benchmark.train[0]), None)
    assert inputs.dtype == torch.float32
    assert (float(inputs.min()), float(inputs.max())) == (0.0, 1.0)


def test_the_test_split_of_digits_does_not_move_with_the_seed() -> None:
    first, second = (split_digits(SplitOptions(), context(Path(), seed=seed)) for seed in (0, 1))
    assert all(torch.equal(all_rows(a), all_rows(b)) for a, b in zip(first.test, second.test, strict=True))


def test_a_machine_without_scikit_learn_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigurationError, match=r"benchmark split_digits needs scikit-learn: pip install scikit-learn\."):
        split_digits(SplitOptions(), context(Path()))


def test_scale_divides_then_normalises_a_channel() -> None:
    items = torch.tensor([0, 51, 102, 255], dtype=torch.uint8).view(1, 2, 1, 2)
    before = items.clone()
    plain = Scale()(items, None)
    assert torch.equal(plain, items.float() / 255)
    normalised = Scale(mean=(0.5, 0.2), deviation=(0.5, 2.0))(items, None)
    by_hand = torch.tensor([(0.0 - 0.5) / 0.5, (0.2 - 0.5) / 0.5, (0.4 - 0.2) / 2.0, (1.0 - 0.2) / 2.0]).view(1, 2, 1, 2)
    assert torch.allclose(normalised, by_hand)
    assert not torch.allclose(normalised, plain)
    assert torch.equal(items, before)  # raw items stay what they were


# --- ids ---


def test_ids_are_a_partition_and_lead_back_to_their_samples() -> None:
    benchmark = synthetic(SyntheticOptions(tasks=3, train_per_class=5), context(Path()))
    ids = torch.cat([benchmark.ids_of(task) for task in range(3)])
    assert torch.equal(ids, torch.arange(30))
    mixed = ids[torch.randperm(30, generator=torch.Generator().manual_seed(0))]
    items, targets, tasks = benchmark.read(mixed)
    located, places = benchmark.locate(mixed)
    assert torch.equal(located, tasks)
    assert torch.equal(benchmark.read_targets(mixed), targets)
    for position, one in enumerate(mixed.tolist()):
        source = benchmark.train[one // 10]
        assert torch.equal(items[position], source.read(torch.tensor([one % 10]))[0])
        assert (int(tasks[position]), int(places[position])) == (one // 10, one % 10)
    assert benchmark.read(mixed[:0])[0].shape == (0, 1, 4, 4)


# --- synthetic ---


def test_synthetic_is_seeded_and_follows_the_scenario() -> None:
    one, same, other = (synthetic(SyntheticOptions(), context(Path(), seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(all_rows(one.train[1]), all_rows(same.train[1]))
    assert not torch.equal(all_rows(one.train[1]), all_rows(other.train[1]))
    shared = synthetic(SyntheticOptions(), context(Path(), scenario="domain_il"))
    assert shared.classes == ((0, 1),) * 3
    assert shared.scenarios == ("domain_il",)
    assert one.num_classes == 6


# --- MNIST ---


def test_split_mnist_reads_torchvisions_layout(mnist: Path) -> None:
    benchmark = split_mnist(SplitMNISTOptions(), context(mnist))
    assert [len(source) for source in benchmark.train] == [12] * 5
    assert [set(source.targets.tolist()) for source in benchmark.test] == [{0, 1}, {2, 3}, {4, 5}, {6, 7}, {8, 9}]
    raw = torch.frombuffer(bytearray((mnist / "MNIST/raw/train-images-idx3-ubyte").read_bytes()[16:]), dtype=torch.uint8).view(60, 28, 28)
    assert torch.equal(benchmark.train[0].read(torch.tensor([2]))[0, 0], raw[10])  # the second zero
    fashion = split_fashion_mnist(SplitMNISTOptions(), context(mnist))
    assert not torch.equal(all_rows(fashion.train[0]), all_rows(benchmark.train[0]))


def test_permutations_are_bijections_and_differ_by_task_and_seed(mnist: Path) -> None:
    benchmark = perm_mnist(DomainOptions(tasks=3), context(mnist))
    plain = split_mnist(SplitMNISTOptions(tasks=1), context(mnist)).train[0]
    images = [all_rows(source) for source in benchmark.train]
    for task in range(3):
        assert torch.equal(images[task].flatten(1).sort(1).values, all_rows(plain).flatten(1).sort(1).values)
        assert not torch.equal(images[task], all_rows(plain))  # the first task is permuted too
    assert not torch.equal(images[0], images[1])
    test = all_rows(benchmark.test[1])
    assert test.shape == (20, 1, 28, 28)
    again = perm_mnist(DomainOptions(tasks=3), context(mnist))
    assert torch.equal(all_rows(again.train[2]), images[2])
    reseeded = perm_mnist(DomainOptions(tasks=3, seed=5), context(mnist))
    assert not torch.equal(all_rows(reseeded.train[2]), images[2])


def test_training_and_test_images_of_a_task_have_one_permutation(mnist: Path) -> None:
    write_mnist(mnist, train=20, test=20)
    folder = mnist / "MNIST" / "raw"
    (folder / "t10k-images-idx3-ubyte").write_bytes((folder / "train-images-idx3-ubyte").read_bytes())
    benchmark = perm_mnist(DomainOptions(tasks=2), context(mnist))
    for task in range(2):
        assert torch.equal(all_rows(benchmark.train[task]), all_rows(benchmark.test[task]))
    assert not torch.equal(all_rows(benchmark.train[0]), all_rows(benchmark.test[1]))


def held(benchmark: Benchmark) -> list[bool]:
    return [source.held for source in benchmark.train if isinstance(source, LazySource)]


def test_only_the_training_set_in_use_is_held(mnist: Path) -> None:
    benchmark = perm_mnist(DomainOptions(tasks=4), context(mnist))
    for _ in range(2):
        all_rows(benchmark.train[0])
    assert held(benchmark) == [True, False, False, False]
    for _ in range(2):
        all_rows(benchmark.train[2])
    assert held(benchmark) == [False, False, True, False]


@pytest.mark.parametrize("build", [perm_mnist, rot_mnist])
def test_reads_that_mix_tasks_hold_nothing_and_give_the_same_rows(mnist: Path, build: Callable[..., Benchmark]) -> None:
    mixing, whole = (build(DomainOptions(tasks=4), context(mnist)) for _ in range(2))
    ids = torch.randperm(4 * 60, generator=torch.Generator().manual_seed(0))
    for part in ids.split(40):
        items, targets, tasks = mixing.read(part)
        assert held(mixing) == [False] * 4
        for row, (task, place) in enumerate(zip(*whole.locate(part), strict=True)):
            source = whole.train[int(task)]
            all_rows(source)
            assert torch.equal(items[row], source.read(place.view(1))[0])  # held by now: read twice in a row
            assert int(targets[row]) == int(source.targets[place])
            assert int(tasks[row]) == int(task)
    assert held(whole).count(True) == 1
    assert not torch.equal(all_rows(mixing.train[0]), all_rows(mixing.train[1]))


def test_rotations_are_torchvisions(mnist: Path) -> None:
    from torchvision.transforms.functional import InterpolationMode, rotate

    benchmark = rot_mnist(DomainOptions(tasks=4), context(mnist))
    angles = [float(angle) for angle in benchmark.notes["angles"].split(", ")]
    assert all(0 <= angle < 180 for angle in angles)
    assert len(set(angles)) == 4
    plain = all_rows(split_mnist(SplitMNISTOptions(tasks=1), context(mnist)).test[0])
    one = rotate(plain[3:4], angles[1], InterpolationMode.BILINEAR).float()
    ours = benchmark.test[1].read(torch.tensor([3])).float()
    assert float((one - ours).abs().mean()) < 1.5  # the noted angle is rounded to a tenth of a degree
    assert float((plain[3:4].float() - ours).abs().mean()) > 10


def test_a_limit_is_a_seeded_choice_and_is_noted(mnist: Path) -> None:
    benchmark = split_mnist(SplitMNISTOptions(train_limit=4), context(mnist))
    assert [len(source) for source in benchmark.train] == [4] * 5
    assert benchmark.notes["train_limit"] == "4 training images a task"
    assert "train_limit" not in split_mnist(SplitMNISTOptions(), context(mnist)).notes
    chosen, again, other = (perm_mnist(DomainOptions(tasks=2, seed=3, train_limit=30), context(mnist, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(all_rows(chosen.train[1]), all_rows(again.train[1]))
    assert not torch.equal(all_rows(chosen.train[1]), all_rows(other.train[1]))


def test_missing_data_says_where_it_was_looked_for(tmp_path: Path) -> None:
    text = f"MNIST is not in {tmp_path}/MNIST/raw. Set data.download=true to fetch it, or data.root=DIR (or CL_DATA)"
    with pytest.raises(ConfigurationError, match=re.escape(text)):
        split_mnist(SplitMNISTOptions(), context(tmp_path))


def test_packed_data_says_how_to_unpack_it(mnist: Path) -> None:
    folder = mnist / "MNIST" / "raw"
    for path in list(folder.iterdir()):
        with gzip.open(f"{path}.gz", "wb") as packed:
            packed.write(path.read_bytes())
        path.unlink()
    with pytest.raises(ConfigurationError, match=r"is still packed. Unpack it: gunzip -k"):
        split_mnist(SplitMNISTOptions(), context(mnist))


@pytest.mark.parametrize(("content", "why"), [(b"\0\0\x08\x03nonsense", ".+"), (b"junk", "a file is damaged")])
def test_broken_data_is_named(content: bytes, why: str, mnist: Path) -> None:
    (mnist / "MNIST/raw/train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ConfigurationError, match=rf"MNIST in .*raw cannot be read: {why}\. Remove it and load it again"):
        split_mnist(SplitMNISTOptions(), context(mnist))


def test_a_torchvision_that_does_not_match_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **named: Any) -> Any:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist\nand more")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    text = (
        rf"^torchvision does not work with torch {re.escape(torch.__version__)} \(operator torchvision::nms does not exist\)\. "
        r"Install a matching pair: pip install torch==\S+ torchvision==\S+\.$"
    )
    with pytest.raises(ConfigurationError, match=text):
        split_mnist(SplitMNISTOptions(), context(tmp_path))
