"""What a check of the contract is, and what it is given: the strategy under test in its slot."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cl_framework import registry
from cl_framework.config import Experiment
from cl_framework.errors import FrameworkError
from cl_framework.seams import seams_of
from cl_framework.strategy import Strategy, Traits
from cl_framework.testing.laboratory import experiment_of


@dataclass(frozen=True)
class Subject:
    """A registered strategy under test, alone in a slot of its own name."""

    name: str
    strategy: type[Strategy]
    options: Mapping[str, Any] = field(default_factory=dict)  # of its slot, wherever a check asks for no others

    @classmethod
    def named(cls, name: str, options: Mapping[str, Any] | None = None) -> Subject:
        """Raises ConfigurationError if no strategy is registered under `name`, FrameworkError if it cannot be loaded."""
        return cls(name, registry.strategies.get(name), options or {})

    @property
    def traits(self) -> Traits:
        return self.strategy.traits

    @property
    def seams(self) -> tuple[str, ...]:
        return seams_of(self.strategy)

    def experiment(self, folder: Path, options: Mapping[str, Any] | None = None, **settings: Any) -> Experiment:
        """It alone, in the first scenario it allows; see `experiment_of` for the rest. Who borrows to unlearn has a memory beside it."""
        settings.setdefault("scenario", self.traits.scenarios[0])
        strategies = {self.name: {**self.options, **(options or {})}}
        if "memory" in self.traits.unlearning_reads and "U" in settings.get("stream", ""):
            strategies["lender"] = {"use": "er", "capacity": 24, "minibatch": 8}
        return experiment_of(strategies, folder, **settings)

    def without_any(self, folder: Path, **settings: Any) -> Experiment:
        """The same run with an empty stack: plain fine-tuning."""
        settings.setdefault("scenario", self.traits.scenarios[0])
        return experiment_of({}, folder, **settings)


Applies = Callable[[Subject], str]  # "" if a check applies, else the reason, taken from the traits


@dataclass(frozen=True)
class Check:
    """A law that a strategy must keep. Calling it raises AssertionError, or the error the strategy raised."""

    name: str
    law: str  # in a sentence
    run: Callable[[Subject, Path], None]
    why_not: Applies
    slow: bool = False  # takes more than a few seconds: pytest's marker `slow` leaves it out

    def __call__(self, subject: Subject) -> None:
        with temporary_folder() as folder:
            self.run(subject, folder)


CHECKS: dict[str, Check] = {}


def check(
    why_not: Applies = lambda subject: "", *, slow: bool = False
) -> Callable[[Callable[[Subject, Path], None]], Callable[[Subject, Path], None]]:
    """Decorator: make a function a check under its own name; its docstring is the law."""

    def decorate(run: Callable[[Subject, Path], None]) -> Callable[[Subject, Path], None]:
        CHECKS[run.__name__] = Check(run.__name__, run.__doc__ or "", run, why_not, slow)
        return run

    return decorate


@contextmanager
def temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="contract-") as name:
        yield Path(name)


def raises(kind: type[FrameworkError], otherwise: str, call: Callable[[], object]) -> str:
    """The text of the error that `call` raises; AssertionError if it raises none."""
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError(otherwise)
