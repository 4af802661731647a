"""Digits from different sources as domains: MNIST, then USPS, and if asked the small digits of scikit-learn; all as 28x28 grey images.

USPS is read from `usps/usps.npz` with arrays x_train, y_train, x_test, y_test of 16x16 bytes. Digits that fill their frame (USPS,
scikit-learn's) are resized to 20x20 with a margin of four pixels, as MNIST's are.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from cl_framework.augment import digit_views
from cl_framework.benchmarks.base import Benchmark, BenchmarkContext, Scale
from cl_framework.benchmarks.digits import SplitOptions, split_digits
from cl_framework.benchmarks.pacs import check_domains
from cl_framework.benchmarks.sources import TensorSource
from cl_framework.benchmarks.split_images import check_limit, stratified
from cl_framework.benchmarks.torchvision_data import load_mnist
from cl_framework.errors import ConfigurationError
from cl_framework.registry import register_benchmark
from cl_framework.rng import RandomStream

_DOMAINS = ("mnist", "usps", "digits")
_SIDE, _MARGIN = 28, 4


@dataclass(frozen=True)
class DigitDomainsOptions:
    domains: tuple[str, ...] = ("mnist", "usps")  # of mnist, usps, digits: one a task, in this order
    train_limit: int | None = None  # training images of each domain, stratified, chosen at random; default: all

    def __post_init__(self) -> None:
        check_domains(self.domains, _DOMAINS)
        check_limit(self.train_limit)


@register_benchmark("digit_domains", DigitDomainsOptions)
def digit_domains(options: DigitDomainsOptions, context: BenchmarkContext) -> Benchmark:
    """Digits by source, one a task: MNIST (60,000 training images), then USPS (7,291)."""
    parts = [_load(domain, context) for domain in options.domains]
    train = [one for one, _ in parts]
    notes = {"domains": " | ".join(options.domains)}
    if options.train_limit is not None:
        for task, (domain, source) in enumerate(zip(options.domains, train, strict=True)):
            generator = RandomStream("train_limit", "digit_domains", domain, context.seed).generator()
            train[task] = source.select(stratified(source.targets, options.train_limit, generator))
        notes["train_limit"] = f"{options.train_limit:,} training images a domain, stratified, seed {context.seed}"
    return Benchmark(
        name="digit_domains",
        num_classes=10,
        classes=(tuple(range(10)),) * len(parts),
        train=train,
        test=[other for _, other in parts],
        transform=Scale(strengthen=digit_views),
        input_shape=(1, _SIDE, _SIDE),
        scenarios=("domain_il", "task_il"),  # the task known or not; its candidates are all digits either way
        notes=notes,
    )


def framed(images: Tensor) -> Tensor:
    """(N, h, w) bytes to (N, 1, 28, 28): resized to 20x20, with a margin of zeros."""
    inner = _SIDE - 2 * _MARGIN
    resized = interpolate(images.unsqueeze(1).float(), (inner, inner), mode="bilinear", align_corners=False)
    return pad(resized.round().to(torch.uint8), [_MARGIN] * 4)


def _load(domain: str, context: BenchmarkContext) -> tuple[TensorSource, TensorSource]:
    if domain == "mnist":
        return load_mnist("MNIST", context)
    if domain == "usps":
        return _load_usps(context.root / "usps" / "usps.npz")
    whole = split_digits(SplitOptions(tasks=1), context)
    train, test = (
        TensorSource(framed(source.items.squeeze(1).float() * (255 / 16)), source.targets)
        for source in (whole.train[0], whole.test[0])
        if isinstance(source, TensorSource)
    )
    return train, test


def _load_usps(path: Path) -> tuple[TensorSource, TensorSource]:
    expected = "Expected arrays x_train and x_test (N, 16, 16) uint8, y_train and y_test (N,) with labels 0 to 9."
    if not path.is_file():
        raise ConfigurationError(
            f"USPS is not in {path}. Put it there, or set data.root=DIR (or CL_DATA) to where usps/usps.npz lies. {expected}"
        )
    try:
        with numpy.load(path, allow_pickle=False) as arrays:
            found = {name: torch.from_numpy(arrays[name]) for name in ("x_train", "y_train", "x_test", "y_test")}
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ConfigurationError(f"{path} cannot be read ({error}). {expected}") from error
    parts = []
    for split in ("train", "test"):
        images, labels = found[f"x_{split}"], found[f"y_{split}"]
        fits = images.ndim == 3 and images.dtype == torch.uint8 and labels.shape == images.shape[:1] and len(labels) > 0
        if not fits or not set(labels.unique().tolist()) <= set(range(10)):
            raise ConfigurationError(f"{path} holds {split} arrays of shapes {tuple(images.shape)} and {tuple(labels.shape)}. {expected}")
        parts.append(TensorSource(framed(images), labels))
    return parts[0], parts[1]
