"""Plans: which sample is shown at which step. Decided once at the start of a phase, then a pure function of the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cl_framework.rng import RandomStream


@dataclass(frozen=True)
class Plan:
    """A list of visits and where the steps cut it: step s shows visits offsets[s] to offsets[s + 1]."""

    ids: Tensor  # (V,) int64 global sample ids, in order of visit
    offsets: Tensor  # (S + 1,) int64, from 0 to V
    view: Tensor | None = None  # (V,) int64
    group: Tensor | None = None  # (V,) int64, equal for the views of one sample within a step
    strong: Tensor | None = None  # (V,) bool: visits that are augmented strongly
    epochs: int = 1  # passes over the data it was made for

    @property
    def steps(self) -> int:
        return self.offsets.shape[0] - 1

    @property
    def visits(self) -> int:
        return self.ids.shape[0]

    @classmethod
    def over(cls, ids: Tensor, batch_size: int, epochs: int, generator: torch.Generator) -> Plan:
        """`epochs` shuffled passes over `ids`. A step never crosses the end of an epoch; an epoch's last step may be smaller."""
        count = ids.shape[0]
        order = [ids[torch.randperm(count, generator=generator)] for _ in range(epochs)] if count else []
        starts = torch.arange(0, count, batch_size)
        offsets = [starts + epoch * count for epoch in range(epochs)] if count else []
        end = torch.tensor([count * epochs if count else 0])
        visits = torch.cat(order) if order else ids.new_empty(0)
        return cls(visits, torch.cat([*offsets, end]), epochs=epochs)

    @classmethod
    def empty(cls) -> Plan:
        """No steps: nothing is shown."""
        return cls(torch.empty(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), epochs=0)

    def head(self, steps: int) -> Plan:
        """The first `steps` steps, or all there are."""
        end = int(self.offsets[: steps + 1][-1])

        def cut(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[:end]

        return Plan(self.ids[:end], self.offsets[: steps + 1], cut(self.view), cut(self.group), cut(self.strong), epochs=self.epochs)

    def keep(self, wanted: Tensor) -> Plan:
        """The plan without the visits where `wanted` (V,) is False; the steps stay where they were, some may be empty."""
        before = torch.cat([wanted.new_zeros(1, dtype=torch.int64), wanted.long().cumsum(0)])

        def pick(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[wanted]

        columns = (pick(self.view), pick(self.group), pick(self.strong))
        return Plan(self.ids[wanted], before[self.offsets], *columns, epochs=self.epochs)


def training_partition(ids_of_task: Sequence[Tensor], blurry: float, seed: int) -> list[Tensor]:
    """The ids that a Learn of each task shows, sorted: those of its data, or with their boundaries `blurred`."""
    return blurred(ids_of_task, blurry, RandomStream(seed, "blurry").generator()) if blurry else list(ids_of_task)


def blurred(ids_of_task: Sequence[Tensor], fraction: float, generator: torch.Generator) -> list[Tensor]:
    """Blur task boundaries: a random `fraction` of each task's samples is dealt evenly over all tasks' training sets.

    The sets are a partition of all samples: nothing is dropped, nothing appears twice. fraction in [0, 1]; 0 changes nothing.
    """
    kept, dealt = [], []
    for ids in ids_of_task:
        order = ids[torch.randperm(ids.shape[0], generator=generator)]
        cut = round(fraction * ids.shape[0])
        dealt.append(order[:cut])
        kept.append(order[cut:])
    pool = torch.cat(dealt)
    pool = pool[torch.randperm(pool.shape[0], generator=generator)]
    shares = torch.tensor_split(pool, len(kept))
    return [torch.cat([own, share]).sort().values for own, share in zip(kept, shares, strict=True)]
