"""Negative controls of the contract suite: each check fails on a strategy that breaks its law, and passes on its twin that does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from cl_framework import registry
from cl_framework.errors import ContractError
from cl_framework.strategy import Strategy
from cl_framework.testing import CHECKS, Subject
from tests.contract.broken import of_forgetting, of_form, of_runs, of_steps

MISTAKES = (*of_form.MISTAKES, *of_steps.MISTAKES, *of_runs.MISTAKES, *of_forgetting.MISTAKES)


def case(check: str, strategy: type[Strategy], *values: object) -> object:
    marks = [pytest.mark.slow] if CHECKS[check].slow else []
    return pytest.param(check, strategy, *values, id=f"{check}-{strategy.__name__}", marks=marks)


BROKEN = [case(mistake.check, mistake.broken, mistake.words) for mistake in MISTAKES]
SOUND = [case(*pair) for pair in dict.fromkeys((mistake.check, mistake.sound) for mistake in MISTAKES)]


@contextmanager
def registered(strategy: type[Strategy]) -> Iterator[Subject]:
    """The strategy as a subject, under a name that it has for so long only; what it does to torch's generator is undone."""
    registry.strategies.add("broken", strategy)
    try:
        with torch.random.fork_rng(devices=[]):
            yield Subject("broken", strategy)
    finally:
        registry.strategies.remove("broken")


@pytest.fixture(autouse=True)
def cudnn_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # taken back when the test is over


def test_every_check_has_a_negative_control() -> None:
    assert {mistake.check for mistake in MISTAKES} == set(CHECKS)
    assert len(BROKEN) == len({(mistake.check, mistake.broken) for mistake in MISTAKES})


@pytest.mark.parametrize(("check", "strategy", "words"), BROKEN)
def test_a_check_catches_the_mistake(check: str, strategy: type[Strategy], words: str) -> None:
    with registered(strategy) as subject:
        assert not CHECKS[check].why_not(subject)
        with pytest.raises((AssertionError, ContractError), match=words):
            CHECKS[check](subject)


@pytest.mark.parametrize(("check", "strategy"), SOUND)
def test_it_passes_without_the_mistake(check: str, strategy: type[Strategy]) -> None:
    with registered(strategy) as subject:
        assert not CHECKS[check].why_not(subject)
        CHECKS[check](subject)


def test_a_constructor_that_seeds_is_caught_where_it_has_seeded_before() -> None:
    with registered(of_form.Seeds) as subject:
        subject.strategy(subject.strategy.Config())
        with pytest.raises(AssertionError, match="changed: torch's random state"):
            CHECKS["constructor_touches_nothing_global"](subject)
