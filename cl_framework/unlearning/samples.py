"""Samples by the bytes of their rows: all of those that were unlearned, searched in memory, and those that may be kept.

A hash of each row is compared, thousands at a time. Rows are found where a tensor holds them whole and one after another, whatever its
dtype and shape; what stands at other distances in a tensor or in a file is the canaries' to find (`shadow`). No search for bytes finds a
sample that was changed: multiplied, rounded, compressed, augmented, cut or encoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from cl_framework.inputs import Inputs
from cl_framework.learner import Learner
from cl_framework.unlearning.shadow import DISTINCT, named_ids, tensors_in

READ = 256  # samples read at once
_BYTES = 1 << 26  # hashed at once


class Samples:
    """Some samples of a benchmark, as they are stored, as floats, as floats in [0, 1] and as the model reads them; read when first asked
    about, and no further than the answer needs.
    """

    def __init__(self, learner: Learner, ids: Tensor, first: Tensor | None = None) -> None:
        """ids (N,); those that are among `first` are read first."""
        early = torch.isin(ids, ids[:0] if first is None else first)
        self._learner = learner
        self._left = list(torch.cat([ids[early], ids[~early]]).split(READ)) if len(ids) else []
        self._hashes: dict[int, Tensor] = {length: torch.empty(0, dtype=torch.int64) for length, _ in self._forms(ids[:1])}

    @property
    def lengths(self) -> list[int]:
        """Bytes of a row in each form, largest first."""
        return sorted(self._hashes, reverse=True)

    def among(self, rows: Tensor) -> Tensor:
        """Which of some rows (N, L), uint8, are one of the samples: (N,), bool."""
        length = rows.shape[1]
        if length not in self._hashes:
            return torch.zeros(len(rows), dtype=torch.bool)
        wanted = row_hashes(rows)
        found = torch.isin(wanted, self._hashes[length])
        while self._left and not bool(found.all()):
            found |= torch.isin(wanted, self._read_on().get(length, wanted[:0]))
        return found

    def cover(self, rows: Tensor) -> Tensor:
        """Which of some rows (N, L), uint8, are made of whole samples alone: (N,), bool."""
        covered = torch.zeros(len(rows), dtype=torch.bool)
        for length in self.lengths:
            if rows.shape[1] % length == 0:
                covered |= self.among(rows.reshape(-1, length)).view(len(rows), -1).all(1)
        return covered

    def _read_on(self) -> dict[int, Tensor]:
        """The hashes of the next samples, by the bytes of a row; those of all so far are kept, too."""
        new: dict[int, list[Tensor]] = {}
        for length, rows in self._forms(self._left.pop(0)):
            new.setdefault(length, []).append(row_hashes(rows))
        found = {length: torch.cat(parts) for length, parts in new.items()}
        self._hashes |= {length: torch.cat([self._hashes[length], part]) for length, part in found.items()}
        return found

    def _forms(self, ids: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Length and rows (N, L), uint8, of the samples in each form."""
        if not len(ids):
            return
        items, _, _ = self._learner.benchmark.read(ids)
        for part in (*_parts(items), *_parts(self._learner.benchmark.transform(items, None))):
            as_floats = (part.float(), part.float() / 255) if part.dtype == torch.uint8 else ()
            for form in (part, *as_floats):
                rows = bytes_by_row(form)
                yield rows.shape[1], rows


def samples_in_memory(state: Mapping[str, Any], gone: Samples, kept: Samples, where: str) -> list[str]:
    """The places in a nested state that hold a row of `gone` which is no row of `kept`."""
    return [place for place, tensor in tensors_in(state, where) if _holds(tensor, gone, kept)]


def _holds(tensor: Tensor, gone: Samples, kept: Samples) -> bool:
    size = tensor.numel() * tensor.element_size()
    for length in gone.lengths if size else ():
        if size % length == 0:
            rows = bytes_by_row(tensor.reshape(1, -1)).view(-1, length)
            found = rows[gone.among(rows)]
            found = found[_told_apart(found)]
            if len(found) and not bool(kept.among(found).all()):  # data sets hold some images twice
                return True
    return False


def kept_of(learner: Learner, index: int, gone: Tensor, state: Mapping[str, Any]) -> Samples:
    """The samples that may be kept after the event `index`: of all tasks that are live then, without those that are `gone` (N,).

    Those that the state names by their ids are read first.
    """
    live = [learner.training_ids(task) for task in learner.stream.learned_after[index]]
    ids = torch.cat([*live, gone[:0]])
    return Samples(learner, ids[~torch.isin(ids, gone)], named_ids(state))


def bytes_by_row(tensor: Tensor) -> Tensor:
    """The bytes of a tensor (N, ...): (N, L), uint8."""
    return tensor.detach().cpu().contiguous().reshape(len(tensor), -1).view(torch.uint8)


def row_hashes(rows: Tensor) -> Tensor:
    """A hash of 64 bits for each of the rows (N, L), uint8: (N,), int64."""
    words = -(-rows.shape[1] // 8)
    factors = torch.randint(1 << 62, (2, words), generator=torch.Generator().manual_seed(0)) * 2 + 1
    parts = []
    for some in rows.split(max(1, _BYTES // max(1, rows.shape[1]))):
        padded = torch.nn.functional.pad(some, (0, 8 * words - some.shape[1])).contiguous().view(torch.int64)
        mixed = (padded ^ (padded >> 32)) * factors[0]  # high bytes reach low ones: a sum of products alone would lose them
        parts.append(((mixed ^ (mixed >> 32)) * factors[1]).sum(1))
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


def _told_apart(rows: Tensor) -> Tensor:
    """Which of some rows (N, L), uint8, have enough different bytes not to be alike by chance: (N,), bool."""
    ordered = rows.sort(1).values
    return (ordered[:, 1:] != ordered[:, :-1]).sum(1) + 1 >= DISTINCT


def _parts(items: Inputs) -> list[Tensor]:
    return list(items.values()) if isinstance(items, Mapping) else [items]
