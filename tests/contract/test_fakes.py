"""The contract holds the shapes of published methods: every check that applies, on every fake."""

from __future__ import annotations

from cl_framework.testing import contract_suite
from tests.contract.fakes import FAKES

KNOWN_FAILURES: dict[str, dict[str, str]] = {}

for _name in FAKES:
    globals()[f"test_{_name}"] = contract_suite(_name, known_failures=KNOWN_FAILURES.get(_name, {}))
