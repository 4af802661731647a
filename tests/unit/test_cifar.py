"""CIFAR in torchvision's files and the JPEG copy: classes, limits, decoding once, errors that help. All data is made up."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

from cl_framework import Benchmark, BenchmarkContext, ConfigurationError
from cl_framework.augment import Augmented, strong_colour
from cl_framework.benchmarks import cifar, image_files
from cl_framework.benchmarks.cifar import SplitCIFAR10Options, SplitCIFAR100Options, split_cifar10, split_cifar10_jpeg, split_cifar100
from cl_framework.benchmarks.sources import DatasetSource
from cl_framework.benchmarks.split_images import stratified
from tests.unit.made_up import pack, write_cifar, write_image


def context(root: Path, **changes: Any) -> BenchmarkContext:
    return BenchmarkContext(**{"root": root, "download": False, "seed": 0, "scenario": "", **changes})


def all_rows(source: Any) -> Tensor:
    rows: Tensor = source.read(torch.arange(len(source)))
    return rows


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def write(root: Path, classes: int, monkeypatch: pytest.MonkeyPatch, train: int = 200, test: int = 100) -> None:
    """Made-up CIFAR, with torchvision's list of checksums changed to it."""
    sums = write_cifar(root, classes, train, test)
    kind = torchvision.datasets.CIFAR100 if classes == 100 else torchvision.datasets.CIFAR10
    for name in ("train_list", "test_list"):
        monkeypatch.setattr(kind, name, [[file, sums[file]] for file, _ in getattr(kind, name)])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums[kind.meta["filename"]]})


# --- the stratified limit ---


def test_a_stratified_choice_keeps_the_shares() -> None:
    targets = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    rows = stratified(targets, 10, torch.Generator().manual_seed(0))
    assert torch.bincount(targets[rows]).tolist() == [5, 3, 2]
    assert torch.equal(rows, rows.unique())
    assert torch.bincount(targets[stratified(targets, 11, torch.Generator())]).tolist() == [6, 3, 2]  # ties to smaller labels
    assert torch.equal(stratified(targets, 100, torch.Generator()), torch.arange(100))
    other = stratified(targets, 10, torch.Generator().manual_seed(1))
    assert not torch.equal(rows, other)
    for limit in range(1, 100):
        assert len(stratified(targets, limit, torch.Generator())) == limit


# --- torchvision's files ---


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_is_split_by_class(classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, classes, monkeypatch)
    benchmark = (
        split_cifar100(SplitCIFAR100Options(), context(tmp_path))
        if classes == 100
        else split_cifar10(SplitCIFAR10Options(), context(tmp_path))
    )
    assert benchmark.name == f"split_cifar{classes}"
    assert benchmark.num_tasks == (10 if classes == 100 else 5)
    assert [label for held in benchmark.classes for label in held] == list(range(classes))
    assert sum(map(len, benchmark.train)) == 200 and sum(map(len, benchmark.test)) == 100
    for held, train, test in zip(benchmark.classes, benchmark.train, benchmark.test, strict=True):
        assert set(train.targets.tolist()) == set(test.targets.tolist()) == set(held)
    assert benchmark.notes["classes"].startswith("class 0, class 1")
    assert benchmark.scenarios == ("class_il", "task_il")


def test_pixels_and_labels_are_torchvisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 100, monkeypatch)
    benchmark = split_cifar100(SplitCIFAR100Options(tasks=1), context(tmp_path))
    reference = torchvision.datasets.CIFAR100(tmp_path, transform=torchvision.transforms.PILToTensor())
    items, targets = all_rows(benchmark.train[0]), benchmark.train[0].targets
    for row in (0, 5, 199):
        image, label = reference[row]
        assert torch.equal(items[row], image) and int(targets[row]) == label
    assert not torch.equal(items[0], reference[1][0])


def test_training_is_augmented_and_evaluation_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 10, monkeypatch)
    benchmark = split_cifar10(SplitCIFAR10Options(), context(tmp_path))
    transform = benchmark.transform
    assert isinstance(transform, Augmented)
    assert (transform.random, transform.padding, transform.flip, transform.strengthen) == (True, 4, True, strong_colour)
    items = all_rows(benchmark.train[0])
    plain = transform(items, None)
    assert isinstance(plain, Tensor) and plain.shape[1:] == benchmark.input_shape
    by_hand = (items[:, 1].float() / 255 - transform.mean[1]) / transform.deviation[1]
    assert torch.allclose(plain[:, 1], by_hand, atol=1e-6)


def test_a_limit_is_of_the_whole_stratified_seeded_and_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 10, monkeypatch)

    def limited(seed: int) -> Benchmark:
        return split_cifar10(SplitCIFAR10Options(train_limit=100), context(tmp_path, seed=seed))

    one, same, other = limited(0), limited(0), limited(1)
    assert [len(source) for source in one.train] == [20] * 5
    assert [len(source) for source in one.test] == [20] * 5  # whole
    assert one.notes["train_limit"] == "100 training images in all, stratified, seed 0"
    assert torch.equal(all_rows(one.train[1]), all_rows(same.train[1]))
    assert not torch.equal(all_rows(one.train[1]), all_rows(other.train[1]))
    assert "train_limit" not in split_cifar10(SplitCIFAR10Options(), context(tmp_path)).notes


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="train_limit must be >= 1, got 0"):
        SplitCIFAR10Options(train_limit=0)
    with pytest.raises(ValueError, match="tasks must be between 1 and the number of classes 100, got 101"):
        SplitCIFAR100Options(tasks=101)


def test_missing_and_packed_files_say_what_to_do(tmp_path: Path) -> None:
    text = f"CIFAR10 is not in {tmp_path}/cifar-10-batches-py. Set data.download=true to fetch it, or data.root=DIR (or CL_DATA)"
    with pytest.raises(ConfigurationError, match=re.escape(text)):
        split_cifar10(SplitCIFAR10Options(), context(tmp_path))
    packed = tmp_path / "cifar-100-python.tar.gz"
    packed.write_bytes(b"")
    with pytest.raises(ConfigurationError, match=re.escape(f"is still packed. Unpack it: tar -xzf {packed} -C {tmp_path}.")):
        split_cifar100(SplitCIFAR100Options(), context(tmp_path))


# --- the JPEG copy ---


def write_jpegs(folder: Path, train: int = 2) -> None:
    for part, count in (("train", train), ("test", 1)):
        for label, name in enumerate(cifar._CLASSES):
            for number in range(count):
                write_image(folder / part / name / f"{number:04}.jpg", 32, 100 * label + number + (part == "test") * 50)


def test_folders_and_archive_give_the_same_under_another_name(tmp_path: Path) -> None:
    write_jpegs(tmp_path / "unpacked/cifar10_jpeg")
    (tmp_path / "packed/cifar10_jpeg").mkdir(parents=True)
    pack(tmp_path / "unpacked/cifar10_jpeg", tmp_path / "packed/cifar10_jpeg/cifar10_jpeg.tar.xz")
    folders, archive = (split_cifar10_jpeg(SplitCIFAR10Options(), context(tmp_path / name)) for name in ("unpacked", "packed"))
    assert folders.name == "split_cifar10_jpeg"
    assert folders.notes["data"] == "a JPEG copy of CIFAR-10, lossy: figures are not those of CIFAR-10"
    for task in range(5):
        assert len(folders.train[task]) == 4 and len(folders.test[task]) == 2
        assert torch.equal(all_rows(folders.train[task]), all_rows(archive.train[task]))
        assert torch.equal(folders.train[task].targets, archive.train[task].targets)
    one = torchvision.io.decode_image(str(tmp_path / "unpacked/cifar10_jpeg/train/bird/0001.jpg"))
    place = folders.train[1].targets.tolist().index(2) + 1
    assert float((all_rows(folders.train[1])[place].float() - one.float()).abs().mean()) < 2  # decoders may differ by a rounding
    assert float((all_rows(folders.train[1])[place - 1].float() - one.float()).abs().mean()) > 20


def test_it_is_decoded_once_and_again_when_files_change(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar10_jpeg"
    write_jpegs(folder)
    decoded = []
    real = image_files.pixels
    monkeypatch.setattr(image_files, "pixels", lambda *rest: decoded.append(1) or real(*rest))

    def load() -> Benchmark:
        return split_cifar10_jpeg(SplitCIFAR10Options(), context(tmp_path))

    first, again = load(), load()
    assert len(decoded) == 30
    assert torch.equal(all_rows(first.train[0]), all_rows(again.train[0]))
    kept = list(folder.glob("decoded-*.pt"))
    assert len(kept) == 1 and not list(cache.rglob("*.pt"))
    kept[0].write_bytes(b"broken")
    assert torch.equal(all_rows(load().train[0]), all_rows(first.train[0])) and len(decoded) == 60
    write_image(folder / "train/airplane/0000.jpg", 32, seed=999)
    assert not torch.equal(all_rows(load().train[0]), all_rows(first.train[0])) and len(decoded) == 90


def test_where_the_folder_is_read_only_the_users_cache_is_used(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "cifar10_jpeg"
    write_jpegs(folder)
    os.chmod(folder, 0o555)
    one = split_cifar10_jpeg(SplitCIFAR10Options(), context(tmp_path))
    assert not list(folder.glob("*.pt"))
    kept = list((cache / "cl_framework").glob("cifar10_jpeg-decoded-32px-3-*.pt"))
    assert len(kept) == 1
    assert torch.equal(all_rows(split_cifar10_jpeg(SplitCIFAR10Options(), context(tmp_path)).train[0]), all_rows(one.train[0]))
    os.chmod(folder, 0o755)


def test_kept_files_can_be_left_to_workers(tmp_path: Path) -> None:
    write_jpegs(tmp_path / "cifar10_jpeg")
    held, left = (split_cifar10_jpeg(SplitCIFAR10Options(), context(tmp_path, in_memory=how)) for how in ("always", "never"))
    assert all(isinstance(source, DatasetSource) for source in left.train)
    assert not any(isinstance(source, DatasetSource) for source in held.train)
    for task in range(5):
        assert torch.equal(all_rows(held.test[task]), all_rows(left.test[task]))


def test_errors_of_the_copy_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"holds no images\. Expected .*train/<class>.* Set data.root=DIR"):
        split_cifar10_jpeg(SplitCIFAR10Options(), context(tmp_path))
    folder = tmp_path / "cifar10_jpeg"
    write_jpegs(folder)
    write_image(folder / "train/aeroplane/1.jpg", 32, 0)
    with pytest.raises(ConfigurationError, match=r"holds unknown folders train/aeroplane\. Expected .*classes airplane, "):
        split_cifar10_jpeg(SplitCIFAR10Options(), context(tmp_path))
    (folder / "train/aeroplane/1.jpg").unlink()
    for path in (folder / "test/dog").iterdir():
        path.unlink()
    with pytest.raises(ConfigurationError, match=r"lacks images in test/dog\."):
        split_cifar10_jpeg(SplitCIFAR10Options(), context(tmp_path))
    (folder / "test/dog/0.jpg").write_bytes(b"nonsense")
    with pytest.raises(ConfigurationError, match=r"test/dog/0.jpg is no readable image"):
        split_cifar10_jpeg(SplitCIFAR10Options(), context(tmp_path))
