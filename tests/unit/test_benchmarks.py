"""Benchmarks: no class dropped, ids a partition, transformations what they say, memory and workers alike, errors that help."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from cl_framework import Benchmark, BenchmarkContext, ConfigurationError, FrameworkError, from_datasets, from_task_datasets
from cl_framework.benchmarks.digits import SplitOptions, split_digits
from cl_framework.benchmarks.image_folder import ImageFolderOptions, image_folder
from cl_framework.benchmarks.mnist import (
    DomainOptions,
    SplitMNISTOptions,
    perm_mnist,
    rot_mnist,
    split_fashion_mnist,
    split_mnist,
)
from cl_framework.benchmarks.sources import DatasetSource, divide_classes, materialise, targets_of
from cl_framework.benchmarks.synthetic import SyntheticOptions, synthetic
from tests.unit.made_up import write_images, write_mnist


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


def test_only_two_permuted_training_sets_are_held(mnist: Path) -> None:
    benchmark = perm_mnist(DomainOptions(tasks=5), context(mnist))
    for source in benchmark.train:
        all_rows(source)
    held = [source._items is not None for source in benchmark.train]  # type: ignore[attr-defined]
    assert held == [False, False, False, True, True]


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


def test_broken_data_is_named(mnist: Path) -> None:
    (mnist / "MNIST/raw/train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03nonsense")
    with pytest.raises(ConfigurationError, match=r"MNIST in .*raw cannot be read: .*Remove it and load it again"):
        split_mnist(SplitMNISTOptions(), context(mnist))


# --- own data ---


class Pairs:
    """A map-style data set without `targets`."""

    def __init__(self, count: int, classes: int = 4, shift: int = 0) -> None:
        generator = torch.Generator().manual_seed(count)
        self.items = torch.randint(0, 256, (count, 1, 3, 3), dtype=torch.uint8, generator=generator)
        self.labels = (torch.arange(count) % classes + shift).tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return self.items[row], self.labels[row]


def test_any_map_style_data_set() -> None:
    benchmark = from_datasets(Pairs(40), Pairs(8), tasks=2)
    assert benchmark.classes == ((0, 1), (2, 3))
    assert benchmark.input_shape == (1, 3, 3)
    assert torch.equal(all_rows(benchmark.train[1])[0], Pairs(40).items[2])


def test_workers_read_what_memory_holds() -> None:
    held, read = (from_datasets(Pairs(40), Pairs(8), tasks=2, in_memory=how) for how in ("always", "never"))
    assert held.train[0].in_memory
    assert not read.train[0].in_memory
    for task in range(2):
        assert torch.equal(all_rows(held.train[task]), all_rows(read.train[task]))
        assert torch.equal(held.train[task].targets, read.train[task].targets)
    assert not torch.equal(all_rows(held.train[0]), all_rows(read.train[1]))


def test_task_by_task() -> None:
    apart = from_task_datasets([(Pairs(8, 2), Pairs(4, 2)), (Pairs(8, 2, shift=2), Pairs(4, 2, shift=2))])
    assert (apart.classes, apart.num_classes, apart.scenarios[0]) == (((0, 1), (2, 3)), 4, "class_il")
    shared = from_task_datasets([(Pairs(8, 2), Pairs(4, 2)), (Pairs(12, 2), Pairs(4, 2))])
    assert (shared.num_classes, shared.scenarios[0]) == (2, "domain_il")


def test_what_own_data_must_be() -> None:
    class Ragged(Pairs):
        def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
            return (self.items[row] if row else self.items[row, :, :2]), self.labels[row]

    with pytest.raises(FrameworkError, match=r"sample 1 has shape \(1, 3, 3\), sample 0 \(1, 2, 3\): all must have one shape"):
        materialise(Ragged(4), targets_of(Ragged(4)), "always")
    with pytest.raises(FrameworkError, match="the test set has label 4, but the training set ends at 3"):
        from_datasets(Pairs(8), Pairs(8, shift=1), tasks=2)
    with pytest.raises(ConfigurationError, match="own_data: tasks must be between 1 and the number of classes 4, got 9"):
        from_datasets(Pairs(8), Pairs(8), tasks=9)


# --- folders of images ---


def folder_of(root: Path, **options: Any) -> Benchmark:
    return image_folder(ImageFolderOptions(path=str(root), size=6, tasks=2, **options), context(root))


def test_a_folder_with_a_split(tmp_path: Path) -> None:
    write_images(tmp_path / "train", ["ant", "bee", "cat", "dog"], 3)
    write_images(tmp_path / "test", ["ant", "bee", "cat", "dog"], 2)
    benchmark = folder_of(tmp_path)
    assert benchmark.classes == ((0, 1), (2, 3))
    assert [len(source) for source in [*benchmark.train, *benchmark.test]] == [6, 6, 4, 4]
    assert all_rows(benchmark.train[0]).shape == (6, 3, 6, 6)
    assert folder_of(tmp_path, channels=1).input_shape == (1, 6, 6)


def test_a_folder_without_a_split_holds_out_a_seeded_share(tmp_path: Path) -> None:
    write_images(tmp_path, ["ant", "bee"], 10)
    benchmark = folder_of(tmp_path, test_fraction=0.3)
    assert [len(source) for source in [*benchmark.train, *benchmark.test]] == [7, 7, 3, 3]
    assert torch.equal(all_rows(benchmark.test[0]), all_rows(folder_of(tmp_path, test_fraction=0.3).test[0]))


def test_bad_folders_and_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere holds no class folders. Expected"):
        folder_of(tmp_path / "nowhere")
    write_images(tmp_path, ["ant", "bee"], 2)
    (tmp_path / "cow").mkdir()
    with pytest.raises(ConfigurationError, match=r"cow holds no images"):
        folder_of(tmp_path)
    (tmp_path / "cow" / "1.png").write_text("no image")
    with pytest.raises(ConfigurationError, match=r"cow/1.png is no readable image .*Remove or replace it"):
        folder_of(tmp_path)


def test_dataset_source_selects_rows() -> None:
    pairs = Pairs(6)
    chosen = DatasetSource(pairs, targets_of(pairs)).select(torch.tensor([4, 1]))
    assert torch.equal(all_rows(chosen), pairs.items[[4, 1]])
    assert chosen.targets.tolist() == [0, 1]
