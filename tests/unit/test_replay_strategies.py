"""ER, DER, DER++, joint and cumulative: what they draw, the terms they add, what they keep, against their definitions."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cl_framework.assembly import assemble
from cl_framework.context import PositionedRandom
from cl_framework.errors import ConfigurationError
from cl_framework.plan import Plan
from cl_framework.registry import strategies
from cl_framework.rng import RandomStream
from cl_framework.strategy import Batch, Draw, Forgotten, Position, Rows, Strategy
from cl_framework.stream import Learn, Unlearn
from cl_framework.testing.laboratory import Outcome, experiment_of, finish, first_difference

WITH_MEMORY = ("er", "der", "derpp")


@dataclass
class FakeContext:
    """As much of a context as these strategies read."""

    slot: str = "slot"
    batch_size: int = 4
    epochs: int = 2
    live_tasks: tuple[int, ...] = (0, 1)
    is_last_learn: bool = True
    position: Position = field(default_factory=lambda: Position(Learn(0)))
    randoms: dict[str, PositionedRandom] = field(default_factory=dict)

    def random(self, purpose: str) -> PositionedRandom:
        return self.randoms.setdefault(purpose, PositionedRandom(RandomStream(self.slot, purpose), self.position))

    def ids_of(self, task: int) -> Tensor:
        return torch.arange(10) + 10 * task

    def criterion(self, logits: Tensor, rows: Rows) -> Tensor:
        return functional.cross_entropy(logits, rows.targets, reduction="none")

    def forward(self, rows: Rows) -> Tensor:
        assert isinstance(rows.items, Tensor)
        return rows.items @ WEIGHT


@dataclass
class FakeOutput:
    """A linear model's answers; counts its passes over draws."""

    logits: Tensor
    weight: Tensor
    passes: int = 0

    def of(self, draw: Draw) -> Any:
        self.passes += 1
        return SimpleNamespace(logits=draw.rows.items @ self.weight)


def make(name: str, **options: Any) -> Strategy:
    strategy_class = strategies.get(name)
    made: Strategy = strategy_class(strategy_class.Config(**options))
    return made


WEIGHT = torch.rand(3, 5, generator=torch.Generator().manual_seed(1))


def batch_at(step: int) -> Batch:
    ids = torch.arange(4) + 4 * step
    items = torch.rand(4, 3, generator=torch.Generator().manual_seed(step))
    return Batch(items, ids % 5, ids, torch.zeros_like(ids), items)


def one_step(strategy: Any, context: FakeContext, step: int) -> tuple[Batch, FakeOutput]:
    """A step as the framework runs it; the model has moved a little since the step before."""
    context.position.step = step
    batch = batch_at(step)
    draws: Mapping[str, Draw] = strategy.draw(batch, context)
    if draws:
        batch.draws[context.slot] = dict(draws)
    weight = WEIGHT * (1 + step / 10)
    output = FakeOutput(batch.items @ weight, weight)  # type: ignore[operator]
    strategy.commit(batch, output, context)
    return batch, output


def run_steps(strategy: Any, count: int, context: FakeContext | None = None) -> tuple[FakeContext, Batch, FakeOutput]:
    context = context or FakeContext()
    for step in range(count):
        batch, output = one_step(strategy, context, step)
    return context, batch, output


# --- draws and memories ---


@pytest.mark.parametrize(
    ("name", "kinds"),
    [("er", {"replay": "joined"}), ("der", {"logits": "separate"}), ("derpp", {"logits": "separate", "labels": "separate"})],
)
def test_what_is_drawn_was_stored_in_an_earlier_step(name: str, kinds: dict[str, str]) -> None:
    strategy, context = make(name, capacity=30), FakeContext()
    first, _ = one_step(strategy, context, 0)
    assert first.draws == {}
    for step in range(1, 12):
        batch, _ = one_step(strategy, context, step)
        draws = batch.draws["slot"]
        assert {key: draw.kind for key, draw in draws.items()} == kinds
        for draw in draws.values():
            assert len(draw.rows) == 4 and int(draw.rows.ids.max()) < 4 * step
            assert torch.equal(draw.rows.targets, draw.rows.ids % 5)


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_minibatch_and_capacity_are_heeded(name: str) -> None:
    strategy: Any = make(name, capacity=9, minibatch=7)
    _, batch, _ = run_steps(strategy, 10)
    assert all(len(draw.rows) == 7 for draw in batch.draws["slot"].values()) and len(strategy.memory) == 9
    _, batch, _ = run_steps(make(name, capacity=0), 10)
    assert batch.draws == {}


@pytest.mark.parametrize("policy", ["reservoir", "ring", "balanced"])
def test_er_uses_the_policy_it_is_told(policy: str) -> None:
    strategy: Any = make("er", capacity=10, policy=policy)
    run_steps(strategy, 12)
    assert strategy.memory.policy == policy and len(strategy.memory) == 10
    assert (sorted(strategy.memory.ids.tolist()) == list(range(38, 48))) == (
        policy == "ring"
    )  # five classes in turn: the newest two of each


def test_the_two_draws_of_derpp_are_independent() -> None:
    context, strategy = FakeContext(), make("derpp", capacity=40)
    same = 0
    for step in range(40):
        batch, _ = one_step(strategy, context, step)
        draws = batch.draws.get("slot")
        same += draws is not None and step > 5 and set(draws["logits"].rows.ids.tolist()) == set(draws["labels"].rows.ids.tolist())
    assert same <= 2


# --- terms ---


def test_der_adds_alpha_times_the_mean_squared_distance_to_the_stored_logits() -> None:
    strategy = make("der", alpha=0.7, capacity=30)
    context, batch, output = run_steps(strategy, 9)
    (term,) = strategy.loss(batch, output, context).values()  # type: ignore[arg-type]
    rows = batch.draws["slot"]["logits"].rows
    squares = []
    for item, sample in zip(rows.items, rows.ids.tolist(), strict=True):  # type: ignore[arg-type]
        then = item @ (WEIGHT * (1 + (sample // 4) / 10))  # the model of the step that stored it
        squares += [float(value) ** 2 for value in item @ output.weight - then]
    assert float(term.value()) == pytest.approx(sum(squares) / len(squares), rel=1e-4) and term.weight == 0.7
    assert float(term.value()) > 0


def test_der_is_zero_while_the_model_says_what_it_said() -> None:
    strategy, context = make("der", capacity=30), FakeContext()
    batch, output = one_step(strategy, context, 0)
    batch.draws["slot"] = dict(strategy.draw(batch, context))  # type: ignore[arg-type]
    (term,) = strategy.loss(batch, output, context).values()  # type: ignore[arg-type]
    assert float(term.value()) == pytest.approx(0, abs=1e-12)


def test_derpp_adds_the_loss_on_the_labels_of_its_second_draw() -> None:
    strategy = make("derpp", alpha=0.2, beta=0.6, capacity=30)
    context, batch, output = run_steps(strategy, 9)
    terms = strategy.loss(batch, output, context)  # type: ignore[arg-type]
    rows = batch.draws["slot"]["labels"].rows
    expected = functional.cross_entropy(rows.items @ output.weight, rows.targets)  # type: ignore[operator]
    assert {name: term.weight for name, term in terms.items()} == {"logits": 0.2, "labels": 0.6}
    assert float(terms["labels"].value()) == pytest.approx(float(expected))
    wrong = batch.draws["slot"]["logits"].rows
    assert float(expected) != pytest.approx(float(functional.cross_entropy(wrong.items @ output.weight, wrong.targets)))  # type: ignore[operator]


@pytest.mark.parametrize("name", ["der", "derpp"])
def test_of_texts_the_distance_is_the_mean_over_classes_and_places(name: str) -> None:
    """Two texts of four places that all ask, and three classes: 24 squares."""
    then, now = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(2)).unbind()
    asked, ids = torch.arange(8).view(2, 4) % 3, torch.arange(2)
    drawn = Rows(torch.zeros(2, 4), asked, ids, ids, extras={"logits": then})
    batch = Batch(torch.zeros(2, 4), asked, ids, ids, draws={"slot": {"logits": Draw.separate(drawn), "labels": Draw.separate(drawn)}})
    output: Any = SimpleNamespace(of=lambda draw: SimpleNamespace(logits=now))
    found = float(make(name).loss(batch, output, FakeContext())["logits"].value())  # type: ignore[arg-type]
    squares = [(a - b) ** 2 for a, b in zip(now.flatten().tolist(), then.flatten().tolist(), strict=True)]
    assert len(squares) == 24 and found == pytest.approx(sum(squares) / 24, rel=1e-5)
    mixed_up = (now.reshape(2, 4, 3).transpose(1, 2) - then).square().mean()
    assert found != pytest.approx(float(mixed_up), rel=1e-2)


@pytest.mark.parametrize("name", ["der", "derpp"])
def test_terms_run_no_pass_until_their_value_is_asked_for(name: str) -> None:
    strategy = make(name, capacity=30)
    context, batch, output = run_steps(strategy, 5)
    terms = strategy.loss(batch, output, context)  # type: ignore[arg-type]
    assert output.passes == 0
    for term in terms.values():
        term.value()
    assert output.passes == len(terms)


# --- equal runs ---


def outcome(folder: Path, name: str | None, **options: Any) -> Outcome:
    """A run of a strategy in a slot of the same name whatever it is, or of none."""
    slots = {} if name is None else {"replay": {"use": name, **options}}
    return finish(experiment_of(slots, folder / f"{name}-{options}", stream="L0 L1 L2"))


def test_derpp_without_beta_is_der_and_der_without_alpha_fine_tuning(tmp_path: Path) -> None:
    der = outcome(tmp_path, "der", alpha=0.4, capacity=20)
    plain = outcome(tmp_path, None)
    assert first_difference(der.weights, outcome(tmp_path, "derpp", alpha=0.4, beta=0.0, capacity=20).weights) is None
    assert first_difference(der.weights, outcome(tmp_path, "derpp", alpha=0.4, beta=0.1, capacity=20).weights) is not None
    for neutral in ({"capacity": 0}, {"alpha": 0.0, "beta": 0.0}):
        assert first_difference(plain.weights, outcome(tmp_path, "derpp", **neutral).weights) is None
    assert first_difference(plain.weights, outcome(tmp_path, "der", alpha=0.0).weights) is None
    assert first_difference(plain.weights, der.weights) is not None


# --- state and forgetting ---


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_state_comes_back_whole(name: str) -> None:
    strategy = make(name, capacity=15)
    run_steps(strategy, 11)
    state = copy.deepcopy(strategy.state_dict())
    again = make(name, capacity=15)
    again.load_state_dict(state)
    assert first_difference(again.state_dict(), state) is None
    batches = [one_step(each, FakeContext(), 11)[0].draws["slot"] for each in (strategy, again)]
    assert all(torch.equal(batches[0][key].rows.ids, batches[1][key].rows.ids) for key in batches[0])
    assert first_difference(again.state_dict(), strategy.state_dict()) is None
    assert first_difference(make(name, capacity=15).state_dict(), state) is not None


@pytest.mark.parametrize("name", ["der", "derpp"])
def test_after_a_forget_stored_logits_are_the_present_models(name: str) -> None:
    strategy: Any = make(name, capacity=8)
    context = FakeContext()
    for step in range(3):
        one_step(strategy, context, step)
    before = strategy.memory.rows()
    present = {int(one): row for one, row in zip(before.ids, before.items @ WEIGHT, strict=True)}
    assert not torch.equal(before.extras["logits"], before.items @ WEIGHT)
    strategy.forget(Forgotten(Unlearn(0), before.ids[:1]), context)
    after = strategy.memory.rows()
    assert len(after) == len(before) - 1
    assert all(torch.equal(row, present[int(one)]) for one, row in zip(after.ids, after.extras["logits"], strict=True))


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_forgotten_samples_are_never_drawn_again(name: str) -> None:
    strategy: Any = make(name, capacity=30)
    context, _, _ = run_steps(strategy, 7)
    gone = torch.arange(0, 28, 3)
    assert bool(torch.isin(strategy.memory.ids, gone).any())
    strategy.forget(Forgotten(Unlearn(0), gone), context)
    assert not bool(torch.isin(strategy.memory.ids, gone).any()) and len(strategy.memory) == 18
    for step in range(7, 20):
        batch, _ = one_step(strategy, context, step)
        assert not any(bool(torch.isin(draw.rows.ids, gone).any()) for draw in batch.draws["slot"].values())


# --- upper bounds ---

TASK_PLAN = Plan.over(torch.arange(10, 20), 4, 2, torch.Generator().manual_seed(0))


def shown(plan: Plan) -> list[list[int]]:
    cuts = plan.offsets.tolist()
    return [plan.ids[first:last].tolist() for first, last in pairwise(cuts)]


@pytest.mark.parametrize(("name", "last"), [("joint", True), ("cumulative", True), ("cumulative", False)])
@pytest.mark.parametrize("epochs", [None, 3])
def test_an_upper_bound_shows_every_live_sample_once_an_epoch(name: str, last: bool, epochs: int | None) -> None:
    context: Any = FakeContext(live_tasks=(2, 0), is_last_learn=last)
    plan = make(name, epochs=epochs).plan(TASK_PLAN, context)
    union = [*range(10), *range(20, 30)]
    assert plan.epochs == (epochs or 2) and plan.steps == 5 * plan.epochs
    passes = plan.ids.view(plan.epochs, 20).tolist()
    assert all(sorted(visits) == union and visits != union for visits in passes) and passes[0] != passes[1]
    assert all(len(rows) == 4 for rows in shown(plan))


def test_joint_shows_nothing_before_the_last_learn() -> None:
    context: Any = FakeContext(is_last_learn=False)
    assert make("joint").plan(TASK_PLAN, context).visits == 0
    assert make("cumulative").plan(TASK_PLAN, context).visits == 40


@pytest.mark.parametrize("name", ["joint", "cumulative"])
def test_the_order_of_an_upper_bound_is_its_slots_own(name: str) -> None:
    def order(slot: str) -> list[list[int]]:
        context: Any = FakeContext(slot=slot)
        return shown(make(name).plan(TASK_PLAN, context))

    assert order("one") == order("one") != order("another")


# --- options ---


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("er", {"capacity": -1}, "capacity must be >= 0, got -1"),
        ("er", {"minibatch": 0}, "minibatch must be >= 1, got 0"),
        ("er", {"policy": "fifo"}, "policy must be one of reservoir, ring, balanced, got 'fifo'"),
        ("der", {"alpha": -0.5}, "alpha must be >= 0, got -0.5"),
        ("der", {"alpha": float("nan")}, "alpha must be a finite number, got nan"),
        ("der", {"capacity": -2}, "capacity must be >= 0, got -2"),
        ("der", {"minibatch": -1}, "minibatch must be >= 1, got -1"),
        ("derpp", {"beta": -1.0}, "beta must be >= 0, got -1.0"),
        ("derpp", {"alpha": -1.0}, "alpha must be >= 0, got -1.0"),
        ("derpp", {"capacity": -3}, "capacity must be >= 0, got -3"),
        ("derpp", {"minibatch": 0}, "minibatch must be >= 1, got 0"),
        ("joint", {"epochs": 0}, "epochs must be >= 1, got 0"),
        ("cumulative", {"epochs": -1}, "epochs must be >= 1, got -1"),
    ],
)
def test_bad_options_are_refused_by_name(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(name, **options)


@pytest.mark.parametrize("holding", ["ewc", "si", "lwf", "icarl"])
def test_joint_training_is_refused_beside_what_keeps_each_task(holding: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"strategies.joint.plan: {holding} keeps what each task has taught, but joint training"):
        assemble(experiment_of({holding: {}, "joint": {}} if holding != "icarl" else {"joint": {}, holding: {}}, tmp_path))
    if holding != "icarl":  # which plans for itself
        assemble(experiment_of({"cumulative": {}, holding: {}}, tmp_path))


@pytest.mark.parametrize("adding", [{"power_law": {"environment": "uniform"}}, {"replay_share": {}}])
def test_joint_training_is_refused_before_what_adds_past_data(adding: dict[str, Any], tmp_path: Path) -> None:
    (name,) = adding
    with pytest.raises(ConfigurationError, match=rf"strategies.joint.plan: all tasks are shown already, and {name} would add nothing"):
        assemble(experiment_of({"joint": {}, **adding}, tmp_path))


def test_exemplars_are_planned_before_views_are_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"strategies.icarl.plan: all steps are planned anew, and what view_batch makes of them"):
        assemble(experiment_of({"view_batch": {"views": 2}, "icarl": {}}, tmp_path))
    assemble(experiment_of({"icarl": {}, "view_batch": {"views": 2}}, tmp_path))
