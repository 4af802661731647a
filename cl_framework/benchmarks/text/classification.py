"""Classification of texts as a stream of tasks: domains where the corpus has them, else classes divided evenly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cl_framework.benchmarks.base import Benchmark, BenchmarkContext
from cl_framework.benchmarks.sources import TensorSource, divide_classes, split_by_class
from cl_framework.benchmarks.split_images import check_limit, stratified
from cl_framework.benchmarks.text.corpora import CORPORA, FOLDERS, Corpus
from cl_framework.benchmarks.text.docstrings import docstrings as docstring_corpus
from cl_framework.benchmarks.text.tokens import VOCABULARY, TokenInputs, Tokens, check_vocabulary, encode, make_tokens
from cl_framework.checks import check_choice, check_range
from cl_framework.errors import ConfigurationError
from cl_framework.registry import register_benchmark
from cl_framework.rng import RandomStream


@dataclass(frozen=True)
class TextOptions:
    tasks: int | None = None  # number of tasks; default: the corpus's domains, else ten
    classes_per_task: int | None = None  # instead of `tasks`; the last task takes what is left
    class_order: tuple[int, ...] | None = None  # default: 0, 1, 2, ...
    length: int = 32  # tokens a text at most, >= 2; longer texts are cut
    tokenizer: str = "bpe"  # bpe (trained on task 0), bytes, the path of a tokenizer.json, or package:NAME
    vocabulary: int = VOCABULARY  # token ids of a trained tokenizer at most, >= 300
    train_limit: int | None = None  # training texts in all, stratified; a trained tokenizer sees all of task 0

    def __post_init__(self) -> None:
        if self.tasks is not None and self.classes_per_task is not None:
            raise ValueError("tasks and classes_per_task both say how classes are divided. Give one of them")
        check_range("length", self.length, low=2)
        check_vocabulary(self.tokenizer, self.vocabulary)
        check_limit(self.train_limit)


@dataclass(frozen=True)
class CorpusOptions(TextOptions):
    folder: str | None = None  # of the corpus; default: in data.root


@dataclass(frozen=True)
class NamedCorpusOptions(CorpusOptions):
    corpus: str = "clinc150"  # clinc150, banking77, hwu64, trec, news20 or folder (train.csv and test.csv, columns text and label)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("corpus", self.corpus, tuple(CORPORA))
        if self.corpus == "folder" and not self.folder:
            raise ValueError("corpus=folder needs folder, the place of its train.csv and test.csv")


@register_benchmark("docstrings", TextOptions)
def docstrings(options: TextOptions, context: BenchmarkContext) -> Benchmark:
    """Paragraphs of docstrings by module, two modules a task: text that comes with the packages installed."""
    return classification("docstrings", docstring_corpus(), options, context)


@register_benchmark("text_classification", NamedCorpusOptions)
def text_classification(options: NamedCorpusOptions, context: BenchmarkContext) -> Benchmark:
    """Intents, questions, news: clinc150 (ten domains), banking77, hwu64, trec, news20, as they are published; or one's own."""
    name = options.corpus
    folder = Path(options.folder).expanduser() if options.folder else context.root / FOLDERS.get(name, name)
    return classification(name, CORPORA[name](folder), options, context)


def classification(name: str, corpus: Corpus, options: TextOptions, context: BenchmarkContext) -> Benchmark:
    """A benchmark of a corpus."""
    labels = corpus.labels
    classes = _divided(name, corpus, labels, options)
    number = {label: place for place, label in enumerate(labels)}
    parts = {
        split: ([text for text, _ in pairs], torch.tensor([number[label] for _, label in pairs]))
        for split, pairs in (("train", corpus.train), ("test", corpus.test))
    }
    first = set(classes[0])
    texts, targets = parts["train"]
    shown_first = [text for text, label in zip(texts, targets.tolist(), strict=True) if label in first]
    tokens = make_tokens(options.tokenizer, options.vocabulary, shown_first)
    if options.train_limit is not None:
        rows = stratified(targets, options.train_limit, RandomStream("train_limit", name, context.seed).generator())
        texts, targets = [texts[row] for row in rows.tolist()], targets[rows]
        shown = set(targets.tolist())
        empty = next((task for task, held in enumerate(classes) if shown.isdisjoint(held)), None)
        if empty is not None:
            raise ConfigurationError(
                f"benchmark.train_limit={options.train_limit} leaves task {empty} of {len(classes)} no training text. "
                f"Set it to {len(labels)} or higher: a text of each class."
            )
    train, train_cut = _source(tokens, texts, targets, options.length)
    test, test_cut = _source(tokens, *parts["test"], options.length)
    notes = {"classes": " | ".join(", ".join(labels[label] for label in held) for held in classes)}
    cut = f"{train_cut} training and {test_cut} test texts are longer than {options.length} and cut there"
    notes["tokens"] = f"{options.tokenizer}, {tokens.size} ids; {cut}"
    if options.train_limit is not None:
        notes["train_limit"] = f"{len(train):,} training texts in all, stratified, seed {context.seed}"
    notes.update(corpus.notes)
    return Benchmark(
        name=name,
        num_classes=len(labels),
        classes=tuple(classes),
        train=split_by_class(train, classes),
        test=split_by_class(test, classes),
        transform=TokenInputs(tokens.padding),
        input_shape=(options.length,),
        scenarios=("class_il", "task_il"),
        modality="text",
        notes=notes,
        vocabulary=tokens.size,
        tokenizer=tokens.name,
    )


def _divided(name: str, corpus: Corpus, labels: Sequence[str], options: TextOptions) -> list[tuple[int, ...]]:
    """By domain, where the corpus has them and nothing else is asked for."""
    otherwise = options.tasks is not None or options.classes_per_task is not None or options.class_order is not None
    if corpus.groups and not otherwise:
        number = {label: place for place, label in enumerate(labels)}
        return [tuple(number[label] for label in held) for held in corpus.groups.values()]
    tasks = options.tasks
    if tasks is None and options.classes_per_task is None:
        tasks = min(10, len(labels))
    try:
        return divide_classes(len(labels), tasks, options.classes_per_task, options.class_order)
    except ValueError as error:
        raise ConfigurationError(f"{name}: {error}.") from error


def _source(tokens: Tokens, texts: Sequence[str], targets: Tensor, length: int) -> tuple[TensorSource, int]:
    encoded = encode(tokens, texts, length)
    return TensorSource(encoded.ids, targets), encoded.cut
