"""The contract suite: every check that applies to a strategy, for pytest and for a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from cl_framework.errors import ConfigurationError, nearest
from cl_framework.testing import checks_of_forgetting, checks_of_form, checks_of_runs, checks_of_steps
from cl_framework.testing.contract import CHECKS, Subject

CHECK_MODULES = (checks_of_form, checks_of_steps, checks_of_runs, checks_of_forgetting)  # importing them fills CHECKS
_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Report:
    """What the suite found out about a strategy."""

    strategy: str
    passed: tuple[str, ...]
    failed: Mapping[str, str]  # check -> what is wrong
    not_applicable: Mapping[str, str]  # check -> the trait that excludes it

    def __str__(self) -> str:
        head = f"{self.strategy}: {len(self.passed)} checks passed, {len(self.failed)} failed, {len(self.not_applicable)} do not apply"
        return "\n".join([head, *(f"  FAILED {name}: {why}" for name, why in self.failed.items())])


def applicable(subject: Subject) -> tuple[list[str], dict[str, str]]:
    """The checks that apply to a strategy, and for the others the reason, taken from its traits."""
    reasons = {name: check.why_not(subject) for name, check in CHECKS.items()}
    return [name for name, why in reasons.items() if not why], {name: why for name, why in reasons.items() if why}


def check_strategy(name: str, *, options: Mapping[str, Any] | None = None) -> Report:
    """Run every check that applies to the strategy registered as `name`, with these options over its defaults.

    Raises ConfigurationError if there is no such strategy, FrameworkError if it cannot be loaded.
    """
    subject = Subject.named(name, options)
    names, excluded = applicable(subject)
    passed, failed = [], {}
    for check in names:
        try:
            CHECKS[check](subject)
            passed.append(check)
        except Exception as error:  # whatever a stranger's strategy raises is what is wrong with it
            failed[check] = f"{type(error).__name__}: {error}"
    return Report(name, tuple(passed), failed, excluded)


def contract_suite(
    name: str, *, options: Mapping[str, Any] | None = None, known_failures: Mapping[str, str] = _NONE
) -> Callable[..., None]:
    """A pytest test of the strategy registered as `name`, one case for each check that applies.

    `options` are the strategy's in every run, over its defaults: fewer epochs than it needs on real data, say. Checks of many runs carry
    the marker `slow`. `known_failures` names checks that fail and why; one that passes after all is then an error. A stranger's whole
    test::

        from cl_framework.testing import contract_suite

        test_contract = contract_suite("my_strategy")
    """
    import pytest

    subject = Subject.named(name, options)
    names, excluded = applicable(subject)
    for known in known_failures:
        if known in excluded:
            raise ConfigurationError(f"known_failures of {name!r}: {known!r} does not apply ({excluded[known]}); remove it.")
        if known not in CHECKS:
            raise ConfigurationError(f"known_failures of {name!r}: there is no check {known!r}. {nearest(known, CHECKS)}")

    def case(check: str) -> object:
        failing = known_failures.get(check)
        marks = [] if failing is None else [pytest.mark.xfail(strict=True, reason=failing)]
        marks += [pytest.mark.slow] if CHECKS[check].slow else []
        return pytest.param(check, marks=marks)

    @pytest.mark.parametrize("check", [case(check) for check in names])
    def test_contract(check: str) -> None:
        CHECKS[check](subject)

    return test_contract
