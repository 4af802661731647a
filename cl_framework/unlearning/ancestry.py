"""Which rows of what strategies made of data (logits, importances, anchors, teachers, prototypes) are older than a request.

What was made while a task was known and lives on unchanged after the task was unlearned still holds something of it, though no byte of a
sample is in it. A register tells of every such row the event after which it was first seen. Samples themselves are not in it: canaries
and ids find those.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from cl_framework.digests import bytes_of
from cl_framework.stream import Learn, Stream, Unlearn
from cl_framework.unlearning.shadow import tensors_in

_OF_SAMPLES = re.compile(r"\.items\b")  # what columns of raw samples are called


class Ancestry:
    """The register: of each row of derived floats, by its digest, the index of the event after which it was first seen."""

    def __init__(self, born: Mapping[str, int] | None = None) -> None:
        self.born: dict[str, int] = dict(born or {})

    def note(self, index: int, state: Mapping[str, Any]) -> None:
        """After an event, of the learner's state: rows that were not there before are its own; rows that are gone are let go of."""
        self.born = {row: self.born.get(row, index) for _, row in _rows(_derived(state), "")}

    def older(self, since: int, index: int, state: Mapping[str, Any], where: str) -> list[str]:
        """The places of the learner's state with rows first seen after an event of since, ..., index - 1.

        Rows that equal the present weights are treated as these are, and are not named.
        """
        present = {row for _, row in _rows(state["model"], "")}
        rows = _rows(_derived(state), where)
        found = {place for place, row in rows if since <= self.born.get(row, -1) < index and row not in present}
        return [f"{place} (made while it was known)" for place in sorted(found)]


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
    """The place and the digest of every row of floats that is no sample; rows of one value all along are alike by chance."""
    for place, tensor in tensors_in(state, where):
        if tensor.is_floating_point() and tensor.numel() and not _OF_SAMPLES.search(place):
            rows = tensor.detach().cpu().reshape(len(tensor), -1) if tensor.ndim > 1 else tensor.detach().cpu().reshape(1, -1)
            for row in rows[(rows != rows[:, :1]).any(1)]:
                yield place, hashlib.blake2b(bytes_of(row), digest_size=8).hexdigest()
