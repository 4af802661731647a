"""Omniglot as many small tasks: an alphabet a task, or the characters of all alphabets divided into tasks (Lake et al. 2015).

Read from folders `<Alphabet>/characterNN/NNNN_DD.png`, DD the drawer 01 to 20, or from the zip files lying there. The drawers from 16 on
are the test split: hands that training never saw. Images are grey, white on black, so that empty ground is 0. What lies in several
of the files, as some alphabets do in `images_background_small1.zip` and `small2.zip`, is read once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from cl_framework.augment import digit_views
from cl_framework.benchmarks.base import Benchmark, BenchmarkContext, Scale
from cl_framework.benchmarks.image_files import Images, load_images, source_of
from cl_framework.benchmarks.sources import divide_classes, split_by_class
from cl_framework.checks import check_choice, check_range
from cl_framework.errors import ConfigurationError
from cl_framework.registry import register_benchmark

_LAST_TRAINING_DRAWER = 15  # of 20


@dataclass(frozen=True)
class OmniglotOptions:
    folder: str = "omniglot"  # in data.root
    tasks_are: str = "alphabets"  # or characters: those of all alphabets in order, divided into `tasks`
    tasks: int | None = None  # alphabets: the first so many, default all; characters: number of tasks, default ten
    classes_per_task: int | None = None  # instead of `tasks`, where tasks are characters; the last task takes what is left
    size: int = 28  # images are resized from 105x105 to size x size pixels, >= 4

    def __post_init__(self) -> None:
        check_choice("tasks_are", self.tasks_are, ("alphabets", "characters"))
        check_range("size", self.size, low=4)
        if self.tasks is not None:
            check_range("tasks", self.tasks, low=1)
        if self.classes_per_task is not None and self.tasks_are == "alphabets":
            raise ValueError("classes_per_task divides characters: set tasks_are=characters, or leave it out")


@register_benchmark("omniglot", OmniglotOptions)
def omniglot(options: OmniglotOptions, context: BenchmarkContext) -> Benchmark:
    """Omniglot: handwritten characters, 20 drawers each, an alphabet a task or characters divided into tasks."""
    folder = context.root / Path(options.folder).expanduser()
    layout = f"{folder}/<Alphabet>/characterNN/NNNN_DD.png"
    images = load_images(folder, options.size, 1, layout=layout, remedy="Name its folder: benchmark.folder=DIR.")
    rows, characters, drawers = _drawings(images, folder, layout)
    names = sorted(set(characters))
    number = {name: label for label, name in enumerate(names)}
    classes = _divide(options, names)
    targets = torch.tensor([number[name] for name in characters])
    is_test = torch.tensor(drawers) > _LAST_TRAINING_DRAWER
    for split, there in (("training", ~is_test), ("test", is_test)):
        without = sorted(set(range(len(names))) - set(targets[there].tolist()))
        if without:
            missing = f"{'/'.join(names[without[0]])} has no {split} images"
            raise ConfigurationError(f"{folder}: {missing}. Drawers 01 to {_LAST_TRAINING_DRAWER} train, later ones test.")
    inverted = replace(images, items=255 - images.items)  # ink is black in the files
    train, test = (source_of(inverted, rows[there], targets[there], context.in_memory) for there in (~is_test, is_test))
    alphabets = [sorted({names[label][0] for label in held}) for held in classes]
    return Benchmark(
        name="omniglot",
        num_classes=sum(map(len, classes)),
        classes=tuple(classes),
        train=split_by_class(train, classes),
        test=split_by_class(test, classes),
        transform=Scale(strengthen=digit_views),
        input_shape=(1, options.size, options.size),
        scenarios=("task_il", "class_il"),
        notes={
            "alphabets": " | ".join(", ".join(held) for held in alphabets),
            "characters": " | ".join(str(len(held)) for held in classes),
        },
    )


def _drawings(images: Images, folder: Path, layout: str) -> tuple[Tensor, list[tuple[str, str]], list[int]]:
    """Of each image, counted once, its row, its (alphabet, character) and who drew it."""
    found: dict[tuple[str, str, int], int] = {}
    for row, name in enumerate(images.names):
        parts = images.parts(row, 3)
        drawer = re.fullmatch(r"\d+_(\d+)", PurePosixPath(name).stem)
        if len(parts) < 3 or drawer is None:
            raise ConfigurationError(f"{folder}: {name} is no Omniglot image. Expected {layout}. Remove it, or name another folder.")
        found.setdefault((parts[0], parts[1], int(drawer[1])), row)
    return torch.tensor(list(found.values())), [key[:2] for key in found], [key[2] for key in found]


def _divide(options: OmniglotOptions, names: list[tuple[str, str]]) -> list[tuple[int, ...]]:
    """Labels of each task: they are numbered by alphabet and character, so that those of the first tasks come first."""
    if options.tasks_are == "characters":
        tasks = 10 if options.tasks is None else options.tasks
        try:
            return divide_classes(len(names), tasks, options.classes_per_task, None)
        except ValueError as error:
            raise ConfigurationError(f"omniglot: {error}.") from error
    alphabets = sorted({alphabet for alphabet, _ in names})
    if options.tasks is not None and options.tasks > len(alphabets):
        raise ConfigurationError(f"omniglot: tasks must be at most the number of alphabets {len(alphabets)}, got {options.tasks}.")
    return [
        tuple(label for label, (of, _) in enumerate(names) if of == alphabet)
        for alphabet in alphabets[: len(alphabets) if options.tasks is None else options.tasks]
    ]
