"""Tiny-ImageNet split by class, from its own folders: `train/<class>/images/*.JPEG`, `val/images/*.JPEG` and `val/val_annotations.txt`.

The validation images are the test split, since labels of its test images are not public. A copy whose files are 32x32 is a benchmark of
another name, since its figures are others: each name refuses the other's files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from cl_framework.augment import Augmented, strong_colour
from cl_framework.benchmarks.base import Benchmark, BenchmarkContext
from cl_framework.benchmarks.image_files import Images, load_images, source_of
from cl_framework.benchmarks.sources import divide_classes
from cl_framework.benchmarks.split_images import Split, check_limit, split_images
from cl_framework.checks import check_range
from cl_framework.errors import ConfigurationError
from cl_framework.registry import register_benchmark
from cl_framework.schema import LATER

_ANNOTATIONS, _WORDS = "val_annotations.txt", "words.txt"
_MEAN, _DEVIATION = (0.4802, 0.4480, 0.3975), (0.2770, 0.2691, 0.2821)
_SIDE, _SMALL_SIDE = 64, 32  # of the files, in pixels


@dataclass(frozen=True)
class SplitTinyImageNetOptions:
    folder: str = "tiny-imagenet-200"  # in data.root
    size: int = _SIDE  # images are resized to size x size pixels, >= 8
    tasks: int = 10  # number of tasks; the first ones take one class more where it does not divide evenly
    classes_per_task: int | None = None  # instead of `tasks`; the last task takes what is left
    class_order: tuple[int, ...] | None = None  # of the classes' numbers in alphabetical order of their ids; default: 0, 1, 2, ...
    train_limit: int | None = None  # training images in all, stratified, chosen at random; default: all 100,000
    padding: int | None = field(default=None, metadata=LATER)  # pixels that crops move images by at most, >= 0; default: an eighth of size

    def __post_init__(self) -> None:
        check_range("size", self.size, low=8)
        if self.padding is not None:
            check_range("padding", self.padding, low=0)
        check_limit(self.train_limit)


@dataclass(frozen=True)
class SplitTinyImageNet32Options:
    folder: str = "tinyimagenet200_32px"  # in data.root
    tasks: int = 10  # number of tasks; the first ones take one class more where it does not divide evenly
    classes_per_task: int | None = None  # instead of `tasks`; the last task takes what is left
    class_order: tuple[int, ...] | None = None  # of the classes' numbers in alphabetical order of their ids; default: 0, 1, 2, ...
    train_limit: int | None = None  # training images in all, stratified, chosen at random; default: all 100,000

    def __post_init__(self) -> None:
        check_limit(self.train_limit)


@register_benchmark("split_tiny_imagenet", SplitTinyImageNetOptions)
def split_tiny_imagenet(options: SplitTinyImageNetOptions, context: BenchmarkContext) -> Benchmark:
    """Split Tiny-ImageNet: 200 classes of 500 training images, ten tasks of twenty by default (64x64)."""
    remedy = "Unpack tiny-imagenet-200.zip to data.root, or name its folder: benchmark.folder=DIR."
    note = f"{options.size}x{options.size} pixels" + ("" if options.size == _SIDE else f", resized from {_SIDE}x{_SIDE}")
    padding = options.size // 8 if options.padding is None else options.padding
    return _split("split_tiny_imagenet", options, options.size, padding, _SIDE, remedy, note, context)


@register_benchmark("split_tiny_imagenet_32px", SplitTinyImageNet32Options)
def split_tiny_imagenet_32px(options: SplitTinyImageNet32Options, context: BenchmarkContext) -> Benchmark:
    """A copy of Tiny-ImageNet in files of 32x32 by class, ten tasks of twenty by default: its figures are not those of Tiny-ImageNet."""
    remedy = "Name its folder: benchmark.folder=DIR, or use benchmark.name=split_tiny_imagenet."
    note = "a copy of Tiny-ImageNet in 32x32 pixels: figures are not those of Tiny-ImageNet"
    return _split("split_tiny_imagenet_32px", options, _SMALL_SIDE, _SMALL_SIDE // 8, _SMALL_SIDE, remedy, note, context)


def _split(
    benchmark: str,
    options: SplitTinyImageNetOptions | SplitTinyImageNet32Options,
    size: int,
    padding: int,
    side: int,
    remedy: str,
    note: str,
    context: BenchmarkContext,
) -> Benchmark:
    """The benchmark of a folder whose files are side x side pixels, read at size x size."""
    folder = context.root / Path(options.folder).expanduser()
    layout = f"{folder}/train/<class>/images/*.JPEG, {folder}/val/images/*.JPEG and {folder}/val/{_ANNOTATIONS}"
    images = load_images(folder, size, 3, texts=(_ANNOTATIONS, _WORDS), layout=layout, remedy=remedy)
    train_labels, test_labels = _train_labels(images), _test_labels(images, folder)
    names = sorted(set(train_labels.values()))
    if not names or not test_labels or not set(test_labels.values()) <= set(names):
        raise ConfigurationError(f"{folder} is not laid out as Tiny-ImageNet. Expected {layout}.")
    _check_sides(images, side, benchmark, folder)
    number = {name: label for label, name in enumerate(names)}
    train, test = (
        source_of(images, torch.tensor(list(labels)), torch.tensor([number[name] for name in labels.values()]), context.in_memory)
        for labels in (train_labels, test_labels)
    )
    try:
        divide_classes(len(names), options.tasks, options.classes_per_task, options.class_order)
    except ValueError as error:
        raise ConfigurationError(f"{benchmark}: {error}.") from error
    transform = Augmented(padding, True, _MEAN, _DEVIATION, strong_colour)
    split = Split(options.tasks, options.classes_per_task, options.class_order, options.train_limit)
    notes = {"data": f"{len(names)} classes, {note}"}
    words = _words(images)
    shown = [words.get(name, name) for name in names]
    return split_images(benchmark, train, test, shown, split, context, transform, (3, size, size), notes)


def _check_sides(images: Images, side: int, benchmark: str, folder: Path) -> None:
    if images.sides != (side, side):
        smallest, largest = images.sides
        right = {_SIDE: "split_tiny_imagenet", _SMALL_SIDE: "split_tiny_imagenet_32px"}.get(largest if smallest == largest else 0)
        found = f"{smallest}" if smallest == largest else f"{smallest} to {largest}"
        raise ConfigurationError(
            f"{folder} holds images of {found} pixels a side, but those of {benchmark} have {side}. "
            + (f"Use benchmark.name={right}." if right else "Use benchmark.name=image_folder for other images.")
        )


def _train_labels(images: Images) -> dict[int, str]:
    """Class by row of the training images."""
    parts = ((row, images.parts(row, 4)) for row in range(len(images.names)))
    return {row: part[-3] for row, part in parts if len(part) == 4 and part[0] == "train" and part[2] == "images"}


def _test_labels(images: Images, folder: Path) -> dict[int, str]:
    """Class by row of the validation images."""
    lines = [line.split("\t") for line in images.texts.get(_ANNOTATIONS, "").splitlines()]
    label_of = {line[0]: line[1] for line in lines if len(line) > 1}
    rows = [row for row in range(len(images.names)) if images.parts(row, 3)[:2] == ("val", "images")]
    unlabelled = [images.names[row] for row in rows if images.parts(row, 1)[0] not in label_of]
    if unlabelled:
        raise ConfigurationError(
            f"{folder}: {_ANNOTATIONS} names no class for {unlabelled[0]} ({len(unlabelled)} such images). Unpack it again."
        )
    return {row: label_of[images.parts(row, 1)[0]] for row in rows}


def _words(images: Images) -> dict[str, str]:
    """The first name of each class id, as far as there are any."""
    lines = [line.split("\t") for line in images.texts.get(_WORDS, "").splitlines()]
    return {line[0]: line[1].split(",")[0] for line in lines if len(line) > 1}
