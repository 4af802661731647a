"""A benchmark whose data is unmistakable: random bytes, sample ids and labels that no counter reaches. And the search for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cl_framework.benchmarks.base import Benchmark, Scale
from cl_framework.benchmarks.sources import TensorSource
from cl_framework.digests import bytes_of

SHAPE = (1, 4, 8)
NUM_CLASSES = 1000
CLASSES = ((0, 1), (700, 701), (900, 901))
PADDING = 50_000  # samples of task 0, which is never learned: the ids of the others lie beyond it
SAMPLES = 24


def canary_benchmark(scenario: str) -> Benchmark:
    """Three tasks; learn tasks 1 and 2 only. The head has a thousand classes, so that logits are unmistakable too."""
    generator = torch.Generator().manual_seed(11)

    def source(count: int, classes: tuple[int, ...]) -> TensorSource:
        items = torch.randint(256, (count, *SHAPE), generator=generator, dtype=torch.uint8)
        targets = torch.tensor(classes)[torch.arange(count) % len(classes)]
        return TensorSource(items, targets)

    train = [source(PADDING if task == 0 else SAMPLES, classes) for task, classes in enumerate(CLASSES)]
    test = [source(6, classes) for classes in CLASSES]
    return Benchmark("canary", NUM_CLASSES, CLASSES, train, test, Scale(), SHAPE, (scenario,))


@dataclass(frozen=True)
class Traces:
    """What must not be found: of some samples of a task."""

    items: Tensor  # (N, 1, 4, 8) uint8
    ids: Tensor  # (N,) int64
    labels: frozenset[int]  # only where the whole class goes
    logits: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, benchmark: Benchmark, task: int, ids: Tensor, logits: Mapping[int, list[Tensor]], whole: bool) -> Traces:
        """`logits`: what the model said of a sample id, each (C,); `whole`: all samples of the task go, so its labels must go too."""
        items = benchmark.train[task].read(ids - int(benchmark.ids_of(task)[0]))
        assert isinstance(items, Tensor)
        rows = (row[:32] for sample in ids.tolist() for row in logits.get(sample, ()))
        said = tuple(bytes_of(row) for row in rows if len(row.unique()) > 1)  # zeros are everywhere
        return cls(items, ids, frozenset(benchmark.classes[task]) if whole else frozenset(), said)

    def found_in(self, state: Any, where: str = "state") -> Iterator[str]:
        """A sentence for each trace in a nested state."""
        if isinstance(state, Tensor):
            yield from self._in_tensor(state, where)
        elif isinstance(state, Mapping):
            for key, value in state.items():
                yield from self._in_number(key, f"{where}, a key")
                yield from self.found_in(value, f"{where}.{key}")
        elif isinstance(state, list | tuple):
            for index, value in enumerate(state):
                yield from self.found_in(value, f"{where}[{index}]")
        else:
            yield from self._in_number(state, where)

    def _in_tensor(self, tensor: Tensor, where: str) -> Iterator[str]:
        data = bytes_of(tensor)
        for item in self.items:
            if any(bytes_of(form) in data for form in (item, item.float(), item.float() / 255)):
                yield f"{where} holds a sample"
                break
        if any(said in data for said in self.logits):
            yield f"{where} holds the logits of a sample"
        if not tensor.is_floating_point() and tensor.dtype not in (torch.bool, torch.uint8):
            values = set(tensor.flatten().tolist())
            if values & set(self.ids.tolist()):
                yield f"{where} holds the id of a sample"
            if values & self.labels:
                yield f"{where} holds a label"

    def _in_number(self, value: Any, where: str) -> Iterator[str]:
        if isinstance(value, str) and value.isdecimal():  # as keys often are
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            if value in set(self.ids.tolist()):
                yield f"{where} holds the id of a sample"
            if value in self.labels:
                yield f"{where} holds a label"
