"""States of a run after each of its events, kept for those that train again from them: `ckpt/history/<count>-<key>-<digest>.pt`.

A state is found by what led to it: the Learn events and the samples they did not show. Where one was damaged or lost, an earlier one is
used, at the price of more training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from cl_framework.checkpoint import damage, load_state, write_state
from cl_framework.stream import Learn, Stream, TaskId


class Shows(Protocol):
    """What a key needs of a learner."""

    deleted: Tensor

    @property
    def looks_ahead(self) -> bool: ...

    def planned_ids(self, task: TaskId) -> Tensor: ...


def key_of(stream: Stream, count: int, learner: Shows) -> str:
    """A digest of the first `count` events of a stream, and of the samples that they did not show.

    Where a strategy looks ahead it also tells whether the last of them is the last that learns: the state depends on it.
    """
    lines: list[list[object]] = []
    for event in stream.events[:count]:
        ids = learner.planned_ids(event.task)
        missing = ids[torch.isin(ids, learner.deleted)]
        lines.append([type(event).__name__, event.task, event.occurrence, hashlib.sha256(missing.numpy().tobytes()).hexdigest()])
    if learner.looks_ahead:
        lines.append([any(isinstance(event, Learn) for event in stream.events[count:])])
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:16]


def keys_along(stream: Stream, count: int, learner: Shows) -> set[str]:
    """Of every state on the way along the first `count` events, the one before them included."""
    return {key_of(stream, length, learner) for length in range(count + 1)}


@dataclass(frozen=True)
class History:
    """The kept states of one run."""

    folder: Path

    def keep(self, stream: Stream, count: int, learner: Shows, state: Mapping[str, Any]) -> None:
        """Keep the state to which the first `count` events of a stream have led, unless it is there already."""
        key = key_of(stream, count, learner)
        if self._path(count, key) is not None:
            return
        write_state(self.folder, f"{count:04d}-{key}", state)

    def nearest(self, stream: Stream, count: int, learner: Shows) -> tuple[int, dict[str, Any] | None]:
        """The longest way along the first `count` events that is kept: its length, and the state; (0, None) if there is none at all."""
        for length in range(count, -1, -1):
            path = self._path(length, key_of(stream, length, learner))
            if path is not None:
                return length, torch.load(path, map_location="cpu", weights_only=True)
        return 0, None

    def purge(self, stream: Stream, count: int, learner: Shows) -> list[str]:
        """Remove every state that does not lie on the way along these events; the names of the removed files."""
        gone = self.beside(stream, count, learner)
        for path in gone:
            path.unlink()
        return [path.name for path in gone]

    def beside(self, stream: Stream, count: int, learner: Shows) -> list[Path]:
        """The states that do not lie on the way along these events."""
        wanted = keys_along(stream, count, learner)
        return [path for path in self.paths() if path.stem.split("-")[1] not in wanted]

    def keys(self) -> set[str]:
        return {path.stem.split("-")[1] for path in self.paths()}

    def paths(self) -> Iterable[Path]:
        return sorted(self.folder.glob("*-*-*.pt"))

    def states(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Every state whose file is whole, with the file."""
        for path in self.paths():
            if damage(path) is None:
                yield path, load_state(path)

    def _path(self, count: int, key: str) -> Path | None:
        """The whole file of a state, if there is one; a damaged one is as good as none."""
        found = [path for path in self.folder.glob(f"{count:04d}-{key}-*.pt") if damage(path) is None]
        return found[0] if found else None
