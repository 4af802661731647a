"""Tiny-ImageNet, digits by source and Omniglot, on tiny made-up files in their formats."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from cl_framework import Benchmark, BenchmarkContext, ConfigurationError
from cl_framework.augment import Augmented, digit_views, strong_colour
from cl_framework.benchmarks.base import Scale
from cl_framework.benchmarks.digit_domains import DigitDomainsOptions, digit_domains, framed
from cl_framework.benchmarks.omniglot import OmniglotOptions, omniglot
from cl_framework.benchmarks.sources import DatasetSource
from cl_framework.benchmarks.tiny_imagenet import (
    SplitTinyImageNet32Options,
    SplitTinyImageNetOptions,
    split_tiny_imagenet,
    split_tiny_imagenet_32px,
)
from tests.unit.made_up import pack, write_image, write_mnist


def context(root: Path, **changes: Any) -> BenchmarkContext:
    return BenchmarkContext(**{"root": root, "download": False, "seed": 0, "scenario": "", **changes})


def all_rows(source: Any) -> Tensor:
    rows: Tensor = source.read(torch.arange(len(source)))
    return rows


def plain_inputs(benchmark: Benchmark, task: int) -> Tensor:
    inputs = benchmark.transform(all_rows(benchmark.train[task]), None)
    assert isinstance(inputs, Tensor) and tuple(inputs.shape[1:]) == benchmark.input_shape
    return inputs


def same(one: Benchmark, other: Benchmark) -> bool:
    pairs = zip([*one.train, *one.test], [*other.train, *other.test], strict=True)
    return all(torch.equal(all_rows(a), all_rows(b)) and torch.equal(a.targets, b.targets) for a, b in pairs)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


# --- Tiny-ImageNet ---

IDS = ["n01443537", "n01629819", "n01641577", "n01644900", "n01698640"]


def write_tiny_imagenet(folder: Path, train: int = 4, test: int = 2, side: int = 64) -> None:
    lines = []
    for label, name in enumerate(IDS):
        for number in range(train):
            write_image(folder / "train" / name / "images" / f"{name}_{number}.JPEG", side, 10 * label + number)
        for number in range(test):
            file = f"val_{number * len(IDS) + label}.JPEG"
            write_image(folder / "val/images" / file, side, 1000 + 10 * label + number)
            lines.append(f"{file}\t{name}\t0\t0\t11\t11")
    (folder / "val/val_annotations.txt").write_text("\n".join(lines) + "\n")
    (folder / "words.txt").write_text(f"{IDS[0]}\tgoldfish, Carassius auratus\n{IDS[1]}\tEuropean fire salamander\n")
    write_image(folder / "test/images/test_0.JPEG", side, 5)  # without a label: left out


def test_tiny_imagenet_is_split_by_class(tmp_path: Path) -> None:
    write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    options = SplitTinyImageNetOptions(size=8, tasks=2)
    benchmark = split_tiny_imagenet(options, context(tmp_path))
    assert benchmark.classes == ((0, 1, 2), (3, 4))
    assert [len(source) for source in benchmark.train] == [12, 8] and [len(source) for source in benchmark.test] == [6, 4]
    for held, source in zip(benchmark.classes, benchmark.test, strict=True):
        assert sorted(source.targets.tolist()) == sorted([*held] * 2)
    assert benchmark.notes["classes"] == "goldfish, European fire salamander, n01641577 | n01644900, n01698640"
    assert benchmark.notes["data"] == "5 classes, 8x8 pixels, resized from 64x64"
    transform = benchmark.transform
    assert isinstance(transform, Augmented) and transform.random and transform.strengthen is strong_colour
    assert transform.padding == 1
    moved = split_tiny_imagenet(SplitTinyImageNetOptions(size=8, tasks=2, padding=3), context(tmp_path)).transform
    assert isinstance(moved, Augmented) and moved.padding == 3
    plain_inputs(benchmark, 0)
    limited = split_tiny_imagenet(SplitTinyImageNetOptions(size=8, tasks=2, train_limit=10), context(tmp_path))
    assert [len(source) for source in limited.train] == [6, 4]


def test_validation_images_get_the_labels_of_the_annotations(tmp_path: Path) -> None:
    folder = tmp_path / "tiny-imagenet-200"
    write_tiny_imagenet(folder)
    shutil.copy(folder / "train" / IDS[3] / "images" / f"{IDS[3]}_1.JPEG", folder / "val/images/val_8.JPEG")  # val_8 is of class 3
    benchmark = split_tiny_imagenet(SplitTinyImageNetOptions(tasks=5), context(tmp_path))
    train, test = all_rows(benchmark.train[3]), all_rows(benchmark.test[3])
    assert any(torch.equal(row, train[1]) for row in test)
    assert not any(torch.equal(row, train[0]) for row in test)


def test_tiny_imagenet_in_an_archive_and_by_workers_is_the_same(tmp_path: Path) -> None:
    write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    (tmp_path / "packed").mkdir()
    pack(tmp_path / "tiny-imagenet-200", tmp_path / "packed/tiny.tar.xz")
    options = SplitTinyImageNetOptions(size=8, tasks=2)
    folders = split_tiny_imagenet(options, context(tmp_path))
    archive = split_tiny_imagenet(SplitTinyImageNetOptions(folder="packed", size=8, tasks=2), context(tmp_path))
    workers = split_tiny_imagenet(options, context(tmp_path, in_memory="never"))
    other = split_tiny_imagenet(SplitTinyImageNetOptions(size=8, tasks=2, class_order=(4, 3, 2, 1, 0)), context(tmp_path))
    assert same(folders, archive) and same(folders, workers) and not same(folders, other)
    assert all(isinstance(source, DatasetSource) for source in workers.train)


def test_a_copy_of_another_size_has_another_name(tmp_path: Path) -> None:
    write_tiny_imagenet(tmp_path / "tinyimagenet200_32px", side=32)
    write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    small = split_tiny_imagenet_32px(SplitTinyImageNet32Options(tasks=2), context(tmp_path))
    assert small.name == "split_tiny_imagenet_32px" and small.input_shape == (3, 32, 32)
    assert small.notes["data"] == "5 classes, a copy of Tiny-ImageNet in 32x32 pixels: figures are not those of Tiny-ImageNet"
    assert isinstance(small.transform, Augmented) and small.transform.padding == 4
    assert split_tiny_imagenet(SplitTinyImageNetOptions(tasks=2), context(tmp_path)).notes["data"] == "5 classes, 64x64 pixels"
    text = (
        r"tinyimagenet200_32px holds images of 32 pixels a side, but those of split_tiny_imagenet have 64\. Use benchmark.name=\w+_32px\."
    )
    with pytest.raises(ConfigurationError, match=text):
        split_tiny_imagenet(SplitTinyImageNetOptions(folder="tinyimagenet200_32px", tasks=2), context(tmp_path))
    text = r"holds images of 64 pixels a side, but those of split_tiny_imagenet_32px have 32\. Use benchmark.name=split_tiny_imagenet\."
    with pytest.raises(ConfigurationError, match=text):
        split_tiny_imagenet_32px(SplitTinyImageNet32Options(folder="tiny-imagenet-200", tasks=2), context(tmp_path))
    write_image(tmp_path / f"tiny-imagenet-200/train/{IDS[0]}/images/{IDS[0]}_0.JPEG", 20, 0)
    with pytest.raises(ConfigurationError, match=r"holds images of 20 to 64 pixels a side, .* Use benchmark.name=image_folder for other"):
        split_tiny_imagenet(SplitTinyImageNetOptions(tasks=2), context(tmp_path))
    with pytest.raises(ValueError, match="train_limit must be >= 1, got 0"):
        SplitTinyImageNet32Options(train_limit=0)


def test_changed_annotations_are_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "tiny-imagenet-200"
    write_tiny_imagenet(folder)
    options = SplitTinyImageNetOptions(size=8, tasks=5)
    before = split_tiny_imagenet(options, context(tmp_path))
    annotations = folder / "val/val_annotations.txt"
    swapped = annotations.read_text().replace(IDS[0], "other").replace(IDS[1], IDS[0]).replace("other", IDS[1])
    annotations.write_text(swapped)
    after = split_tiny_imagenet(options, context(tmp_path))
    assert torch.equal(all_rows(after.test[0]), all_rows(before.test[1])) and not same(before, after)


def test_errors_of_tiny_imagenet(tmp_path: Path) -> None:
    text = f"{tmp_path}/tiny-imagenet-200 holds no images. Expected {tmp_path}/tiny-imagenet-200/train/<class>/images/*.JPEG"
    with pytest.raises(ConfigurationError, match=re.escape(text)):
        split_tiny_imagenet(SplitTinyImageNetOptions(), context(tmp_path))
    folder = tmp_path / "tiny-imagenet-200"
    write_tiny_imagenet(folder)
    with pytest.raises(ConfigurationError, match=r"split_tiny_imagenet: tasks must be between 1 and the number of classes 5, got 10\."):
        split_tiny_imagenet(SplitTinyImageNetOptions(size=8), context(tmp_path))
    write_image(folder / "val/images/val_99.JPEG", 64, 0)
    with pytest.raises(ConfigurationError, match=r"names no class for val/images/val_99.JPEG \(1 such images\)\. Unpack it again"):
        split_tiny_imagenet(SplitTinyImageNetOptions(size=8), context(tmp_path))
    write_image(tmp_path / "other/cat/1.png", 12, 0)
    with pytest.raises(ConfigurationError, match=r"other is not laid out as Tiny-ImageNet\. Expected"):
        split_tiny_imagenet(SplitTinyImageNetOptions(folder="other", size=8), context(tmp_path))
    with pytest.raises(ValueError, match="size must be >= 8, got 4"):
        SplitTinyImageNetOptions(size=4)


# --- digits by source ---


def write_usps(root: Path, **changes: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 40), ("test", 20)):
        arrays[f"x_{split}"] = torch.randint(0, 256, (count, 16, 16), dtype=torch.uint8, generator=generator).numpy()
        arrays[f"y_{split}"] = (torch.arange(count) % 10).to(torch.uint8).numpy()
    (root / "usps").mkdir(exist_ok=True)
    numpy.savez(root / "usps/usps.npz", **{**arrays, **changes})


def test_mnist_then_usps(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    write_usps(tmp_path)
    benchmark = digit_domains(DigitDomainsOptions(), context(tmp_path))
    assert benchmark.scenarios == ("domain_il", "task_il") and benchmark.classes == (tuple(range(10)),) * 2
    assert [len(source) for source in benchmark.train] == [60, 40] and [len(source) for source in benchmark.test] == [20, 20]
    assert isinstance(benchmark.transform, Scale) and benchmark.transform.strengthen is digit_views
    for task in range(2):
        plain_inputs(benchmark, task)
    three = digit_domains(DigitDomainsOptions(domains=("digits", "usps", "mnist"), train_limit=20), context(tmp_path))
    assert [len(source) for source in three.train] == [20] * 3
    for source in three.train:
        assert torch.bincount(source.targets).tolist() == [2] * 10 or len(set(source.targets.tolist())) == 10
    assert all_rows(three.test[0]).shape == (len(three.test[0]), 1, 28, 28)
    assert int(all_rows(three.test[0]).max()) == 255


def test_digits_that_fill_their_frame_get_a_margin() -> None:
    images = torch.full((2, 16, 16), 255, dtype=torch.uint8)
    images[1] = 0
    shown = framed(images)
    assert shown.shape == (2, 1, 28, 28) and shown.dtype == torch.uint8
    expected = torch.zeros(28, 28, dtype=torch.uint8)
    expected[4:24, 4:24] = 255
    assert torch.equal(shown[0, 0], expected) and not bool(shown[1].any())


def test_errors_of_usps(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    only = DigitDomainsOptions(domains=("usps",))
    with pytest.raises(ConfigurationError, match=r"USPS is not in .*usps/usps.npz\. Put it there, or set data.root=DIR .* Expected arrays"):
        digit_domains(only, context(tmp_path))
    wrong = {
        "shapes": {"x_test": numpy.zeros((3, 8, 8, 3), dtype=numpy.uint8)},
        "labels": {"y_train": numpy.full(40, 10, dtype=numpy.uint8)},
        "kind": {"x_train": numpy.zeros((40, 16, 16), dtype=numpy.float32)},
    }
    for changes in wrong.values():
        write_usps(tmp_path, **changes)
        with pytest.raises(ConfigurationError, match=r"usps.npz holds t\w+ arrays of shapes .* Expected arrays x_train and x_test"):
            digit_domains(only, context(tmp_path))
    (tmp_path / "usps/usps.npz").write_bytes(b"PK\3\4nonsense")
    with pytest.raises(ConfigurationError, match=r"usps.npz cannot be read \("):
        digit_domains(only, context(tmp_path))
    assert len(wrong) == 3


# --- Omniglot ---

ALPHABETS = {"Balinese": 3, "Early_Aramaic": 2, "Greek": 4}


def write_omniglot(folder: Path) -> None:
    number = 0
    for alphabet, count in ALPHABETS.items():
        for character in range(1, count + 1):
            number += 1
            for drawer in (1, 2, 15, 16, 20):
                place = folder / alphabet / f"character{character:02}" / f"{number:04}_{drawer:02}.png"
                write_image(place, 21, 100 * number + drawer, mode="1")


def test_an_alphabet_is_a_task(tmp_path: Path) -> None:
    write_omniglot(tmp_path / "omniglot")
    benchmark = omniglot(OmniglotOptions(), context(tmp_path))
    assert benchmark.scenarios == ("task_il", "class_il") and benchmark.num_classes == 9
    assert benchmark.classes == ((0, 1, 2), (3, 4), (5, 6, 7, 8))
    assert benchmark.notes["alphabets"] == "Balinese | Early_Aramaic | Greek"
    assert [len(source) for source in benchmark.train] == [9, 6, 12] and [len(source) for source in benchmark.test] == [6, 4, 8]
    plain_inputs(benchmark, 2)
    first = omniglot(OmniglotOptions(tasks=2), context(tmp_path))
    assert first.num_classes == 5 and same_tasks(first, benchmark, 2)


def same_tasks(one: Benchmark, other: Benchmark, count: int) -> bool:
    return all(torch.equal(all_rows(one.train[task]), all_rows(other.train[task])) for task in range(count))


def test_ink_is_bright_and_drawers_from_16_test(tmp_path: Path) -> None:
    from PIL import Image

    write_omniglot(tmp_path / "omniglot")
    benchmark = omniglot(OmniglotOptions(size=21), context(tmp_path))
    for source, drawer, row in ((benchmark.train[0], 15, 2), (benchmark.test[0], 16, 0)):
        with Image.open(tmp_path / f"omniglot/Balinese/character01/0001_{drawer:02}.png") as image:
            shown = torch.from_numpy(numpy.array(image.convert("L")))
        assert torch.equal(all_rows(source)[row, 0], 255 - shown)
        assert not torch.equal(all_rows(source)[row, 0], shown)


def test_characters_are_divided_and_zips_are_read_together(tmp_path: Path) -> None:
    write_omniglot(tmp_path / "omniglot")
    characters = omniglot(OmniglotOptions(tasks_are="characters", classes_per_task=4), context(tmp_path))
    assert characters.classes == ((0, 1, 2, 3), (4, 5, 6, 7), (8,))
    assert characters.notes["alphabets"] == "Balinese, Early_Aramaic | Early_Aramaic, Greek | Greek"
    (tmp_path / "zips").mkdir()
    for name, moved in (("small1", ("Balinese",)), ("small2", ("Early_Aramaic", "Greek"))):
        for alphabet in moved:
            shutil.copytree(tmp_path / "omniglot" / alphabet, tmp_path / name / f"images_background_{name}" / alphabet)
        pack(tmp_path / name, tmp_path / f"zips/images_background_{name}.zip")
    zipped = omniglot(OmniglotOptions(folder="zips"), context(tmp_path))
    assert same(zipped, omniglot(OmniglotOptions(), context(tmp_path)))
    assert not same_tasks(zipped, characters, 3)


def test_what_lies_in_two_zips_is_read_once(tmp_path: Path) -> None:
    write_omniglot(tmp_path / "omniglot")
    (tmp_path / "zips").mkdir()
    for name, moved in (("small1", ("Balinese", "Greek")), ("small2", ("Early_Aramaic", "Greek"))):
        for alphabet in moved:
            shutil.copytree(tmp_path / "omniglot" / alphabet, tmp_path / name / f"images_background_{name}" / alphabet)
        pack(tmp_path / name, tmp_path / f"zips/images_background_{name}.zip")
    zipped, whole = (omniglot(OmniglotOptions(folder=name), context(tmp_path)) for name in ("zips", "omniglot"))
    for one, other in zip([*zipped.train, *zipped.test], [*whole.train, *whole.test], strict=True):
        assert drawings(one) == drawings(other) and len(one) == len(other)
    assert drawings(zipped.train[0]) != drawings(zipped.train[2])


def drawings(source: Any) -> set[tuple[int, ...]]:
    return {(label, *row.flatten().tolist()) for row, label in zip(all_rows(source), source.targets.tolist(), strict=True)}


def test_errors_of_omniglot(tmp_path: Path) -> None:
    folder = tmp_path / "omniglot"
    write_omniglot(folder)
    with pytest.raises(ConfigurationError, match=r"omniglot: tasks must be at most the number of alphabets 3, got 4\."):
        omniglot(OmniglotOptions(tasks=4), context(tmp_path))
    with pytest.raises(ConfigurationError, match=r"omniglot: tasks must be between 1 and the number of classes 9, got 10\."):
        omniglot(OmniglotOptions(tasks_are="characters"), context(tmp_path))
    with pytest.raises(ValueError, match="classes_per_task divides characters: set tasks_are=characters"):
        OmniglotOptions(classes_per_task=3)
    for drawer in (16, 20):
        (folder / f"Greek/character01/0006_{drawer}.png").unlink()
    with pytest.raises(ConfigurationError, match=r"Greek/character01 has no test images\. Drawers 01 to 15 train"):
        omniglot(OmniglotOptions(), context(tmp_path))
    write_image(folder / "Greek/character01/picture.png", 21, 0)
    with pytest.raises(ConfigurationError, match=r"picture.png is no Omniglot image\. Expected .*NNNN_DD.png"):
        omniglot(OmniglotOptions(), context(tmp_path))


# --- archives ---


@pytest.mark.parametrize("ending", ["zip", "tar.xz"])
def test_a_broken_archive_is_named(ending: str, tmp_path: Path) -> None:
    write_omniglot(tmp_path / "unpacked")
    (tmp_path / "omniglot").mkdir()
    archive = tmp_path / f"omniglot/letters.{ending}"
    pack(tmp_path / "unpacked", archive)
    whole = archive.read_bytes()
    omniglot(OmniglotOptions(), context(tmp_path))
    for broken in (b"nonsense", whole[: len(whole) // 2]):
        archive.write_bytes(broken)
        with pytest.raises(ConfigurationError, match=rf"letters.{ending} cannot be read \(.*\)\. Replace it\.$"):
            omniglot(OmniglotOptions(), context(tmp_path))
