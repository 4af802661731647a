"""Phases of an Unlearn: over what was requested, with an objective of their own, stopped and resumed at any step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cl_framework import Batch, Context, ContractError, Output, Phase, Plan, Strategy, Term, Traits, Unlearn, register
from cl_framework.assembly import make_benchmark
from cl_framework.config import Slot
from cl_framework.stream import Event
from cl_framework.testing.laboratory import (
    assert_different_weights,
    assert_equal_outcomes,
    beside,
    experiment_of,
    finish,
    finish_in_pieces,
)


@dataclass(frozen=True)
class AscentConfig:
    task_term: bool = False  # whether the framework's own term is part of the objective


@register("fake_ascent")
class Ascent(Strategy):
    """Raises the loss on what was requested, a few steps."""

    Config = AscentConfig
    traits = Traits(unlearns=frozenset({"task", "class", "sample"}), neutral={})
    seen: ClassVar[list[tuple[str, list[int], list[int]]]] = []  # event, what was requested, what a step showed
    names: ClassVar[list[tuple[str, ...]]] = []

    def unlearn(self, event: Unlearn, context: Context) -> Sequence[Phase]:
        plan = Plan.over(context.requested_ids, context.batch_size, 2, context.random("shuffle").generator())
        return [Phase("ascent", plan, optimizer={"lr": 0.05}, task_term=self.config.task_term)]

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        if not isinstance(context.position.event, Unlearn):
            return {}
        self.seen.append((str(context.position.event), context.requested_ids.tolist(), batch.ids.tolist()))
        return {"forget": Term(lambda: -context.criterion(output.logits, batch).mean())}

    def step(self, inner: Any, context: Context) -> Any:
        def noted(closure: Any) -> Any:
            if isinstance(context.position.event, Unlearn):
                self.names.append(closure.names)
            return inner(closure)

        return noted


def ascent(folder: Path, stream: str, **options: Any) -> Any:
    Ascent.seen.clear(), Ascent.names.clear()
    settings = {"stream": stream, "optimizer": {"name": "adam", "lr": 0.01}, "model": {"name": "mlp", "hidden": [8], "dropout": 0.3}}
    return experiment_of({"ascent": {"use": "fake_ascent", **options}}, folder, **settings)


@pytest.mark.parametrize("event", ["U1", "U1:class=3", "U1:fraction=0.3@seed2"])
def test_a_phase_shows_what_was_requested_and_nothing_else(event: str, tmp_path: Path) -> None:
    experiment = ascent(tmp_path, f"L0 L1 {event}")
    finish(experiment)
    benchmark = make_benchmark(experiment)
    ids = benchmark.ids_of(1)
    assert Ascent.seen
    for name, requested, shown in Ascent.seen:
        assert name == event
        assert set(shown) <= set(requested) <= set(ids.tolist())
    assert {sample for *_, shown in Ascent.seen for sample in shown} == set(Ascent.seen[0][1])
    assert (len(Ascent.seen[0][1]) == len(ids)) == (event == "U1")
    if "class" in event:
        assert benchmark.read_targets(ids[[int(i) in Ascent.seen[0][1] for i in ids]]).unique().tolist() == [3]


def test_without_the_task_term_the_objective_is_the_owners_alone(tmp_path: Path) -> None:
    alone = finish(ascent(tmp_path / "alone", "L0 L1 U1"))
    assert set(Ascent.names) == {("ascent/forget",)}
    both = finish(ascent(tmp_path / "both", "L0 L1 U1", task_term=True))
    assert set(Ascent.names) == {("task", "ascent/forget")}
    assert_different_weights(alone, both, "with and without the task term")


def test_an_unlearn_that_stops_before_every_step_ends_the_same(tmp_path: Path) -> None:
    experiment = ascent(tmp_path / "whole", "L0 L1 U0 L2")
    whole = finish(experiment)
    again = ascent(tmp_path / "pieces", "L0 L1 U0 L2")
    pieces, stops = finish_in_pieces(again, lambda step: True, make_benchmark(again))
    assert_equal_outcomes(whole, pieces, "stopped before every step")
    assert stops == whole.summary["steps"]
    other = finish(ascent(tmp_path / "other", "L0 L1 L2"))
    assert_different_weights(whole, other, "with and without the Unlearn")


def test_nothing_is_requested_during_a_learn(tmp_path: Path) -> None:
    class Asking(Ascent):
        def begin(self, context: Context) -> Sequence[Phase]:
            event: Event = context.position.event
            if not isinstance(event, Unlearn):
                _ = context.requested_ids
            return ()

    with pytest.raises(ContractError, match="asks what is to be unlearned during L0, which unlearns nothing"):
        finish(beside(experiment_of({}, tmp_path, stream="L0"), after=[Slot("asking", "Asking", Asking, AscentConfig())]))
