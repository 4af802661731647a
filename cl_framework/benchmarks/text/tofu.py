"""TOFU (Maini et al. 2024, arXiv 2401.06121): questions about fictitious authors, some of whom are to be unlearned.

Task 0 holds the authors that are retained, tasks 1, 2, ... the requests: learn all ("L0-1", with `joint` at once, as published), then
unlearn ("U1"). A task is asked its training questions: what was taught is what is to be known or not known. Beside each question stand a
true answer in other words and false ones, where the files have them.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from cl_framework.benchmarks.base import Alternatives, Benchmark, BenchmarkContext
from cl_framework.benchmarks.text.questions import question_benchmark, question_rows
from cl_framework.benchmarks.text.tokens import make_tokens
from cl_framework.checks import check_choice, check_range
from cl_framework.errors import ConfigurationError
from cl_framework.registry import register_benchmark

FORGET = {"forget01": 40, "forget05": 200, "forget10": 400}  # questions: 1, 5 and 10 percent of 4,000, twenty an author
AN_AUTHOR = 20

Entry = dict[str, Any]


@dataclass(frozen=True)
class TofuOptions:
    forget: str = "forget10"  # forget01, forget05 or forget10: what tasks 1, 2, ... hold
    requests: int = 1  # tasks into which it is divided, whole authors each, >= 1
    continual: bool = False  # instead: the requests of the continual variant (40, 200 or 400 questions each), as published
    authors: int | None = None  # retained ones at most, for a small model; default: all
    tokenizer: str = "bpe"  # bpe (trained on the retained authors), bytes, the path of a tokenizer.json, or package:NAME
    vocabulary: int = 2000  # token ids of a trained tokenizer at most, >= 300
    length: int | None = None  # tokens of a question with its answer; what is longer is cut there; default: of the longest
    folder: str | None = None  # default: tofu in data.root

    def __post_init__(self) -> None:
        check_choice("forget", self.forget, FORGET)
        check_range("requests", self.requests, low=1, high=FORGET[self.forget] // AN_AUTHOR)
        check_range("vocabulary", self.vocabulary, low=300)
        if self.authors is not None:
            check_range("authors", self.authors, low=1)
        if self.continual and self.requests > 1:
            raise ValueError("requests is for continual=false; the continual variant has its own")


@register_benchmark("tofu", TofuOptions)
def tofu(options: TofuOptions, context: BenchmarkContext) -> Benchmark:
    """Questions about fictitious authors: those retained, and one request or several to unlearn some of them."""
    folder = Path(options.folder).expanduser() if options.folder else context.root / "tofu"
    requests = list(_continual(folder, options.forget) if options.continual else _divided(folder, options))
    asked = {entry["question"] for request in requests for entry in request}
    whole = entries(folder / "original" / "full.jsonl.gz")
    retained = [entry for entry in whole if entry["question"] not in asked]
    if options.authors is not None:
        retained = retained[: AN_AUTHOR * options.authors]
    parts = [retained, *requests]
    where = str(folder)
    tokens = make_tokens(options.tokenizer, options.vocabulary, (f"{one['question']} {one['answer']}" for one in retained))
    names = ["retained", *(f"request {number}" for number in range(1, len(parts)))]
    pairs = [[(entry["question"], entry["answer"]) for entry in part] for part in parts]
    alternatives = _alternatives(folder, options.forget, parts)
    tasks = [(name, part, part) for name, part in zip(names, pairs, strict=True)]
    benchmark = question_benchmark("tofu", tasks, tokens, options.length, where, {"forget": options.forget}, cut=True)

    def rows(told: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor]:
        return question_rows(tokens, told, options.length, where, cut=True)

    made: list[Alternatives | None] = []
    for told in alternatives:
        if not told:
            made.append(None)
            continue
        right = [(one["question"], one["paraphrased_answer"]) for one in told]
        wrong = [(one["question"], answer) for one in told for answer in one["perturbed_answer"]]
        owner = [place for place, one in enumerate(told) for _ in one["perturbed_answer"]]
        made.append(Alternatives(rows(right), rows(wrong), tuple(owner)))
    return replace(benchmark, alternatives=tuple(made))


def _divided(folder: Path, options: TofuOptions) -> Iterator[list[Entry]]:
    """The authors to be forgotten, as evenly over the requests as whole authors allow."""
    forget = entries(folder / "original" / f"{options.forget}.jsonl.gz")
    authors = len(forget) // AN_AUTHOR
    bounds = [AN_AUTHOR * (authors * number // options.requests) for number in range(options.requests + 1)]
    bounds[-1] = len(forget)
    for first, end in pairwise(bounds):
        yield forget[first:end]


def _continual(folder: Path, forget: str) -> list[list[Entry]]:
    path = folder / "continual_tasks" / f"{forget}.jsonl.gz"
    found: dict[str, list[Entry]] = {}
    for row, entry in enumerate(entries(path)):
        if "task_id" not in entry:
            raise ConfigurationError(f"{path}: row {row} has no column 'task_id'.")
        found.setdefault(str(entry["task_id"]), []).append(entry)
    return list(found.values())


def _alternatives(folder: Path, forget: str, parts: Sequence[Sequence[Entry]]) -> list[list[Entry]]:
    """Of each task the entries with other answers, as far as the files have them."""
    told: dict[str, Entry] = {}
    for name in ("retain", forget):
        for entry in entries(folder / "original" / f"{name}_perturbed.jsonl.gz", ("paraphrased_answer", "perturbed_answer")):
            told[entry["question"]] = entry
    return [[told[entry["question"]] for entry in part if entry["question"] in told] for part in parts]


def entries(path: Path, columns: Sequence[str] = ()) -> list[Entry]:
    """The rows of a file of JSON lines, each with question, answer and `columns`. ConfigurationError names file and row that are wrong."""
    try:
        lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{path} does not exist. Set data.root (or CL_DATA) to the folder that holds tofu, or benchmark.folder."
        ) from error
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.") from error
    found = []
    for row, line in enumerate(lines):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigurationError(f"{path}: row {row} is no JSON ({error.msg}).") from error
        missing = [column for column in ("question", "answer", *columns) if not (isinstance(entry, dict) and entry.get(column))]
        if missing:
            raise ConfigurationError(f"{path}: row {row} has no {missing[0]!r}.")
        found.append(entry)
    return found
