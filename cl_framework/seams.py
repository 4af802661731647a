"""The seams of the contract by name, and which of them a strategy class occupies."""

from __future__ import annotations

from collections.abc import Iterable

from cl_framework.strategy import Strategy

SEAMS = (
    "check",
    "build",
    "plan",
    "mask",
    "rate",
    "draw",
    "arrange",
    "loss",
    "step",
    "commit",
    "begin",
    "end",
    "predict",
    "unlearn",
    "forget",
    "state_dict",
    "load_state_dict",
)


def seams_of(strategy: type[Strategy]) -> tuple[str, ...]:
    """The seams that a strategy occupies, in the order of `SEAMS`."""
    return tuple(name for name in SEAMS if getattr(strategy, name) is not getattr(Strategy, name))


def misspelt_seams(strategy: type[Strategy]) -> Iterable[str]:
    """Public methods of a strategy class that are no seam."""
    for base in strategy.__mro__:
        if base in (Strategy, object):
            continue
        for name, value in vars(base).items():
            is_method = callable(value) and not isinstance(value, type)
            if not name.startswith("_") and name not in SEAMS and is_method:
                yield name
