"""The real files, where they lie: counts and figures that are known of them. Looked for in CL_DATA, else beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cl_framework import Benchmark, BenchmarkContext
from cl_framework.benchmarks.cifar import SplitCIFAR10Options, split_cifar10_jpeg
from cl_framework.benchmarks.digit_domains import DigitDomainsOptions, digit_domains
from cl_framework.benchmarks.omniglot import OmniglotOptions, omniglot
from cl_framework.benchmarks.pacs import PACSOptions, pacs
from cl_framework.benchmarks.sources import TensorSource
from cl_framework.benchmarks.tiny_imagenet import SplitTinyImageNet32Options, split_tiny_imagenet_32px

pytestmark = pytest.mark.slow


def where(folder: str) -> BenchmarkContext:
    given = os.environ.get("CL_DATA")
    places = [*([Path(given)] if given else []), Path(__file__).parents[3] / "shared" / "data"]
    root = next((place for place in places if (place / folder).is_dir()), None)
    if root is None:
        pytest.skip(f"{folder} is neither in CL_DATA nor beside the checkout; made-up files of its format are read by other tests")
    return BenchmarkContext(root, False, 0, "", "always")


def sizes(benchmark: Benchmark) -> tuple[list[int], list[int]]:
    return [len(source) for source in benchmark.train], [len(source) for source in benchmark.test]


def items_of(source: object) -> Tensor:
    assert isinstance(source, TensorSource)
    return source.items


def test_the_jpeg_copy_of_cifar10() -> None:
    benchmark = split_cifar10_jpeg(SplitCIFAR10Options(), where("cifar10_jpeg"))
    assert sizes(benchmark) == ([10_000] * 5, [2_000] * 5)
    for source in benchmark.train:
        assert source.targets.bincount().unique().tolist() in ([0, 5_000], [5_000])
    pixels = torch.cat([items_of(source) for source in benchmark.train]).float() / 255
    deviation, mean = torch.std_mean(pixels, (0, 2, 3))
    assert torch.allclose(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=0.001)
    assert torch.allclose(deviation, torch.tensor([0.2470, 0.2435, 0.2615]), atol=0.002)
    limited = split_cifar10_jpeg(SplitCIFAR10Options(train_limit=10_000), where("cifar10_jpeg"))
    assert sizes(limited) == ([2_000] * 5, [2_000] * 5)


@pytest.mark.longest
def test_tiny_imagenet_in_32_pixels() -> None:
    benchmark = split_tiny_imagenet_32px(SplitTinyImageNet32Options(), where("tinyimagenet200_32px"))
    assert sizes(benchmark) == ([10_000] * 10, [1_000] * 10) and benchmark.num_classes == 200
    assert benchmark.notes["classes"].startswith("goldfish, ")
    for source in benchmark.test:
        assert source.targets.bincount()[source.targets.min() :].tolist() == [50] * 20


def test_pacs_in_64_pixels() -> None:
    benchmark = pacs(PACSOptions(folder="pacs_64px"), where("pacs_64px"))
    train, test = sizes(benchmark)
    assert [one + other for one, other in zip(train, test, strict=True)] == [1_670, 2_048, 2_344, 3_929]
    assert test == [334, 409, 468, 785]
    assert benchmark.notes["data"] == "64x64 pixels, files of 64"


def test_usps() -> None:
    benchmark = digit_domains(DigitDomainsOptions(domains=("usps",)), where("usps"))
    assert sizes(benchmark) == ([7_291], [2_007])
    # Ink is bright on an empty ground: a zero is darker in its middle than around it, a one is not.
    images, targets = items_of(benchmark.train[0]).float(), benchmark.train[0].targets
    zero, one = (images[targets == label].mean((0, 1)) for label in (0, 1))
    assert float(zero[14, 14]) < float(zero[14, 7]) and float(one[14, 14]) > float(one[14, 7])


def test_small_omniglot() -> None:
    benchmark = omniglot(OmniglotOptions(folder="omniglot_small"), where("omniglot_small"))
    assert benchmark.num_classes == 242 and sum(sizes(benchmark)[0]) == 242 * 15 and sum(sizes(benchmark)[1]) == 242 * 5
    assert float((items_of(benchmark.train[0]) == 0).float().mean()) > 0.5  # ground is 0
