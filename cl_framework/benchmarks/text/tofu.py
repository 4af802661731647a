"""TOFU (Maini et al. 2024, arXiv 2401.06121): questions about fictitious authors, some of whom are to be unlearned.

Task 0 holds the authors that are retained, tasks 1, 2, ... the requests: learn all ("L0-1", with `joint` at once, as published), then
unlearn ("U1"). A task is asked its training questions: what was taught is what is to be known or not known. Beside each question stand a
true answer in other words and false ones, where the files have them. Questions about real authors and the world, which no task teaches,
tell what else a request does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from cl_framework.benchmarks.base import Alternatives, Benchmark, BenchmarkContext, Source
from cl_framework.benchmarks.text.files import COPY, MEND, absent, bytes_of, is_text, json_of, lines_of, text_of
from cl_framework.benchmarks.text.questions import Pairs, cut_notes, question_benchmark, question_rows
from cl_framework.benchmarks.text.tokens import make_tokens
from cl_framework.checks import check_choice, check_range
from cl_framework.errors import ConfigurationError
from cl_framework.registry import register_benchmark

FORGET = {"forget01": 40, "forget05": 200, "forget10": 400}  # questions: 1, 5 and 10 percent of 4,000, twenty an author
AN_AUTHOR = 20
UTILITY = ("real_authors", "world_facts")  # files of questions that no task holds, with false answers beside the right ones
OTHERS = "_perturbed.jsonl.gz"  # how the names of files with other answers end

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
    retained = _retained(folder, requests, options.authors)
    parts = [retained, *requests]
    names = ["retained", *(f"request {number}" for number in range(1, len(parts)))]
    tokens = make_tokens(options.tokenizer, options.vocabulary, (f"{one['question']} {one['answer']}" for one in retained))
    pairs = [[(entry["question"], entry["answer"]) for entry in part] for part in parts]
    tasks = [(name, part, part) for name, part in zip(names, pairs, strict=True)]
    benchmark = question_benchmark("tofu", tasks, tokens, options.length, str(folder), {"forget": options.forget}, cut=True)

    def beside(told: Sequence[Entry], right: str) -> Alternatives:
        return _alternatives(told, right, lambda pairs: question_rows(tokens, pairs, options.length, str(folder), cut=True))

    told = _other_answers(folder, options.forget, parts)
    others = {name: beside(some, "paraphrased_answer") for name, some in zip(names, told, strict=True) if some}
    utility = {name: beside(some, "answer") for name, some in _utility(folder).items()}
    known = (f"{name} {len(some):,} of {len(part):,}" for name, some, part in zip(names, told, parts, strict=True))
    notes = {
        "other answers": ", ".join(known),
        "utility": ", ".join(f"{name} {len(utility[name].right[0])}" if name in utility else f"no {name}{OTHERS}" for name in UTILITY),
        **cut_notes(_ends(dict(zip(names, benchmark.train, strict=True)), others, utility), tokens),
    }
    return replace(benchmark, alternatives=tuple(others.get(name) for name in names), utility=utility, notes={**benchmark.notes, **notes})


def _retained(folder: Path, requests: Sequence[Sequence[Entry]], authors: int | None) -> list[Entry]:
    """The questions that no request asks to be forgotten, of so many authors at most. ConfigurationError if there are none."""
    path = folder / "original" / "full.jsonl.gz"
    everything, forgotten = entries(path), {entry["question"] for request in requests for entry in request}
    kept = [entry for entry in everything if entry["question"] not in forgotten]
    if not kept:
        raise ConfigurationError(f"{path}: all of its {len(everything)} questions are to be forgotten, so that none is retained. {COPY}")
    return kept if authors is None else kept[: AN_AUTHOR * authors]


def _alternatives(told: Sequence[Entry], right: str, rows: Callable[[Pairs], tuple[Tensor, Tensor]]) -> Alternatives:
    """The answers in column `right` and the false ones beside them."""
    true = [(one["question"], one[right]) for one in told]
    false = [(one["question"], answer) for one in told for answer in one["perturbed_answer"]]
    owner = [place for place, one in enumerate(told) for _ in one["perturbed_answer"]]
    return Alternatives(rows(true), rows(false), tuple(owner))


def _ends(tasks: Mapping[str, Source], others: Mapping[str, Alternatives], utility: Mapping[str, Alternatives]) -> dict[str, Tensor]:
    """The targets of all rows, by the name under which they are shown."""
    told = {name: source.targets for name, source in tasks.items()}
    for name, beside in others.items():
        told |= {f"{name} in other words": beside.right[1], f"{name} false": beside.wrong[1]}
    for name, beside in utility.items():
        told |= {name: beside.right[1], f"{name} false": beside.wrong[1]}
    return told


def _divided(folder: Path, options: TofuOptions) -> Iterator[list[Entry]]:
    """The authors to be forgotten, as evenly over the requests as whole authors allow. ConfigurationError if there are too few."""
    path = folder / "original" / f"{options.forget}.jsonl.gz"
    forget = entries(path)
    authors = max(1, len(forget) // AN_AUTHOR)
    if authors < options.requests:
        raise ConfigurationError(
            f"{path} holds {len(forget)} questions, {AN_AUTHOR} an author: too few authors for {options.requests} requests. "
            f"Set benchmark.requests={authors}."
        )
    bounds = [AN_AUTHOR * (authors * number // options.requests) for number in range(options.requests + 1)]
    bounds[-1] = len(forget)
    for first, end in pairwise(bounds):
        yield forget[first:end]


def _continual(folder: Path, forget: str) -> list[list[Entry]]:
    path = folder / "continual_tasks" / f"{forget}.jsonl.gz"
    found: dict[str, list[Entry]] = {}
    for row, entry in enumerate(entries(path)):
        if "task_id" not in entry:
            raise ConfigurationError(f"{path}: row {row} has no column 'task_id'. {MEND}")
        found.setdefault(str(entry["task_id"]), []).append(entry)
    return list(found.values())


def _other_answers(folder: Path, forget: str, parts: Sequence[Sequence[Entry]]) -> list[list[Entry]]:
    """Of each task the entries with other answers, as far as the files have them.

    Requests of the continual variant ask about the authors of other splits, so all files are read, that of `forget` last.
    """
    paths = {path.name.removesuffix(OTHERS): path for path in sorted((folder / "original").glob(f"*{OTHERS}"))}
    told: dict[str, Entry] = {}
    for name in sorted(paths.keys() - set(UTILITY), key=lambda name: (name == forget, name)):
        for entry in entries(paths[name], ("question", "answer", "paraphrased_answer"), false=True):
            told[entry["question"]] = entry
    return [[told[entry["question"]] for entry in part if entry["question"] in told] for part in parts]


def _utility(folder: Path) -> dict[str, list[Entry]]:
    """Questions that no task holds, with false answers, as far as their files are there."""
    paths = {name: folder / "original" / f"{name}{OTHERS}" for name in UTILITY}
    return {name: entries(path, false=True) for name, path in paths.items() if path.is_file()}


def entries(path: Path, texts: Sequence[str] = ("question", "answer"), *, false: bool = False) -> list[Entry]:
    """The rows of a file of JSON lines, each with these texts, and with `false` a list of false answers.

    ConfigurationError names file and row that are wrong, and a file that has no rows.
    """
    if not path.exists():
        raise absent(path, "tofu")
    found = []
    for row, line in enumerate(lines_of(text_of(bytes_of(path), path))):
        entry = json_of(line, f"{path}: row {row}")
        if not isinstance(entry, dict):
            raise ConfigurationError(f"{path}: row {row} is no mapping of columns to texts. {MEND}")
        missing = [f"{name!r} that is a text" for name in texts if not is_text(entry.get(name))]
        if false and not _are_texts(entry.get("perturbed_answer")):
            missing.append("'perturbed_answer' that is a list of texts")
        if missing:
            raise ConfigurationError(f"{path}: row {row} has no {missing[0]}. {MEND}")
        found.append(entry)
    if not found:
        raise ConfigurationError(f"{path} holds 0 questions. {COPY}")
    return found


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_text, value))
