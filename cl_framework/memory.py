"""Memories: buffers by sample id. Read once and written once a step; their randomness is a pure function of the step.

What can be decided for a block of steps is decided at once: which slots the visits of the next steps take, and which rows they draw.
So a step costs a few indexed reads and writes, whatever the size of the memory.

Policies. `reservoir`: every visit so far is in memory with equal probability (Vitter 1985). `ring`: each class seen has an equal share
of the slots and keeps its newest visits (Chaudhry et al. 2019). `balanced`: the same shares, a reservoir within each class. When a new
class appears the shares shrink, and capacity % classes slots stay empty. `greedy`: no shares, a full memory gives up a sample of its
largest class for a smaller one (Prabhu et al. 2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cl_framework.greedy import GreedyBalance
from cl_framework.inputs import Inputs, each, host
from cl_framework.rng import BLOCK
from cl_framework.shares import ClassShares
from cl_framework.slots import floyd, last_wins, rank_within, reservoir_slots
from cl_framework.strategy import Rows, StepRandom

POLICIES = ("reservoir", "ring", "balanced", "greedy")
_NUMBERS = "numbers"  # the table of
_WHOLE = ("ids", "tasks", "targets")  # where a sample has one target
_STREAMS = 8  # random streams whose current block is kept; a memory is read through one or two


@dataclass(frozen=True, slots=True)
class _Draws:
    """Positions drawn ahead for a block of steps. `uniforms` is held, so that its identity names the block and its stream."""

    uniforms: Tensor
    sizes: list[int]  # for which number of filled slots each row was drawn
    positions: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class _Slots:
    """Slots decided ahead for a block of steps. `uniforms` is held, as above."""

    uniforms: Tensor
    first: int  # number of the first visit of the block's first step
    counts: list[int]  # how many visits of each step are stored
    rows: tuple[Tensor, ...]  # which rows of a step's batch these are
    slots: tuple[Tensor, ...]  # and where they go


class Memory:
    """Holds at most `capacity` samples (>= 0) with label, task, id and any tensors stored beside them."""

    def __init__(self, capacity: int, policy: str = "reservoir") -> None:
        if capacity < 0:
            raise ValueError(f"capacity must be >= 0, got {capacity}")
        if policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
        self.capacity = capacity
        self.policy = policy
        self.seen = 0  # visits to samples that were not forgotten since
        self._count = 0  # filled slots: the first ones (reservoir), or those of the shares
        self._shares = _shares(capacity, policy)
        self._columns: dict[str, Tensor] = {}  # field -> (allocated slots, ...), whole numbers in one: see `_together`
        self._visits_of_task = torch.empty(0, dtype=torch.int64)  # on the host, like every decision
        self._owed = torch.empty(0, dtype=torch.bool)  # see `forget`
        self._uncounted: list[Tensor] = []  # tasks of the latest visits, not yet in `_visits_of_task`
        self._growth = (-1, 0)  # the step of the last visits, and how many slots they filled: the guess for the next steps
        self._draws: dict[int, _Draws] = {}
        self._writes: _Slots | None = None

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Bytes of the filled slots."""
        return sum(column[:1].numel() * column.element_size() for column in self._columns.values()) * self._count

    @property
    def ids(self) -> Tensor:
        """Ids of the stored samples, (N,)."""
        return _apart(self._columns)["ids"][self._filled()] if self._columns else torch.empty(0, dtype=torch.int64)

    # --- reading ---

    def sample(self, count: int, random: StepRandom) -> Rows | None:
        """`count` stored samples, uniformly without replacement (all of them if there are fewer); None from an empty memory."""
        if not count or not self._count:
            return None
        return self.rows(self._places(self._drawn(count, random)))

    def rows(self, slots: Tensor | None = None) -> Rows:
        """The samples in these slots, or all."""
        slots = self._filled() if slots is None else slots
        picked = _apart({name: column.index_select(0, slots) for name, column in self._columns.items()})
        extras = {name.removeprefix("extra/"): picked[name] for name in picked if name.startswith("extra/")}
        return Rows(_items(picked), picked["targets"], picked["ids"], picked["tasks"], extras=extras)

    def _drawn(self, count: int, random: StepRandom) -> Tensor:
        """Positions among the filled slots, looked up where the block's draws were made for as many as are filled now."""
        row = random.step % BLOCK
        uniforms = random.block(count)
        if self._count >= count:
            draws = self._draws.get(id(uniforms)) or self._draw_ahead(uniforms, random.step)
            if draws.sizes[row] == self._count:
                return draws.positions[row]
        alone = uniforms[row : row + 1, : self._count]
        return self._moved(floyd(alone, torch.tensor([self._count]))[0])

    def _draw_ahead(self, uniforms: Tensor, step: int) -> _Draws:
        """All draws of a block from `step` on, on the guess that the memory fills as it did in the step before."""
        last, filled = self._growth
        growth = (torch.arange(BLOCK) - step % BLOCK).clamp(min=0) * (filled if last == step - 1 else 0)
        sizes = (self._count + growth).clamp(max=self.capacity)
        draws = _Draws(uniforms, sizes.tolist(), self._moved(floyd(uniforms, sizes)).unbind())
        if len(self._draws) >= _STREAMS:
            del self._draws[next(iter(self._draws))]
        self._draws[id(uniforms)] = draws
        return draws

    def _places(self, positions: Tensor) -> Tensor:
        return positions if self._shares is None else self._shares.places(positions)

    def _filled(self) -> Tensor:
        return self._places(torch.arange(self._count, device=self._device()))

    # --- writing ---

    def add(self, batch: Rows, random: StepRandom, **beside: Tensor) -> None:
        """Offer the samples of a batch, each once however many views it has; `beside` are (B, ...) tensors kept with them."""
        if self.capacity == 0 or not len(batch):
            return
        batch, extras = first_views(batch, beside)
        before = self._count
        if self._shares is not None:
            self._share(batch, extras, random)
        elif self.seen + len(batch) <= self.capacity and not len(self._owed):
            self._write(batch, extras, None, None)
        else:
            rows, slots = self._reservoir(len(batch), random)
            if rows is not None:
                self._write(batch, extras, rows, slots)
        self._growth = (random.step, self._count - before)
        self.seen += len(batch)
        self._uncounted.append(batch.task_of_row if batch.host_tasks is None else batch.host_tasks)
        if len(self._uncounted) == BLOCK:
            self._count_visits()

    def _share(self, batch: Rows, extras: Mapping[str, Tensor], random: StepRandom) -> None:
        assert self._shares is not None
        targets = host(batch.host_targets, batch.targets)
        self._make_room(self._shares.admit(targets, random))
        slots = self._shares.slots(targets, random)
        rows = (slots >= 0).nonzero().flatten()
        if len(rows):
            self._write(batch, extras, rows, slots[rows])
        self._count = self._shares.filled

    def _reservoir(self, count: int, random: StepRandom) -> tuple[Tensor | None, Tensor]:
        """Which rows are stored, None if none is, and their slots."""
        if len(self._owed):
            return self._settle(count, random)
        row = random.step % BLOCK
        uniforms = random.block(count)
        first = self.seen - row * count
        ahead = self._writes
        if ahead is None or ahead.uniforms is not uniforms or ahead.first != first:
            slots = reservoir_slots(uniforms, first + torch.arange(BLOCK) * count, self.capacity)
            stored = slots >= 0
            counts = stored.sum(1).tolist()
            ahead = self._writes = _Slots(uniforms, first, counts, stored.nonzero()[:, 1].split(counts), slots[stored].split(counts))
        return (ahead.rows[row] if ahead.counts[row] else None), ahead.slots[row]

    def _settle(self, count: int, random: StepRandom) -> tuple[Tensor | None, Tensor]:
        """Insert the visits that take the places of forgotten ones; visits beyond those follow the reservoir's rule again."""
        owed, self._owed = self._owed[:count], self._owed[count:]
        rows = owed.nonzero().flatten()
        slots = self._count + torch.arange(len(rows))
        rest = count - len(owed)
        if rest:
            full = torch.full((count,), -1)
            full[rows] = slots
            visits = torch.tensor([self.seen + len(owed)])
            full[len(owed) :] = reservoir_slots(random.uniform(count)[None, len(owed) :], visits, self.capacity)[0]
            full = last_wins(full[None])[0]
            rows = (full >= 0).nonzero().flatten()
            slots = full[rows]
        return (rows if len(rows) else None), slots

    def _write(self, batch: Rows, extras: Mapping[str, Tensor], rows: Tensor | None, slots: Tensor | None) -> None:
        """Copy these rows to these slots; without them, visit n to slot n."""
        values = _columns(batch, extras)
        first, last = self.seen, self.seen + len(batch)
        if self._count < self.capacity:  # else every slot is there and filled
            last = last if slots is None else int(slots.max()) + 1
            self._allocate(values, last)
            if self._shares is None:
                self._count = max(self._count, last)
        if rows is None or slots is None:
            for name, value in values.items():
                self._columns[name][first:last] = value.detach()
            return
        rows, slots = self._moved(rows), self._moved(slots)
        for name, value in values.items():
            self._columns[name].index_copy_(0, slots, value.detach().index_select(0, rows))

    def _allocate(self, values: Mapping[str, Tensor], needed: int) -> None:
        """Room for `needed` slots: it grows by doubling, so that a short run does not touch all of a large memory."""
        have = self._allocated()
        if self._columns and needed <= have:
            return
        size = min(self.capacity, max(needed, 2 * have, 1024))
        for name, value in values.items():
            column = value.new_zeros(size, *value.shape[1:])
            if have:
                column[:have] = self._columns[name]
            self._columns[name] = column

    def _make_room(self, moves: Tensor | None) -> None:
        """A new class shrank the shares: slot s now holds what was in slot moves[s] (-1: nothing)."""
        if moves is None or not self._columns:
            return
        have = self._allocated()
        source = moves.clamp(min=0, max=have - 1)
        for name, column in self._columns.items():
            moved = column.index_select(0, self._moved(source))
            moved[self._moved(moves) < 0] = 0
            self._columns[name] = moved

    def _count_visits(self) -> Tensor:
        """Visits to each task so far, (T,); those of a block of steps are counted at once."""
        if self._uncounted:
            tasks = torch.cat(self._uncounted).cpu()
            visits = torch.bincount(tasks, minlength=len(self._visits_of_task))
            visits[: len(self._visits_of_task)] += self._visits_of_task
            self._visits_of_task, self._uncounted = visits, []
        return self._visits_of_task

    def replace(self, **beside: Tensor) -> None:
        """Put new tensors (N, ...) beside all stored samples, in the order of `rows()`: what was made of forgotten data is made anew."""
        for name, value in beside.items():
            self._columns[f"extra/{name}"].index_copy_(0, self._filled(), value.detach())

    # --- forgetting ---

    def forget(self, ids: Tensor, random: StepRandom) -> None:
        """Drop the samples with these ids, and overwrite the slots they had.

        Reservoir: the visits made to forgotten samples are taken as they are counted a task, in proportion to how many of the task's
        stored samples are dropped unless all are. As many later visits settle the debt (random pairing, Gemulla et al. 2008): the
        free slots go to a uniform subset of them, so that what is stored stays a uniform sample of all visits not forgotten. Where no
        visit is left there is nothing to be fair to, and the memory fills as a new one does.
        Shares: a class refills its free slots with its next visits.
        """
        if not self._count:
            return
        kept_slots = self._filled()
        columns = _apart(self._columns)
        gone = torch.isin(columns["ids"][kept_slots], ids.to(self._device()))
        if not bool(gone.any()):
            return
        tasks = columns["tasks"][kept_slots].cpu()
        visits = self._forgotten_visits(tasks, gone.cpu())
        survivors = kept_slots[~gone]
        stored = {name: column[survivors] for name, column in self._columns.items()}
        for column in self._columns.values():
            column.zero_()  # freed memory keeps its bytes otherwise
        self._columns, self._draws, self._writes, self._growth = {}, {}, None, (-1, 0)
        self.seen -= visits
        if self._shares is None:
            self._owe(visits, int(gone.sum()), random)
            self._count = len(survivors)
            places = torch.arange(len(survivors))
        else:
            places = self._shares.refill(survivors.cpu())
            self._count = self._shares.filled
        if len(survivors):
            self._allocate(stored, int(places.max()) + 1)
            for name, column in stored.items():
                self._columns[name].index_copy_(0, self._moved(places), column)

    def _owe(self, visits: int, freed: int, random: StepRandom) -> None:
        """As many later visits as were forgotten settle the debt: a uniform subset of them takes the freed slots."""
        if self.seen == 0:
            self._owed = self._owed[:0]
            return
        paid = torch.zeros(max(visits, freed), dtype=torch.bool)
        paid[torch.randperm(len(paid), generator=random.generator())[:freed]] = True
        self._owed = torch.cat([self._owed, paid])

    def _forgotten_visits(self, tasks: Tensor, gone: Tensor) -> int:
        total = 0
        self._visits_of_task = self._count_visits().clone()  # a state given out earlier must not move
        for task in tasks[gone].unique().tolist():
            share = float(gone[tasks == task].float().mean())
            visits = round(int(self._visits_of_task[task]) * share)
            self._visits_of_task[task] -= visits
            total += visits
        return total

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        """The filled slots and the counters."""
        filled = self._filled() if self._count else torch.empty(0, dtype=torch.int64)
        return {
            "columns": {name: column[filled].clone() for name, column in _apart(self._columns).items()},
            "slots": filled.cpu(),
            "count": self._count,
            "seen": self.seen,
            "visits_of_task": self._count_visits(),
            "owed": self._owed,
            "shares": None if self._shares is None else self._shares.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._columns, self._draws, self._writes, self._growth, self._uncounted = {}, {}, None, (-1, 0), []
        self._count, self.seen, self._owed = state["count"], state["seen"], state["owed"].cpu()
        self._visits_of_task = state["visits_of_task"].cpu()
        if self._shares is not None:
            self._shares.load_state_dict(state["shares"])
        if self._count:
            columns = _together(state["columns"])
            self._allocate(columns, int(state["slots"].max()) + 1)
            for name, column in columns.items():
                self._columns[name].index_copy_(0, self._moved(state["slots"]), column)

    def to(self, device: torch.device) -> None:
        """Move what is stored."""
        self._columns = {name: column.to(device) for name, column in self._columns.items()}

    def _allocated(self) -> int:
        return self._columns[_NUMBERS].shape[0] if self._columns else 0

    def _device(self) -> torch.device:
        return self._columns[_NUMBERS].device if self._columns else torch.device("cpu")

    def _moved(self, indices: Tensor) -> Tensor:
        device = self._device()
        return indices if device.type == "cpu" else indices.to(device, non_blocking=True)


def _shares(capacity: int, policy: str) -> ClassShares | GreedyBalance | None:
    """What decides the slots of classes; None where the reservoir's rule does."""
    if policy == "reservoir":
        return None
    return GreedyBalance(capacity) if policy == "greedy" else ClassShares(capacity, newest=policy == "ring")


def first_views(batch: Rows, extras: Mapping[str, Tensor]) -> tuple[Rows, Mapping[str, Tensor]]:
    """Only the first row of each group, where the batch has views of one sample."""
    if batch.group is None:
        return batch, extras
    here = (rank_within(host(batch.host_group, batch.group)) == 0).nonzero().flatten()
    first = here.to(batch.ids.device, non_blocking=True)
    rows = Rows(
        each(lambda part: part[first], batch.items),
        batch.targets[first],
        batch.ids[first],
        batch.task_of_row[first],
        host_targets=None if batch.host_targets is None else batch.host_targets[here],
        host_tasks=None if batch.host_tasks is None else batch.host_tasks[here],
    )
    return rows, {name: value[first] for name, value in extras.items()}


def _columns(batch: Rows, extras: Mapping[str, Tensor]) -> dict[str, Tensor]:
    items = {f"items/{key}": value for key, value in batch.items.items()} if isinstance(batch.items, dict) else {"items": batch.items}
    named = {f"extra/{name}": value for name, value in extras.items()}
    return _together({**items, "ids": batch.ids, "tasks": batch.task_of_row, "targets": batch.targets, **named})


def _together(columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Columns of one whole number a sample as one table: they are read and written together, so that costs one call instead of three."""
    names = _WHOLE if columns["targets"].ndim == 1 else _WHOLE[:2]
    table = torch.stack([columns[name] for name in names], dim=1)
    return {_NUMBERS: table} | {name: column for name, column in columns.items() if name not in names}


def _apart(columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same by name; nothing of a memory that nothing was written to."""
    rest = dict(columns)
    return dict(zip(_WHOLE, rest.pop(_NUMBERS).unbind(1), strict=False)) | rest if rest else rest


def _items(columns: Mapping[str, Tensor]) -> Inputs:
    if "items" in columns:
        return columns["items"]
    return {name.removeprefix("items/"): value for name, value in columns.items() if name.startswith("items/")}
