"""Corpora for classification, read from files as they are published. What is wrong in a file is named with its row."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from cl_framework.errors import ConfigurationError


@dataclass(frozen=True)
class Corpus:
    """Labelled texts in two splits. Labels are names; `groups` divides them into tasks, where the corpus does."""

    train: list[tuple[str, str]]  # (text, label)
    test: list[tuple[str, str]]
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)  # name of a domain -> its labels

    @property
    def labels(self) -> tuple[str, ...]:
        """In the order of the groups; without groups by name."""
        if self.groups:
            return tuple(label for held in self.groups.values() for label in held)
        return tuple(sorted({label for _, label in self.train}))


def clinc150(folder: Path) -> Corpus:
    """CLINC150 (Larson et al. 2019): `data_full.json` and `domains.json`; out-of-scope texts are left out."""
    data = _json(folder, "data_full.json")
    domains = {name: tuple(map(str, labels)) for name, labels in _json(folder, "domains.json").items()}
    known = {label for labels in domains.values() for label in labels}
    parts = {}
    for split in ("train", "test"):
        pairs = data.get(split)
        if not isinstance(pairs, list):
            raise ConfigurationError(f"{folder / 'data_full.json'} has no list {split!r}.")
        for row, pair in enumerate(pairs):
            if not (isinstance(pair, list) and len(pair) == 2 and pair[1] in known):
                raise ConfigurationError(f"{folder / 'data_full.json'}: row {row} of {split!r} is no [text, intent of domains.json].")
        parts[split] = [(text, label) for text, label in pairs]
    return Corpus(parts["train"], parts["test"], domains)


def banking77(folder: Path) -> Corpus:
    """BANKING77 (Casanueva et al. 2020): `train.csv` and `test.csv` with columns text and category."""
    train, test = (_csv(folder / f"{split}.csv", "text", "category") for split in ("train", "test"))
    return Corpus(train, test)


def hwu64(folder: Path) -> Corpus:
    """HWU64 (Liu et al. 2019): folders train and test, each with `seq.in` and `label`, a line an utterance."""
    train, test = (_parallel(folder / "HWU64" / split) for split in ("train", "test"))
    return Corpus(train, test)


def trec(folder: Path) -> Corpus:
    """TREC questions (Li & Roth 2002), six coarse classes: `train.txt` and `test.txt`, lines "CLASS:fine question", also in `qc.zip`."""
    parts = []
    for split in ("train", "test"):
        lines = _text(folder, f"{split}.txt", ("qc.zip",), "latin-1").splitlines()
        rows = []
        for number, line in enumerate(lines, start=1):
            label, colon, rest = line.partition(":")
            if not colon or " " not in rest:
                raise ConfigurationError(f"{folder}: line {number} of {split}.txt is no 'CLASS:fine question'.")
            rows.append((rest.partition(" ")[2], label))
        parts.append(rows)
    train, test = parts
    return Corpus(train, test)


def news20(folder: Path) -> Corpus:
    """20 Newsgroups (Lang 1995): a folder a group with a file a message, also in `20_newsgroups.tar.xz`; every fifth message is a test.

    Headers are cut off, which name the group.
    """
    train: list[tuple[str, str]] = []
    test: list[tuple[str, str]] = []
    for number, (group, text) in enumerate(_messages(folder)):
        body = text.partition("\n\n")[2].strip()
        if body:
            (test if number % 5 == 0 else train).append((body, group))
    if not train:
        raise ConfigurationError(f"{folder} holds no messages: expected <group>/<number>, or 20_newsgroups.tar.xz.")
    return Corpus(train, test)


CORPORA: dict[str, Callable[[Path], Corpus]] = {
    "clinc150": clinc150,
    "banking77": banking77,
    "hwu64": hwu64,
    "trec": trec,
    "news20": news20,
}
FOLDERS = {"hwu64": "intents_hwu64_snips_atis"}  # where a corpus does not lie under its own name


# --- files ---


def _missing(path: Path) -> ConfigurationError:
    return ConfigurationError(f"{path} does not exist. Set data.root (or CL_DATA) to the folder that holds it, or benchmark.folder.")


def _text(folder: Path, name: str, archives: Sequence[str] = (), encoding: str = "utf-8") -> str:
    """A file, or name.gz, or a member of one of the zip archives beside it. ConfigurationError names it if it cannot be read."""
    path = folder / name
    try:
        if path.is_file():
            raw = path.read_bytes()
        elif path.with_name(f"{name}.gz").is_file():
            raw = gzip.decompress(path.with_name(f"{name}.gz").read_bytes())
        else:
            raw = next(_members(folder, archives, name), None) or b""
            if not raw:
                raise _missing(path)
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        where = f"byte {error.start} in line {line}"
        raise ConfigurationError(f"{path} is not written in {encoding}: {where}. Convert it to {encoding}.") from error
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.") from error


def _members(folder: Path, archives: Sequence[str], name: str) -> Iterator[bytes]:
    for archive in archives:
        if (folder / archive).is_file():
            with zipfile.ZipFile(folder / archive) as file:
                yield from (file.read(member) for member in sorted(file.namelist()) if member.split("/")[-1] == name)


def _json(folder: Path, name: str) -> dict[str, list[Any]]:
    try:
        found = json.loads(_text(folder, name))
    except ValueError as error:
        raise ConfigurationError(f"{folder / name} is no valid JSON: {error}.") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"{folder / name} must hold a mapping.")
    return found


def _csv(path: Path, text: str, label: str) -> list[tuple[str, str]]:
    reader = csv.DictReader(io.StringIO(_text(path.parent, path.name)))
    missing = [column for column in (text, label) if column not in (reader.fieldnames or ())]
    if missing:
        raise ConfigurationError(f"{path} has no column {missing[0]!r}; it has {', '.join(reader.fieldnames or ()) or 'none'}.")
    return [(row[text], row[label]) for row in reader]


def _parallel(folder: Path) -> list[tuple[str, str]]:
    texts, labels = (_text(folder, name).splitlines() for name in ("seq.in", "label"))
    if len(texts) != len(labels):
        raise ConfigurationError(f"{folder}: seq.in has {len(texts)} lines, label has {len(labels)}. They must have one for each other.")
    return list(zip(texts, labels, strict=True))


def _messages(folder: Path) -> Iterator[tuple[str, str]]:
    """(group, text) of each <group>/<number>, in order of their names."""
    archive = folder / "20_newsgroups.tar.xz"
    if archive.is_file():
        with tarfile.open(archive) as file:
            found = {member.name: member for member in file.getmembers() if member.isfile() and "/" in member.name}
            for name in sorted(found):
                extracted = file.extractfile(found[name])
                assert extracted is not None
                yield name.split("/")[-2], extracted.read().decode("latin-1")
        return
    if not folder.is_dir():
        raise _missing(folder)
    for path in sorted(folder.glob("*/*")):
        if path.is_file():
            yield path.parent.name, path.read_text(encoding="latin-1")


def json_members(folder: Path, pattern: str, archive: str, data_set: str) -> Iterator[tuple[str, bytes]]:
    """Path and content of each JSON file that lies in `folder` under `pattern`; where there is none, of those in its `archive`.

    Raises ConfigurationError, saying where `data_set` is looked for, if there is no archive either.
    """
    unpacked = sorted(folder.glob(pattern))
    for path in unpacked:
        yield str(path.relative_to(folder)), path.read_bytes()
    if unpacked:
        return
    packed = folder / archive
    if not packed.is_file():
        raise ConfigurationError(
            f"{packed} does not exist. Set data.root (or CL_DATA) to the folder that holds {data_set}, or benchmark.folder."
        )
    try:
        with tarfile.open(packed) as file:
            for member in file:
                if member.isfile() and PurePosixPath(member.name).match(pattern):
                    extracted = file.extractfile(member)
                    assert extracted is not None
                    yield member.name, extracted.read()
    except (OSError, EOFError, tarfile.TarError) as error:
        raise ConfigurationError(f"{packed} cannot be read: {error}.") from error
