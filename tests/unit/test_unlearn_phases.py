"""Phases of an Unlearn: over what was requested, with an objective of their own, stopped and resumed at any step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from cl_framework import (
    Batch,
    ConfigurationError,
    Context,
    ContractError,
    Done,
    Output,
    Phase,
    Plan,
    Rows,
    Strategy,
    Term,
    Traits,
    Unlearn,
    register,
)
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
    traits = Traits(unlearns=frozenset({"task", "class", "sample"}), unlearning_reads=frozenset({"forget"}), neutral={})
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


@pytest.mark.slow
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


def without(*needs: str, **more: Any) -> type[Strategy]:
    traits = replace(Ascent.traits, unlearning_reads=frozenset(needs))
    return type("Stripped", (Ascent,), {"traits": traits, **more})


def refused(folder: Path, kind: type[Strategy], stream: str = "L0 L1 U0") -> str:
    with pytest.raises(ContractError) as caught:
        finish(beside(experiment_of({}, folder, stream=stream), after=[Slot("ascent", "Ascent", kind, AscentConfig())]))
    return str(caught.value)


def test_what_is_unlearned_is_read_by_those_alone_who_declare_it(tmp_path: Path) -> None:
    assert "the plan of U0 shows what it unlearns, which needs Traits(unlearning_reads={'forget'})" in refused(tmp_path / "plan", without())

    def read_it(self: Strategy, event: Unlearn, context: Context) -> Done:
        context.read(context.requested_ids)
        return Done()

    said = refused(tmp_path / "read", without(unlearn=read_it))
    assert "reads sample 0, which U0 unlearns, but does not declare Traits(unlearning_reads={'forget'})" in said
    finish(
        beside(experiment_of({}, tmp_path, stream="L0 L1 U0"), after=[Slot("a", "A", without("forget", unlearn=read_it), AscentConfig())])
    )


@pytest.mark.parametrize("event", ["U0", "U0:class=1", "U1:fraction=0.5@seed1"])
def test_retained_data_is_read_by_those_alone_who_declare_it(event: str, tmp_path: Path) -> None:
    seen = []

    def read_the_rest(self: Strategy, event: Unlearn, context: Context) -> Done:
        ids = torch.cat([context.ids_of(task) for task in context.live_tasks])
        seen.append((context.read(ids).ids, context.requested_ids))
        return Done()

    said = refused(tmp_path / "no", without("forget", unlearn=read_the_rest), f"L0 L1 {event}")
    assert "asks for the data of task" in said and "does not declare Traits(unlearning_reads={'past'})" in said
    experiment = experiment_of({}, tmp_path, stream=f"L0 L1 {event}")
    finish(beside(experiment, after=[Slot("a", "A", without("past", unlearn=read_the_rest), AscentConfig())]))
    ((ids, requested),) = seen
    assert len(ids) and len(requested) and not torch.isin(ids, requested).any()
    assert len(ids) == 36 if event == "U0" else len(ids) + len(requested) == 72


def test_who_needs_a_memory_is_refused_where_there_is_none(tmp_path: Path) -> None:
    slot = Slot("ascent", "Ascent", without("forget", "memory"), AscentConfig())
    with pytest.raises(ConfigurationError, match=r"to answer U0, strategies\.ascent needs samples of what .* such as strategies\.er"):
        finish(beside(experiment_of({}, tmp_path / "none", stream="L0 L1 U0"), after=[slot]))
    assert not list(tmp_path.rglob("*.*"))
    finish(beside(experiment_of({"er": {"capacity": 20}}, tmp_path / "er", stream="L0 L1 U0"), after=[slot]))


@pytest.mark.parametrize(("needs", "lent"), [({"forget", "memory"}, True), ({"forget"}, False)])
def test_memories_lend_what_is_retained_to_those_who_declare_it(needs: set[str], lent: bool, tmp_path: Path) -> None:
    rows: list[Rows] = []

    def loss(self: Strategy, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        if isinstance(context.position.event, Unlearn):
            rows.extend(draw.rows for slot, named in batch.draws.items() for draw in named.values() if slot == "er")
        return {}

    slot = Slot("ascent", "Ascent", without(*needs, loss=loss), AscentConfig())
    experiment = experiment_of({"er": {"capacity": 30}}, tmp_path, stream="L0 L1 U0")
    finish(beside(experiment, after=[slot]))
    assert bool(rows) == lent
    assert all((part.task_of_row == 1).all() for part in rows)
