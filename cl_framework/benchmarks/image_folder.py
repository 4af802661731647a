"""Any folder of images as a class-incremental benchmark: `<path>/train/<class>/*.png`, `<path>/test/<class>/*.png`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_framework.benchmarks.base import Benchmark, BenchmarkContext
from cl_framework.benchmarks.own_data import from_datasets
from cl_framework.checks import check_choice, check_range
from cl_framework.errors import ConfigurationError
from cl_framework.registry import register_benchmark
from cl_framework.rng import RandomStream

_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


@dataclass(frozen=True)
class ImageFolderOptions:
    path: str = ""  # folder of images; relative ones lie in data.root
    size: int = 32  # images are resized to size x size pixels, >= 1
    channels: int = 3  # 1 (grey) or 3 (colour)
    tasks: int = 5  # number of tasks
    classes_per_task: int | None = None  # instead of `tasks`
    class_order: tuple[int, ...] | None = None  # default: names in alphabetical order
    test_fraction: float = 0.2  # of each class, where there is no test folder; (0, 1)

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("path is missing: name the folder of images")
        check_range("size", self.size, low=1)
        check_choice("channels", str(self.channels), ("1", "3"))
        check_range("test_fraction", self.test_fraction, above=0, below=1)


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
        from PIL import Image, UnidentifiedImageError
        from torchvision.transforms.functional import pil_to_tensor

        try:
            with Image.open(self.files[row]) as image:
                mode = "L" if self.channels == 1 else "RGB"
                resized = image.convert(mode).resize((self.size, self.size), Image.Resampling.BILINEAR)
        except (UnidentifiedImageError, OSError) as error:
            raise ConfigurationError(f"{self.files[row]} is no readable image ({error}). Remove or replace it.") from error
        return pil_to_tensor(resized), self.targets[row]


@register_benchmark("image_folder", ImageFolderOptions)
def image_folder(options: ImageFolderOptions, context: BenchmarkContext) -> Benchmark:
    """Any folder of images, a sub-folder a class; without a test folder a seeded share of each class is held out."""
    root = Path(options.path).expanduser()
    root = root if root.is_absolute() or root.is_dir() else context.root / root
    has_split = (root / "train").is_dir() and (root / "test").is_dir()
    names = _class_names(root / "train" if has_split else root)
    if has_split:
        train, test = (_files(root / part, names) for part in ("train", "test"))
    else:
        train, test = _hold_out(_files(root, names), options.test_fraction, context.seed)
    datasets: list[Any] = [ImageFiles(*part, options.size, options.channels) for part in (train, test)]
    return from_datasets(
        *datasets,
        tasks=options.tasks,
        classes_per_task=options.classes_per_task,
        class_order=options.class_order,
        name="image_folder",
        in_memory=context.in_memory,
    )


Files = tuple[list[Path], list[int]]


def _class_names(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not names:
        raise ConfigurationError(
            f"benchmark.path: {folder} holds no class folders. "
            f"Expected {folder}/<class>/*.png, or train/ and test/ folders above the classes."
        )
    return names


def _files(folder: Path, names: list[str]) -> Files:
    files, labels = [], []
    for label, name in enumerate(names):
        found = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in _ENDINGS)
        if not found:
            raise ConfigurationError(f"benchmark.path: {folder / name} holds no images ({', '.join(sorted(_ENDINGS))}).")
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
        order = rows[torch.randperm(len(rows), generator=generator)]
        held_out = min(len(rows) - 1, max(1, round(fraction * len(rows))))  # at least one stays for training
        is_test[order[:held_out]] = True

    def pick(wanted: bool) -> Files:
        rows = [row for row in range(len(files)) if bool(is_test[row]) is wanted]
        return [files[row] for row in rows], [labels[row] for row in rows]

    return pick(False), pick(True)
