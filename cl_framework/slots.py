"""The index maths of memories: which rows are drawn, which slot a visit takes. Pure functions of uniforms, a row of them a step.

A memory asks for a whole block of steps at once; each row of the result depends on that row of its arguments alone, so that looking
ahead is only a cache.
"""

from __future__ import annotations

import torch
from torch import Tensor


def floyd(uniforms: Tensor, sizes: Tensor) -> Tensor:
    """Sampling without replacement: row s holds k distinct numbers below sizes[s], uniform as sets (Floyd's algorithm).

    uniforms: (S, k) in [0, 1); sizes: (S,) int64, each >= k. The cost does not depend on the sizes.
    """
    count = uniforms.shape[1]
    columns = torch.arange(count)
    last = sizes.unsqueeze(1) - count + columns  # column c picks among 0 .. last, and takes `last` if its pick is taken already
    pick = (uniforms * (last + 1)).long()
    order = pick.argsort(dim=1, stable=True)
    ordered = pick.gather(1, order)
    repeats = torch.zeros_like(pick, dtype=torch.bool)
    repeats[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    taken = torch.empty_like(repeats).scatter_(1, order, repeats)  # an earlier column has picked the same
    rival = pick - last + columns  # the column whose `last` was picked: the pick is taken, too, if that one had to take it
    exists = (rival >= 0) & (rival < columns)
    rival = rival.clamp(min=0)
    while True:  # as often as such columns follow one another
        spread = taken | (exists & taken.gather(1, rival))
        if torch.equal(spread, taken):
            return torch.where(taken, last, pick)
        taken = spread


def reservoir_slots(uniforms: Tensor, first: Tensor, capacity: int) -> Tensor:
    """The slot that each visit takes, -1 for none (Vitter's algorithm R). uniforms: (S, b); first: (S,) number of the row's first visit.

    Visit n takes slot n while n < capacity, afterwards a uniform slot with probability capacity / (n + 1). Where two visits of one
    row take the same slot the later one has it.
    """
    visits = first.unsqueeze(1) + torch.arange(uniforms.shape[1])
    drawn = (uniforms * (visits + 1)).long()
    slots = torch.where(visits < capacity, visits, torch.where(drawn < capacity, drawn, -1))
    return last_wins(slots)


def last_wins(slots: Tensor) -> Tensor:
    """(S, b) slots with -1 for every entry whose slot a later entry of its row takes too."""
    same = slots.unsqueeze(2) == slots.unsqueeze(1)  # (S, b, b): entry i and entry j
    later = torch.ones(slots.shape[1], slots.shape[1], dtype=torch.bool).triu(1)
    return slots.masked_fill((same & later).any(2), -1)


def rank_within(labels: Tensor) -> Tensor:
    """For each entry of (B,), how many earlier entries have the same label."""
    grouped, order = labels.sort(stable=True)
    rank = torch.arange(len(labels), device=labels.device) - torch.searchsorted(grouped, grouped)
    return torch.empty_like(rank).index_copy_(0, order, rank)
