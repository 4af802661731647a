"""Memories against brute-force definitions through new classes and forgets; looking ahead; a cost that does not grow."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cl_framework import memory as memory_module
from cl_framework.context import PositionedRandom
from cl_framework.memory import POLICIES, Memory
from cl_framework.rng import BLOCK, RandomStream
from cl_framework.slots import floyd
from cl_framework.strategy import Batch, Position
from cl_framework.stream import Learn
from cl_framework.testing.laboratory import first_difference


class Desk:
    """A position and its random streams by name, as a context gives them."""

    def __init__(self, seed: int = 0) -> None:
        self.position = Position(Learn(0))
        self._seed = seed
        self._streams: dict[str, PositionedRandom] = {}

    def __getitem__(self, purpose: str) -> PositionedRandom:
        if purpose not in self._streams:
            self._streams[purpose] = PositionedRandom(RandomStream(self._seed, purpose), self.position)
        return self._streams[purpose]

    def steps(self, first: int, last: int) -> Iterator[int]:
        for step in range(first, last):
            self.position.step = step
            yield step


def batch_of(ids: list[int] | Tensor, labels: list[int] | Tensor | int = 0, task: int = 0, **fields: Any) -> Batch:
    """Rows whose item is their id, repeated."""
    ids = torch.as_tensor(ids)
    targets = torch.full_like(ids, labels) if isinstance(labels, int) else torch.as_tensor(labels)
    return Batch(ids[:, None].repeat(1, 3).int(), targets, ids, torch.full_like(ids, task), **fields)


def visit(memory: Memory, desk: Desk, first: int, last: int, size: int = 5, task: int = 0, step: int = 0) -> int:
    """Show the ids first .. last - 1 in batches; returns the next step."""
    for start in range(first, last, size):
        desk.position.step = step
        memory.add(batch_of(list(range(start, min(start + size, last))), task=task), desk["insert"])
        step += 1
    return step


def chi_square(counts: Tensor, trials: int) -> float:
    """How far inclusion counts (N,) lie from one common probability; chi-squared with N - 1 degrees of freedom if it is common."""
    share = float(counts.double().mean()) / trials
    return float(((counts - share * trials) ** 2).sum() / (trials * share * (1 - share)))


def inclusion(trials: int, ids: range, fill: Callable[[Desk], Memory]) -> Tensor:
    """How often each id is in the memory that `fill` gives, (N,)."""
    counts = torch.zeros(ids.stop, dtype=torch.int64)
    for seed in range(trials):
        counts[fill(Desk(seed)).ids] += 1
    return counts[ids.start :]


# --- floyd ---


def test_floyd_resolves_chains_of_picks_that_are_taken() -> None:
    # Columns 0 and 1 pick 2, so column 1 takes 5; column 2 picks 5, takes 6; column 3 picks 6, takes 7.
    picks, size = [2, 2, 5, 6], 8
    uniforms = torch.tensor([[(pick + 0.5) / (size - 4 + column + 1) for column, pick in enumerate(picks)]], dtype=torch.float64)
    assert floyd(uniforms, torch.tensor([size])).tolist() == [[2, 5, 6, 7]]


# --- reservoir ---


def test_every_visit_is_in_a_reservoir_with_equal_probability() -> None:
    def fill(desk: Desk, policy: str) -> Memory:
        memory = Memory(10, policy)
        visit(memory, desk, 0, 60, size=7)
        return memory

    assert chi_square(inclusion(400, range(60), lambda desk: fill(desk, "reservoir")), 400) < 98.3  # 99.9 %, 59 degrees of freedom
    assert chi_square(inclusion(20, range(60), lambda desk: fill(desk, "ring")), 20) > 98.3


@pytest.mark.slow
def test_after_a_forget_old_and_new_visits_stay_equally_probable() -> None:
    def fill(desk: Desk, *, counter: bool) -> Memory:
        memory = Memory(12)
        step = visit(memory, desk, 100, 150, task=1, step=visit(memory, desk, 0, 50))
        memory.forget(torch.arange(100, 150), desk["forget"])
        if not counter:  # what is known to go wrong: the survivors as if they were all that was ever seen
            survivors, memory = memory.rows(), Memory(12)
            memory.add(survivors, desk["again"])
        visit(memory, desk, 50, 100, task=2, step=step)
        return memory

    counts = inclusion(300, range(100), lambda desk: fill(desk, counter=True))
    assert chi_square(counts, 300) < 148.2  # 99.9 %, 99 degrees of freedom
    assert float(counts.sum()) / 300 == pytest.approx(12, abs=0.5), "the freed slots are not filled again"
    assert chi_square(inclusion(200, range(100), lambda desk: fill(desk, counter=False)), 200) > 148.2


def test_a_memory_that_forgets_every_visit_fills_as_a_new_one() -> None:
    desk, memory = Desk(), Memory(10)
    step = visit(memory, desk, 0, 400)
    memory.forget(torch.arange(400), desk["forget"])
    assert len(memory) == memory.seen == 0
    visit(memory, desk, 400, 410, step=step)
    assert sorted(memory.ids.tolist()) == list(range(400, 410))


# --- shares ---


class RingByDefinition:
    """Each class seen has capacity // classes places and keeps its newest visits."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.classes: dict[int, list[int]] = {}

    def add(self, ids: list[int], labels: list[int]) -> None:
        for label in labels:
            self.classes.setdefault(label, [])
        for sample, label in zip(ids, labels, strict=True):
            self.classes[label].append(sample)
        self.trim()

    def trim(self) -> None:
        quota = self.capacity // max(1, len(self.classes))
        self.classes = {label: held[-quota:] for label, held in self.classes.items()}

    def forget(self, gone: set[int]) -> None:
        kept = {label: [sample for sample in held if sample not in gone] for label, held in self.classes.items()}
        self.classes = {label: held for label, held in kept.items() if held}

    @property
    def ids(self) -> list[int]:
        return sorted(sample for held in self.classes.values() for sample in held)


@pytest.mark.parametrize("seed", range(4))
def test_a_ring_follows_its_definition_through_new_classes_and_forgets(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    desk, ring, definition = Desk(), Memory(30, "ring"), RingByDefinition(30)
    for step in desk.steps(0, 60):
        ids = list(range(step * 6, step * 6 + 6))
        labels = torch.randint(1 + step // 12, (6,), generator=generator).tolist()
        ring.add(batch_of(ids, labels), desk["insert"])
        definition.add(ids, labels)
        if step in (20, 33, 47):
            gone = ring.ids[torch.randperm(len(ring), generator=generator)[:7]] if step != 33 else ring.ids[ring.rows().targets == 1]
            ring.forget(gone, desk["forget"])
            definition.forget(set(gone.tolist()))
        assert sorted(ring.ids.tolist()) == definition.ids, f"step {step}"


@pytest.mark.slow
@pytest.mark.parametrize("new_class", [False, True])
def test_a_balanced_memory_is_uniform_within_a_class(new_class: bool) -> None:
    def fill(desk: Desk) -> Memory:
        memory = Memory(12, "balanced")
        for step in desk.steps(0, 20):
            other = 1000 + step if not new_class or step >= 8 else 900  # id 900 is of class 0: class 1 appears later
            ids = torch.tensor([3 * step, 3 * step + 1, 3 * step + 2, other])
            memory.add(batch_of(ids[: 3 if other == 900 else 4], [0, 0, 0, 1][: 3 if other == 900 else 4]), desk["insert"])
        return memory

    counts = inclusion(200, range(1100), fill)[:60]
    assert int(counts.sum()) == 200 * 6
    assert chi_square(counts, 200) < 98.3
    assert chi_square(counts + 30 * (torch.arange(60) > 54), 200) > 98.3


@pytest.mark.slow
def test_a_forget_leaves_the_chances_of_other_classes_as_they_were() -> None:
    def stored(desk: Desk, forgets: bool) -> bool:
        memory = Memory(8, "balanced")
        for step in desk.steps(0, 41):
            if step == 40 and forgets:
                memory.forget(memory.ids[memory.ids >= 1000][:1], desk["forget"])
            memory.add(batch_of([step, 1000 + step], [0, 1]), desk["insert"])
        return 40 in memory.ids.tolist()

    seeds = range(80)
    assert [stored(Desk(seed), True) for seed in seeds] == [stored(Desk(seed), False) for seed in seeds]
    assert 1 <= sum(stored(Desk(seed), True) for seed in seeds) <= 20  # 80 * 4 / 41 = 8


# --- looking ahead is only a cache ---


def one_step(memory: Memory, desk: Desk, step: int) -> list[list[int]]:
    """Draw from two streams, then store; every ninth batch is smaller. Returns the ids drawn."""
    desk.position.step = step
    drawn = [memory.sample(6, desk[name]) for name in ("logits", "labels")]
    size = 4 if step % 9 == 8 else 7
    ids = torch.arange(size) + 10 * step
    memory.add(batch_of(ids, ids % (2 + step // 30), task=step // 40), desk["insert"], logits=ids[:, None].double())
    return [[] if rows is None else rows.ids.tolist() for rows in drawn]


@pytest.mark.parametrize("capacity", [40, 10_000])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_memory_resumed_at_any_step_goes_on_alike(policy: str, capacity: int) -> None:
    desk, memory = Desk(), Memory(capacity, policy)
    states, drawn = [], []
    for step in range(100):
        states.append(copy.deepcopy(memory.state_dict()))
        drawn.append(one_step(memory, desk, step))
        if step == 70:
            memory.forget(memory.ids[:5], desk["forget"])
    states.append(memory.state_dict())
    differing = 0
    for step in (*range(70), *range(71, 100)):
        resumed = Memory(capacity, policy)
        resumed.load_state_dict(copy.deepcopy(states[step]))
        assert one_step(resumed, Desk(), step) == drawn[step], f"step {step}"
        assert step == 70 or first_difference(resumed.state_dict(), states[step + 1]) is None, f"step {step}"
        resumed.load_state_dict(copy.deepcopy(states[step]))
        differing += one_step(resumed, Desk(seed=1), step) != drawn[step]
    assert differing > 90, "another seed must draw other samples"


def test_streams_that_follow_one_another_are_never_confused() -> None:
    desk, memory = Desk(), Memory(100)
    visit(memory, desk, 0, 100)
    position = Position(Learn(0), step=3)
    for number in range(60):  # each stream is dropped before the next is made, as at the end of a phase
        stream = RandomStream("phase", number)
        rows = memory.sample(5, PositionedRandom(stream, position))
        assert rows is not None
        assert rows.ids.tolist() == memory.ids[floyd(stream.uniform(3, 5)[None], torch.tensor([100]))[0]].tolist()


def test_a_state_given_out_does_not_move() -> None:
    desk, memory = Desk(), Memory(20)
    visit(memory, desk, 0, 60)
    state = memory.state_dict()
    before = copy.deepcopy(state)
    memory.forget(memory.ids[:4], desk["forget"])
    visit(memory, desk, 60, 90, step=20)
    assert first_difference(state, before) is None
    assert first_difference(memory.state_dict(), before) is not None


def test_another_memory_loads_only_what_is_filled() -> None:
    desk, memory = Desk(), Memory(100_000)
    visit(memory, desk, 0, 50)
    state = memory.state_dict()
    assert all(column.shape[0] == 50 and column.untyped_storage().nbytes() == column.nbytes for column in state["columns"].values())


# --- forgetting ---


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_of_a_forgotten_sample_is_left(policy: str) -> None:
    def bytes_of(state: Any) -> bytes:
        if isinstance(state, Tensor):
            return state.contiguous().numpy().tobytes()
        values = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
        return b"".join(map(bytes_of, values))

    desk, memory = Desk(), Memory(64, policy)
    ids = torch.arange(48) + 0x5A5A00
    memory.add(batch_of(ids, ids % 3), desk["insert"], logits=ids[:, None].double().sqrt())
    storage = list(memory._columns.values())
    gone, kept = ids[::4], ids[1]
    canaries = [value.numpy().tobytes() for sample in gone for value in (sample, sample.int(), sample.double().sqrt())]
    assert all(canary in bytes_of(memory.state_dict()) for canary in canaries)
    memory.forget(gone, desk["forget"])
    left = bytes_of(memory.state_dict())
    assert not [canary for canary in canaries if canary in left] and kept.numpy().tobytes() in left
    assert sorted(memory.ids.tolist()) == sorted(set(ids.tolist()) - set(gone.tolist()))
    assert torch.equal(memory.rows().extras["logits"][:, 0], memory.ids.double().sqrt())
    assert not any(bool(column.any()) for column in storage), "the memory that was freed still holds the samples"


def test_forgetting_what_is_not_there_changes_nothing() -> None:
    desk, memory = Desk(), Memory(10)
    visit(memory, desk, 0, 30)
    before = copy.deepcopy(memory.state_dict())
    memory.forget(torch.tensor([1000, 1001]), desk["forget"])
    assert first_difference(memory.state_dict(), before) is None


# --- cost ---


class Sizes(TorchDispatchMode):
    """Notes how many numbers each operation makes; what is written in place makes none."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        views = func.is_view or func._schema.is_mutable
        self.made.extend(0 if views else value.numel() for value in [result] if isinstance(value, Tensor))
        return result


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Notes for how many rows `floyd` is asked, call by call."""
    calls: list[int] = []

    def counting(uniforms: Tensor, sizes: Tensor) -> Tensor:
        calls.append(len(sizes))
        return floyd(uniforms, sizes)

    with monkeypatch.context() as patch:
        patch.setattr(memory_module, "floyd", counting)
        yield calls


def test_what_a_step_makes_does_not_grow_with_the_capacity() -> None:
    def numbers_made(capacity: int, sample: int) -> list[int]:
        desk, memory = Desk(), Memory(capacity)
        visit(memory, desk, 0, capacity, size=max(10, capacity // 10))
        for _ in desk.steps(96, 97):  # one visit beyond: every step after it follows the rule of a full memory
            memory.add(batch_of([capacity]), desk["insert"])
        with Sizes() as sizes:
            for _ in desk.steps(128, 128 + BLOCK):
                memory.sample(sample, desk["sample"])
        return sizes.made

    assert numbers_made(100, 8) == numbers_made(100_000, 8) != numbers_made(100, 9)


def test_adding_to_a_full_memory_copies_no_storage() -> None:
    desk, memory = Desk(), Memory(50_000)
    visit(memory, desk, 0, 50_000, size=10_000)
    assert memory.state_dict()["seen"] == 50_000  # the visits counted so far are summed up
    with Sizes() as sizes:
        visit(memory, desk, 50_000, 50_640, size=10, step=64)
    assert max(sizes.made) < 50_000
    assert max(sizes.made) >= BLOCK * 10, "the mode saw nothing"


def test_a_short_run_does_not_allocate_a_large_memory() -> None:
    desk, memory = Desk(), Memory(10**6)
    with Sizes() as sizes:
        visit(memory, desk, 0, 50)
    assert max(sizes.made) <= 3 * 1024


@pytest.mark.parametrize("capacity", [50, 10_000])
def test_draws_of_a_block_are_made_at_once_for_each_stream(monkeypatch: pytest.MonkeyPatch, capacity: int) -> None:
    desk, memory = Desk(), Memory(capacity)
    step = visit(memory, desk, 0, 32 * 5)
    with counted(monkeypatch) as calls:
        for now in desk.steps(step, step + 2 * BLOCK):
            for name in ("logits", "labels"):
                memory.sample(6, desk[name])
            memory.add(batch_of(list(range(5 * now, 5 * now + 5))), desk["insert"])
    assert calls == [BLOCK] * 4


def test_a_wrong_guess_costs_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    desk, memory = Desk(), Memory(10_000)
    step = visit(memory, desk, 0, 32 * 5)
    with counted(monkeypatch) as calls:
        for now in desk.steps(step, step + 4):
            memory.sample(6, desk["sample"])
            memory.add(batch_of([now]), desk["insert"])  # one row where five were expected
    assert calls == [BLOCK, 1, 1, 1]
