"""PACS: photographs, art paintings, cartoons and sketches of the same seven things, one domain a task (Li et al. 2017).

Read from folders `<domain>/<class>/*.jpg`. Where the lists of the official split lie beside them (`<domain>_train_kfold.txt` and
`<domain>_crossval_kfold.txt`), its held-out images are the test split; else a fixed fifth of each class and domain is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cl_framework.augment import Augmented, strong_colour
from cl_framework.benchmarks.base import Benchmark, BenchmarkContext, Source
from cl_framework.benchmarks.image_files import Images, load_images, source_of
from cl_framework.benchmarks.split_images import check_limit, stratified
from cl_framework.checks import check_choice, check_range
from cl_framework.errors import ConfigurationError
from cl_framework.registry import register_benchmark
from cl_framework.rng import RandomStream

_DOMAINS = ("photo", "art_painting", "cartoon", "sketch")
_CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
_TEST_SHARE = 5  # one image in five is a test image, where there is no official split
_LISTS = ("train_kfold.txt", "crossval_kfold.txt")  # of the official split: `<domain>/<class>/<file> <number>` a line
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
    lists = tuple(f"{domain}_{name}" for domain in _DOMAINS for name in _LISTS)
    images = load_images(folder, options.size, 3, texts=lists, layout=layout, remedy="Name its folder: benchmark.folder=DIR.")
    official = _has_official_split(images, options.domains, folder)
    places = [images.parts(row, 3)[:2] for row in range(len(images.names))]
    missing = sorted({f"{domain}/{label}" for domain in options.domains for label in _CLASSES} - {"/".join(place) for place in places})
    if missing:
        raise ConfigurationError(f"{folder} lacks images in {', '.join(missing)}. Expected {layout}.")
    train: list[Source] = []
    test: list[Source] = []
    for domain in options.domains:
        held = [(row, _CLASSES.index(label)) for row, (of, label) in enumerate(places) if of == domain and label in _CLASSES]
        rows, targets = torch.tensor(held).unbind(1)
        if official:
            is_train, is_test = (_listed(images, domain, name, rows, folder) for name in _LISTS)
            if bool((is_train & is_test).any()):
                raise ConfigurationError(f"{folder}: the lists of {domain} name an image for training and for test. Replace them.")
        else:
            is_test = _fixed_test_split(domain, targets)
            is_train = ~is_test
        chosen = is_train.nonzero().flatten()
        if options.train_limit is not None:
            generator = RandomStream("train_limit", "pacs", domain, context.seed).generator()
            chosen = chosen[stratified(targets[chosen], options.train_limit, generator)]
        train.append(source_of(images, rows[chosen], targets[chosen], context.in_memory))
        test.append(source_of(images, rows[is_test], targets[is_test], context.in_memory))
    smallest, largest = images.sides
    notes = {
        "domains": " | ".join(options.domains),
        "classes": ", ".join(_CLASSES),
        "data": f"{options.size}x{options.size} pixels, files of {smallest if smallest == largest else f'{smallest} to {largest}'}",
        "split": "the official one" if official else "ours: a fixed fifth of each class and domain is the test split",
    }
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


def _has_official_split(images: Images, domains: tuple[str, ...], folder: Path) -> bool:
    needed = [f"{domain}_{name}" for domain in domains for name in _LISTS]
    missing = [name for name in needed if name not in images.texts]
    if missing and len(missing) < len(needed):
        raise ConfigurationError(f"{folder} lacks lists of the official split: {', '.join(missing)}. Add them, or remove the others.")
    return not missing


def _listed(images: Images, domain: str, name: str, rows: Tensor, folder: Path) -> Tensor:
    """(N,) bool: which of these rows a list of the official split names."""
    file = f"{domain}_{name}"
    wanted = {line.rsplit(maxsplit=1)[0] for line in images.texts[file].splitlines() if line.strip()}
    found = ["/".join(images.parts(row, 3)) for row in rows.tolist()]
    absent = sorted(wanted - set(found))
    if absent or not wanted:
        what = f"names {absent[0]}, which is not there ({len(absent)} such images)" if absent else "names no image"
        raise ConfigurationError(f"{folder}: {file} {what}. Replace it, or remove the lists for a split of ours.")
    return torch.tensor([path in wanted for path in found])


def _fixed_test_split(domain: str, targets: Tensor) -> Tensor:
    """(N,) bool, stratified; from a constant seed, not the run's: figures of all runs are about the same test samples."""
    is_test = torch.zeros(len(targets), dtype=torch.bool)
    is_test[
        stratified(targets, max(len(_CLASSES), len(targets) // _TEST_SHARE), RandomStream("pacs", "test split", domain).generator())
    ] = True
    return is_test
