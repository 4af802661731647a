"""Prompts and padding of questions count in no term: what others hold the model to is asked where the loss of the task asks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cl_framework import mean_asked, squared_distance
from cl_framework.criterion import IGNORED
from strategies.lwf import distillation
from strategies.view_batch import consistency

GENERATOR = torch.Generator().manual_seed(5)
LOGITS, TOLD = torch.randn(2, 4, 5, 6, generator=GENERATOR)  # four rows, five classes, six places
ASKED = torch.tensor([[0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 0]], dtype=torch.bool)
TARGETS = torch.randint(5, (4, 6), generator=GENERATOR).masked_fill(~ASKED, IGNORED)
GROUP = torch.tensor([0, 0, 1, 1])


def held_by_lwf(logits: Tensor, told: Tensor, targets: Tensor) -> float:
    return float(distillation(logits, told, 2.0, targets))


def held_by_der(logits: Tensor, told: Tensor, targets: Tensor) -> float:
    return float(squared_distance(logits, told, targets))


def held_by_views(logits: Tensor, told: Tensor, targets: Tensor) -> float:
    return float(consistency([(logits, GROUP, targets)]))


def at_a_place(of: Any, row: int, place: int) -> float:
    """The term of one row's logits (1, C) at one place; of views, of a row and its teacher."""
    if of is held_by_views:
        pair, group = LOGITS[[row // 2 * 2, row], :, place], torch.zeros(2, dtype=torch.int64)
        return float(consistency([(pair, group)])) if row % 2 else 0.0
    one, other = LOGITS[row : row + 1, :, place], TOLD[row : row + 1, :, place]
    return float(distillation(one, other, 2.0)) if of is held_by_lwf else float(functional.mse_loss(one, other))


@pytest.mark.parametrize("of", [held_by_lwf, held_by_der, held_by_views])
def test_a_term_of_questions_is_the_mean_over_the_places_that_ask(of: Any) -> None:
    rows = [[at_a_place(of, row, place) for place in range(6) if ASKED[row, place]] for row in range(4)]
    means = [sum(values) / len(values) for values in rows]
    expected = sum(means) / (2 if of is held_by_views else 4)  # of views two rows are teachers
    assert of(LOGITS, TOLD, TARGETS) == pytest.approx(expected, rel=1e-5)
    everywhere = torch.zeros_like(TARGETS)
    assert of(LOGITS, TOLD, everywhere) != pytest.approx(expected, rel=1e-2)  # the control: with prompt and padding


@pytest.mark.parametrize("of", [held_by_lwf, held_by_der, held_by_views])
def test_what_stands_where_nothing_is_asked_does_not_count(of: Any) -> None:
    other = torch.where(ASKED.unsqueeze(1), LOGITS, LOGITS + 3 * torch.arange(5.0).view(1, 5, 1) * torch.arange(4.0).view(4, 1, 1))
    assert of(other, TOLD, TARGETS) == of(LOGITS, TOLD, TARGETS)
    assert of(other, TOLD, torch.zeros_like(TARGETS)) != pytest.approx(of(LOGITS, TOLD, torch.zeros_like(TARGETS)))
    longer = [functional.pad(values, (0, 2), value=7.0) for values in (LOGITS, TOLD)]
    assert of(*longer, functional.pad(TARGETS, (0, 2), value=IGNORED)) == pytest.approx(of(LOGITS, TOLD, TARGETS), rel=1e-6)


def test_means_of_rows() -> None:
    values = torch.tensor([[1.0, 2.0, 6.0], [4.0, 5.0, 9.0]])
    targets = torch.tensor([[3, IGNORED, 0], [IGNORED, IGNORED, IGNORED]])
    assert mean_asked(values, targets).tolist() == [3.5, 0.0]
    assert torch.equal(mean_asked(values[0], targets[0]), values[0])
