"""Errors a user can mend. The command line prints their text, without a traceback, and exits with their code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class FrameworkError(Exception):
    """Something failed for a reason that one or two sentences explain. Exit code 1."""

    exit_code = 1


class ConfigurationError(FrameworkError):
    """What was asked for cannot be done as asked; nothing was written. Exit code 2."""

    exit_code = 2


class ContractError(FrameworkError):
    """A strategy broke a law of the contract, or a plug-in could not be loaded."""


def few_of(names: Sequence[str], most: int) -> str:
    """The first of many names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def nearest(name: str, known: Iterable[str], most: int | None = None) -> str:
    """A sentence that names the nearest spelling of `name`, or else what there is, `most` at most."""
    known = sorted(known)
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if matches:
        return f"Did you mean {matches[0]!r}?"
    return f"Known: {few_of(known, len(known) if most is None else most) or 'none'}."
