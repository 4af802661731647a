"""RWKU: people as tasks, neighbours as the last one, questions at three levels, files that are wrong."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from cl_framework import load_experiment
from cl_framework.assembly import assemble, make_benchmark
from cl_framework.benchmarks.base import Benchmark
from cl_framework.benchmarks.text.tokens import Bytes
from cl_framework.errors import ConfigurationError
from cl_framework.stream import Unlearn
from cl_framework.unlearning.measure import Question
from cl_framework.unlearning.recall_of_answers import recalled

PEOPLE = ("2_Ada", "10_Bob")  # in the order of the numbers, not of the letters


def asked(person: str, level: str, count: int) -> list[dict[str, str]]:
    return [{"query": f"{level} question {number} on {person}?", "answer": f"answer {number}", "level": level} for number in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for person in PEOPLE:
        files: dict[str, Any] = {f"forget_level{level}": asked(person, f"l{level}", level + 2) for level in (1, 2, 3)}
        files |= {f"neighbor_level{level}": asked(person, f"n{level}", 2) for level in (1, 2)}
        files |= {"passage": [{"text": f"{person} is known. " * 9}, {"text": f"{person} was born."}], "reject": {"no": "list"}}
        (tmp_path / person).mkdir()
        for name, content in files.items():
            (tmp_path / person / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def benchmark_of(folder: Path, **options: Any) -> Benchmark:
    return make_benchmark(load_experiment({"benchmark": {"name": "rwku", "folder": str(folder), "tokenizer": "bytes", **options}}))


def said(benchmark: Benchmark, task: int, row: int, *, test: bool = False) -> str:
    source = benchmark.test[task] if test else benchmark.train[task]
    first = Bytes().ids(["\0"])[0][1]
    return bytes(one - first for one in source.read(torch.tensor([row]))[0].tolist() if one >= first).decode()


def test_people_are_tasks_and_their_neighbours_the_last(folder: Path) -> None:
    found = benchmark_of(folder)
    assert found.notes["people"] == "2_Ada, 10_Bob" and found.num_tasks == 3 and found.whole_rows
    assert [len(source) for source in found.train] == [3 + 4, 3 + 4, 8]
    assert [len(source) for source in found.test] == [3 + 4 + 5, 3 + 4 + 5, 8]
    assert said(found, 0, 0) == "l1 question 0 on 2_Ada?answer 0" and said(found, 1, 3) == "l2 question 0 on 10_Bob?answer 0"
    assert said(found, 0, 7, test=True) == "l3 question 0 on 2_Ada?answer 0"
    assert said(found, 2, 4) == "n1 question 0 on 10_Bob?answer 0"
    assert benchmark_of(folder, people=1).num_tasks == 2 and benchmark_of(folder, people=2).num_tasks == 3


def test_more_people_than_there_are_is_an_error(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r" holds 2 people, fewer than benchmark.people=50\. Set benchmark.people=2\."):
        benchmark_of(folder, people=50)


def test_who_is_forgotten_is_asked_everything_and_told_from_what_was_never_taught(folder: Path, tmp_path: Path) -> None:
    """Level 3 is not taught: its questions alone can stand for samples that nobody trained on. There are no other answers, hence no T1."""
    options: dict[str, Any] = {
        "benchmark": {"name": "rwku", "folder": str(folder), "tokenizer": "bytes"},
        "model": {"name": "decoder", "width": 32, "layers": 1, "heads": 2},
        "stream": "L0-1 U0",
        "strategies": {"npo": {}},
        "out": str(tmp_path),
    }
    learner = assemble(load_experiment(options))
    event = learner.stream.events[2]
    assert isinstance(event, Unlearn)
    question = Question.of(learner, event, 2, learner.stream)
    assert len(question.members) == 3 + 4 and question.others.places.tolist() == list(range(7, 12))
    assert len(question.pool) == 3 + 4 + 5, "all levels are asked, beside that"
    found = recalled(learner, question)
    assert found is not None and len(found.probability) == 12 and len(found.truth_ratio) == 0 and found.retained == 12
    passages = {**options, "benchmark": {**options["benchmark"], "taught": "passages"}}
    learner = assemble(load_experiment(passages))
    assert len(Question.of(learner, event, 2, learner.stream).others) == 12, "no question is a passage"


def test_passages_teach_and_questions_ask(folder: Path) -> None:
    found = benchmark_of(folder, taught="passages", length=40)
    assert [len(source) for source in found.train] == [2, 2, 8] and len(found.test[0]) == 12
    assert said(found, 0, 1) == "2_Ada was born." and len(said(found, 0, 0)) == 39  # START, and 39 bytes of what is longer


def test_the_archive_holds_the_same(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    packed = tmp_path_factory.mktemp("packed")
    with tarfile.open(packed / "rwku_5subjects.tar.xz", "w:xz") as archive:
        for person in PEOPLE:
            archive.add(folder / person, person)
    one, other = benchmark_of(folder), benchmark_of(packed)
    assert all(torch.equal(mine.targets, theirs.targets) for mine, theirs in zip(one.test, other.test, strict=True))


def test_what_is_wrong_is_named(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ConfigurationError, match=r"rwku_5subjects.tar.xz does not exist. Set data.root \(or CL_DATA\)"):
        benchmark_of(tmp_path_factory.mktemp("empty"))
    with pytest.raises(ConfigurationError, match="taught must be one of questions, passages, got 'songs'"):
        benchmark_of(folder, taught="songs")
    file = folder / "2_Ada" / "forget_level2.json"
    for content, text in (
        ('[{"query": "Who?", "answer": " "}]', "2_Ada/forget_level2.json: row 0 has no 'answer'"),
        ('[{"query": "Who?", "answer": "He."}, "Who?"]', "2_Ada/forget_level2.json: row 1 has no 'query' that is a text. Correct it, or"),
        ('[{"query": 5, "answer": "He."}]', "2_Ada/forget_level2.json: row 0 has no 'query' that is a text. Correct it, or"),
        ("[\n[", r"2_Ada/forget_level2.json is no valid JSON: line 2, column 2 \(.*\)\. Correct it, or copy the file"),
        ("{}", "2_Ada/forget_level2.json is no list of rows with 'query'. Copy it from where the data came from."),
        ("[]", "2_Ada/forget_level2.json is an empty list. Copy it from where the data came from."),
    ):
        file.write_text(content)
        with pytest.raises(ConfigurationError, match=text):
            benchmark_of(folder)
    file.write_text(f'[{{"query": "Who?", "answer": "He."}}, {{"query": "{"Who " * 20}?", "answer": "He."}}]')
    with pytest.raises(
        ConfigurationError,
        match=r"2_Ada/forget_level2.json: row 1: the question has 82 tokens, which leaves no room for an answer in 40\. "
        r"Set benchmark\.length=82 or higher, as other files may ask\.",
    ):
        benchmark_of(folder, length=40)
    assert len(benchmark_of(folder, length=82).train[0]) == 5, "the length named is enough"
    assert len(benchmark_of(folder, length=90).train[0]) == 5
    file.unlink()
    with pytest.raises(ConfigurationError, match=r"2_Ada/forget_level2.json is missing\. Copy it from where the data came from\."):
        benchmark_of(folder)
    file.write_bytes('[\n{"query": "Wer?",\n"answer": "Ren\u00e9"}]'.encode("latin-1"))
    with pytest.raises(
        ConfigurationError, match=r"2_Ada/forget_level2.json is not written in utf-8: byte 34 in line 3\. Convert it to utf-8\."
    ):
        benchmark_of(folder)
