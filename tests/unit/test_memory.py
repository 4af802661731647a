"""Memories: what is stored, what is drawn, what is forgotten, and that looking ahead changes nothing."""

from __future__ import annotations

import io

import pytest
import torch

from cl_framework import ConfigurationError, Memory, Rows, Stream, memory, slots
from cl_framework.context import PositionedRandom
from cl_framework.rng import BLOCK, RandomStream
from cl_framework.strategy import Batch, Position

BATCH = 4


def rows(first: int, count: int = BATCH, classes: int = 3) -> Rows:
    ids = torch.arange(first, first + count)
    items = (ids % 251).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return Rows(items, ids % classes, ids, torch.zeros_like(ids) + (ids >= 100).long())


class Walk:
    """Steps of one memory: a draw, then an add, as in training."""

    def __init__(self, memory: Memory, seed: int = 0, draw: int = 3) -> None:
        self.memory = memory
        self.position = Position(Stream.parse("L0", 1).events[0])
        self.sampling, self.inserting = (PositionedRandom(RandomStream(seed, name), self.position) for name in ("sample", "insert"))
        self.draw = draw
        self.drawn: list[list[int]] = []

    def step(self, batch: Rows) -> None:
        sample = self.memory.sample(self.draw, self.sampling)
        self.drawn.append([] if sample is None else sample.ids.tolist())
        self.memory.add(batch, self.inserting, logits=batch.ids.float().unsqueeze(1))
        self.position.step += 1


def walked(policy: str, steps: int, capacity: int = 10, seed: int = 0) -> Walk:
    walk = Walk(Memory(capacity, policy), seed)
    for step in range(steps):
        walk.step(rows(step * BATCH))
    return walk


@pytest.mark.parametrize("policy", ["reservoir", "ring", "balanced", "greedy"])
def test_never_more_than_its_capacity_and_rows_stay_together(policy: str) -> None:
    walk = walked(policy, 60)
    stored = walk.memory.rows()
    assert len(walk.memory) == len(stored) == len(set(stored.ids.tolist())) <= 10
    assert walk.memory.seen == 60 * BATCH
    assert torch.equal(stored.items[:, 0, 0, 0].long(), stored.ids % 251)
    assert torch.equal(stored.targets, stored.ids % 3)
    assert torch.equal(stored.extras["logits"][:, 0], stored.ids.float())
    assert stored.items.dtype == torch.uint8
    assert walk.memory.nbytes == len(stored) * (4 + 8 + 8 + 8 + 4)


@pytest.mark.parametrize("policy", ["reservoir", "ring", "balanced", "greedy"])
def test_draws_are_distinct_stored_samples(policy: str) -> None:
    walk = walked(policy, 60)
    assert walk.drawn[0] == []
    assert all(len(set(drawn)) == 3 for drawn in walk.drawn[1:])
    held = set(walk.memory.ids.tolist())
    sample = walk.memory.sample(3, walk.sampling)
    assert sample is not None
    assert set(sample.ids.tolist()) <= held
    everything = walk.memory.sample(99, walk.sampling)
    assert everything is not None
    assert set(everything.ids.tolist()) == held


@pytest.mark.slow
def test_every_visit_is_stored_with_equal_probability() -> None:
    """Chi-squared of how often each of 60 samples is among 10 stored ones, over 1500 reservoirs."""
    trials, visits, capacity = 1500, 60, 10
    counts = torch.zeros(visits)
    for seed in range(trials):
        counts[walked("reservoir", visits // BATCH, capacity, seed).memory.ids] += 1
    expected = trials * capacity / visits
    # Variance of a count is p (1 - p) trials; the counts add up to a constant.
    statistic = float(((counts - expected) ** 2 / (expected * (1 - capacity / visits))).sum()) * (visits - 1) / visits
    assert statistic < 99.6  # 99.9 % quantile at 59 degrees of freedom
    shifted = counts.clone()
    shifted[:10] += expected / 2
    assert float(((shifted - expected) ** 2 / (expected * (1 - capacity / visits))).sum()) > 99.6


def test_the_ring_holds_the_newest_of_each_class() -> None:
    walk = walked("ring", 30, capacity=10)
    for label in range(3):
        held = sorted(walk.memory.ids[walk.memory.rows().targets == label].tolist())
        assert held == [one for one in range(30 * BATCH) if one % 3 == label][-3:]


def test_balanced_holds_equal_shares_drawn_from_all_visits() -> None:
    old = 0
    for seed in range(60):
        walk = walked("balanced", 30, capacity=10, seed=seed)
        targets = walk.memory.rows().targets
        assert torch.bincount(targets).tolist() == [3, 3, 3]
        old += int((walk.memory.ids < 60).sum())
    assert 0.4 < old / (60 * 9) < 0.6  # half of the visits are below 60; a ring would hold none of them


@pytest.mark.parametrize("policy", ["ring", "balanced"])
def test_shares_shrink_when_a_class_appears(policy: str) -> None:
    walk = Walk(Memory(8, policy))
    for step in range(10):
        walk.step(rows(step * BATCH, classes=2))
    assert torch.bincount(walk.memory.rows().targets).tolist() == [4, 4]
    for step in range(10, 30):
        walk.step(rows(step * BATCH, classes=4))
    assert torch.bincount(walk.memory.rows().targets).tolist() == [2, 2, 2, 2]


def test_more_classes_than_slots_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"a memory of 2 samples cannot hold one of each of 3 classes. Raise capacity"):
        Walk(Memory(2, "ring")).step(rows(0))


@pytest.mark.parametrize("policy", ["reservoir", "ring", "balanced", "greedy"])
@pytest.mark.parametrize("stop", [1, 2, 7, 31, 32, 33, 50])
def test_resumed_at_any_step_it_is_the_same(policy: str, stop: int) -> None:
    whole = walked(policy, 60)
    part = walked(policy, stop)
    buffer = io.BytesIO()
    torch.save(part.memory.state_dict(), buffer)
    buffer.seek(0)
    memory = Memory(10, policy)
    memory.load_state_dict(torch.load(buffer, weights_only=True))
    resumed = Walk(memory)
    resumed.position.step = stop
    for step in range(stop, 60):
        resumed.step(rows(step * BATCH))
    assert resumed.drawn == whole.drawn[stop:]
    assert torch.equal(resumed.memory.rows().ids, whole.memory.rows().ids)
    assert torch.equal(resumed.memory.rows().items, whole.memory.rows().items)
    assert resumed.memory.seen == whole.memory.seen
    lost = Memory(10, policy)
    lost.load_state_dict({**part.memory.state_dict(), "seen": 0})
    if policy == "reservoir" and stop < 50:
        forgetful = Walk(lost)
        forgetful.position.step = stop
        for step in range(stop, 60):
            forgetful.step(rows(step * BATCH))
        assert not torch.equal(forgetful.memory.rows().ids, whole.memory.rows().ids)


def test_batches_of_changing_size_do_not_depend_on_looking_ahead() -> None:
    sizes = [4, 4, 1, 4, 3, 4, 4, 4, 2, 4] * 6

    def walk_from(memory: Memory, start: int) -> Walk:
        walk = Walk(memory)
        walk.position.step = start
        for step in range(start, len(sizes)):
            walk.step(rows(sum(sizes[:step]), sizes[step]))
        return walk

    whole = walk_from(Memory(10), 0)
    for stop in (3, 17, 40):
        part = Walk(Memory(10))
        for step in range(stop):
            part.step(rows(sum(sizes[:step]), sizes[step]))
        fresh = Memory(10)
        fresh.load_state_dict(part.memory.state_dict())
        assert walk_from(fresh, stop).drawn == whole.drawn[stop:]


def test_a_memory_filled_between_events_is_drawn_from_for_a_block_of_steps_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []

    def floyd(uniforms: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        counted.append(len(sizes))
        return slots.floyd(uniforms, sizes)

    monkeypatch.setattr(memory, "floyd", floyd)
    walk = Walk(Memory(100))
    walk.memory.add(rows(0, 40), walk.inserting)  # as A-GEM does when a task ends
    for walk.position.step in range(BLOCK):
        walk.memory.sample(walk.draw, walk.sampling)
    assert counted == [BLOCK]
    counted.clear()
    for walk.position.step in range(BLOCK, 2 * BLOCK):
        walk.memory.sample(walk.draw, walk.sampling)
        if walk.position.step == BLOCK + 20:
            walk.memory.add(rows(40), walk.inserting)
    assert counted == [BLOCK] + [1] * 11  # the control: from the step after which nobody expected it to grow


def test_a_sample_is_stored_once_however_many_views_it_has() -> None:
    single = rows(0, 3)
    index = torch.tensor([0, 0, 1, 2, 2])
    views = Batch(
        single.items[index], single.targets[index], single.ids[index], single.task_of_row[index], group=torch.tensor([5, 5, 6, 9, 9])
    )
    walk = Walk(Memory(10))
    walk.step(views)
    assert walk.memory.ids.tolist() == [0, 1, 2]
    assert walk.memory.seen == 3


@pytest.mark.parametrize("policy", ["reservoir", "ring", "balanced", "greedy"])
def test_forget_leaves_no_byte(policy: str) -> None:
    walk = Walk(Memory(12, policy))
    canary = torch.tensor([[[[0xC4, 0x17], [0x9E, 0x3B]]]], dtype=torch.uint8)
    planted = rows(0)
    planted.items = canary.expand(BATCH, 1, 2, 2).contiguous()
    walk.step(planted)
    for step in range(1, 3):
        walk.step(rows(step * BATCH))

    def saved() -> bytes:
        buffer = io.BytesIO()
        torch.save(walk.memory.state_dict(), buffer)
        storage = b"".join(column.numpy().tobytes() for column in walk.memory._columns.values())
        return buffer.getvalue() + storage

    assert bytes(canary.flatten().tolist()) in saved()
    walk.memory.forget(torch.arange(BATCH), walk.inserting)
    assert bytes(canary.flatten().tolist()) not in saved()
    assert sorted(walk.memory.ids.tolist()) == list(range(BATCH, 3 * BATCH))
    before = sorted(walk.memory.ids.tolist())
    walk.memory.forget(torch.tensor([999]), walk.inserting)
    assert sorted(walk.memory.ids.tolist()) == before


@pytest.mark.slow
def test_after_a_forget_what_is_stored_stays_a_uniform_sample() -> None:
    """Task 0 (100 visits) is forgotten, task 1 goes on: its visits before and after are stored equally often."""
    trials, capacity, batch = 300, 48, 20
    counts = torch.zeros(300)
    for seed in range(trials):
        walk = Walk(Memory(capacity), seed)
        for step in range(8):
            walk.step(rows(step * batch, batch))
        walk.memory.forget(torch.arange(100), walk.inserting)
        for step in range(8, 15):
            walk.step(rows(step * batch, batch))
        counts[walk.memory.ids] += 1
    assert int(counts[:100].sum()) == 0
    early, late = counts[100:160].mean(), counts[160:300].mean()
    assert abs(float(early / late) - 1) < 0.05


def test_capacity_zero_stores_nothing() -> None:
    walk = Walk(Memory(0))
    walk.step(rows(0))
    assert len(walk.memory) == 0
    assert walk.memory.sample(3, walk.sampling) is None
    assert walk.memory.seen == 0


def test_items_that_are_mappings() -> None:
    batch = rows(0)
    batch.items = {"tokens": torch.arange(8).view(4, 2), "mask": torch.ones(4, 2, dtype=torch.bool)}
    walk = Walk(Memory(10))
    walk.step(batch)
    items = walk.memory.rows().items
    assert isinstance(items, dict)
    assert torch.equal(items["tokens"], torch.arange(8).view(4, 2))
    assert items["mask"].dtype == torch.bool


def test_a_large_memory_is_not_allocated_at_once() -> None:
    walk = Walk(Memory(1_000_000))
    walk.step(rows(0))
    assert walk.memory._allocated() == 1024


@pytest.mark.parametrize(
    ("capacity", "policy", "text"), [(-1, "reservoir", "capacity must be >= 0, got -1"), (5, "rng", "policy must be one of")]
)
def test_bad_arguments(capacity: int, policy: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Memory(capacity, policy)
