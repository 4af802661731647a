"""Every strategy that this distribution registers keeps the contract: they are found, not listed."""

from __future__ import annotations

from typing import Any

from cl_framework import registry
from cl_framework.testing import CHECKS, Subject, applicable, contract_suite

# Strategies by name -> {check: reason}; strict, so that a check which passes after all must be taken out.
KNOWN_FAILURES: dict[str, dict[str, str]] = {}
OPTIONS: dict[str, dict[str, Any]] = {"gdumb": {"epochs": 7}}  # by default 63 after each event

NAMES = sorted(entry.name for entry in registry.strategies.entries() if entry.origin.startswith("cl-framework"))

for _name in NAMES:
    globals()[f"test_{_name}"] = contract_suite(_name, options=OPTIONS.get(_name, {}), known_failures=KNOWN_FAILURES.get(_name, {}))


def test_how_many_strategies_and_checks_there_are() -> None:
    assert set(NAMES) >= {"er", "der", "derpp", "joint", "cumulative"}
    for name in NAMES:
        runs, excluded = applicable(Subject.named(name))
        assert len(runs) >= 14 and len(runs) + len(excluded) == len(CHECKS) == 24, (name, excluded)
    assert set(KNOWN_FAILURES) <= set(NAMES)
