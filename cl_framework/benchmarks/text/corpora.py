"""Corpora for classification, read from files as they are published. What is wrong in a file is named with its row."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cl_framework.benchmarks.damaged import readable
from cl_framework.benchmarks.text.files import COPY, absent, archived, bytes_of, is_seen, is_text, json_of, lines_of, text_of
from cl_framework.errors import ConfigurationError


@dataclass(frozen=True)
class Corpus:
    """Labelled texts in two splits, as `checked` leaves them. Labels are names; `groups` divides them into tasks, where the corpus does."""

    train: list[tuple[str, str]]  # (text, label)
    test: list[tuple[str, str]]  # labels that `train` or `groups` has
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)  # name of a domain -> its labels
    notes: dict[str, str] = field(default_factory=dict)  # what was missing, divided or left out

    @property
    def labels(self) -> tuple[str, ...]:
        """In the order of the groups; without groups by name."""
        if self.groups:
            return tuple(label for held in self.groups.values() for label in held)
        return tuple(sorted({label for _, label in self.train}))


Rows = Iterable[tuple[str, Any, Any]]  # of file and row, text, label
COLUMNS = ("text", "label")


def checked(where: object, rows: Rows, known: Collection[str] | None = None, columns: tuple[str, str] = COLUMNS) -> list[tuple[str, str]]:
    """(text, label) of each row, which its file calls `columns`.

    Raises ConfigurationError, naming file and row, where one of them is missing, empty or no text, or where the label is none of
    `known`, those of the training texts; and naming `where`, if there are no rows.
    """
    pairs = []
    for place, text, label in rows:
        pairs.append((_string(place, columns[0], text), _string(place, columns[1], label)))
        if known is not None and label not in known:
            raise ConfigurationError(f"{place}: no training text has the label {label!r}. Correct it, or remove that row.")
    if not pairs:
        raise ConfigurationError(f"{where} holds no labelled texts. {COPY}")
    return pairs


def _string(place: str, what: str, value: Any) -> str:
    if is_text(value):
        return value
    if value is None:
        fault = "missing"
    elif isinstance(value, str) and not is_seen(value):
        fault = f"{value!r:.60}, which shows nothing" if value.strip() else "empty"
    elif isinstance(value, str):
        fault = f"{value!r:.60}, which has NUL or half a character"
    else:
        fault = f"{value!r:.60}, which is no string"
    raise ConfigurationError(f"{place}: the {what} is {fault}. Correct it, or remove that row.")


def _two_splits(train: Path, test: Path, rows_of: Callable[[Path], Rows], columns: tuple[str, str] = COLUMNS) -> Corpus:
    pairs = checked(train, rows_of(train), columns=columns)
    corpus = Corpus(pairs, checked(test, rows_of(test), {label for _, label in pairs}, columns))
    for label in _without_texts(corpus.labels, corpus.test):
        raise ConfigurationError(f"{test}: no text has the label {label!r}, which {train} has. Add one, or remove that label there.")
    return corpus


def _without_texts(labels: Iterable[str], pairs: Iterable[tuple[str, str]]) -> list[str]:
    """The labels that no (text, label) has."""
    shown = {label for _, label in pairs}
    return [label for label in labels if label not in shown]


def clinc150(folder: Path) -> Corpus:
    """CLINC150 (Larson et al. 2019): `data_full.json` and `domains.json`; out-of-scope texts are left out."""
    domains = _domains(folder)
    path, data = _lying(folder / "data_full.json"), _json(folder, "data_full.json")
    known = {label for labels in domains.values() for label in labels}
    train, test = (checked(f"{path}: {split!r}", _clinc_rows(path, data, split, known)) for split in ("train", "test"))
    for split, pairs in (("train", train), ("test", test)):
        for name, labels in domains.items():
            for label in _without_texts(labels, pairs):
                raise ConfigurationError(
                    f"{_lying(folder / 'domains.json')}: the intent {label!r} of {name!r} has no text in {split!r} of {path.name}. "
                    "Add one there, or remove that intent."
                )
    return Corpus(train, test, domains)


def _domains(folder: Path) -> dict[str, tuple[str, ...]]:
    path, domains = _lying(folder / "domains.json"), _json(folder, "domains.json")
    if not domains:
        raise ConfigurationError(f"{path} holds no domains. {COPY}")
    for name, labels in domains.items():
        if not (isinstance(labels, list) and labels and all(isinstance(label, str) for label in labels)):
            raise ConfigurationError(f'{path}: {name!r} is no list of intents. Write it as ["intent", ...].')
    first: dict[str, str] = {}
    for name, labels in domains.items():
        for label in labels:
            if label in first:
                raise ConfigurationError(
                    f"{path}: the intent {label!r} stands in {first[label]!r} and again in {name!r}. Remove one of them."
                )
            first[label] = name
    return {name: tuple(labels) for name, labels in domains.items()}


def _clinc_rows(path: Path, data: dict[str, Any], split: str, known: Collection[str]) -> Iterator[tuple[str, Any, Any]]:
    pairs = data.get(split)
    if not isinstance(pairs, list):
        raise ConfigurationError(f"{path} has no list {split!r}. {COPY}")
    for row, pair in enumerate(pairs):
        place = f"{path}: row {row} of {split!r}"
        if not (isinstance(pair, list) and len(pair) == 2):
            raise ConfigurationError(f"{place} is no list of two, [text, intent]. Correct it, or remove it.")
        if not isinstance(pair[1], str) or pair[1] not in known:
            raise ConfigurationError(
                f"{place}: its intent, {pair[1]!r:.60}, is none of domains.json. Add it to a domain there, correct it, or remove that row."
            )
        yield place, *pair


def banking77(folder: Path) -> Corpus:
    """BANKING77 (Casanueva et al. 2020): `train.csv` and `test.csv` with columns text and category."""
    return _two_tables(folder, "category")


def own(folder: Path) -> Corpus:
    """Texts of one's own: `train.csv` and `test.csv` with columns text and label."""
    return _two_tables(folder, "label")


def _two_tables(folder: Path, label: str) -> Corpus:
    columns = "text", label
    return _two_splits(folder / "train.csv", folder / "test.csv", lambda path: _csv(path, columns), columns)


def hwu64(folder: Path) -> Corpus:
    """HWU64 (Liu et al. 2019): folders train and test, each with `seq.in` and `label`, a line an utterance."""
    return _two_splits(folder / "HWU64" / "train", folder / "HWU64" / "test", _parallel)


def trec(folder: Path) -> Corpus:
    """TREC questions (Li & Roth 2002), six coarse classes: `train.txt` and `test.txt`, lines "CLASS:fine question", also in `qc.zip`."""
    return _two_splits(folder / "train.txt", folder / "test.txt", _questions)


def _questions(path: Path) -> Iterator[tuple[str, str, str]]:
    for number, line in enumerate(lines_of(_text(path.parent, path.name, ("qc.zip",), "latin-1")), start=1):
        label, colon, rest = line.partition(":")
        if not colon or " " not in rest:
            raise ConfigurationError(f"{path}, line {number}: this is no 'CLASS:fine question'. Correct it, or remove it.")
        yield f"{path}, line {number}", rest.partition(" ")[2], label


def news20(folder: Path) -> Corpus:
    """20 Newsgroups (Lang 1995): a folder a group with a file a message, also in `20_newsgroups.tar.xz`; every fifth message is a test.

    Headers are cut off, which name the group; a message that has nothing else is left out.
    """
    halves: tuple[list[tuple[str, str, str]], ...] = [], []
    empty = 0
    for number, (place, group, text) in enumerate(_messages(folder)):
        body = text.partition("\n\n")[2].strip()
        if is_seen(body):
            halves[number % 5 == 0].append((place, body, group))
        else:
            empty += 1
    if not halves[0]:
        raise ConfigurationError(f"{folder} holds no messages: expected <group>/<number>, or 20_newsgroups.tar.xz.")
    train = checked(folder, halves[0])
    test = checked(folder, halves[1], {group for _, group in train})
    for group in _without_texts(sorted({group for _, group in train}), test):
        raise ConfigurationError(f"{folder}: every fifth message is a test, but none of {group!r}. Add messages, or remove it.")
    return Corpus(train, test, notes={"left out": f"{empty:,} messages without a text below their headers"} if empty else {})


CORPORA: dict[str, Callable[[Path], Corpus]] = {
    "clinc150": clinc150,
    "banking77": banking77,
    "hwu64": hwu64,
    "trec": trec,
    "news20": news20,
    "folder": own,
}
FOLDERS = {"hwu64": "intents_hwu64_snips_atis"}  # where a corpus does not lie under its own name


# --- files ---


def _text(folder: Path, name: str, archives: Sequence[str] = (), encoding: str = "utf-8") -> str:
    """A file, or name.gz, or a member of one of the zip archives beside it."""
    path = _lying(folder / name)
    if path.is_file():
        return text_of(bytes_of(path), path, encoding)
    lying = [folder / archive for archive in archives if (folder / archive).is_file()]
    for archive in lying:
        for content in _zipped(archive, name):
            return text_of(content, f"{archive}: {name}", encoding)
    if lying:
        raise ConfigurationError(f"{lying[0]} holds no {name}, and there is none beside it. {COPY}")
    raise absent(path)


def _lying(path: Path) -> Path:
    """The file, or where only that is there the packed one: what messages are to name."""
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.is_file() and not path.is_file() else path


def _zipped(archive: Path, name: str) -> Iterator[bytes]:
    with readable(archive, COPY), zipfile.ZipFile(archive) as file:
        yield from (file.read(member) for member in sorted(file.namelist()) if member.split("/")[-1] == name)


def _json(folder: Path, name: str) -> dict[str, list[Any]]:
    path = _lying(folder / name)
    content = json_of(_text(folder, name), path)
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} must hold a mapping. {COPY}")
    return content


def _csv(path: Path, columns: tuple[str, str]) -> Iterator[tuple[str, Any, Any]]:
    """File and first line of each row, and what stands in two columns; None where the row is too short."""
    path = _lying(path)
    reader = csv.DictReader(io.StringIO(_text(path.parent, path.name)), strict=True)  # a quote left open would take in the rows after it
    first = 1  # line of the row that is read
    try:
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            there = ", ".join(reader.fieldnames or ()) or "none"
            raise ConfigurationError(f"{path} has no column {missing[0]!r}; it has {there}. Name its columns in the first line.")
        first = reader.line_num + 1
        for row in reader:
            if None in row:
                raise ConfigurationError(f"{path}, line {first}: there are more columns than names. Put a text with commas in quotes.")
            yield f"{path}, line {first}", row[columns[0]], row[columns[1]]
            first = reader.line_num + 1
    except csv.Error as error:
        raise ConfigurationError(
            f"{path}: the row that begins in line {first} is no CSV ({error}). Correct it (a quote in a quoted text is written twice), "
            "or remove it."
        ) from error


def _parallel(folder: Path) -> Iterator[tuple[str, str, str]]:
    texts, labels = (lines_of(_text(folder, name)) for name in ("seq.in", "label"))
    if len(texts) != len(labels):
        raise ConfigurationError(f"{folder}: seq.in has {len(texts)} lines, label has {len(labels)}. They must have one for each other.")
    for number, (text, label) in enumerate(zip(texts, labels, strict=True), start=1):
        yield f"{folder}: line {number} of seq.in and label", text, label


def _messages(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(file, group, text) of each <group>/<number>, in order of their names."""
    archive = folder / "20_newsgroups.tar.xz"
    if archive.is_file():
        for name, raw in sorted(archived(archive, lambda name: "/" in name)):
            place = f"{archive}: {name}"
            yield place, name.split("/")[-2], text_of(raw, place, "latin-1")
        return
    if not folder.is_dir():
        raise absent(folder)
    for path in sorted(folder.glob("*/*")):
        if path.is_file():
            yield str(path), path.parent.name, text_of(bytes_of(path), path, "latin-1").replace("\r\n", "\n")
