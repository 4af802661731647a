"""Greedy class balance of a memory's slots (GDumb, Prabhu et al. 2020, algorithm 1): the first n of them are filled, without gaps.

A class that holds less than capacity / classes takes a visit; a memory that is full gives up a random sample of its largest class for
it. So a memory stays full when a class appears, and is balanced to within one sample once every class was seen often enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cl_framework.errors import ConfigurationError
from cl_framework.slots import rank_within
from cl_framework.strategy import StepRandom


class GreedyBalance:
    """Decides slots; holds no samples. The visits of a batch count as made at once."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._labels = torch.empty(0, dtype=torch.int64)  # (N,) of the sample in each filled slot; a class seen always holds one

    @property
    def filled(self) -> int:
        return self._labels.shape[0]

    def places(self, positions: Tensor) -> Tensor:
        """The slots of the n-th filled slots."""
        return positions

    def admit(self, targets: Tensor, random: StepRandom) -> None:
        """Refuse a class for which there is no slot; the others make room as its visits come."""
        classes = len(torch.cat([self._labels, targets]).unique())
        if classes > self.capacity:
            raise ConfigurationError(
                f"a memory of {self.capacity} samples cannot hold one of each of {classes} classes. Raise capacity or use policy=reservoir."
            )

    def slots(self, targets: Tensor, random: StepRandom) -> Tensor:
        """The slot that each visit of (B,) takes, -1 for none."""
        slots = torch.full_like(targets, -1)
        taken = self._below_quota(targets).nonzero().flatten()
        if not len(taken):
            return slots
        labels = torch.cat([targets[taken], self._labels])  # the visits first, then what is stored
        excess = len(labels) - self.capacity
        given_up = torch.zeros(len(labels), dtype=torch.bool)
        if excess > 0:
            given_up[tallest(labels, len(taken), excess, random.at_step())] = True
        entering = taken[~given_up[: len(taken)]]
        freed = given_up[len(taken) :].nonzero().flatten()
        free = torch.cat([freed, torch.arange(self.filled, self.capacity)])[: len(entering)]
        slots[entering] = free
        grown = torch.cat([self._labels, self._labels.new_zeros(max(0, len(entering) - len(freed)))])
        self._labels = grown.index_copy(0, free, targets[entering])
        return slots

    def _below_quota(self, targets: Tensor) -> Tensor:
        """Which visits of (B,) find their class below its quota: it holds less than capacity / classes."""
        size = 1 + int(torch.cat([self._labels, targets]).max())
        held, visits = torch.bincount(self._labels, minlength=size), torch.bincount(targets, minlength=size)
        classes = int((held + visits > 0).sum())
        return (held[targets] + rank_within(targets)) * classes < self.capacity

    def refill(self, slots: Tensor) -> Tensor:
        """After a forget: `slots` (N,) hold the samples that stay; returns the slots they go to."""
        self._labels = self._labels[slots]
        return torch.arange(len(slots))

    def state_dict(self) -> dict[str, Any]:
        return {"labels": self._labels}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._labels = state["labels"].cpu()


def tallest(labels: Tensor, spared: int, count: int, generator: torch.Generator) -> Tensor:
    """Pile the samples of each class up in random order, the first `spared` of (N,) at the bottom: the `count` topmost.

    To take them away is to take a random sample of the largest class away, `count` times. Among equally tall piles those without a
    spared sample come first: a visit never takes the place of its own class while another is as large.
    """
    chance = torch.rand(len(labels), dtype=torch.float64, generator=generator)
    lower = chance.clone()
    lower[:spared] -= 1
    order = lower.argsort()
    order = order[labels[order].argsort(stable=True)]  # by class, and within it from the bottom up
    _, sizes = labels[order].unique_consecutive(return_counts=True)
    height = torch.empty_like(labels)
    height[order] = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    others = ~torch.isin(labels, labels[:spared])
    return (height + (others + chance) / 2).topk(count).indices
