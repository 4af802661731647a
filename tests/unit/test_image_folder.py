"""Folders of images: a sub-folder a class, read and divided into tasks; errors that help."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from cl_framework import Benchmark, BenchmarkContext, ConfigurationError, load_experiment
from cl_framework.assembly import make_benchmark
from cl_framework.augment import Augmented, strong_colour
from cl_framework.benchmarks.image_folder import ImageFolderOptions, image_folder
from tests.unit.made_up import write_images
from tests.unit.test_benchmarks_own_data import all_rows

README = Path(__file__).parents[2] / "README.md"


def folder_of(root: Path, in_memory: str = "auto", **options: Any) -> Benchmark:
    return image_folder(ImageFolderOptions(path=str(root), size=6, tasks=2, **options), BenchmarkContext(root, False, 0, "", in_memory))


def test_a_folder_with_a_split(tmp_path: Path) -> None:
    write_images(tmp_path / "train", ["ant", "bee", "cat", "dog"], 3)
    write_images(tmp_path / "test", ["ant", "bee", "cat", "dog"], 2)
    benchmark = folder_of(tmp_path)
    assert benchmark.classes == ((0, 1), (2, 3))
    assert [len(source) for source in [*benchmark.train, *benchmark.test]] == [6, 6, 4, 4]
    assert all_rows(benchmark.train[0]).shape == (6, 3, 6, 6)
    assert folder_of(tmp_path, channels=1).input_shape == (1, 6, 6)
    assert benchmark.notes["classes"] == "ant, bee | cat, dog"
    read = folder_of(tmp_path, in_memory="never")
    assert not read.train[0].in_memory
    assert torch.equal(all_rows(read.train[1]), all_rows(benchmark.train[1]))


def test_an_image_that_needs_no_resizing_is_its_file(tmp_path: Path) -> None:
    from PIL import Image

    write_images(tmp_path, ["ant", "bee"], 4, size=6)
    benchmark = folder_of(tmp_path, test_fraction=0.25)
    compared = [(*pair, name) for pair, name in zip(zip(benchmark.train, benchmark.test, strict=True), ("ant", "bee"), strict=True)]
    for train, test, name in compared:
        ours = {bytes(item.permute(1, 2, 0).flatten().tolist()) for item in torch.cat([all_rows(train), all_rows(test)])}
        assert ours == {Image.open(path).tobytes() for path in (tmp_path / name).iterdir()}
        assert len(ours) == 4


def test_a_folder_without_a_split_holds_out_a_seeded_share(tmp_path: Path) -> None:
    write_images(tmp_path, ["ant", "bee"], 10)
    benchmark = folder_of(tmp_path, test_fraction=0.3)
    assert [len(source) for source in [*benchmark.train, *benchmark.test]] == [7, 7, 3, 3]
    assert torch.equal(all_rows(benchmark.test[0]), all_rows(folder_of(tmp_path, test_fraction=0.3).test[0]))


def test_a_folder_is_augmented_if_asked_to(tmp_path: Path) -> None:
    write_images(tmp_path, ["ant", "bee"], 10)
    plain, augmented = folder_of(tmp_path), folder_of(tmp_path, augmentation="standard")
    assert not plain.transform.random and augmented.transform == Augmented(0, True, strengthen=strong_colour)
    items = all_rows(plain.train[0])
    assert torch.equal(plain.transform(items, None), augmented.transform(items, None))
    generator = torch.Generator().manual_seed(0)
    assert not torch.equal(augmented.transform(items, generator), augmented.transform(items, None))
    wide = image_folder(ImageFolderOptions(str(tmp_path), 16, tasks=2, augmentation="standard"), BenchmarkContext(tmp_path, False, 0, ""))
    assert isinstance(wide.transform, Augmented) and wide.transform.padding == 2
    with pytest.raises(ValueError, match="augmentation must be one of none, standard, got 'strong'"):
        ImageFolderOptions(str(tmp_path), augmentation="strong")


def test_a_train_folder_alone_is_no_class(tmp_path: Path) -> None:
    write_images(tmp_path / "train", ["ant", "bee"], 10)
    benchmark = folder_of(tmp_path)
    assert benchmark.notes["classes"] == "ant | bee"
    assert [len(source) for source in [*benchmark.train, *benchmark.test]] == [8, 8, 2, 2]


def test_a_class_in_one_split_only_is_named(tmp_path: Path) -> None:
    write_images(tmp_path / "train", ["ant", "bee"], 2)
    write_images(tmp_path / "test", ["ant", "bee", "cow"], 2)
    with pytest.raises(ConfigurationError, match=r"hold different classes: cow is in one of them only. Add or remove it"):
        folder_of(tmp_path)


def test_bad_folders_and_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere holds no class folders. Expected"):
        folder_of(tmp_path / "nowhere")
    write_images(tmp_path, ["ant", "bee"], 2)
    (tmp_path / "cow").mkdir()
    with pytest.raises(ConfigurationError, match=r"cow holds no images"):
        folder_of(tmp_path)
    (tmp_path / "cow" / "0.png").write_bytes((tmp_path / "ant" / "0.png").read_bytes())
    with pytest.raises(ConfigurationError, match=r"cow holds one image, but needs one to train and one to test. Add images"):
        folder_of(tmp_path)
    (tmp_path / "cow" / "1.png").write_text("no image")
    with pytest.raises(ConfigurationError, match=r"cow/1.png is no readable image .*Remove or replace it"):
        folder_of(tmp_path)
    (tmp_path / "cow" / "1.png").unlink()
    (tmp_path / "cow" / "2.ppm").write_bytes(b"P6 9 9 255 cut short")  # Pillow raises ValueError here, not OSError
    with pytest.raises(ConfigurationError, match=r"cow/2.ppm is no readable image .*Remove or replace it"):
        folder_of(tmp_path)
    with pytest.raises(ValueError, match="path is missing: name the folder of images"):
        ImageFolderOptions()


def test_what_the_readme_says_makes_two_tasks_of_four_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part, count in (("train", 3), ("test", 2)):
        write_images(tmp_path / "photos" / part, ["ant", "bee", "cat", "dog"], count)
    block = re.search(r"^    benchmark:\n      name: image_folder\n(?:      .*\n)*", README.read_text(), re.MULTILINE)
    assert block is not None and "classes_per_task: 2" in block[0]
    (tmp_path / "mine.yaml").write_text(textwrap.dedent(block[0]))
    monkeypatch.chdir(tmp_path)
    assert make_benchmark(load_experiment("mine.yaml")).classes == ((0, 1), (2, 3))
    assert make_benchmark(load_experiment("mine.yaml", ["benchmark.classes_per_task=1"])).classes == ((0,), (1,), (2,), (3,))
