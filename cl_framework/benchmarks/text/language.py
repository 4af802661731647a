"""Language modelling as a stream of tasks: one text after another, packed into rows of tokens; the next token is asked at each place.

Continual pre-training in small: languages of one book, an encyclopedia and then plays, the chapters of a manual, your own texts.
Tasks share the vocabulary, so the scenario is domain-incremental. A text's end is held out: it is its test split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cl_framework.benchmarks.base import Benchmark, BenchmarkContext
from cl_framework.benchmarks.sources import TensorSource
from cl_framework.benchmarks.text.files import bytes_of, is_seen, lines_of, text_of
from cl_framework.benchmarks.text.tokens import VOCABULARY, TokenInputs, Tokens, check_vocabulary, make_tokens
from cl_framework.benchmarks.text.topics import topics as manual
from cl_framework.checks import check_choice, check_range
from cl_framework.criterion import asked
from cl_framework.errors import ConfigurationError, few_of, nearest
from cl_framework.registry import register_benchmark


@dataclass(frozen=True)
class Text:
    """A task: its name, the paragraphs to learn, and those held out."""

    name: str
    train: Sequence[str]
    test: Sequence[str]


@dataclass(frozen=True)
class Task:
    """A task as rows of tokens and the tokens that they ask for; all rows are as long as the options say."""

    name: str
    train: TensorSource
    test: TensorSource


@dataclass(frozen=True)
class LanguageOptions:
    length: int = 64  # tokens a row, >= 2
    tokenizer: str = "bpe"  # bpe (trained on task 0), bytes, the path of a tokenizer.json, or package:NAME
    vocabulary: int = VOCABULARY  # token ids of a trained tokenizer at most, >= 300
    train_limit: int | None = None  # tokens of each text at most, its first ones, >= 2 (facts are no text); a trained tokenizer sees all

    def __post_init__(self) -> None:
        check_range("length", self.length, low=2)
        check_vocabulary(self.tokenizer, self.vocabulary)
        if self.train_limit is not None:
            check_range("train_limit", self.train_limit, low=2)


HANDBOOK = "multilingual_handbook"  # folder of a book in twelve languages, a file a language, a paragraph a line
PROSE = {"wikitext2": ("wikitext2_valid", "wikitext2_test"), "tinyshakespeare": ("tinyshakespeare", None)}
HELD_OUT = 0.1  # by default
NAMED = 12  # of a folder's entries, in a message
CORPORA = {"handbook": (HANDBOOK, ("en-US", "de-DE", "fr-FR")), "prose": ("lm_text", tuple(PROSE)), "folder": (None, ())}


@dataclass(frozen=True)
class CorpusOptions(LanguageOptions):
    corpus: str = "handbook"  # handbook (a book in twelve languages), prose (WikiText-2, then Shakespeare) or folder (a text file a task)
    texts: tuple[str, ...] = ()  # which of its texts, in the order of tasks; default: en-US, de-DE, fr-FR of the handbook; else all, sorted
    folder: str | None = None  # where the texts lie; default: in data.root, for corpus=folder to be given
    held_out: float = HELD_OUT  # share of a text, its end, that is its test split, (0, 1); WikiText-2 has one of its own

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("corpus", self.corpus, tuple(CORPORA))
        check_range("held_out", self.held_out, above=0, below=1)
        if len(set(self.texts)) < len(self.texts):
            raise ValueError(f"texts must differ, got {', '.join(self.texts)}")
        if self.corpus == "folder" and self.folder is None:
            raise ValueError("corpus=folder needs folder, the place of its text files")
        published = [name for name, (_, test) in PROSE.items() if test is not None]
        if self.corpus == "prose" and self.texts and set(self.texts) <= set(published) and self.held_out != HELD_OUT:
            raise ValueError(f"held_out is for texts without a test split; {', '.join(self.texts)} has its own. Leave it out")


@register_benchmark("topics", LanguageOptions)
def topics(options: LanguageOptions, context: BenchmarkContext) -> Benchmark:
    """Chapters of Python's manual as its standard library holds them: statements, objects, text, the debugger; no download."""
    texts = [Text(name, *parts) for name, parts in manual().items()]
    return language_modelling("topics", texts, options, "pydoc_data.topics")


@register_benchmark("language_modelling", CorpusOptions)
def corpus(options: CorpusOptions, context: BenchmarkContext) -> Benchmark:
    """Texts one after another: languages of one book, WikiText-2 and Shakespeare, or the text files of a folder."""
    place, names = CORPORA[options.corpus]
    folder = Path(options.folder).expanduser() if options.folder else context.root / str(place)
    if options.corpus == "prose":
        texts = [_prose(folder, name, options.held_out) for name in options.texts or names]
    else:
        texts = [_ended(folder, name, name, options.held_out) for name in options.texts or names or _files(folder)]
    made = language_modelling(options.corpus, texts, options, str(folder))
    return replace(made, notes={**made.notes, **_beside(folder)}) if options.corpus == "folder" and not options.texts else made


def language_modelling(name: str, texts: Sequence[Text], options: LanguageOptions, where: str) -> Benchmark:
    """A benchmark of texts; `where` they lie, for what is wrong in them."""
    tokens = make_tokens(options.tokenizer, options.vocabulary, texts[0].train)
    return language_benchmark(name, [packed_task(text, tokens, options, where) for text in texts], tokens, options)


def packed_task(text: Text, tokens: Tokens, options: LanguageOptions, where: str) -> Task:
    """A text whose every token is asked. Raises ConfigurationError if a part of it does not fill a row."""
    train = _source(stream_of(tokens, text.train)[: options.train_limit], text.name, "training", options, where)
    return Task(text.name, train, _source(stream_of(tokens, text.test), text.name, "held-out", options, where))


def language_benchmark(name: str, tasks: Sequence[Task], tokens: Tokens, options: LanguageOptions) -> Benchmark:
    """A benchmark of tasks; its notes count the tokens that they ask for."""
    counts = [f"{task.name} {_asked(task.train):,} (held out {_asked(task.test):,})" for task in tasks]
    return Benchmark(
        name=name,
        num_classes=tokens.size,
        classes=(tuple(range(tokens.size)),) * len(tasks),
        train=[task.train for task in tasks],
        test=[task.test for task in tasks],
        transform=TokenInputs(padding=None),
        input_shape=(options.length,),
        scenarios=("domain_il",),
        modality="text",
        vocabulary=tokens.size,
        tokenizer=tokens.name,
        objective="language_modelling",
        notes={"tokens": f"{options.tokenizer}, {tokens.size} ids; {', '.join(counts)}"},
    )


def _asked(source: TensorSource) -> int:
    return int(asked(source.targets).sum())


def stream_of(tokens: Tokens, paragraphs: Sequence[str]) -> Tensor:
    """All paragraphs as one stream of token ids, (N,) int32, each begun, and ended, as the tokenizer does.

    Where it puts nothing around a text, as GPT-2's, what ends a text stands behind each. ConfigurationError if it has no such token.
    """
    behind = [] if tokens.ids([""])[0] else [tokens.bounds[1]]
    return torch.tensor([token for row in tokens.ids(paragraphs) for token in row + behind], dtype=torch.int32)


def packed(ids: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """A stream (N,) as rows (R, L) of tokens and the tokens that follow each, (R, L): R = (N - 1) // L, and no place is asked twice."""
    rows = (len(ids) - 1) // length
    return ids[: rows * length].view(rows, length), ids[1 : rows * length + 1].view(rows, length).long()


def _source(ids: Tensor, name: str, split: str, options: LanguageOptions, where: str) -> TensorSource:
    items, targets = packed(ids, options.length)
    if not len(items):
        remedy = "Set benchmark.length lower"
        if split == "training" and len(ids) == options.train_limit:
            remedy += ", or benchmark.train_limit higher"
        elif isinstance(options, CorpusOptions):
            remedy += f", or benchmark.held_out {'lower' if split == 'training' else 'higher'}"
        raise ConfigurationError(
            f"{where}: the {split} part of {name} has {len(ids)} tokens, which do not fill one row of {options.length}. {remedy}."
        )
    return TensorSource(items, targets)


def _ended(folder: Path, name: str, file: str, share: float) -> Text:
    """The paragraphs of a file in order without their end, and that end. ConfigurationError if nothing is left to learn."""
    paragraphs = _lines(folder, file)
    first = len(paragraphs) - max(1, round(share * len(paragraphs)))
    if not first:
        raise ConfigurationError(
            f"{folder}: benchmark.held_out={share:g} leaves none of the {len(paragraphs)} paragraphs of {file} to learn. "
            "Set benchmark.held_out lower."
        )
    return Text(name, paragraphs[:first], paragraphs[first:])


def _prose(folder: Path, name: str, share: float) -> Text:
    if name not in PROSE:
        raise ConfigurationError(f"benchmark.texts: prose has no text {name!r}. {nearest(name, PROSE)}")
    first, other = PROSE[name]
    if other is None:
        return _ended(folder, name, first, share)
    return Text(name, _lines(folder, first), _lines(folder, other))


def _files(folder: Path) -> tuple[str, ...]:
    """Names of the text files of a folder, sorted as words are; hidden files are none."""
    if not folder.is_dir():
        raise ConfigurationError(
            f"benchmark.folder={folder} {'is no folder' if folder.exists() else 'does not exist'}. Set it to where the text files lie."
        )
    found = _names(folder)
    if not found:
        raise ConfigurationError(f"{folder} holds no text files (*.txt or *.txt.gz). Set benchmark.folder to where they lie.")
    return found


def _names(folder: Path) -> tuple[str, ...]:
    paths = (path for pattern in ("*.txt", "*.txt.gz") for path in folder.glob(pattern) if not path.name.startswith("."))
    return tuple(sorted({path.name.removesuffix(".gz").removesuffix(".txt") for path in paths}))


def _beside(folder: Path) -> dict[str, str]:
    """What to say of a folder's entries that are no text of it."""
    texts = {f"{name}.txt" if (folder / f"{name}.txt").is_file() else f"{name}.txt.gz" for name in _names(folder)}
    others = sorted(path.name for path in folder.iterdir() if path.name not in texts)
    return {"left out": f"{few_of(others, NAMED)}: a text is a file NAME.txt or NAME.txt.gz"} if others else {}


def _lines(folder: Path, name: str) -> list[str]:
    """The paragraphs of a text, one a line, without empty ones."""
    path = next((path for path in (folder / f"{name}.txt", folder / f"{name}.txt.gz") if path.is_file()), None)
    if path is None:
        raise _no_text(folder, name)
    lines = [line.strip() for line in lines_of(text_of(bytes_of(path), path)) if is_seen(line)]
    if len(lines) < 2:
        raise ConfigurationError(
            f"{path} has {len(lines)} of the two paragraphs that are needed, one to learn and one held out: a line is a paragraph. "
            "Break it into lines, add text, or leave it out."
        )
    return lines


def _no_text(folder: Path, name: str) -> ConfigurationError:
    """Why there is no text of this name, and which there are."""
    there = _names(folder)
    if name in there:
        return ConfigurationError(f"{folder}: {name}.txt is no file that can be read. Remove it, or copy the text there.")
    if there:
        return ConfigurationError(
            f"benchmark.texts: {folder} has no text {name!r}. {nearest(name, there, NAMED)} Name one that is there, or leave texts out."
        )
    return ConfigurationError(
        f"there is no {name}.txt or {name}.txt.gz in {folder}. Set benchmark.folder, or data.root (or CL_DATA), to where they lie."
    )
