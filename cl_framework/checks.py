"""Checks of option values for `__post_init__`: each raises ValueError with the name, the value got and the values allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable


def check_range(
    name: str,
    value: float,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Check that a value is finite, low <= value <= high, and above < value < below, as far as they are given."""
    bounds = [
        (">=", low, low is None or value >= low),
        (">", above, above is None or value > above),
        ("<=", high, high is None or value <= high),
        ("<", below, below is None or value < below),
    ]
    wanted = " and ".join(f"{sign} {bound:g}" for sign, bound, _ in bounds if bound is not None)
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:  # tensors hold no larger ones
        raise ValueError(f"{name} must be a number of 64 bits, got {value!r}")
    if not all(holds for _, _, holds in bounds):
        raise ValueError(f"{name} must be {wanted}, got {value!r}")


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Check that `value` is one of `choices`."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(filter(None, choices))}, got {value!r}")
