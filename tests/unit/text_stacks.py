"""Stacks on a stream of texts, and terms that are worked out under watch: for the pretended device and for a real one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from cl_framework.config import Experiment
from cl_framework.strategy import Batch, Context, Output, Term
from cl_framework.testing.laboratory import in_place_of
from strategies.rmu import RMU
from tests.unit.test_language_modelling import experiment

STACKS: dict[str, tuple[str, dict[str, Any]]] = {  # of each its stream and its slots
    "views": ("L0 L1", {"view_batch": {"views": 2}, "er": {"capacity": 8}}),
    "npo": ("L0 L1 U0", {"npo": {"steps": 3}, "er": {"capacity": 8}}),
}


def experiment_on_texts(stack: str, folder: Path, **settings: Any) -> Experiment:
    stream, strategies = STACKS[stack]
    made: Experiment = experiment(folder, strategies, stream=stream, **settings)
    return made


def rmu_under_watch(folder: Path, watch: Callable[[], AbstractContextManager[None]], **settings: Any) -> tuple[Experiment, list[int]]:
    """RMU on texts whose terms are worked out within `watch()`, and how many were: its step waits for how many lent rows there are."""
    counted = [0]

    def watched(value: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def found() -> Tensor:
            counted[0] += 1
            with watch():
                return value()

        return found

    class Watched(RMU):
        def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
            return {name: replace(term, value=watched(term.value)) for name, term in super().loss(batch, output, context).items()}

    strategies: dict[str, Any] = {"rmu": {"steps": 3}, "er": {"capacity": 8}}
    return in_place_of(experiment(folder, strategies, stream="L0 L1 U0", **settings), Watched), counted
