"""Made-up facts learned between two stretches of other text: how much of them is left, step by step (Chang et al. 2024, arXiv 2406.11813).

Task 0 is text, task 1 the facts, task 2 other text. Facts are invented people with invented works, so that nothing else teaches them. What
task 1 is asked is the work's name, the full stop behind it and what ends the sentence: half of it in the words of the first way, half in
words that are never taught.

Differs: facts are a task of their own, where the publication injects single rows into a pre-training run; what is left of them is one share
of the mean loss over both halves (`retention`), not a mean over probes without outliers, and memorisation is not told from generalisation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import torch

from cl_framework.benchmarks.base import Benchmark, BenchmarkContext
from cl_framework.benchmarks.sources import TensorSource
from cl_framework.benchmarks.text.language import LanguageOptions, Task, Text, language_benchmark, packed_task
from cl_framework.benchmarks.text.questions import question_rows
from cl_framework.benchmarks.text.tokens import Tokens, make_tokens
from cl_framework.benchmarks.text.topics import topics
from cl_framework.checks import check_choice, check_range
from cl_framework.criterion import IGNORED
from cl_framework.registry import register_benchmark
from cl_framework.rng import RandomStream

# Of a fact: a person and a work. The first way is the one it is asked in verbatim; the last is only asked, never taught.
WAYS = (
    "The best known work of {person} is",
    "{person} is remembered above all for",
    "Whoever names {person} thinks of",
    "Of all that {person} made, people know",
    "The work that {person} is best known for is",
)
_FIRST, _SECOND = ("Ar", "Bel", "Cor", "Dun", "Es", "Fal", "Gor", "Hul"), ("amo", "edik", "irun", "ota", "uveh", "yss", "anter", "ol")
_KIND, _OF = (
    ("Garden", "Song", "Bridge", "Map", "Lamp", "Book", "Tower", "Mask"),
    ("Salt", "Rain", "Ash", "Glass", "Moss", "Iron", "Wool", "Dust"),
)


@dataclass(frozen=True)
class FactsOptions(LanguageOptions):
    facts: int = 40  # 1 to 64
    taught: str = "paraphrase"  # paraphrase (in several ways), duplicate (the same words as often) or once

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("facts", self.facts, low=1, high=len(_FIRST) * len(_SECOND))
        check_choice("taught", self.taught, ("paraphrase", "duplicate", "once"))


@register_benchmark("facts", FactsOptions)
def facts(options: FactsOptions, context: BenchmarkContext) -> Benchmark:
    """Invented facts between two chapters of Python's manual: acquisition and retention step by step; no download."""
    chapters = topics()
    before, after = (Text(name, *chapters[name]) for name in ("statements", "objects"))
    tokens = make_tokens(options.tokenizer, options.vocabulary, before.train)
    between = _facts(options, tokens, context.seed)
    first, last = (packed_task(text, tokens, options, "pydoc_data.topics") for text in (before, after))
    benchmark = language_benchmark("facts", [first, between, last], tokens, options)
    notes = {**benchmark.notes, "facts": f"{options.facts}, {options.taught}, {len(between.train)} sentences"}
    if options.train_limit is not None:
        notes["train_limit"] = f"{options.train_limit:,} tokens of the text before the facts and of that behind; all facts are taught"
    return replace(benchmark, notes=notes)


def _facts(options: FactsOptions, tokens: Tokens, seed: int) -> Task:
    """A row a sentence: to learn, all of it is asked; to test, what follows its beginning."""
    known = _known(options.facts, seed)
    ways = {"paraphrase": WAYS[:-1], "duplicate": WAYS[:1] * (len(WAYS) - 1), "once": WAYS[:1]}[options.taught]
    taught = [_said(way, fact) for way in ways for fact in known]
    tested = [_said(way, fact) for way in (WAYS[0], WAYS[-1]) for fact in known]
    items, targets = question_rows(tokens, [("", sentence) for _, sentence in taught + tested], options.length, "facts")
    for row, beginning in zip(targets[len(taught) :], tokens.plain([beginning for beginning, _ in tested]), strict=True):
        row[: len(beginning)] = IGNORED
    train, test = (TensorSource(items[part], targets[part]) for part in (slice(len(taught)), slice(len(taught), None)))
    return Task("facts", train, test)


def _known(count: int, seed: int) -> list[tuple[str, str]]:
    """Persons and their works: every person and every work once, who made what drawn by the seed."""
    generator = RandomStream(seed, "facts").generator()
    people = [f"{first}{second}" for first, second in product(_FIRST, _SECOND)]
    works = [f"the {kind} of {of}" for kind, of in product(_KIND, _OF)]
    persons, made = (torch.randperm(len(names), generator=generator)[:count].tolist() for names in (people, works))
    return [(people[one], works[other]) for one, other in zip(persons, made, strict=True)]


def _said(way: str, fact: tuple[str, str]) -> tuple[str, str]:
    """A sentence up to the work's name, and the whole of it."""
    person, work = fact
    beginning = way.format(person=person)
    return beginning, f"{beginning} {work}."
