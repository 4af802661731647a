"""What a benchmark is: for each task, a training and a test source, and the classes it holds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from cl_framework.benchmarks.sources import LazySource
from cl_framework.criterion import asked
from cl_framework.digests import bytes_of
from cl_framework.errors import ContractError
from cl_framework.inputs import Inputs, concatenated, each

if TYPE_CHECKING:
    from cl_framework.benchmarks.text.tokens import Tokens

_ENDS = 64  # items at either end of a source on disk that go into the digest of a benchmark's samples
_READS = 2048  # items at most that are read of sources on disk, at either end of all of them
_PIECE = 1024  # items digested at once


class Source(Protocol):
    """Samples of one split of one task, by row number 0 .. len - 1. Reading is pure: no augmentation, no randomness."""

    @property
    def targets(self) -> Tensor: ...  # (N,) int64 global class labels; (N, L) where each of L places asks for one, see `criterion`

    @property
    def in_memory(self) -> bool: ...  # False: read by data-loader workers

    def __len__(self) -> int: ...

    def read(self, rows: Tensor) -> Inputs:
        """Raw items of these rows, (B, ...): one indexed read where the data is in memory."""
        ...


class Transform(Protocol):
    """Raw items to model inputs for a whole batch, on the items' device.

    `generator` is None in evaluation and where a plain reading is meant: then nothing random may be done. `random` says whether
    training batches are augmented; if it is False the result must not depend on the generator. A transform may have two methods more:
    `strong(items, generator)`, for rows that are marked as strongly augmented views, and `scaled(items)`, which gives the inputs in
    [0, 1], neither augmented nor normalised; `strong_of` and `scaled_of` find them.
    """

    @property
    def random(self) -> bool: ...

    def __call__(self, items: Inputs, generator: torch.Generator | None) -> Inputs: ...


def strong_of(transform: Transform) -> Callable[[Inputs, torch.Generator], Inputs] | None:
    """The transform's strong augmentation, or None if it has none."""
    if getattr(transform, "strengthen", True) is None:
        return None
    return getattr(transform, "strong", None)


def scaled_of(transform: Transform) -> Callable[[Inputs], Inputs] | None:
    """The transform's scaling to [0, 1] alone, or None if it has none, as for text."""
    return getattr(transform, "scaled", None)


@dataclass(frozen=True)
class Alternatives:
    """To questions of a task, true answers in other words and false ones: items (N, L) and targets (N, L), only answers asked."""

    right: tuple[Tensor, Tensor]  # a row a question
    wrong: tuple[Tensor, Tensor]  # some rows a question
    owner: tuple[int, ...]  # of each wrong row: the row of `right` that it belongs to
    asked_by: tuple[int, ...] = ()  # of each row of `right`: the row of the task's training split with that question; () where no task asks
    paraphrased: tuple[Tensor, Tensor] | None = None  # each question in other words with its own answer, a row a row of `right`


@dataclass(frozen=True)
class Benchmark:
    """A sequence of tasks. Sample ids are global: ids of task t are offset(t) .. offset(t) + len(train[t]) - 1."""

    name: str
    num_classes: int  # of the whole benchmark: the head's size; in language modelling the number of token ids
    classes: tuple[tuple[int, ...], ...]  # of each task; a remainder class is never dropped
    train: Sequence[Source]
    test: Sequence[Source]
    transform: Transform
    input_shape: tuple[int, ...]  # of one model input
    scenarios: tuple[str, ...]  # the scenarios it allows; the first is its default
    modality: str = "vision"
    vocabulary: int | None = None  # number of token ids, where items are tokens
    tokenizer: str = ""  # bytes, bpe (trained on task 0), or a digest of what each id of a loaded one stands for; "": not known
    objective: str = "classification"  # or language_modelling: the next token at each place, all classes in every task
    whole_rows: bool = False  # whether an answer is right only when all places of its row are, as where it is a number or a sentence
    alternatives: tuple[Alternatives | None, ...] = ()  # of each task, where its questions have other answers to compare with
    utility: dict[str, Alternatives] = field(default_factory=dict)  # by name: questions of no task, which are to be answered as before
    general: tuple[Tensor, Tensor] | None = None  # (G, L) each: a text of no task in full rows, and the tokens that follow each of its own
    tokens: Tokens | None = None  # what makes texts of token ids again, where answers are compared as texts
    notes: dict[str, str] = field(default_factory=dict)  # e.g. class order, what was left out: told at a run's start, kept in its env.json

    @property
    def num_tasks(self) -> int:
        return len(self.classes)

    @cached_property
    def offsets(self) -> Tensor:
        """(T + 1,) int64: the first global sample id of each task, and the number of all."""
        return torch.tensor([0, *(len(source) for source in self.train)]).cumsum(0)

    @property
    def digest(self) -> str:
        """Of its classes and samples: of all that are in memory, of others as `digests` says."""
        return next(iter(self.digests.values()))

    @cached_property
    def digests(self) -> dict[str, str]:
        """Digests of its classes and samples, by how much they read: a resume needs the same data, and so does an oracle that is kept.

        whole: all samples, where they are in memory; ends: all labels, and the first and last 64 items of each task (fewer where the tasks
        are many), since workers would take too long to read all. Tasks that are made of one data set, by the configuration, count as that.
        """
        made = [source.base if isinstance(source, LazySource) else source for source in (*self.train, *self.test)]
        sources = list({id(source): source for source in made}.values())
        ends = max(1, min(_ENDS, _READS // len(sources)))
        rows = [torch.arange(len(source)) for source in sources]
        found = {"ends": self._digest(sources, [torch.cat([every[:ends], every[ends:][-ends:]]) for every in rows])}
        return {"whole": self._digest(sources, rows), **found} if all(source.in_memory for source in sources) else found

    def _digest(self, sources: Sequence[Source], rows: Sequence[Tensor]) -> str:
        digest = hashlib.sha256(repr((self.classes, self.scenarios)).encode())
        for source, chosen in zip(sources, rows, strict=True):
            digest.update(bytes_of(source.targets))
            for piece in chosen.split(_PIECE):
                items = source.read(piece)
                for part in items.values() if isinstance(items, dict) else (items,):
                    digest.update(bytes_of(part))
        return digest.hexdigest()[:16]

    @cached_property
    def tokens_a_row(self) -> int | None:
        """The tokens of every training row, where each row is full of them and asks at all places, as packed texts do; else None."""
        modelled = self.objective == "language_modelling"
        return self.input_shape[0] if modelled and all(bool(asked(source.targets).all()) for source in self.train) else None

    @cached_property
    def longest_row(self) -> int:
        """Tokens of the longest row of text that a model is asked: other answers may be longer than any row that is trained on."""
        beside = (*(one for one in self.alternatives if one is not None), *self.utility.values())
        rows = [part for one in beside for part in (one.right, one.wrong, one.paraphrased) if part is not None]
        return max(self.input_shape[0], *(items.shape[1] for items, _ in rows), 0)

    def ids_of(self, task: int) -> Tensor:
        """Global training sample ids of a task, ascending."""
        first, end = self.offsets[task : task + 2].tolist()
        return torch.arange(first, end)

    def residual(self, ids: Tensor) -> list[str]:
        """What was made of the training samples with these ids and stays as it is once they are unlearned: it caps what is claimed."""
        trained = self.tokenizer == "bpe" and bool((ids < self.offsets[1]).any())  # blurry streams deal them to other tasks, too
        return ["the tokenizer, which was trained on texts of task 0"] if trained else []

    def locate(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The task of each sample id, and its row in the task's training source: (B,), (B,)."""
        tasks = torch.bucketize(ids, self.offsets, right=True) - 1
        return tasks, ids - self.offsets[tasks]

    def read(self, ids: Tensor) -> tuple[Inputs, Tensor, Tensor]:
        """Items, targets and tasks of these ids, in their order: one indexed read a task."""
        tasks, rows = self.locate(ids)
        present = torch.unique(tasks).tolist() or [0]
        if len(present) == 1:
            source = self.train[present[0]]
            return source.read(rows), source.targets[rows], tasks
        places = [(tasks == task).nonzero().flatten() for task in present]
        parts = [self.train[task].read(rows[place]) for task, place in zip(present, places, strict=True)]
        back = torch.cat(places).argsort()
        targets = torch.cat([self.train[task].targets[rows[place]] for task, place in zip(present, places, strict=True)])
        return each(lambda part: part[back], concatenated(parts)), targets[back], tasks

    def read_targets(self, ids: Tensor) -> Tensor:
        """The targets of these ids, in their order, without reading the items."""
        tasks, rows = self.locate(ids)
        targets = self.train[0].targets.new_empty(len(ids), *self.train[0].targets.shape[1:])
        for task in torch.unique(tasks).tolist():
            targets[tasks == task] = self.train[task].targets[rows[tasks == task]]
        return targets


@dataclass(frozen=True)
class BenchmarkContext:
    """What a run tells the builder of a benchmark."""

    root: Path  # where data sets lie
    download: bool  # whether missing ones may be fetched
    seed: int  # the run's
    scenario: str  # class_il, task_il, domain_il, or "" for the benchmark's default
    in_memory: str = "auto"  # auto, always or never


@dataclass(frozen=True)
class Scale:
    """uint8 items to float inputs in [0, 1] (by default), then normalised a channel if mean and deviation are given."""

    maximum: float = 255.0
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    strengthen: Callable[[Tensor, torch.Generator], Tensor] | None = None  # strong augmentation of inputs in [0, 1]
    random: bool = False

    def __call__(self, items: Inputs, generator: torch.Generator | None) -> Inputs:
        return self._normalised(self.scaled(items))

    def scaled(self, items: Inputs) -> Tensor:
        """In [0, 1] (by default), not normalised."""
        assert isinstance(items, Tensor)
        return torch.div(items, self.maximum)

    def strong(self, items: Inputs, generator: torch.Generator) -> Inputs:
        """As in training, with the strong augmentation."""
        if self.strengthen is None:
            raise ContractError("strongly augmented rows were asked for, but this benchmark has no strong augmentation.")
        return self._normalised(self.strengthen(self.scaled(items), generator))

    def _normalised(self, inputs: Tensor) -> Tensor:
        if not self.mean:
            return inputs
        shape = (1, -1, *([1] * (inputs.ndim - 2)))
        # Made on the host and sent without waiting: a tensor made on the device would hold up every step.
        mean, deviation = (torch.tensor(value).view(shape).to(inputs.device, non_blocking=True) for value in (self.mean, self.deviation))
        return inputs.sub_(mean).div_(deviation)
