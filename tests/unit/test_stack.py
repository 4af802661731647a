"""The laws of composition, one by one, with strategies that do nothing but leave a mark."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_framework.errors import ContractError
from cl_framework.plan import Plan
from cl_framework.seams import SEAMS, misspelt_seams, seams_of
from cl_framework.stack import PhaseStack, Stack, intersection, rows_without
from cl_framework.strategy import Batch, Draw, Forgotten, Phase, Rows, Strategy, Term, Traits
from cl_framework.stream import Stream
from tests.unit.small_stacks import NOTHING, Building, Predicting, Replacing, stack_of


class Marking(Strategy):
    """Base of the fixtures: writes what happened into a shared list."""

    traits = NOTHING

    def __init__(self, journal: list[str], name: str) -> None:
        super().__init__(None)
        self.journal = journal
        self.name = name

    def mark(self, what: str) -> None:  # not a strategy anyone registers
        self.journal.append(f"{self.name}.{what}")


class Pulling(Strategy):
    traits = NOTHING

    def loss(self, batch: Batch, output: Any, context: Any) -> dict[str, Term]:
        return {"pull": Term(lambda: torch.zeros(()))}


class Everything(Marking):
    """Occupies the seams that are called in order."""

    def plan(self, plan: Plan, context: Any) -> Plan:
        self.mark("plan")
        return Plan(torch.cat([plan.ids, torch.tensor([len(plan.ids)])]), plan.offsets)

    def step(self, inner: Any, context: Any) -> Any:
        def wrapped(closure: Any) -> Any:
            self.mark("before")
            evaluation = inner(closure)
            self.mark("after")
            return evaluation

        return wrapped

    def commit(self, batch: Batch, output: Any, context: Any) -> None:
        self.mark("commit")

    def begin(self, context: Any) -> list[Phase]:
        self.mark("begin")
        return [Phase("first", 1), Phase("second", 2)]

    def end(self, context: Any) -> list[Phase]:
        self.mark("end")
        return [Phase("after", 3)]

    def forget(self, forgotten: Forgotten, context: Any) -> None:
        self.mark("forget")

    def state_dict(self) -> dict[str, Any]:
        return {"name": self.name}

    def load_state_dict(self, state: Any) -> None:
        self.name = state["name"] + "'"


class Masking(Strategy):
    def __init__(self, mask: dict[str, bool | Tensor]) -> None:
        super().__init__(None)
        self.given = mask

    def mask(self, context: Any) -> dict[str, bool | Tensor]:
        return self.given


class Rating(Strategy):
    def __init__(self, factor: float) -> None:
        super().__init__(None)
        self.factor = factor

    def rate(self, step: int, steps: int, context: Any) -> float:
        return self.factor * step / steps


class Drawing(Strategy):
    def __init__(self, rows: Rows) -> None:
        super().__init__(None)
        self.rows = rows

    def draw(self, batch: Batch, context: Any) -> dict[str, Draw]:
        return {"memory": Draw.joined(self.rows)}


def some_rows(*ids: int) -> Rows:
    count = len(ids)
    return Rows(torch.zeros(count, 2), torch.zeros(count, dtype=torch.int64), torch.tensor(ids), torch.zeros(count, dtype=torch.int64))


def empty_batch() -> Batch:
    rows = some_rows()
    return Batch(rows.items, rows.targets, rows.ids, rows.task_of_row)


def compiled(stack: Stack, phase: Phase, innermost: Any = None, unlearning: bool = False) -> PhaseStack:
    return stack.compile(phase, innermost, unlearning=unlearning)


OWN = Phase("learn", 4)

# --- order ---


@pytest.fixture
def journal() -> list[str]:
    return []


@pytest.fixture
def pair(journal: list[str]) -> Stack:
    return stack_of(a=Everything(journal, "a"), b=Everything(journal, "b"))


def test_the_first_slot_is_the_outermost_layer_of_the_onion(pair: Stack, journal: list[str]) -> None:
    compiled(pair, OWN, lambda closure: journal.append(f"apply {closure}")).step("closure")  # type: ignore[arg-type]
    assert journal == ["a.before", "b.before", "apply closure", "b.after", "a.after"]
    assert journal != ["b.before", "a.before", "apply closure", "a.after", "b.after"]


def test_plans_are_piped_in_slot_order(pair: Stack, journal: list[str]) -> None:
    plan = pair.plan(Plan(torch.tensor([9]), torch.tensor([0, 1])))
    assert journal == ["a.plan", "b.plan"]
    assert plan.ids.tolist() == [9, 1, 2]


def test_begin_commit_and_forget_run_in_slot_order_and_end_in_reverse(pair: Stack, journal: list[str]) -> None:
    before = pair.begin()
    after = pair.end()
    compiled(pair, OWN).commit(empty_batch(), None)  # type: ignore[arg-type]
    pair.forget(Forgotten(Stream.parse("L0 U0").unlearns[0], torch.tensor([1])))
    assert journal == ["a.begin", "b.begin", "b.end", "a.end", "a.commit", "b.commit", "a.forget", "b.forget"]
    assert [(phase.owner, phase.name, phase.steps) for phase in before] == [
        ("a", "a/first", 1),
        ("a", "a/second", 2),
        ("b", "b/first", 1),
        ("b", "b/second", 2),
    ]
    assert [phase.owner for phase in after] == ["b", "a"]


def test_state_is_kept_by_slot(pair: Stack) -> None:
    assert pair.state_dict() == {"a": {"name": "a"}, "b": {"name": "b"}}
    pair.load_state_dict({"b": {"name": "B"}, "a": {"name": "A"}})
    assert pair.state_dict() == {"a": {"name": "A'"}, "b": {"name": "B'"}}


# --- intersection, product, slots ---


def test_masks_intersect() -> None:
    left = torch.tensor([True, True, False])
    right = torch.tensor([True, False, True])
    stack = stack_of(a=Masking({"w": left, "u": True, "v": False}), b=Masking({"w": right, "u": False, "v": left}))
    combined = stack.mask(OWN, ["u", "v", "w", "free"])
    assert combined["u"] is False and combined["v"] is False and "free" not in combined
    assert torch.equal(torch.as_tensor(combined["w"]), torch.tensor([True, False, False]))
    assert not torch.equal(torch.as_tensor(combined["w"]), left | right)


@pytest.mark.parametrize("first", [True, False, torch.tensor([True, False])])
@pytest.mark.parametrize("second", [True, False, torch.tensor([False, True])])
def test_intersection_commutes(first: bool | Tensor, second: bool | Tensor) -> None:
    one, other = torch.as_tensor(intersection(first, second)), torch.as_tensor(intersection(second, first))
    assert torch.equal(one, other)
    assert torch.equal(one.expand(2), torch.as_tensor(first).expand(2) & torch.as_tensor(second).expand(2))


def test_a_mask_over_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(ContractError, match=r"strategy 'half' masks 'w2', which is no parameter of the model"):
        stack_of(half=Masking({"w2": False})).mask(OWN, ["w"])


def test_rates_multiply() -> None:
    stack = stack_of(a=Rating(2.0), b=Rating(3.0))
    assert stack.rate(OWN, 2, 4) == (2.0 * 0.5) * (3.0 * 0.5)
    assert stack_of().rate(OWN, 2, 4) == 1.0
    assert compiled(stack, OWN).has_rate and not compiled(stack_of(), OWN).has_rate


def test_draws_lie_under_their_own_slot() -> None:
    stack = stack_of(a=Drawing(some_rows(1)), b=Drawing(some_rows(2)))
    batch = empty_batch()
    compiled(stack, OWN).draw(batch)
    assert {slot: {name: draw.rows.ids.tolist() for name, draw in named.items()} for slot, named in batch.draws.items()} == {
        "a": {"memory": [1]},
        "b": {"memory": [2]},
    }
    assert batch.draws["b"]["memory"].key == "b/memory"


# --- owned phases ---


def test_in_an_owned_phase_only_the_owner_acts(journal: list[str]) -> None:
    stack = stack_of(
        a=Everything(journal, "a"), b=Everything(journal, "b"), rate=Rating(5.0), mask=Masking({"w": False}), memory=Drawing(some_rows(1))
    )
    phase = Phase("b/burn", 4, owner="b")
    acting = compiled(stack, phase, lambda closure: journal.append("apply"))
    acting.step(None)  # type: ignore[arg-type]
    acting.commit(empty_batch(), None)  # type: ignore[arg-type]
    assert journal == ["b.before", "apply", "b.after", "b.commit"]
    assert stack.rate(phase, 2, 4) == 1.0 and stack.mask(phase, ["w"]) == {} and not acting.draws and not acting.lenders
    everyone = compiled(stack, OWN)
    assert len(everyone.commits) == 2 and len(everyone.draws) == 1 and stack.mask(OWN, ["w"]) == {"w": False}


class Borrowing(Drawing):
    traits = Traits(unlearning_reads=frozenset({"memory"}), no_neutral="made up")


def test_in_a_phase_of_an_unlearn_the_others_lend_draws_without_the_forgotten_rows() -> None:
    stack = stack_of(own=Borrowing(some_rows(7)), er=Drawing(some_rows(1, 2, 3)), gone=Drawing(some_rows(2)))
    batch = empty_batch()
    alone = compiled(stack_of(own=Drawing(some_rows(7)), er=Drawing(some_rows(1))), Phase("own/burn", 4, owner="own"), unlearning=True)
    assert not alone.lenders  # it does not say that it reads memories
    burn = compiled(stack, Phase("own/burn", 4, owner="own"), unlearning=True)
    burn.draw(batch)
    burn.lend(batch, torch.tensor([2]))
    lent = batch.draws["er"]["memory"]
    assert (lent.rows.ids.tolist(), lent.kind, lent.key) == ([1, 3], "reference", "er/memory")
    assert batch.draws["own"]["memory"].kind == "joined" and "gone" not in batch.draws
    burn.lend(batch, None)
    assert batch.draws["er"]["memory"].rows.ids.tolist() == [1, 2, 3]


def test_rows_without_cuts_every_field() -> None:
    rows = Rows(
        {"tokens": torch.arange(6).reshape(3, 2)},
        torch.tensor([0, 1, 2]),
        torch.tensor([10, 11, 12]),
        torch.tensor([3, 4, 5]),
        extras={"logits": torch.arange(3.0)},
    )
    left = rows_without(rows, torch.tensor([11, 99]))
    assert left.ids.tolist() == [10, 12] and left.targets.tolist() == [0, 2] and left.task_of_row.tolist() == [3, 5]
    assert left.items["tokens"].tolist() == [[0, 1], [4, 5]] and left.extras["logits"].tolist() == [0.0, 2.0]


# --- build, predict, seams ---


def test_the_one_structural_strategy_builds_and_the_one_predictor_scores() -> None:
    stack = stack_of(a=Building(None), b=Predicting(None))
    stack.bind({slot: SimpleNamespace(slot=slot, bonus=1.0) for slot in stack.slots})  # type: ignore[arg-type]
    assert isinstance(stack.build(nn.Linear(1, 1)), nn.Sequential)
    assert stack.predictor is not None
    assert stack.predictor(None, torch.zeros(2), some_rows(0)).tolist() == [1.0, 1.0]
    assert stack_of(a=Building(None)).predictor is None


def test_seams_are_what_a_class_overrides() -> None:
    assert seams_of(Everything) == ("plan", "step", "commit", "begin", "end", "forget", "state_dict", "load_state_dict")
    assert seams_of(Strategy) == () and set(seams_of(Everything)) < set(SEAMS)
    assert list(misspelt_seams(Everything)) == ["mark"] and list(misspelt_seams(Building)) == []


def test_tasks_are_readable_only_where_a_strategy_declares_it() -> None:
    rows = some_rows(1)
    assert rows.tasks.tolist() == [0]
    rows.tasks_readable = False
    with pytest.raises(ContractError, match=r"read batch\.tasks, but none in this stack declares Traits\(needs_task_id=True\)"):
        _ = rows.tasks
    assert not stack_of(a=Building(None)).reads_tasks


def test_it_reads_as_the_step_it_will_run(journal: list[str]) -> None:
    stack = stack_of(
        a=Everything(journal, "a"), er=Drawing(some_rows(1)), l2=Pulling(None), warm=Rating(1.0), half=Masking({}), mean=Predicting(None)
    )
    assert [line.split("#")[0].rstrip() for line in stack.describe().splitlines()] == [
        "begin(event)",
        "plan  = shuffle -> a",
        "mask  = intersection",
        "for step, ids in plan:",
        "    batch = load(ids)",
        "    batch.draws['er'] = er.draw(batch)",
        "    closure = task + l2.loss",
        "    a.step(apply)(closure) at lr * warm.rate",
        "    a.commit(batch, output)",
        "end(event)",
        "evaluate with mean",
    ]
    assert "a.step(b.step(apply))(closure)" in stack_of(a=Everything(journal, "a"), b=Everything(journal, "b")).describe()
    assert "closure = l2.loss\n" in stack_of(own=Replacing(None), l2=Pulling(None)).describe()  # no draws, so no word of them
    assert "closure = task   # joined draws share" in stack_of(er=Drawing(some_rows(1))).describe()
