"""TOFU (Maini et al. 2024, arXiv 2401.06121): questions about fictitious authors, some of whom are to be unlearned.

Task 0 holds the authors that are retained, tasks 1, 2, ... the requests: learn all ("L0-1", with `joint` at once, as published), then
unlearn ("U1"). A task is asked its training questions: what was taught is what is to be known or not known. Beside each question stand a
true answer in other words and false ones, where the files have them. Questions about real authors and the world, which no task teaches,
tell what else a request does, and so does a text of neither (`general`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from cl_framework.benchmarks.base import Alternatives, Benchmark, BenchmarkContext
from cl_framework.benchmarks.text.files import COPY, MEND, absent, bytes_of, is_text, json_of, lines_of, text_of
from cl_framework.benchmarks.text.general import MANUAL, general_rows
from cl_framework.benchmarks.text.questions import Pairs, cut_notes, fits, length_notes, question_benchmark, question_rows
from cl_framework.benchmarks.text.tokens import VOCABULARY, Tokens, check_vocabulary, make_tokens
from cl_framework.checks import check_choice, check_range
from cl_framework.errors import ConfigurationError
from cl_framework.registry import register_benchmark
from cl_framework.schema import LATER

FORGET = {"forget01": 40, "forget05": 200, "forget10": 400}  # questions: 1, 5 and 10 percent of 4,000, twenty an author
AN_AUTHOR = 20
UTILITY = ("real_authors", "world_facts")  # files of questions that no task holds, with false answers beside the right ones
OTHERS = "_perturbed.jsonl.gz"  # how the names of files with other answers end
PARAPHRASED = "paraphrased_question"  # the column of a question in other words, where such a file has it

Entry = dict[str, Any]  # a row of a file: its texts by column, and PLACE
PLACE = "file and row"
Parts = dict[str, list[Entry]]  # by the name of a task, or of a file beside them


@dataclass(frozen=True)
class TofuOptions:
    forget: str = "forget10"  # forget01, forget05 or forget10: what tasks 1, 2, ... hold
    requests: int = 1  # tasks into which it is divided, whole authors each, >= 1
    continual: bool = False  # instead: the requests of the continual variant (40, 200 or 400 questions each), as published
    authors: int | None = None  # retained ones at most, for a small model; default: all
    tokenizer: str = "bpe"  # bpe (trained on the retained authors), bytes, the path of a tokenizer.json, or package:NAME
    vocabulary: int = VOCABULARY  # token ids of a trained tokenizer at most, >= 300
    length: int | None = None  # tokens of a question with its answer; what is longer is cut there; default: of the longest
    folder: str | None = None  # default: tofu in data.root
    general: str = field(default=MANUAL, metadata=LATER)  # text whose perplexity an audit tells: manual (Python's), a text file, or none

    def __post_init__(self) -> None:
        check_choice("forget", self.forget, FORGET)
        check_range("requests", self.requests, low=1, high=FORGET[self.forget] // AN_AUTHOR)
        check_vocabulary(self.tokenizer, self.vocabulary)
        if self.authors is not None:
            check_range("authors", self.authors, low=1)
        if self.continual and self.requests > 1:
            raise ValueError("requests is for continual=false; the continual variant has its own")


@register_benchmark("tofu", TofuOptions)
def tofu(options: TofuOptions, context: BenchmarkContext) -> Benchmark:
    """Questions about fictitious authors: those retained, and one request or several to unlearn some of them."""
    folder = Path(options.folder).expanduser() if options.folder else context.root / "tofu"
    parts = _parts(folder, options)
    tokens = make_tokens(options.tokenizer, options.vocabulary, (f"{entry['question']} {entry['answer']}" for entry in parts["retained"]))
    taught = {name: _pairs(part, "answer") for name, part in parts.items()}
    tasks = [(name, pairs, pairs) for name, pairs in taught.items()]
    benchmark = question_benchmark("tofu", tasks, tokens, options.length, str(folder), {"forget": options.forget}, cut=True)
    rows = partial(question_rows, tokens, length=options.length, where=str(folder), cut=True)
    answered = _other_answers(folder, options.forget, parts)
    others = {name: _alternatives(entries, "paraphrased_answer", rows) for name, entries in answered.items() if entries}
    in_other_words = {name: _paraphrased(list(answered[name].values()), rows, tokens, options.length) for name in others}
    others = {name: replace(beside, paraphrased=in_other_words[name]) for name, beside in others.items()}
    utility = {name: _alternatives(dict(enumerate(entries)), "answer", rows, of_task=False) for name, entries in _utility(folder).items()}
    own, beside = {name: source.targets for name, source in zip(parts, benchmark.train, strict=True)}, _targets(others, utility)
    lengths = {**cut_notes(own | beside, tokens), **length_notes(beside, list(own.values()))}
    general, said = general_rows(options.general, tokens, benchmark.input_shape[0])
    notes = {**benchmark.notes, **_notes(parts, others, utility), **lengths, "general text": said}
    alternatives = tuple(others.get(name) for name in parts)
    return replace(benchmark, alternatives=alternatives, utility=utility, general=general, notes=notes)


# --- tasks ---


def _parts(folder: Path, options: TofuOptions) -> Parts:
    """Those retained first, then each request."""
    requests = _continual(folder, options.forget) if options.continual else _divided(folder, options)
    names = (f"request {number}" for number in range(1, len(requests) + 1))
    return {"retained": _retained(folder, requests, options.authors), **dict(zip(names, requests, strict=True))}


def _divided(folder: Path, options: TofuOptions) -> list[list[Entry]]:
    """The authors to be forgotten, as evenly over the requests as whole authors allow. ConfigurationError if there are too few."""
    path = folder / "original" / f"{options.forget}.jsonl.gz"
    forgotten = read_entries(path)
    authors = max(1, len(forgotten) // AN_AUTHOR)
    if authors < options.requests:
        raise ConfigurationError(
            f"{path} holds {len(forgotten)} questions, {AN_AUTHOR} an author: too few authors for {options.requests} requests. "
            f"Set benchmark.requests={authors}."
        )
    bounds = [AN_AUTHOR * (authors * number // options.requests) for number in range(options.requests + 1)]
    bounds[-1] = len(forgotten)
    return [forgotten[first:end] for first, end in pairwise(bounds)]


def _continual(folder: Path, forget: str) -> list[list[Entry]]:
    path = folder / "continual_tasks" / f"{forget}.jsonl.gz"
    requests: dict[str, list[Entry]] = {}
    for row, entry in enumerate(read_entries(path)):
        if "task_id" not in entry:
            raise ConfigurationError(f"{path}: row {row} has no column 'task_id'. {MEND}")
        requests.setdefault(str(entry["task_id"]), []).append(entry)
    return list(requests.values())


def _retained(folder: Path, requests: Sequence[Sequence[Entry]], authors: int | None) -> list[Entry]:
    """The questions that no request asks to be forgotten, of so many authors at most. ConfigurationError if there are none."""
    path = folder / "original" / "full.jsonl.gz"
    everything, forgotten = read_entries(path), {_known_by(entry) for request in requests for entry in request}
    kept = [entry for entry in everything if _known_by(entry) not in forgotten]
    if not kept:
        raise ConfigurationError(f"{path}: all of its {len(everything)} questions are to be forgotten, so that none is retained. {COPY}")
    return kept if authors is None else kept[: AN_AUTHOR * authors]


def _known_by(entry: Entry) -> tuple[str, str]:
    """Question and answer: two authors may be asked the same, as "What is the full name of the author?"."""
    return entry["question"], entry["answer"]


# --- other answers ---


def _other_answers(folder: Path, forget: str, parts: Parts) -> dict[str, dict[int, Entry]]:
    """Of each task the entries with other answers, as far as the files have them, by the place of their question in the task.

    Requests of the continual variant ask about the authors of other splits, so all files are read, that of `forget` last.
    """
    paths = {path.name.removesuffix(OTHERS): path for path in sorted((folder / "original").glob(f"*{OTHERS}"))}
    found: dict[tuple[str, str], Entry] = {}
    for name in sorted(paths.keys() - set(UTILITY), key=lambda name: (name == forget, name)):
        entries = read_entries(paths[name], ("question", "answer", "paraphrased_answer"), false=True)
        asked_anew = any(PARAPHRASED in entry for entry in entries)
        for entry in entries:
            if asked_anew and not is_text(entry.get(PARAPHRASED)):
                raise ConfigurationError(f"{entry[PLACE]} has no {PARAPHRASED!r} that is a text, which other rows have. {MEND}")
            found[_known_by(entry)] = entry
    return {
        name: {place: found[_known_by(entry)] for place, entry in enumerate(part) if _known_by(entry) in found}
        for name, part in parts.items()
    }


def _utility(folder: Path) -> Parts:
    """Questions that no task holds, with false answers, as far as their files are there."""
    paths = {name: folder / "original" / f"{name}{OTHERS}" for name in UTILITY}
    return {name: read_entries(path, false=True) for name, path in paths.items() if path.is_file()}


def _alternatives(
    by_place: Mapping[int, Entry], right: str, rows: Callable[[Pairs], tuple[Tensor, Tensor]], *, of_task: bool = True
) -> Alternatives:
    """The answers in column `right` and the false ones beside them; of_task: whether places are those of a task's questions."""
    entries = list(by_place.values())
    false = [(entry["question"], answer, entry[PLACE]) for entry in entries for answer in entry["perturbed_answer"]]
    owner = [place for place, entry in enumerate(entries) for _ in entry["perturbed_answer"]]
    return Alternatives(rows(_pairs(entries, right)), rows(false), tuple(owner), tuple(by_place) if of_task else ())


def _paraphrased(
    entries: Sequence[Entry], rows: Callable[[Pairs], tuple[Tensor, Tensor]], tokens: Tokens, length: int | None
) -> tuple[Tensor, Tensor] | None:
    """The questions in other words with their own answers; None where one has no other words, or they leave no room for an answer."""
    if any(PARAPHRASED not in entry for entry in entries) or not fits(tokens, [entry[PARAPHRASED] for entry in entries], length):
        return None
    return rows(_pairs(entries, "answer", PARAPHRASED))


def _pairs(entries: Sequence[Entry], answer: str, question: str = "question") -> Pairs:
    """What the columns `question` and `answer` say, and where it stands."""
    return [(entry[question], entry[answer], entry[PLACE]) for entry in entries]


# --- notes ---


def _targets(others: Mapping[str, Alternatives], utility: Mapping[str, Alternatives]) -> dict[str, Tensor]:
    """The targets of the answers beside the tasks' own, by the name under which they are shown."""
    named: dict[str, Tensor] = {}
    for name, beside in others.items():
        named |= {f"{name} in other words": beside.right[1], f"{name} false": beside.wrong[1]}
        if beside.paraphrased is not None:
            named[f"{name} asked in other words"] = beside.paraphrased[1]
    for name, beside in utility.items():
        named |= {name: beside.right[1], f"{name} false": beside.wrong[1]}
    return named


def _notes(parts: Parts, others: Mapping[str, Alternatives], utility: Mapping[str, Alternatives]) -> dict[str, str]:
    """How many questions have other answers, and which of those beyond the tasks are there."""
    counts = {name: len(beside.right[0]) for name, beside in (*others.items(), *utility.items())}
    asked = {name: len(beside.paraphrased[0]) for name, beside in others.items() if beside.paraphrased is not None}
    return {
        "other answers": ", ".join(f"{name} {counts.get(name, 0):,} of {len(part):,}" for name, part in parts.items()),
        "asked in other words": ", ".join(f"{name} {asked.get(name, 0):,} of {len(part):,}" for name, part in parts.items()),
        "utility": ", ".join(f"{name} {counts[name]}" if name in utility else f"no {name}{OTHERS}" for name in UTILITY),
    }


# --- files ---


def read_entries(path: Path, texts: Sequence[str] = ("question", "answer"), *, false: bool = False) -> list[Entry]:
    """The rows of a file of JSON lines, each with these texts, with `false` a list of false answers, and under PLACE where it stands.

    ConfigurationError names file and row that are wrong, and a file that has no rows.
    """
    if not path.exists():
        raise absent(path, "tofu")
    entries = []
    for row, line in enumerate(lines_of(text_of(bytes_of(path), path))):
        entry = json_of(line, f"{path}: row {row}")
        if not isinstance(entry, dict):
            raise ConfigurationError(f"{path}: row {row} is no mapping of columns to texts. {MEND}")
        missing = [f"{name!r} that is a text" for name in texts if not is_text(entry.get(name))]
        if false and not _are_texts(entry.get("perturbed_answer")):
            missing.append("'perturbed_answer' that is a list of texts")
        if missing:
            raise ConfigurationError(f"{path}: row {row} has no {missing[0]}. {MEND}")
        entries.append({**entry, PLACE: f"{path}: row {row}"})
    if not entries:
        raise ConfigurationError(f"{path} holds 0 questions. {COPY}")
    return entries


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_text, value))
