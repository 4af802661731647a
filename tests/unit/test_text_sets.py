"""Streams of text data sets: what is there and what is missing, labels of their own, files that are wrong."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from cl_framework import load_experiment, resume, run
from cl_framework.assembly import make_benchmark
from cl_framework.benchmarks.base import Benchmark
from cl_framework.errors import ConfigurationError
from cl_framework.loggers.console import ConsoleListener


def texts(labels: list[str], each: int) -> list[dict[str, str]]:
    return [{"sentence": f"text {number} about {label}", "label": label} for number in range(each) for label in labels]


def write(folder: Path, kind: str, name: str, **files: Any) -> None:
    where = folder / "CL_Benchmark" / kind / name
    where.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (where / f"{file}.json").write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "TC", "agnews", train=texts(["World", "Sport"], 10), test=texts(["World", "Sport"], 3), labels=["World", "Sport"])
    stars = ["good", "bad", "fair"]
    write(tmp_path, "SC", "amazon", train=texts(stars, 8), test=texts([*stars, "-"], 2), labels=stars)
    write(tmp_path, "SC", "yelp", train=texts(stars, 10), labels=stars)
    write(tmp_path, "TC", "dbpedia", test=texts(["Plant"], 5), labels=["Plant"])
    write(tmp_path, "TC", "yahoo", labels=["Health"])
    return tmp_path


def benchmark_of(folder: Path, **options: Any) -> Benchmark:
    return make_benchmark(load_experiment({"benchmark": {"name": "text_sets", "folder": str(folder), "tokenizer": "bytes", **options}}))


def test_each_set_has_labels_of_its_own_and_what_is_missing_is_said(folder: Path) -> None:
    found = benchmark_of(folder)
    assert found.classes == ((0, 1), (2, 3, 4), (5, 6, 7), (8,)) and found.num_classes == 9
    assert [len(source) for source in found.train] == [20, 24, 24, 4] and [len(source) for source in found.test] == [6, 6, 6, 1]
    assert found.notes["missing"].startswith("yahoo: no files in")
    assert found.notes["divided"] == "yelp, dbpedia: one split only, of which every fifth text is a test"
    assert found.notes["left out"] == (
        f"2 texts whose label is none of their set's labels.json, the first in {folder}: amazon/test.json: row 3"
    )
    yelp = [{tuple(row) for row in source.read(torch.arange(len(source))).tolist()} for source in (found.train[2], found.test[2])]
    assert not yelp[0] & yelp[1]
    assert "agnews/World, agnews/Sport | amazon/good" in found.notes["classes"]


def test_the_archive_holds_the_same(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    packed = tmp_path_factory.mktemp("packed")
    with tarfile.open(packed / "CL_Benchmark.tar.xz", "w:xz") as archive:
        archive.add(folder / "CL_Benchmark", "CL_Benchmark")
    one, other = benchmark_of(folder), benchmark_of(packed)
    assert one.classes == other.classes
    assert all(torch.equal(mine.targets, theirs.targets) for mine, theirs in zip(one.train, other.train, strict=True))


def test_some_sets_in_an_order_of_ones_own(folder: Path) -> None:
    found = benchmark_of(folder, sets=["yelp", "agnews"])
    assert found.classes == ((0, 1, 2), (3, 4)) and "missing" not in found.notes
    with pytest.raises(ConfigurationError, match=r"has neither train.json nor test.json of yahoo. Take it out of benchmark.sets."):
        benchmark_of(folder, sets=["agnews", "yahoo"])
    with pytest.raises(ConfigurationError, match=r"sets must be one of MNLI, CB, .*, got 'imdb'"):
        benchmark_of(folder, sets=["imdb"])
    with pytest.raises(ConfigurationError, match="sets must differ, got yelp, yelp"):
        benchmark_of(folder, sets=["yelp", "yelp"])


def test_what_is_wrong_in_a_file_is_named(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ConfigurationError, match=r"CL_Benchmark.tar.xz does not exist. Set data.root \(or CL_DATA\)"):
        benchmark_of(tmp_path_factory.mktemp("empty"))
    train = folder / "CL_Benchmark" / "TC" / "agnews" / "train.json"
    for content, text in (
        (b"[{}]", "agnews/train.json: row 0: the sentence is missing. Correct it, or remove that row."),
        (b'[{"sentence": "a", "label": "World"}, "b"]', "agnews/train.json: row 1: the sentence is missing."),
        (b'[{"sentence": ["a"], "label": "World"}]', r"row 0: the sentence is \['a'\], which is no string. Correct it"),
        (
            rb'[{"sentence": "half \ud83d", "label": "World"}]',
            r"agnews/train.json: row 0: the sentence is 'half \\ud83d', which has NUL or half a character\. Correct it, or remove",
        ),
        (b'[{"sentence": "a", "label": 1}]', "row 0: the label is 1, which is no string. Correct it, or remove that row."),
        (b'[{"sentence": "a", "label": "News"}]', "agnews/train.json holds no labelled texts. Copy it from where the data came from."),
        (b"{}", "agnews/train.json must hold a list of texts. Copy it from where the data came from."),
        (b"[", r"TC/agnews/train.json is no valid JSON: column 2 \(Expecting value\)\. Correct it, or copy the file"),
        (b'["\xff"]', r"TC/agnews/train.json is not written in utf-8: byte 2 in line 1\. Convert it to utf-8\."),
    ):
        train.write_bytes(content)
        with pytest.raises(ConfigurationError, match=text):
            benchmark_of(folder)
    train.write_text("\ufeff" + json.dumps(texts(["World"], 3)))
    yelp = folder / "CL_Benchmark" / "SC" / "yelp" / "train.json"
    yelp.write_text(json.dumps([*texts(["good"], 3), {"sentence": " ", "label": "good"}]))
    with pytest.raises(ConfigurationError, match=r"yelp/train.json: row 3: the sentence is empty. Correct it, or remove that row."):
        benchmark_of(folder)
    labels = train.with_name("labels.json")
    for content in ("[]", '{"World": 0}', "[1]"):
        labels.write_text(content)
        with pytest.raises(ConfigurationError, match=r"agnews/labels.json is missing, empty or no list of labels. Copy it"):
            benchmark_of(folder)
    labels.unlink()
    with pytest.raises(ConfigurationError, match=r"agnews/labels.json is missing, empty or no list of labels. Copy it"):
        benchmark_of(folder)


def test_a_run_tells_once_what_is_missing_and_left_out_and_keeps_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = load_experiment({**learning(folder, tmp_path), "stream": "L0 L1"})
    stopped = run(experiment, listeners=[ConsoleListener()], stop_requested=lambda step: step == 3)
    told = capsys.readouterr().err.splitlines()
    notes = make_benchmark(experiment).notes
    assert stopped.status == "stopped" and json.loads((stopped.path / "env.json").read_text())["benchmark"] == notes
    assert {"missing", "divided", "left out", "tokens"} <= notes.keys() and len(notes["classes"]) < 160
    assert told[0].startswith("running ") and len(told) > len(notes)
    for line, (name, text) in zip(told[1:], notes.items(), strict=False):  # a long one, as the name of a folder may be, is cut
        assert line == f"{name}: {text}" or (
            len(text) > 160 and line.startswith(f"{name}: {text[:100]}") and line.endswith(" … (whole in env.json)")
        )
    resume(stopped.path, listeners=[ConsoleListener()])
    again = capsys.readouterr().err
    assert again.startswith("resuming ") and "missing: " not in again and "left out: " not in again


def learning(folder: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "benchmark": {"name": "text_sets", "folder": str(folder), "tokenizer": "bytes", "length": 24},
        "model": {"name": "encoder", "width": 16, "layers": 1, "heads": 2},
        "strategies": {"er": {"capacity": 20}},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "batch_size": 8,
        "epochs": 2,
        "threads": 1,
        "out": str(tmp_path / "runs"),
    }


@pytest.mark.slow
def test_a_stream_of_sets_is_learned(folder: Path, tmp_path: Path) -> None:
    chance = 100 * (1 / 2 + 1 / 3 + 1 / 3 + 1) / 4  # within the sets, of two, three, three and one label

    def answered(rate: float) -> float:
        settings = learning(folder, tmp_path) | {"epochs": 12, "optimizer": {"name": "adamw", "lr": rate}}
        summary = run(load_experiment(settings)).summary
        assert summary is not None and summary["num_tasks"] == 4
        return float(summary["average_accuracy_task_il"])

    assert answered(0.01) > chance + 20  # at seeds 0 to 2 by 29 to 46 points
    assert answered(1e-12) < chance + 10
