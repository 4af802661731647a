"""Files of texts as they are published, packed or not. What is wrong in one is named with its place and with what to do about it."""

from __future__ import annotations

import codecs
import gzip
import json
import re
import tarfile
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from cl_framework.benchmarks.damaged import readable
from cl_framework.errors import ConfigurationError

COPY = "Copy it from where the data came from."  # the remedy for a file that is missing, or wrong as a whole
MEND = "Correct it, or copy the file from where the data came from."  # for one that is wrong in a place
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")  # NUL, and half a character
_UNSEEN = ("Cc", "Cf", "Zs", "Zl", "Zp")  # categories of Unicode: control and format characters, and separators


def absent(path: Path, data_set: str = "it") -> ConfigurationError:
    """That there is no such file, and where `data_set` is looked for."""
    return ConfigurationError(
        f"{path} does not exist. Set data.root (or CL_DATA) to the folder that holds {data_set}, or benchmark.folder."
    )


def bytes_of(path: Path) -> bytes:
    """What a file holds, unpacked if its name ends with .gz."""
    with readable(path, COPY):
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content


def text_of(content: bytes, where: object, encoding: str = "utf-8") -> str:
    """A text without the mark that some editors begin a file with.

    ConfigurationError names the byte that is none of `encoding`, and the line of a NUL: UTF-16 without a mark is valid UTF-8 full of them.
    """
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = 1 + content[: error.start].count(b"\n")
        place = f"byte {error.start} in line {line}"
        guess = " (UTF-16, by the mark it begins with)" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else ""
        raise ConfigurationError(f"{where} is not written in {encoding}: {place}{guess}. Convert it to {encoding}.") from error
    before, nul, _ = text.partition("\0")
    if nul:
        line = 1 + before.count("\n")
        raise ConfigurationError(
            f"{where} is no text: line {line} has the character NUL. Remove it, or if the file is UTF-16, convert it to {encoding}."
        )
    return text


def lines_of(text: str) -> list[str]:
    """Lines without their breaks. Nothing but a line feed ends one: within a text there may be U+2028 or others that `splitlines` takes."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines if lines[-1] else lines[:-1]


def is_text(value: object) -> TypeGuard[str]:
    """Whether a value is a text with something to be seen, and that utf-8 can write: JSON may escape half a character, or NUL."""
    return isinstance(value, str) and is_seen(value) and not _UNWRITABLE.search(value)


def is_seen(text: str) -> bool:
    """Whether a text has a character that shows: blanks, control characters and those of no width do not."""
    return any(unicodedata.category(character) not in _UNSEEN for character in text)


def json_of(text: str, where: object) -> Any:
    """What a JSON text says. ConfigurationError names line and column that are wrong; the line only where there are several."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        raise ConfigurationError(f"{where} is no valid JSON: {line}column {error.colno} ({error.msg}). {MEND}") from error
    except (ValueError, RecursionError) as error:  # a number of too many digits, lists too deep within one another
        raise ConfigurationError(f"{where} is JSON that cannot be read ({str(error).partition(';')[0]}). {MEND}") from error


def json_members(folder: Path, pattern: str, archive: str, data_set: str) -> Iterator[tuple[str, Any]]:
    """Path and content of each JSON file that lies in `folder` under `pattern`; where there is none, of those in its `archive`.

    Raises ConfigurationError, saying where `data_set` is looked for, if there is no archive either.
    """
    for path, content in _members(folder, pattern, archive, data_set):
        where = f"{folder}: {path}"
        yield path, json_of(text_of(content, where), where)


def _members(folder: Path, pattern: str, archive: str, data_set: str) -> Iterator[tuple[str, bytes]]:
    unpacked = sorted(folder.glob(pattern))
    packed = folder / archive
    if unpacked:
        yield from ((str(path.relative_to(folder)), bytes_of(path)) for path in unpacked)
    elif packed.is_file():
        yield from archived(packed, lambda name: PurePosixPath(name).match(pattern))
    else:
        raise absent(packed, data_set)


def archived(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Name and content of the files of a tar archive whose name is wanted."""
    with readable(archive, COPY), tarfile.open(archive) as file:
        for member in file:
            if member.isfile() and wanted(member.name):
                extracted = file.extractfile(member)
                assert extracted is not None
                yield member.name, extracted.read()
