"""The shadow-state audit: what in memory or on disk still holds samples that were unlearned, or names them.

Samples serve as their own canaries: the bytes of one image, as stored or as the model reads it, are found nowhere by chance. Samples
whose bytes are too few or too even to be unmistakable are not searched for, and their number is told. In memory all samples are searched
for, row by row (`samples`), and some at any place; in files those some. What a memory keeps beside its samples, or in place of them, are
their ids: these are compared one and all. A sample that was changed (a copy times two) is found by none of these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_framework.digests import bytes_of
from cl_framework.evaluation import evenly
from cl_framework.inputs import Inputs

MOST = 64  # samples searched for: evenly chosen, since a search reads every file for each of them
_OF_IDS = re.compile(r"\.(ids|exemplars)\b")  # what columns and tables of sample ids are called
DISTINCT = 12  # different bytes that a canary has at least


@dataclass(frozen=True)
class Canaries:
    """The bytes of some samples, in each form in which they may be kept."""

    forms: tuple[bytes, ...]
    searched: int  # samples
    of: int  # samples that were unlearned

    @classmethod
    def of_items(cls, items: Inputs, inputs: Inputs | None = None) -> Canaries:
        """Of raw items (N, ...), a tensor or a mapping of tensors: as they are, as floats, as floats in [0, 1], and as `inputs`."""
        parts = list(items.values()) if isinstance(items, Mapping) else [items]
        read = [] if inputs is None else list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]
        count = len(parts[0])
        chosen = evenly(count, MOST)
        forms: list[bytes] = []
        searched = 0
        for index in chosen.tolist():
            rows = [part[index] for part in (*parts, *read)]
            kept = [row for row in rows if len(set(bytes_of(row))) >= DISTINCT]
            searched += bool(kept)
            for row in kept:
                forms.append(bytes_of(row))
                if row.dtype == torch.uint8:
                    forms += [bytes_of(row.float()), bytes_of(row.float() / 255)]
        return cls(tuple(dict.fromkeys(forms)), searched, count)

    def found_in(self, data: bytes) -> bool:
        return any(form in data for form in self.forms)


def artefacts_in_memory(state: Mapping[str, Any], canaries: Canaries, where: str = "memory") -> list[str]:
    """The places in a nested state that hold a canary."""
    return [place for place, tensor in tensors_in(state, where) if canaries.found_in(bytes_of(tensor))]


def places_that_name(ids: Tensor, state: Mapping[str, Any], where: str) -> list[str]:
    """The places in a nested state where sample ids are kept, by their names, and one of `ids` (N,) is among them."""
    return [f"{place} (ids)" for place, tensor in _tables_of_ids(state, where) if bool(torch.isin(tensor.cpu(), ids).any())]


def named_ids(state: Mapping[str, Any]) -> Tensor:
    """All sample ids that a nested state keeps, (N,)."""
    return torch.cat([torch.empty(0, dtype=torch.int64), *(tensor.cpu().flatten().long() for _, tensor in _tables_of_ids(state, ""))])


def _tables_of_ids(state: Mapping[str, Any], where: str) -> list[tuple[str, Tensor]]:
    return [(place, tensor) for place, tensor in tensors_in(state, where) if _OF_IDS.search(place) and not tensor.is_floating_point()]


def artefacts_on_disk(folder: Path, canaries: Canaries) -> list[str]:
    """The files below `folder` that hold a canary, by their path from it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [str(path.relative_to(folder)) for path in files if canaries.found_in(path.read_bytes())]


def tensors_in(state: Any, where: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, Tensor):
        yield where, state
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield from tensors_in(value, f"{where}.{key}")
    elif isinstance(state, list | tuple):
        for index, value in enumerate(state):
            yield from tensors_in(value, f"{where}[{index}]")
