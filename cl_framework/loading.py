"""From a plan to batches: one indexed read for a window of steps, or data-loader workers where the data does not fit in memory.

Both give the same rows: what is read is a pure function of the plan, and augmentation happens afterwards, on whole batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cl_framework.benchmarks.base import Benchmark, Source
from cl_framework.inputs import Inputs, each, parted
from cl_framework.learner import Learner
from cl_framework.plan import Plan
from cl_framework.strategy import Batch, Phase

T = TypeVar("T")

STEPS_PER_CHUNK = 32  # optimizer steps that Lightning sees as one batch: spreads its cost
_WINDOW_BYTES = 2 << 20  # raw bytes read at once: stays in cache, and amortises the read
_WORKER_BYTES = 64 << 20  # of items a worker hands over at once: some such chunks wait in memory for each worker


@dataclass
class Chunk:
    """Consecutive steps of a phase, with their rows where workers read them."""

    first: int
    last: int
    rows: tuple[Inputs, Tensor, Tensor] | None = None  # items, targets, tasks of all visits of these steps


def chunk_bounds(first: int, steps: int, every: int, longest: int = STEPS_PER_CHUNK) -> list[tuple[int, int]]:
    """The chunks of steps first .. steps - 1, each of `longest` steps at most; with `every` > 0 one ends at each multiple of it."""
    ends = {steps, *range(first + longest, steps, longest)}
    if every:
        ends |= set(range(first - first % every + every, steps, every))
    return list(pairwise(sorted({first, *ends}))) if first < steps else []


class _ReadChunks(Dataset[Chunk]):
    """What a data-loader worker does: read the rows of one chunk."""

    def __init__(self, benchmark: Benchmark, phase: Phase, bounds: list[tuple[int, int]]) -> None:
        self.benchmark = benchmark
        self.phase = phase
        self.bounds = bounds

    def __len__(self) -> int:
        return len(self.bounds)

    def __getitem__(self, index: int) -> Chunk:
        assert not isinstance(self.phase.plan, int)
        first, last = self.bounds[index]
        start, end = self.phase.plan.offsets[[first, last]].tolist()
        return Chunk(first, last, self.benchmark.read(self.phase.plan.ids[start:end]))


class _ReadRows(Dataset[Inputs]):
    """What a data-loader worker does: read some rows of a source."""

    def __init__(self, source: Source, places: Sequence[Tensor]) -> None:
        self.source = source
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Inputs:
        return self.source.read(self.places[index])


def read_ahead(source: Source, places: Sequence[Tensor], workers: int) -> Iterable[Inputs]:
    """The items at each of these places, in order: by workers where they are not in memory."""
    if source.in_memory:
        return (source.read(rows) for rows in places)
    return _by_workers(_ReadRows(source, places), workers)


class PhaseLoader:
    """Yields the chunks of a phase from `first_step` on: what Lightning iterates."""

    def __init__(self, learner: Learner, phase: Phase, first_step: int, workers: int) -> None:
        self._workers = workers
        self._from_workers = isinstance(phase.plan, int) is False and not _all_in_memory(learner.benchmark, phase)
        longest = steps_within(_WORKER_BYTES, learner.benchmark, phase.plan) if self._from_workers else STEPS_PER_CHUNK
        self.bounds = chunk_bounds(first_step, phase.steps, learner.run.evaluate_every, longest)
        self._dataset = _ReadChunks(learner.benchmark, phase, self.bounds)

    def __len__(self) -> int:
        return len(self.bounds)

    def __iter__(self) -> Iterator[Chunk]:
        if not self._from_workers:
            return (Chunk(first, last) for first, last in self.bounds)
        return iter(_by_workers(self._dataset, self._workers))


def _by_workers(dataset: Dataset[T], workers: int) -> DataLoader[T]:
    generator = torch.Generator().manual_seed(0)  # workers draw nothing from it; without it the global one would move
    return DataLoader(dataset, batch_size=None, num_workers=workers, generator=generator)


def _all_in_memory(benchmark: Benchmark, phase: Phase) -> bool:
    assert not isinstance(phase.plan, int)
    tasks = torch.unique(benchmark.locate(phase.plan.ids)[0]).tolist()
    return all(benchmark.train[int(task)].in_memory for task in tasks)


def steps_within(limit: int, benchmark: Benchmark, plan: Plan | int) -> int:
    """How many steps of a plan hold about `limit` bytes of items, as single-precision numbers: 1 to STEPS_PER_CHUNK."""
    if isinstance(plan, int) or not plan.visits:
        return 1
    item_bytes = 4 * torch.Size(benchmark.input_shape).numel()
    visits_per_step = max(1, plan.visits // max(1, plan.steps))
    return max(1, min(STEPS_PER_CHUNK, limit // max(1, item_bytes * visits_per_step)))


class StepReader:
    """Gives the batch of a step. Rows are read and made into inputs for a window of steps at once."""

    def __init__(self, learner: Learner, phase: Phase) -> None:
        self._learner = learner
        self._plan = None if isinstance(phase.plan, int) else phase.plan
        self._offsets: list[int] = [] if self._plan is None else self._plan.offsets.tolist()
        self._window = (0, 0)
        self._readable = learner.stack.reads_tasks
        self._window_steps = steps_within(_WINDOW_BYTES, learner.benchmark, phase.plan)

    def batch(self, step: int, chunk: Chunk) -> Batch:
        """The batch of `step`, which lies in `chunk`."""
        if self._plan is None:
            return self._without_rows()
        if not self._window[0] <= step < self._window[1]:
            self._read(step, chunk)
        place = step - self._window[0]
        items = self._items[place]
        columns = {name: column[place] for name, column in self._columns.items()}
        strong = columns.get("strong")
        augmented = self._learner.benchmark.transform.random or strong is not None
        inputs = self._learner.inputs_of(items, "stream", strong) if augmented else self._inputs[place]
        return Batch(
            items,
            self._targets[place],
            self._ids[place],
            self._tasks[place],
            inputs,
            tasks_readable=self._readable,
            host_targets=self._host_targets[place],
            host_tasks=self._host_tasks[place],
            host_group=None if self._host_group is None else self._host_group[place],
            **columns,
        )

    def _read(self, step: int, chunk: Chunk) -> None:
        assert self._plan is not None
        learner, device, offsets = self._learner, self._learner.device, self._offsets
        first, last = (step, min(step + self._window_steps, chunk.last)) if chunk.rows is None else (chunk.first, chunk.last)
        ids = self._plan.ids[offsets[first] : offsets[last]]
        items, targets, tasks = learner.benchmark.read(ids) if chunk.rows is None else chunk.rows
        columns = {"view": self._plan.view, "group": self._plan.group, "strong": self._plan.strong}
        here = {name: column[offsets[first] : offsets[last]] for name, column in columns.items() if column is not None}
        moved = each(lambda part: part.to(device, non_blocking=True), items)
        sizes = [end - start for start, end in pairwise(offsets[first : last + 1])]
        self._items = parted(moved, sizes)
        self._targets, self._ids, self._tasks = (column.to(device).split(sizes) for column in (targets, ids, tasks))
        on_host = device.type == "cpu"
        self._host_targets, self._host_tasks = (self._targets, self._tasks) if on_host else (targets.split(sizes), tasks.split(sizes))
        self._columns = {name: column.to(device).split(sizes) for name, column in here.items()}
        self._host_group = here["group"].split(sizes) if "group" in here else None
        transform = learner.benchmark.transform
        self._inputs = [] if transform.random or self._plan.strong is not None else parted(transform(moved, None), sizes)
        self._window = (first, last)

    def _without_rows(self) -> Batch:
        nothing = torch.empty(0, dtype=torch.int64, device=self._learner.device)
        empty = torch.empty(0, *self._learner.benchmark.input_shape, device=self._learner.device)
        return Batch(empty, nothing, nothing, nothing, empty, tasks_readable=self._readable)
