"""Equal shares of a memory's slots for the classes seen so far: class k of K owns slots k * quota .. (k + 1) * quota - 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cl_framework.errors import ConfigurationError
from cl_framework.slots import last_wins, rank_within
from cl_framework.strategy import StepRandom


class ClassShares:
    """Decides slots; holds no samples. `newest`: a class keeps its newest visits; otherwise a reservoir of them."""

    def __init__(self, capacity: int, newest: bool) -> None:
        self.capacity = capacity
        self.newest = newest
        self._classes: list[int] = []  # in order of appearance
        self._index = torch.empty(0, dtype=torch.int64)  # label -> its place in `_classes`, -1 if it has not appeared
        self._visits = torch.empty(0, dtype=torch.int64)  # (K,) visits to each class

    @property
    def quota(self) -> int:
        return self.capacity // max(1, len(self._classes))

    @property
    def filled(self) -> int:
        return int(self._visits.clamp(max=self.quota).sum())

    def places(self, positions: Tensor) -> Tensor:
        """The slots of the n-th filled slots, counted over the classes."""
        filled = self._visits.clamp(max=self.quota).to(positions.device)
        ends = filled.cumsum(0)
        owner = torch.bucketize(positions, ends, right=True)
        return owner * self.quota + positions - (ends - filled)[owner]

    def admit(self, targets: Tensor, random: StepRandom) -> Tensor | None:
        """Give classes that appear for the first time their share. Returns None, or whose slot's sample each slot takes (-1: none)."""
        top = int(targets.max()) + 1
        if top > len(self._index):
            self._index = torch.cat([self._index, torch.full((top - len(self._index),), -1)])
        if bool((self._index[targets] >= 0).all()):
            return None
        fresh = sorted(set(targets[self._index[targets] < 0].tolist()))
        old_quota, old_visits = self.quota, self._visits
        old_count = len(self._classes)
        self._enter([*self._classes, *fresh])
        self._visits = torch.cat([old_visits, torch.zeros(len(fresh), dtype=torch.int64)])
        moves = torch.full((self.capacity,), -1)
        for place in range(old_count):
            source, offset = self._survivors(int(old_visits[place]), old_quota, random)
            moves[place * self.quota + offset] = place * old_quota + source
        return moves

    def _survivors(self, visits: int, old_quota: int, random: StepRandom) -> tuple[Tensor, Tensor]:
        """Which offsets of a shrinking share stay, and where they go."""
        kept = min(visits, old_quota, self.quota)
        if self.newest:
            newest = torch.arange(visits - kept, visits)
            return newest % old_quota, newest % self.quota
        chosen = torch.randperm(min(visits, old_quota), generator=random.at_step())[:kept]
        return chosen, torch.arange(kept)

    def _enter(self, classes: list[int]) -> None:
        if len(classes) > self.capacity:
            raise ConfigurationError(
                f"a memory of {self.capacity} samples cannot hold one of each of {len(classes)} classes. "
                "Raise capacity or use policy=reservoir."
            )
        self._classes = classes
        self._index = torch.full((max([*classes, len(self._index) - 1]) + 1,), -1)
        self._index[classes] = torch.arange(len(classes))

    def slots(self, targets: Tensor, random: StepRandom) -> Tensor:
        """The slot that each visit of (B,) takes, -1 for none; all their classes are admitted."""
        places = self._index[targets]
        visits = self._visits[places] + rank_within(places)
        if self.newest:
            offsets = visits % self.quota
        else:
            drawn = (random.uniform(len(targets)) * (visits + 1)).long()
            offsets = torch.where(visits < self.quota, visits, torch.where(drawn < self.quota, drawn, -1))
        self._visits = self._visits + torch.bincount(places, minlength=len(self._classes))
        slots = torch.where(offsets >= 0, places * self.quota + offsets, -1)
        return last_wins(slots.unsqueeze(0))[0]

    def refill(self, labels: Tensor) -> Tensor:
        """After a forget: start again from the labels of the samples that stay; returns their slots.

        Classes without any lose their share; the ages of a class's samples count anew from the order of their slots.
        """
        held = set(labels.tolist())
        self._enter([label for label in self._classes if label in held])
        places = self._index[labels]
        self._visits = torch.bincount(places, minlength=len(self._classes))
        return places * self.quota + rank_within(places)

    def state_dict(self) -> dict[str, Any]:
        return {"classes": list(self._classes), "visits": self._visits}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._enter(list(state["classes"]))
        self._visits = state["visits"]
