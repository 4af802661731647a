"""PACS: photographs, art paintings, cartoons and sketches of the same seven things, one domain a task (Li et al. 2017).

Read from folders `<domain>/<class>/*.jpg`. There is no official split here: a fixed fifth of each class and domain is the test split.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cl_framework.augment import Augmented, strong_colour
from cl_framework.benchmarks.base import Benchmark, BenchmarkContext, Source
from cl_framework.benchmarks.image_files import load_images, source_of
from cl_framework.benchmarks.split_images import check_limit, stratified
from cl_framework.checks import check_choice, check_range
from cl_framework.errors import ConfigurationError
from cl_framework.registry import register_benchmark
from cl_framework.rng import RandomStream

_DOMAINS = ("photo", "art_painting", "cartoon", "sketch")
_CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
_TEST_SHARE = 5  # one image in five is a test image
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


@dataclass(frozen=True)
class PACSOptions:
    folder: str = "PACS"  # in data.root
    size: int = 64  # images are resized to size x size pixels, >= 8
    domains: tuple[str, ...] = _DOMAINS  # one a task, in this order
    train_limit: int | None = None  # training images of each domain, stratified, chosen at random; default: all

    def __post_init__(self) -> None:
        check_range("size", self.size, low=8)
        check_limit(self.train_limit)
        check_domains(self.domains, _DOMAINS)


def check_domains(domains: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Each one known, none twice, at least one."""
    for domain in domains:
        check_choice("domains", domain, known)
    if not domains or len(set(domains)) < len(domains):
        raise ValueError(f"domains must name one domain or more, each once, of {', '.join(known)}, got {list(domains)}")


@register_benchmark("pacs", PACSOptions)
def pacs(options: PACSOptions, context: BenchmarkContext) -> Benchmark:
    """PACS: seven classes as photographs, paintings, cartoons and sketches, one domain a task (9,991 images)."""
    folder = context.root / Path(options.folder).expanduser()
    layout = f"{folder}/<domain>/<class>/*.jpg (domains {', '.join(_DOMAINS)}; classes {', '.join(_CLASSES)})"
    images = load_images(folder, options.size, 3, layout=layout, remedy="Name its folder: benchmark.folder=DIR.")
    places = [images.parts(row, 3)[:2] for row in range(len(images.names))]
    missing = sorted({f"{domain}/{label}" for domain in options.domains for label in _CLASSES} - {"/".join(place) for place in places})
    if missing:
        raise ConfigurationError(f"{folder} lacks images in {', '.join(missing)}. Expected {layout}.")
    train: list[Source] = []
    test: list[Source] = []
    for domain in options.domains:
        held = [(row, _CLASSES.index(label)) for row, (of, label) in enumerate(places) if of == domain and label in _CLASSES]
        rows, targets = torch.tensor(held).unbind(1)
        is_test = _fixed_test_split(domain, targets)
        chosen = (~is_test).nonzero().flatten()
        if options.train_limit is not None:
            generator = RandomStream("train_limit", "pacs", domain, context.seed).generator()
            chosen = chosen[stratified(targets[chosen], options.train_limit, generator)]
        train.append(source_of(images, rows[chosen], targets[chosen], context.in_memory))
        test.append(source_of(images, rows[is_test], targets[is_test], context.in_memory))
    notes = {"domains": " | ".join(options.domains), "classes": ", ".join(_CLASSES), "data": f"{options.size}x{options.size} pixels"}
    if options.train_limit is not None:
        notes["train_limit"] = f"{options.train_limit:,} training images a domain, stratified, seed {context.seed}"
    return Benchmark(
        name="pacs",
        num_classes=len(_CLASSES),
        classes=(tuple(range(len(_CLASSES))),) * len(options.domains),
        train=train,
        test=test,
        transform=Augmented(options.size // 8, True, _MEAN, _DEVIATION, strong_colour),
        input_shape=(3, options.size, options.size),
        scenarios=("domain_il", "task_il"),  # the task known or not; its candidates are all classes either way
        notes=notes,
    )


def _fixed_test_split(domain: str, targets: Tensor) -> Tensor:
    """(N,) bool, stratified; from a constant seed, not the run's: figures of all runs are about the same test samples."""
    is_test = torch.zeros(len(targets), dtype=torch.bool)
    is_test[
        stratified(targets, max(len(_CLASSES), len(targets) // _TEST_SHARE), RandomStream("pacs", "test split", domain).generator())
    ] = True
    return is_test
