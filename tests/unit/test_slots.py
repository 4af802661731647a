"""The index maths of memories, beside brute-force definitions."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_framework.slots import floyd, last_wins, rank_within, reservoir_slots


def chi_squared(counts: torch.Tensor, expected: float) -> float:
    return float(((counts.double() - expected) ** 2 / expected).sum())


def test_floyd_gives_distinct_numbers_below_the_size() -> None:
    sizes = torch.tensor([5, 6, 100, 10**6])
    chosen = floyd(torch.rand(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), sizes)
    for row, size in zip(chosen, sizes, strict=True):
        assert len(set(row.tolist())) == 5
        assert 0 <= int(row.min()) <= int(row.max()) < size
    assert sorted(chosen[0].tolist()) == [0, 1, 2, 3, 4]


def test_floyd_is_uniform_over_sets() -> None:
    draws = 30_000
    uniforms = torch.rand(draws, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    chosen = floyd(uniforms, torch.full((draws,), 6)).sort(1).values
    sets = list(itertools.combinations(range(6), 3))
    counts = torch.tensor([int((chosen == torch.tensor(one)).all(1).sum()) for one in sets])
    assert int(counts.sum()) == draws
    assert chi_squared(counts, draws / len(sets)) < 43.8  # 99.9 % quantile at 19 degrees of freedom
    biased = floyd(uniforms**2, torch.full((draws,), 6)).sort(1).values
    skewed = torch.tensor([int((biased == torch.tensor(one)).all(1).sum()) for one in sets])
    assert chi_squared(skewed, draws / len(sets)) > 43.8


def test_a_row_of_floyd_depends_on_that_row_alone() -> None:
    uniforms = torch.rand(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    sizes = torch.arange(8) + 4
    whole = floyd(uniforms, sizes)
    for row in range(8):
        assert torch.equal(whole[row], floyd(uniforms[row : row + 1], sizes[row : row + 1])[0])
    assert not torch.equal(whole[5], floyd(uniforms[5:6], sizes[6:7])[0])


def brute_reservoir(uniforms: torch.Tensor, first: int, capacity: int) -> dict[int, int]:
    """Algorithm R, one visit after another: which entry each slot ends with."""
    slots: dict[int, int] = {}
    for entry, uniform in enumerate(uniforms.tolist()):
        visit = first + entry
        slot = visit if visit < capacity else int(uniform * (visit + 1))
        if slot < capacity:
            slots[slot] = entry
    return slots


@settings(max_examples=60, deadline=None)
@given(first=st.integers(0, 40), capacity=st.integers(1, 20), count=st.integers(1, 12), seed=st.integers(0, 1000))
def test_reservoir_slots_are_those_of_algorithm_r(first: int, capacity: int, count: int, seed: int) -> None:
    uniforms = torch.rand(1, count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    slots = reservoir_slots(uniforms, torch.tensor([first]), capacity)[0]
    assert {int(slot): entry for entry, slot in enumerate(slots.tolist()) if slot >= 0} == brute_reservoir(uniforms[0], first, capacity)


def test_the_last_of_a_row_wins_a_slot() -> None:
    slots = torch.tensor([[3, 1, 3, -1, 1], [0, 1, 2, 3, 4]])
    assert last_wins(slots).tolist() == [[-1, -1, 3, -1, 1], [0, 1, 2, 3, 4]]


def test_rank_within() -> None:
    assert rank_within(torch.tensor([7, 2, 7, 7, 2])).tolist() == [0, 0, 1, 2, 1]
