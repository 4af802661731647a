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
        self._held = torch.empty(0, dtype=torch.int64)  # (K,) samples of each class

    @property
    def quota(self) -> int:
        return self.capacity // max(1, len(self._classes))

    @property
    def filled(self) -> int:
        return int(self._held.sum())

    def places(self, positions: Tensor) -> Tensor:
        """The slots of the n-th filled slots, counted over the classes."""
        held = self._held.to(positions.device)
        ends = held.cumsum(0)
        owner = torch.bucketize(positions, ends, right=True)
        return owner * self.quota + positions - (ends - held)[owner]

    def admit(self, targets: Tensor, random: StepRandom) -> Tensor | None:
        """Give classes that appear for the first time their share. Returns None, or whose slot's sample each slot takes (-1: none)."""
        top = int(targets.max()) + 1
        if top > len(self._index):
            self._index = torch.cat([self._index, torch.full((top - len(self._index),), -1)])
        if bool((self._index[targets] >= 0).all()):
            return None
        fresh = sorted(set(targets[self._index[targets] < 0].tolist()))
        old_quota, old_count = self.quota, len(self._classes)
        self._enter([*self._classes, *fresh])
        nothing = torch.zeros(len(fresh), dtype=torch.int64)
        self._visits, self._held = torch.cat([self._visits, nothing]), torch.cat([self._held, nothing])
        moves = torch.full((self.capacity,), -1)
        for place in range(old_count):
            source, offset = self._survivors(place, old_quota, random)
            moves[place * self.quota + offset] = place * old_quota + source
        self._held = self._held.clamp(max=self.quota)
        return moves

    def _survivors(self, place: int, old_quota: int, random: StepRandom) -> tuple[Tensor, Tensor]:
        """Which offsets of a shrinking share stay, and where they go."""
        held = int(self._held[place])
        kept = min(held, self.quota)
        if self.newest:
            visits = int(self._visits[place])
            newest = torch.arange(visits - kept, visits)
            return newest % old_quota, newest % self.quota
        chosen = torch.randperm(held, generator=random.at_step())[:kept]
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
        rank = rank_within(places)
        visits, held = self._visits[places] + rank, self._held[places] + rank
        if self.newest:
            offsets = visits % self.quota
        else:
            drawn = (random.uniform(len(targets)) * (visits + 1)).long()
            offsets = torch.where(held < self.quota, held, torch.where(drawn < self.quota, drawn, -1))
        added = torch.bincount(places, minlength=len(self._classes))
        self._visits, self._held = self._visits + added, (self._held + added).clamp(max=self.quota)
        slots = torch.where(offsets >= 0, places * self.quota + offsets, -1)
        return last_wins(slots.unsqueeze(0))[0]

    def refill(self, slots: Tensor) -> Tensor:
        """After a forget: `slots` (N,) hold the samples that stay; returns the slots they go to. Classes without any lose their share.

        Newest: the samples of a class keep their order of age. Otherwise the visits to a class shrink in proportion to its samples:
        those of a class that lost none stay what they were, and so do its later chances.
        """
        owner, offset = slots // self.quota, slots % self.quota
        kept = torch.bincount(owner, minlength=len(self._classes))
        if self.newest:
            offset = torch.where(self._visits[owner] > self.quota, (offset - self._visits[owner]) % self.quota, offset)
            visits = kept
        else:
            visits = (self._visits * kept.double() / self._held).round().long()
        order = (owner * self.quota + offset).argsort()
        rank = torch.arange(len(slots)) - (kept.cumsum(0) - kept)[owner[order]]
        stays = kept > 0
        self._enter([label for label, stay in zip(self._classes, stays.tolist(), strict=True) if stay])
        self._visits, self._held = visits[stays], kept[stays]
        places = torch.empty_like(slots)
        places[order] = (stays.cumsum(0) - 1)[owner[order]] * self.quota + rank
        return places

    def state_dict(self) -> dict[str, Any]:
        return {"classes": list(self._classes), "visits": self._visits, "held": self._held}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._enter(list(state["classes"]))
        self._visits, self._held = state["visits"].cpu(), state["held"].cpu()
