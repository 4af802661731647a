"""A text that no task teaches: how well a model still speaks is its perplexity there, whatever it was asked to forget.

It is for models that can read such a text: a small one that was taught nothing but questions is far from it before a request, too.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from cl_framework.benchmarks.text.files import bytes_of, is_seen, lines_of, text_of
from cl_framework.benchmarks.text.language import packed, stream_of
from cl_framework.benchmarks.text.tokens import Tokens
from cl_framework.benchmarks.text.topics import topics as manual
from cl_framework.errors import ConfigurationError

MANUAL, NONE = "manual", "none"
ROWS = 100  # at most
_CHARACTERS = 16  # of a text that are read for each token that is needed, which few tokens are as long as
_REMEDY = f"or set benchmark.general={NONE}"


def general_rows(name: str, tokens: Tokens, length: int) -> tuple[tuple[Tensor, Tensor] | None, str]:
    """Rows (G, L) of the beginning of a text with the tokens that follow each of their own, G at most `ROWS`; and what to say of them.

    name: manual (paragraphs of Python's manual, as the standard library holds it), the path of a text file, a paragraph a line, or none.
    ConfigurationError where there is no such text, or less than a row of it.
    """
    if name == NONE:
        return None, NONE
    paragraphs = _beginning(_manual() if name == MANUAL else _lines(Path(name).expanduser()), _CHARACTERS * ROWS * length)
    stream = stream_of(tokens, paragraphs)[: ROWS * length + 1]
    items, targets = packed(stream, length)
    if not len(items):
        raise ConfigurationError(
            f"benchmark.general={name} has {len(stream)} tokens, which do not fill one row of {length}. Name a longer text, {_REMEDY}."
        )
    return (items, targets), f"{name}, {targets.numel():,} tokens"


def _manual() -> list[str]:
    try:
        return [paragraph for parts in manual().values() for part in parts for paragraph in part]
    except ConfigurationError as error:
        raise ConfigurationError(f"benchmark.general={MANUAL}: {error} To do without such a text set benchmark.general={NONE}.") from error


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise ConfigurationError(f"benchmark.general: there is no file {path}. Name a text file, {MANUAL}, {_REMEDY}.")
    return [line.strip() for line in lines_of(text_of(bytes_of(path), path)) if is_seen(line)]


def _beginning(paragraphs: list[str], characters: int) -> list[str]:
    """As many paragraphs as hold so many characters; the last one is cut."""
    kept = []
    for paragraph in paragraphs:
        if characters <= 0:
            break
        kept.append(paragraph[:characters])
        characters -= len(paragraph)
    return kept
