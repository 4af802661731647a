"""CIFAR-10 and CIFAR-100 split by class, through torchvision, and a JPEG copy of CIFAR-10 under a name of its own.

Images are 32x32 colour, uint8. In training they are moved by up to four pixels and flipped; inputs are normalised a channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cl_framework.augment import Augmented, strong_colour
from cl_framework.benchmarks.base import Benchmark, BenchmarkContext
from cl_framework.benchmarks.image_files import load_images, source_of
from cl_framework.benchmarks.sources import TensorSource, divide_classes
from cl_framework.benchmarks.split_images import Split, check_limit, split_images
from cl_framework.benchmarks.torchvision_data import import_torchvision, open_data
from cl_framework.errors import ConfigurationError
from cl_framework.registry import register_benchmark

_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_TEN = Augmented(4, True, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615), strong_colour)
_HUNDRED = Augmented(4, True, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), strong_colour)


@dataclass(frozen=True)
class SplitCIFAR10Options:
    tasks: int = 5  # number of tasks; the first ones take one class more where it does not divide evenly
    classes_per_task: int | None = None  # instead of `tasks`; the last task takes what is left
    class_order: tuple[int, ...] | None = None  # default: 0, 1, 2, ...
    train_limit: int | None = None  # training images in all, stratified, chosen at random; default: all 50,000

    def __post_init__(self) -> None:
        divide_classes(10, self.tasks, self.classes_per_task, self.class_order)
        check_limit(self.train_limit)


@dataclass(frozen=True)
class SplitCIFAR100Options:
    tasks: int = 10  # number of tasks; the first ones take one class more where it does not divide evenly
    classes_per_task: int | None = None  # instead of `tasks`; the last task takes what is left
    class_order: tuple[int, ...] | None = None  # default: 0, 1, 2, ...
    train_limit: int | None = None  # training images in all, stratified, chosen at random; default: all 50,000

    def __post_init__(self) -> None:
        divide_classes(100, self.tasks, self.classes_per_task, self.class_order)
        check_limit(self.train_limit)


@register_benchmark("split_cifar10", SplitCIFAR10Options)
def split_cifar10(options: SplitCIFAR10Options, context: BenchmarkContext) -> Benchmark:
    """Split CIFAR-10: objects by class, five tasks of two by default (60,000 images of 32x32)."""
    return _split("split_cifar10", "CIFAR10", options, context, _TEN)


@register_benchmark("split_cifar100", SplitCIFAR100Options)
def split_cifar100(options: SplitCIFAR100Options, context: BenchmarkContext) -> Benchmark:
    """Split CIFAR-100: objects by class, ten tasks of ten by default (60,000 images of 32x32)."""
    return _split("split_cifar100", "CIFAR100", options, context, _HUNDRED)


def _split(
    name: str, data: str, options: SplitCIFAR10Options | SplitCIFAR100Options, context: BenchmarkContext, transform: Augmented
) -> Benchmark:
    kind = getattr(import_torchvision().datasets, data)
    packed = context.root / kind.filename
    if packed.is_file() and not context.download and not (context.root / kind.base_folder).is_dir():
        raise ConfigurationError(f"{data} in {packed} is still packed. Unpack it: tar -xzf {packed} -C {context.root}.")
    parts = open_data(data, context)
    train, test = (TensorSource(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets)) for part in parts)
    return split_images(name, train, test, parts[0].classes, _split_of(options), context, transform, (3, 32, 32), {})


@register_benchmark("split_cifar10_jpeg", SplitCIFAR10Options)
def split_cifar10_jpeg(options: SplitCIFAR10Options, context: BenchmarkContext) -> Benchmark:
    """A JPEG copy of CIFAR-10's images by class, five tasks of two by default: lossy, so its figures are not those of CIFAR-10."""
    folder = context.root / "cifar10_jpeg"
    layout = f"{folder}/train/<class>/*.jpg and {folder}/test/<class>/*.jpg"
    remedy = "Set data.root=DIR (or CL_DATA) to where cifar10_jpeg lies, or use benchmark.name=split_cifar10."
    images = load_images(folder, 32, 3, layout=layout, remedy=remedy)
    places = [images.parts(row, 3)[:2] for row in range(len(images.names))]
    unknown = sorted({"/".join(place) for place in places if place[0] not in ("train", "test") or place[1] not in _CLASSES})
    missing = {(part, label) for part in ("train", "test") for label in _CLASSES} - set(places)
    if unknown or missing:
        which = ", ".join(unknown or sorted("/".join(place) for place in missing))
        wrong = "holds unknown folders" if unknown else "lacks images in"
        raise ConfigurationError(f"{folder} {wrong} {which}. Expected {layout}, classes {', '.join(_CLASSES)}.")
    labels = torch.tensor([_CLASSES.index(label) for _, label in places])
    is_train = torch.tensor([part == "train" for part, _ in places])
    train, test = (
        source_of(images, rows, labels[rows], context.in_memory) for rows in (is_train.nonzero().flatten(), (~is_train).nonzero().flatten())
    )
    notes = {"data": "a JPEG copy of CIFAR-10, lossy: figures are not those of CIFAR-10"}
    return split_images("split_cifar10_jpeg", train, test, _CLASSES, _split_of(options), context, _TEN, (3, 32, 32), notes)


def _split_of(options: SplitCIFAR10Options | SplitCIFAR100Options) -> Split:
    return Split(options.tasks, options.classes_per_task, options.class_order, options.train_limit)
