"""What was made while a task was known and lives on unchanged after it was unlearned: something of the task is in it, if no sample's byte.

Three registers. `Ancestry` is of what strategies made of data (logits, importances, anchors, teachers, prototypes): of every row the event
after which it was first seen, whatever its dtype and name. Samples that may be kept may be as old as they are; those that may not are
found by their bytes and ids. `Movements` is of weights and normalisation statistics, tensor by tensor: the events in which each moved.
`Values` is of all tensors of floats: what a request took away may be nowhere any more. Beside an exact answer that is all that is asked:
much that was made while the task was known may stay there, since it never met it.

The registers compare bytes: what was changed in any way (a copy times two, a rounded or an encoded one, rows cut or joined) is new to them.
Beside an oracle such a copy shows (`unlike`), since none is kept there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cl_framework.digests import bytes_of, digest_of
from cl_framework.stream import Learn, Stream, TaskId, Unlearn
from cl_framework.unlearning.samples import Samples, bytes_by_row
from cl_framework.unlearning.shadow import tensors_in

ROUNDING = 1e-6  # of the norm: values no farther apart are the same
COUNTED = 1 << 24  # whole numbers below it are ids, labels, tokens, counts and places; bytes of weights read as such are larger


class Ancestry:
    """The register: of each row that was made of data, by its digest, the index of the event after which it was first seen."""

    def __init__(self, born: Mapping[str, int] | None = None) -> None:
        self.born: dict[str, int] = dict(born or {})

    def note(self, index: int, state: Mapping[str, Any]) -> None:
        """After an event, of the learner's state: rows that were not there before are its own; rows that are gone are let go of."""
        self.born = {row: self.born.get(row, index) for _, row in _rows(_derived(state), "")}

    def older(self, since: int, index: int, state: Mapping[str, Any], where: str, kept: Samples | None = None) -> list[str]:
        """The places of the learner's state with rows first seen after an event of since, ..., index - 1, and made of more than samples
        of `kept`.

        Rows that equal the present weights are treated as these are, and are not named.
        """
        present = {row for _, row in _rows(state["model"], "")}
        found = set()
        for place, rows in _rows_by_place(_derived(state), where):
            digests = _digests(rows)
            old = torch.tensor([since <= self.born.get(row, -1) < index and row not in present for row in digests], dtype=torch.bool)
            if bool(old.any()) and (kept is None or not bool(kept.cover(bytes_by_row(rows[old])).all())):
                found.add(place)
        return [f"{place} (made while it was known)" for place in sorted(found)]


class Movements:
    """The register of the model's tensors of floats: by name, the events in which it moved, and its digest after the last of them.

    A tensor is treated by a request as soon as it moved at all: which of its entries hold the data nobody can tell, and a method may well
    choose some (a head's rows, what dampening selects). One that moved while the task was known holds something of it, whichever task
    moved it, since it learned beside others that had moved before. Only what serves another task alone (its embedding, its part) is
    not counted: no row of this one ever met it.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self.events: dict[str, list[int]] = dict(state["events"]) if state else {}
        self.digests: dict[str, str] = dict(state["digests"]) if state else {}

    def note(self, index: int, weights: Mapping[str, Any]) -> None:
        """After an event, -1: before the first, of the model's state."""
        now = {name: digest_of(value) for name, value in weights.items() if isinstance(value, Tensor) and value.is_floating_point()}
        if index >= 0:
            for name in (name for name, digest in now.items() if digest != self.digests.get(name)):
                self.events.setdefault(name, []).append(index)
        self.digests = now

    def untreated(self, since: int, index: int, task: TaskId, model: nn.Module) -> list[str]:
        """Names of tensors that moved in one of the events since, ..., index - 1 and not in the request for `task` at `index`."""
        moved = [name for name, events in self.events.items() if index not in events and any(since <= event < index for event in events)]
        return sorted(name for name in moved if _serves(model, name) in (None, task))

    def state_dict(self) -> dict[str, Any]:
        return {"events": {name: list(events) for name, events in self.events.items()}, "digests": dict(self.digests)}


class Values:
    """The register of all tensors of floats: of each value, by its digest, the index of the event after which it was first seen.

    Whole numbers and masks are not in it: samples, ids and labels are searched for themselves, and counts are alike by chance.
    """

    def __init__(self, born: Mapping[str, int] | None = None) -> None:
        self.born: dict[str, int] = dict(born or {})

    def note(self, index: int, state: Mapping[str, Any]) -> None:
        """After an event, of the learner's state: values that were not there before are its own; those that are gone are let go of."""
        self.born = {value: self.born.get(value, index) for value in values_by_place(state).values()}

    def held(self, since: int, index: int, state: Mapping[str, Any]) -> dict[str, str]:
        """Of the learner's state just before the event `index`: the places of values first seen after one of since, ..., index - 1, with
        their digests.

        Older values never met what was first shown in `since`, and may come back: an answer that trains again goes through them.
        """
        return {place: value for place, value in values_by_place(state).items() if since <= self.born.get(value, -1) < index}


def values_by_place(state: Mapping[str, Any]) -> dict[str, str]:
    """The digest of every tensor of floats in a nested state, by its place; not of those of one value all along, alike by chance."""
    tensors = ((place, tensor) for place, tensor in tensors_in(state, "") if tensor.is_floating_point() or tensor.is_complex())
    return {place.removeprefix("."): _digest(tensor) for place, tensor in tensors if not _even(tensor)}


def removed(held: Mapping[str, str], state: Mapping[str, Any]) -> list[str]:
    """Digests of the values that were held before a request and are not at their places in the state after it, sorted.

    What the request left in the weights it did not take away, though a strategy may have let go of a copy of it.
    """
    now = values_by_place(state)
    left = {value for place, value in held.items() if place.startswith("model.") and now.get(place) == value}
    return sorted({value for place, value in held.items() if now.get(place) != value} - left)


def still_there(gone: Collection[str], state: Any, where: str) -> list[str]:
    """The places of a nested state with a tensor of any kind whose bytes are those of a value that a request took away."""
    wanted = set(gone)
    return [place for place, tensor in tensors_in(state, where) if wanted and not _even(tensor) and _digest(tensor) in wanted]


def made_of_data(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copies of the tensors that strategies and optimizers keep, by place; not of those of one value all along."""
    tensors = tensors_in(_derived(state), "")
    return {place.removeprefix("."): tensor.detach().clone() for place, tensor in tensors if not _even(tensor)}


def unlike(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[str]:
    """The places of `mine` at which stands what is nowhere in `theirs`, sorted. Values are compared within `ROUNDING` of their norm, and
    not by bytes: sums that were taken back are equal to rounding."""

    def is_theirs(place: str, tensor: Tensor) -> bool:
        own = [theirs[place]] if place in theirs else []
        return any(_same(tensor, other) for other in (*own, *theirs.values()))

    return sorted(place for place, tensor in mine.items() if not is_theirs(place, tensor))


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not (one.is_floating_point() or one.is_complex()):
        return torch.equal(one, other)
    return bytes_of(one) == bytes_of(other) or bool((one - other).norm() <= ROUNDING * other.norm())


def _digest(tensor: Tensor) -> str:
    return hashlib.blake2b(bytes_of(tensor), digest_size=8).hexdigest()


def _even(tensor: Tensor) -> bool:
    """Whether a tensor is empty, or has one value all along."""
    return not tensor.numel() or bool((tensor == tensor.flatten()[0]).all())


def _serves(model: nn.Module, name: str) -> TaskId | None:
    """The task that alone has a use for a tensor; None where it is shared."""
    head, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) if head == getattr(model, "one_a_task", None) else None


def known_since(stream: Stream, index: int) -> int:
    """The event that first showed what the Unlearn at `index` names, since its task was last unlearned as a whole."""
    task, since = stream.events[index].task, index
    for number, event in reversed(list(enumerate(stream.events[:index]))):
        if event.task == task and isinstance(event, Learn):
            since = number
        elif event.task == task and isinstance(event, Unlearn) and event.granularity == "task":
            break
    return since


def _derived(state: Mapping[str, Any]) -> dict[str, Any]:
    """What was made of weights and data, beside the weights themselves."""
    return {part: state[part] for part in ("optimizer_memory", "strategies")}


def _rows(state: Mapping[str, Any], where: str) -> Iterator[tuple[str, str]]:
    """The place and the digest of every row."""
    return ((place, row) for place, rows in _rows_by_place(state, where) for row in _digests(rows))


def _rows_by_place(state: Mapping[str, Any], where: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor as rows (N, L), without those of one value all along, which are alike by chance, and without whole numbers."""
    for place, tensor in tensors_in(state, where):
        if tensor.numel() and not _counts(tensor):
            rows = tensor.detach().cpu().reshape(len(tensor) if tensor.ndim > 1 else 1, -1)
            yield place, rows[(rows != rows[:, :1]).any(1)]


def _digests(rows: Tensor) -> list[str]:
    return [hashlib.blake2b(bytes_of(row), digest_size=8).hexdigest() for row in rows]


def _counts(tensor: Tensor) -> bool:
    """Whether a tensor holds whole numbers, or truth values, as they count, name or choose something."""
    if tensor.dtype == torch.bool:
        return bool((tensor.detach().view(torch.uint8) <= 1).all())
    if tensor.is_floating_point() or tensor.is_complex() or tensor.element_size() < 4:
        return False
    return bool((tensor < COUNTED).all() and (tensor > -COUNTED).all())
