"""Plans: every sample once an epoch, remainders kept, visits dropped without moving the steps, boundaries blurred as a partition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cl_framework.plan import Plan, blurred


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def steps_of(plan: Plan) -> list[list[int]]:
    """The ids of each step, by a loop."""
    return [plan.ids[plan.offsets[step] : plan.offsets[step + 1]].tolist() for step in range(plan.steps)]


def chunks_of(order: list[int], size: int) -> list[list[int]]:
    return [order[first : first + size] for first in range(0, len(order), size)]


@given(count=st.integers(0, 40), batch_size=st.integers(1, 12), epochs=st.integers(0, 3), seed=st.integers(0, 99))
def test_each_epoch_shows_each_sample_once(count: int, batch_size: int, epochs: int, seed: int) -> None:
    ids = torch.arange(100, 100 + count)
    plan = Plan.over(ids, batch_size, epochs, generator(seed))
    steps_an_epoch = -(-count // batch_size)
    assert plan.steps == steps_an_epoch * epochs
    assert plan.visits == count * epochs
    steps = steps_of(plan)
    for epoch in range(epochs):
        shown = steps[epoch * steps_an_epoch : (epoch + 1) * steps_an_epoch]
        flat = [sample for step in shown for sample in step]
        assert sorted(flat) == ids.tolist()
        assert shown == chunks_of(flat, batch_size)


def test_a_remainder_is_a_smaller_last_step_of_each_epoch() -> None:
    plan = Plan.over(torch.arange(7), 3, 2, generator())
    assert [len(step) for step in steps_of(plan)] == [3, 3, 1, 3, 3, 1]
    assert plan.offsets.tolist() == [0, 3, 6, 7, 10, 13, 14]
    assert plan.epochs == 2
    exact = Plan.over(torch.arange(6), 3, 2, generator())
    assert [len(step) for step in steps_of(exact)] == [3, 3, 3, 3]


def test_a_plan_is_a_function_of_its_generator() -> None:
    plans = [Plan.over(torch.arange(50), 10, 2, generator(seed)) for seed in (0, 0, 1)]
    assert torch.equal(plans[0].ids, plans[1].ids)
    assert not torch.equal(plans[0].ids, plans[2].ids)
    assert plans[0].ids[:50].tolist() != plans[0].ids[50:].tolist()


def test_an_empty_plan_has_no_steps() -> None:
    for plan in (Plan.empty(), Plan.over(torch.arange(0), 10, 3, generator())):
        assert (plan.steps, plan.visits) == (0, 0)
        assert plan.offsets.tolist() == [0]
        assert plan.ids.dtype == torch.int64


@given(wanted=st.lists(st.booleans(), min_size=14, max_size=14))
def test_keep_drops_visits_and_moves_no_step(wanted: list[bool]) -> None:
    whole = Plan.over(torch.arange(7), 3, 2, generator())
    plan = Plan(whole.ids, whole.offsets, view=torch.arange(14), group=torch.arange(14) // 2, epochs=2)
    kept = plan.keep(torch.tensor(wanted))
    expected, visit = [], 0
    for step in steps_of(plan):
        expected.append([sample for offset, sample in enumerate(step) if wanted[visit + offset]])
        visit += len(step)
    assert steps_of(kept) == expected
    assert kept.steps == plan.steps
    assert kept.epochs == plan.epochs
    survivors = [index for index, keep in enumerate(wanted) if keep]
    assert kept.view is not None and kept.view.tolist() == survivors
    assert kept.group is not None and kept.group.tolist() == [index // 2 for index in survivors]


def test_keep_may_leave_a_step_empty_and_leaves_the_plan_itself_alone() -> None:
    plan = Plan.over(torch.arange(6), 2, 1, generator())
    kept = plan.keep(torch.tensor([True, True, False, False, True, True]))
    assert [len(step) for step in steps_of(kept)] == [2, 0, 2]
    assert [len(step) for step in steps_of(plan)] == [2, 2, 2]
    assert kept.view is None
    assert kept.group is None


# --- blurry boundaries ---


def tasks_of(sizes: list[int]) -> list[Tensor]:
    first = 0
    tasks = []
    for size in sizes:
        tasks.append(torch.arange(first, first + size))
        first += size
    return tasks


@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=5), fraction=st.floats(0, 1), seed=st.integers(0, 9))
def test_blurred_sets_are_a_partition(sizes: list[int], fraction: float, seed: int) -> None:
    tasks = tasks_of(sizes)
    sets = blurred(tasks, fraction, generator(seed))
    assert len(sets) == len(tasks)
    assert sorted(sample for one in sets for sample in one.tolist()) == list(range(sum(sizes)))
    assert all(one.tolist() == sorted(one.tolist()) for one in sets)
    for own, one in zip(tasks, sets, strict=True):
        stayed = set(own.tolist()) & set(one.tolist())
        assert len(stayed) >= len(own) - round(fraction * len(own))


def test_a_fraction_of_zero_changes_nothing_and_another_fraction_does() -> None:
    tasks = tasks_of([20, 20, 20])
    sharp = blurred(tasks, 0.0, generator())
    blurry = blurred(tasks, 0.3, generator())
    assert all(torch.equal(own, one) for own, one in zip(tasks, sharp, strict=True))
    assert not any(torch.equal(own, one) for own, one in zip(tasks, blurry, strict=True))


def test_the_pool_is_dealt_evenly() -> None:
    tasks = tasks_of([40, 40, 40])
    sets = blurred(tasks, 0.25, generator())
    assert [len(one) for one in sets] == [40, 40, 40]
    whole = blurred(tasks, 1.0, generator())
    assert [len(one) for one in whole] == [40, 40, 40]
    foreign = [len(set(one.tolist()) - set(own.tolist())) for own, one in zip(tasks, whole, strict=True)]
    assert all(count > 13 for count in foreign), "at fraction 1 about two thirds of each set come from the other tasks"


def test_blurring_is_a_function_of_its_generator() -> None:
    tasks = tasks_of([30, 30])
    sets = [torch.cat(blurred(tasks, 0.5, generator(seed))) for seed in (0, 0, 1)]
    assert torch.equal(sets[0], sets[1])
    assert not torch.equal(sets[0], sets[2])


def test_plans_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Plan.empty().epochs = 2  # type: ignore[misc]
