"""Herding against its definition, and the property that lets exemplars be cut to size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cl_framework import herding


def by_definition(features: Tensor, count: int) -> list[int]:
    """One row after another: the one that brings the mean of the chosen closest to the mean of all."""
    chosen: list[int] = []
    for _ in range(count):
        free = [row for row in range(len(features)) if row not in chosen]
        distances = {row: float((features.mean(0) - features[[*chosen, row]].mean(0)).norm()) for row in free}
        chosen.append(min(distances, key=lambda row: distances[row]))
    return chosen


def made_up(seed: int, rows: int = 12, dimensions: int = 3) -> Tensor:
    return torch.randn(rows, dimensions, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(5))
def test_it_follows_its_definition(seed: int) -> None:
    order = herding(made_up(seed), 12).tolist()
    assert order == by_definition(made_up(seed), 12) and order != list(range(12))
    assert order != herding(made_up(seed + 1), 12).tolist()


def test_the_first_exemplars_do_not_depend_on_how_many_are_chosen() -> None:
    features, swept = made_up(0, rows=30), 0
    order = herding(features, 30)
    for count in range(31):
        assert torch.equal(herding(features, count), order[:count])
        swept += 1
    assert swept == 31 and sorted(order.tolist()) == list(range(30))


def test_a_few_stand_for_all_better_than_as_many_at_random() -> None:
    features, better = made_up(1, rows=60, dimensions=8), 0
    mean = features.mean(0)
    herded = float((features[herding(features, 6)].mean(0) - mean).norm())
    for seed in range(20):
        random = torch.randperm(60, generator=torch.Generator().manual_seed(seed))[:6]
        better += herded < float((features[random].mean(0) - mean).norm())
    assert better == 20


def test_there_may_be_fewer_rows_or_none() -> None:
    assert sorted(herding(made_up(2, rows=4), 9).tolist()) == [0, 1, 2, 3]
    for rows, count in ((0, 5), (5, 0)):
        found = herding(made_up(3, rows=rows), count)
        assert found.dtype == torch.int64 and found.shape == (0,)


def test_equal_rows_are_each_chosen_once() -> None:
    assert sorted(herding(torch.ones(5, 3), 5).tolist()) == [0, 1, 2, 3, 4]
