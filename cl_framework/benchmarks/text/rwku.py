"""RWKU (Jin et al. 2024, arXiv 2406.10890): what a model knows of real people, each of whom may be asked to be forgotten.

A task is a person, the last one the neighbours: questions near all of them that must still be answered. The benchmark is made for models
that know these people already; a small one is taught them here, by the passages or by the questions of levels 1 and 2 (clozes and plain
questions), and is asked all three levels (the third attacks: prefixes, affirmation, role play, reversed and rephrased questions).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cl_framework.benchmarks.base import Benchmark, BenchmarkContext
from cl_framework.benchmarks.text.files import COPY, MEND, is_text, json_members
from cl_framework.benchmarks.text.general import MANUAL, general_rows
from cl_framework.benchmarks.text.questions import question_benchmark
from cl_framework.benchmarks.text.tokens import VOCABULARY, check_vocabulary, make_tokens
from cl_framework.checks import check_choice, check_range
from cl_framework.errors import ConfigurationError
from cl_framework.registry import register_benchmark
from cl_framework.schema import LATER

ARCHIVE = "rwku_5subjects.tar.xz"
LEVELS = (1, 2, 3)
TAUGHT = (1, 2)  # levels whose questions teach

Files = dict[str, Any]  # what JSON files hold, by their names


@dataclass(frozen=True)
class RwkuOptions:
    taught: str = "questions"  # questions (of levels 1 and 2) or passages: what a person's task trains on; neighbours always by questions
    people: int | None = None  # how many, the first ones; default: all that are there
    tokenizer: str = "bpe"  # bpe (trained on the first person), bytes, the path of a tokenizer.json, or package:NAME
    vocabulary: int = VOCABULARY  # token ids of a trained tokenizer at most, >= 300
    length: int = 192  # tokens of a row; a passage or an answer is cut there
    folder: str | None = None  # default: rwku_sample in data.root
    general: str = field(default=MANUAL, metadata=LATER)  # text whose perplexity an audit tells: manual (Python's), a text file, or none

    def __post_init__(self) -> None:
        check_choice("taught", self.taught, ("questions", "passages"))
        check_vocabulary(self.tokenizer, self.vocabulary)
        check_range("length", self.length, low=8)
        if self.people is not None:
            check_range("people", self.people, low=1)


@register_benchmark("rwku", RwkuOptions)
def rwku(options: RwkuOptions, context: BenchmarkContext) -> Benchmark:
    """Questions about real people, a task each, and about their neighbours; asked at three levels."""
    folder = Path(options.folder).expanduser() if options.folder else context.root / "rwku_sample"
    people = _people(folder)
    if options.people is not None and options.people > len(people):
        raise ConfigurationError(
            f"{folder} holds {len(people)} people, fewer than benchmark.people={options.people}. Set benchmark.people={len(people)}."
        )
    names = list(people)[: options.people]
    tasks = []
    for name in names:
        questions = {level: _questions(people[name], f"forget_level{level}", folder, name) for level in LEVELS}
        taught = [pair for level in TAUGHT for pair in questions[level]]
        if options.taught == "passages":
            taught = [("", *passage) for passage in _column(people[name], "passage", "text", folder, name)]
        tasks.append((name, taught, [pair for level in LEVELS for pair in questions[level]]))
    near = [pair for name in names for level in TAUGHT for pair in _questions(people[name], f"neighbor_level{level}", folder, name)]
    tasks.append(("neighbours", near, near))
    tokens = make_tokens(options.tokenizer, options.vocabulary, (f"{question} {answer}" for question, answer, _ in tasks[0][1]))
    general, said = general_rows(options.general, tokens, options.length)
    notes = {"people": ", ".join(names), "taught": options.taught, "general text": said}
    return replace(question_benchmark("rwku", tasks, tokens, options.length, str(folder), notes, cut=True), general=general)


def _questions(files: Files, name: str, folder: Path, person: str) -> list[tuple[str, str, str]]:
    """Question, answer, and where they stand."""
    questions, answers = (_column(files, name, column, folder, person) for column in ("query", "answer"))
    return [(question, *answer) for (question, _), answer in zip(questions, answers, strict=True)]


def _column(files: Files, name: str, column: str, folder: Path, person: str) -> list[tuple[str, str]]:
    """What stands in a column, and where."""
    where = f"{folder}: {person}/{name}.json"
    if name not in files:
        raise ConfigurationError(f"{where} is missing. {COPY}")
    if not isinstance(files[name], list):
        raise ConfigurationError(f"{where} is no list of rows with {column!r}. {COPY}")
    if not files[name]:
        raise ConfigurationError(f"{where} is an empty list. {COPY}")
    for row, entry in enumerate(files[name]):
        if not isinstance(entry, dict) or not is_text(entry.get(column)):
            raise ConfigurationError(f"{where}: row {row} has no {column!r} that is a text. {MEND}")
    return [(entry[column], f"{where}: row {row}") for row, entry in enumerate(files[name])]


def _people(folder: Path) -> dict[str, Files]:
    """By person, in the order of the numbers before their names: what their JSON files hold."""
    people: dict[str, Files] = {}
    for path, content in json_members(folder, "*/*.json", ARCHIVE, "rwku_sample"):
        person, file = path.split("/")[-2:]
        people.setdefault(person, {})[file.removesuffix(".json")] = content
    if not people:
        raise ConfigurationError(f"{folder} holds no people: expected {ARCHIVE}, or <number>_<name>/forget_level1.json and others.")
    return {name: people[name] for name in sorted(people, key=_number)}


def _number(person: str) -> tuple[int, str]:
    head = person.partition("_")[0]
    return (int(head) if head.isdecimal() else 0), person
