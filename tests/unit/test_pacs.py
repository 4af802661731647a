"""PACS on tiny made-up files: a domain a task, our split and the official one, choices, errors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_framework import Benchmark, BenchmarkContext, ConfigurationError
from cl_framework.benchmarks.pacs import PACSOptions, pacs
from tests.unit.made_up import write_image


def context(root: Path, **changes: Any) -> BenchmarkContext:
    return BenchmarkContext(**{"root": root, "download": False, "seed": 0, "scenario": "", **changes})


def all_rows(source: Any) -> Tensor:
    rows: Tensor = source.read(torch.arange(len(source)))
    return rows


def plain_inputs(benchmark: Benchmark, task: int) -> Tensor:
    inputs = benchmark.transform(all_rows(benchmark.train[task]), None)
    assert isinstance(inputs, Tensor) and tuple(inputs.shape[1:]) == benchmark.input_shape
    return inputs


def same(one: Benchmark, other: Benchmark) -> bool:
    pairs = zip([*one.train, *one.test], [*other.train, *other.test], strict=True)
    return all(torch.equal(all_rows(a), all_rows(b)) and torch.equal(a.targets, b.targets) for a, b in pairs)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


DOMAINS = ("photo", "art_painting", "cartoon", "sketch")
THINGS = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")


def write_pacs(folder: Path, count: int = 5) -> None:
    for domain in DOMAINS:
        for label, name in enumerate(THINGS):
            for number in range(count):
                write_image(folder / domain / name / f"pic_{number:03}.jpg", 10, 1000 * DOMAINS.index(domain) + 10 * label + number)


def test_pacs_is_a_domain_a_task(tmp_path: Path) -> None:
    write_pacs(tmp_path / "PACS")
    benchmark, again, other_seed = (pacs(PACSOptions(size=8), context(tmp_path, seed=seed)) for seed in (0, 0, 1))
    assert benchmark.scenarios == ("domain_il", "task_il") and benchmark.classes == (tuple(range(7)),) * 4
    assert [len(source) for source in benchmark.train] == [28] * 4 and [len(source) for source in benchmark.test] == [7] * 4
    for source in benchmark.test:
        assert torch.bincount(source.targets).tolist() == [1] * 7
    seen = [{tuple(row.flatten().tolist()) for row in all_rows(source)} for source in [*benchmark.train, *benchmark.test]]
    assert sum(map(len, seen)) == len(set().union(*seen)) == 140  # every image once
    assert same(benchmark, again) and same(benchmark, other_seed)  # the split is not the run's
    assert benchmark.notes["domains"] == "photo | art_painting | cartoon | sketch"
    assert benchmark.notes["data"] == "8x8 pixels, files of 10"
    assert benchmark.notes["split"] == "ours: a fixed fifth of each class and domain is the test split"
    plain_inputs(benchmark, 1)


def write_official_split(folder: Path, domains: tuple[str, ...] = DOMAINS, held_out: int = 3) -> None:
    """Lists as published: a path and a number from 1 a line; image `held_out` of each class is for testing, number 4 in no list."""
    for domain in domains:
        lines: dict[str, list[str]] = {"train": [], "crossval": []}
        for label, name in enumerate(THINGS):
            for number in range(4):
                part = "crossval" if number == held_out else "train"
                lines[part].append(f"{domain}/{name}/pic_{number:03}.jpg {label + 1}")
        for part, held in lines.items():
            (folder / f"{domain}_{part}_kfold.txt").write_text("\n".join(held) + "\n")


def test_the_official_split_of_pacs_is_taken_where_it_lies(tmp_path: Path) -> None:
    folder = tmp_path / "PACS"
    write_pacs(folder)
    ours = pacs(PACSOptions(size=8), context(tmp_path))
    write_official_split(folder)
    official = pacs(PACSOptions(size=8), context(tmp_path))
    assert official.notes["split"] == "the official one"
    assert [len(source) for source in official.train] == [21] * 4 and [len(source) for source in official.test] == [7] * 4
    assert torch.bincount(official.train[2].targets).tolist() == [3] * 7 and torch.bincount(official.test[2].targets).tolist() == [1] * 7
    write_official_split(folder, held_out=0)
    moved = pacs(PACSOptions(size=8), context(tmp_path))
    assert not same(official, ours) and not same(official, moved)
    held_out = {tuple(row.flatten().tolist()) for row in all_rows(moved.test[3])}
    assert held_out <= {tuple(row.flatten().tolist()) for row in all_rows(official.train[3])}


def test_errors_of_the_official_split(tmp_path: Path) -> None:
    folder = tmp_path / "PACS"
    write_pacs(folder)
    write_official_split(folder, DOMAINS[:3])
    text = r"PACS lacks lists of the official split: sketch_train_kfold.txt, sketch_crossval_kfold.txt\. Add them, or remove the others"
    with pytest.raises(ConfigurationError, match=text):
        pacs(PACSOptions(size=8), context(tmp_path))
    some = PACSOptions(size=8, domains=("photo",))
    assert pacs(some, context(tmp_path)).notes["split"] == "the official one"
    listed = folder / "photo_crossval_kfold.txt"
    wrong = {
        "photo/dog/pic_000.jpg 1": r"PACS: the lists of photo name an image for training and for test\. Replace them",
        "photo/dog/pic_9.jpg 1": r"photo_crossval_kfold.txt names photo/dog/pic_9.jpg, which is not there \(1 such images\)\. Replace it",
        "": r"photo_crossval_kfold.txt names no image\. Replace it, or remove the lists for a split of ours",
    }
    for content, text in wrong.items():
        listed.write_text(content)
        with pytest.raises(ConfigurationError, match=text):
            pacs(some, context(tmp_path))
    assert len(wrong) == 3


def test_domains_can_be_chosen_and_limited(tmp_path: Path) -> None:
    write_pacs(tmp_path / "PACS")
    whole = pacs(PACSOptions(size=8), context(tmp_path))
    some = pacs(PACSOptions(size=8, domains=("sketch", "photo"), train_limit=14), context(tmp_path))
    assert [len(source) for source in some.train] == [14, 14]
    assert torch.equal(all_rows(some.test[0]), all_rows(whole.test[3])) and not torch.equal(all_rows(some.test[0]), all_rows(whole.test[0]))
    for source in some.train:
        assert torch.bincount(source.targets).tolist() == [2] * 7
    assert some.notes["train_limit"] == "14 training images a domain, stratified, seed 0"
    with pytest.raises(ValueError, match="domains must be one of photo, art_painting, cartoon, sketch, got 'painting'"):
        PACSOptions(domains=("painting",))
    for wrong in ((), ("photo", "photo")):
        with pytest.raises(ValueError, match="domains must name one domain or more, each once"):
            PACSOptions(domains=wrong)
    shutil.rmtree(tmp_path / "PACS/photo/dog")
    with pytest.raises(ConfigurationError, match=r"PACS lacks images in photo/dog\. Expected"):
        pacs(PACSOptions(size=8), context(tmp_path))
