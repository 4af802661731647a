"""Greedy class balance: against algorithm 1 of GDumb written out, and what it promises: full, balanced to within one, at random."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor

from cl_framework import ConfigurationError, Memory
from cl_framework.context import PositionedRandom
from cl_framework.greedy import tallest
from cl_framework.rng import RandomStream
from cl_framework.strategy import Position, Rows
from cl_framework.stream import Learn


class Filling:
    """A memory that is shown batches of labels; ids count up, items hold the id."""

    def __init__(self, capacity: int, policy: str = "greedy", seed: int = 0) -> None:
        self.memory = Memory(capacity, policy)
        self.position = Position(Learn(0))
        self.random = PositionedRandom(RandomStream(seed, "insert"), self.position)
        self.shown = 0

    def show(self, labels: Iterable[int]) -> None:
        targets = torch.tensor(list(labels))
        ids = torch.arange(self.shown, self.shown + len(targets))
        self.memory.add(Rows(ids[:, None].int(), targets, ids, torch.zeros_like(ids)), self.random)
        self.shown += len(targets)
        self.position.step += 1

    def counts(self) -> dict[int, int]:
        return dict(Counter(self.memory.rows().targets.tolist())) if len(self.memory) else {}


def visited(capacity: int, counts: dict[int, int], label: int, largest: Callable[[dict[int, int]], int]) -> dict[int, int]:
    """The algorithm's counts by class after one visit; `largest` picks which of the largest classes gives a sample up."""
    counts = dict(counts)
    if counts.get(label, 0) < capacity / len(set(counts) | {label}):
        if sum(counts.values()) >= capacity:
            counts[largest(counts)] -= 1
        counts[label] = counts.get(label, 0) + 1
    return counts


def labels_of(kind: str, generator: torch.Generator) -> list[int]:
    """Visits of five classes: one after another, mixed, or one class rare."""
    if kind == "tasks":
        return [label for label in range(5) for _ in range(30)]
    weights = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.05 if kind == "rare" else 1.0])
    return torch.multinomial(weights, 150, replacement=True, generator=generator).tolist()


@pytest.mark.parametrize("kind", ["tasks", "mixed", "rare"])
@pytest.mark.parametrize("capacity", [5, 20, 23, 200])
def test_visit_by_visit_it_is_the_algorithm(kind: str, capacity: int) -> None:
    filling, counts, gave_up = Filling(capacity), dict[int, int](), 0

    def as_it_did(before: dict[int, int]) -> int:
        """The class that the memory took a sample from, if it is one of the largest: among those chance decides."""
        most = [label for label, count in before.items() if count == max(before.values())]
        return next((label for label in most if filling.counts()[label] < before[label]), most[0])

    for number, label in enumerate(labels_of(kind, torch.Generator().manual_seed(capacity))):
        full = len(filling.memory) == capacity
        filling.show([label])
        after = visited(capacity, counts, label, as_it_did)
        gave_up += full and after != counts
        counts = after
        assert filling.counts() == counts, f"visit {number}"
    assert filling.shown == 150 and (kind != "tasks" or (gave_up > 3) == (capacity < 150))


@pytest.mark.parametrize("batch", [1, 7, 32])
@pytest.mark.parametrize(("capacity", "classes"), [(20, 5), (23, 5), (50, 7), (7, 7), (100, 3)])
def test_it_is_full_and_balanced_to_within_one_once_enough_was_seen(batch: int, capacity: int, classes: int) -> None:
    filling = Filling(capacity)
    for label in range(classes):  # one class after another, as tasks are
        for start in range(0, 120, batch):
            filling.show([label] * min(batch, 120 - start))
            assert len(filling.memory) == min(capacity, filling.shown)
    counts = filling.counts()
    assert len(counts) == classes and sum(counts.values()) == capacity
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len(set(filling.memory.ids.tolist())) == capacity
    stored = filling.memory.rows()
    assert torch.equal(stored.items[:, 0].long(), stored.ids) and torch.equal(stored.targets, stored.ids // 120)


def test_shares_are_not_greedy() -> None:
    """Why it is a policy of its own: with shares a class that appears empties slots at once, and a rare one leaves them empty."""
    greedy, shares = Filling(20), Filling(20, "balanced")
    for filling in (greedy, shares):
        filling.show([0] * 30)
        filling.show([1])
    assert greedy.counts() == {0: 19, 1: 1} and shares.counts() == {0: 10, 1: 1}


def test_a_batch_larger_than_the_memory_is_balanced_too() -> None:
    filling = Filling(10)
    filling.show([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2])
    assert sorted(filling.counts().values()) == [3, 3, 4]


@pytest.mark.slow
def test_which_samples_are_given_up_is_left_to_chance() -> None:
    """Of the ten first samples of a class five stay: every one equally often (chi-squared, 9 degrees of freedom, 99.9 %)."""

    def chi_square(counts: Tensor) -> float:
        expected = counts.double().mean()
        return float(((counts - expected) ** 2 / (expected * 0.5)).sum())

    trials = 400
    counts = torch.zeros(20)
    for seed in range(trials):
        filling = Filling(10, seed=seed)
        for label in (0, 1):
            for _ in range(5):
                filling.show([label] * 2)
        counts[filling.memory.ids] += 1
    assert int(counts[:10].sum()) == 5 * trials and chi_square(counts[:10]) < 27.9
    assert chi_square(counts) > 27.9, "of the second class the first five visits stay: no uniform sample"


def test_tallest_takes_from_the_highest_piles_and_spares_their_bottom() -> None:
    labels = torch.tensor([1, 2, 0, 0, 0, 0, 1, 1, 2])
    swept = set()
    for seed in range(40):
        taken = tallest(labels, 2, 2, torch.Generator().manual_seed(seed)).tolist()
        gone = sorted(labels[taken].tolist())
        assert gone == [0, 0], "class 1 is as tall when one of 0 is gone, but one of its samples is spared"
        swept.add(tuple(sorted(taken)))
    assert len(swept) == 6, "every pair of the four"
    assert sorted(labels[tallest(labels, 2, 7, torch.Generator())].tolist()) == [0, 0, 0, 0, 1, 1, 2]


def test_after_a_forget_it_fills_up_again_and_stays_balanced() -> None:
    filling = Filling(30)
    for label in range(3):
        for _ in range(8):
            filling.show([label] * 5)
    assert filling.counts() == {0: 10, 1: 10, 2: 10}
    gone = filling.memory.rows()
    filling.memory.forget(gone.ids[gone.targets == 1], filling.random)
    assert filling.counts() == {0: 10, 2: 10}
    state = filling.memory.state_dict()
    assert sorted(set(state["shares"]["labels"].tolist())) == [0, 2]
    for _ in range(8):
        filling.show([3, 0, 2])
    assert filling.counts() == {0: 10, 2: 10, 3: 8}
    for _ in range(8):
        filling.show([3, 0, 2])
    assert filling.counts() == {0: 10, 2: 10, 3: 10}


def test_more_classes_than_samples_are_refused() -> None:
    filling = Filling(3)
    filling.show([0, 1, 2])
    with pytest.raises(ConfigurationError, match=r"a memory of 3 samples cannot hold one of each of 4 classes\. Raise capacity"):
        filling.show([7])
