"""Any folder of images as a class-incremental benchmark: `<path>/train/<class>/*.png`, `<path>/test/<class>/*.png`.

Without `test/` a share of each class is held out; without `train/` too, the classes lie in the folder itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_framework.augment import Augmented, strong_colour
from cl_framework.benchmarks.base import Benchmark, BenchmarkContext
from cl_framework.benchmarks.image_files import IMAGES, pixels
from cl_framework.benchmarks.own_data import from_datasets
from cl_framework.checks import check_choice, check_range
from cl_framework.errors import ConfigurationError
from cl_framework.registry import register_benchmark
from cl_framework.rng import RandomStream


@dataclass(frozen=True)
class ImageFolderOptions:
    path: str = ""  # folder of images; relative ones are looked for here, then in data.root
    size: int = 32  # images are resized to size x size pixels, >= 1
    channels: int = 3  # 1 (grey) or 3 (colour)
    tasks: int = 5  # number of tasks, unless classes_per_task is set
    classes_per_task: int | None = None
    class_order: tuple[int, ...] | None = None  # default: names in alphabetical order
    test_fraction: float = 0.2  # of each class, where there is no test folder; (0, 1)
    augmentation: str = "none"  # standard: in training moved by up to an eighth of a side and flipped; strong views are possible

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path is missing: name the folder of images")
        check_range("size", self.size, low=1)
        check_choice("channels", str(self.channels), ("1", "3"))
        check_range("test_fraction", self.test_fraction, above=0, below=1)
        check_choice("augmentation", self.augmentation, ("none", "standard"))


class ImageFiles:
    """Map-style data set of image files, decoded when read: item (C, size, size) uint8, label."""

    def __init__(self, files: list[Path], labels: list[int], size: int, channels: int) -> None:
        self.files = files
        self.targets = labels
        self.size = size
        self.channels = channels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return pixels(self.files[row], self.files[row], self.size, self.channels)[0], self.targets[row]


@register_benchmark("image_folder", ImageFolderOptions)
def image_folder(options: ImageFolderOptions, context: BenchmarkContext) -> Benchmark:
    """Any folder of images, a sub-folder a class; without a test folder a seeded share of each class is held out."""
    root = Path(options.path).expanduser()
    root = root if root.is_absolute() or root.is_dir() else context.root / root
    train_root = root / "train" if (root / "train").is_dir() else root
    names = _class_names(train_root)
    if train_root != root and (root / "test").is_dir():
        _check_same_classes(names, _class_names(root / "test"), root)
        train, test = _files(train_root, names), _files(root / "test", names)
    else:
        train, test = _hold_out(_files(train_root, names), options.test_fraction, context.seed)
    datasets: list[Any] = [ImageFiles(*part, options.size, options.channels) for part in (train, test)]
    benchmark = from_datasets(
        *datasets,
        tasks=options.tasks if options.classes_per_task is None else None,
        classes_per_task=options.classes_per_task,
        class_order=options.class_order,
        name="image_folder",
        transform=Augmented(options.size // 8, True, strengthen=strong_colour) if options.augmentation == "standard" else None,
        in_memory=context.in_memory,
    )
    return replace(benchmark, notes={"classes": " | ".join(", ".join(names[label] for label in held) for held in benchmark.classes)})


Files = tuple[list[Path], list[int]]


def _class_names(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not names:
        raise ConfigurationError(
            f"benchmark.path: {folder} holds no class folders. "
            f"Expected {folder}/<class>/*.png, or train/ and test/ folders above the classes."
        )
    return names


def _check_same_classes(train: list[str], test: list[str], root: Path) -> None:
    differing = sorted(set(train) ^ set(test))
    if differing:
        raise ConfigurationError(
            f"benchmark.path: {root}/train and {root}/test hold different classes: {', '.join(differing)} is in one of them only. "
            "Add or remove it."
        )


def _files(folder: Path, names: list[str]) -> Files:
    files, labels = [], []
    for label, name in enumerate(names):
        found = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in IMAGES)
        if not found:
            raise ConfigurationError(f"benchmark.path: {folder / name} holds no images ({', '.join(sorted(IMAGES))}).")
        files.extend(found)
        labels.extend([label] * len(found))
    return files, labels


def _hold_out(whole: Files, fraction: float, seed: int) -> tuple[Files, Files]:
    files, labels = whole
    targets = torch.tensor(labels)
    generator = RandomStream("image_folder", "test split", seed).generator()
    is_test = torch.zeros(len(files), dtype=torch.bool)
    for label in targets.unique().tolist():
        rows = (targets == label).nonzero().flatten()
        if len(rows) < 2:
            raise ConfigurationError(
                f"benchmark.path: {files[int(rows[0])].parent} holds one image, but needs one to train and one to test. "
                "Add images, or train/ and test/ folders."
            )
        order = rows[torch.randperm(len(rows), generator=generator)]
        held_out = min(len(rows) - 1, max(1, round(fraction * len(rows))))  # at least one stays for training
        is_test[order[:held_out]] = True

    def pick(wanted: bool) -> Files:
        rows = [row for row in range(len(files)) if bool(is_test[row]) is wanted]
        return [files[row] for row in rows], [labels[row] for row in rows]

    return pick(False), pick(True)
