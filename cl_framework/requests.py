"""What an Unlearn asks for, as sample ids."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cl_framework.benchmarks.base import Benchmark
from cl_framework.errors import ConfigurationError
from cl_framework.rng import RandomStream
from cl_framework.stream import Unlearn


def requested_ids(event: Unlearn, benchmark: Benchmark, shown: Tensor) -> Tensor:
    """The training sample ids that `event` names, sorted; `shown` are the ids that a Learn of its task shows.

    Raises ConfigurationError for classes or ids that the task does not have, and for a file that cannot be read.
    """
    if event.granularity == "task":
        return shown
    if event.classes:
        if benchmark.objective != "classification":
            raise ConfigurationError(f"{event} names classes, but texts have none. Name samples instead, by ids or fraction.")
        held = benchmark.classes[event.task]
        missing = [label for label in event.classes if label not in held]
        if missing:
            raise ConfigurationError(f"{event} names class {missing[0]}, but task {event.task} has classes {_list(held)}.")
        targets = benchmark.read_targets(shown)
        return shown[torch.isin(targets, torch.tensor(event.classes))]
    if event.fraction is not None:
        count = max(1, round(event.fraction * len(shown)))
        order = torch.randperm(len(shown), generator=RandomStream(event.fraction_seed, "unlearn", event.task).generator())
        return shown[order[:count]].sort().values
    assert event.ids_file is not None
    lines = _read_ids(Path(event.ids_file), event)
    low, high = int(shown.min()), int(shown.max())
    inside = torch.tensor(sorted({one for one in lines if low <= one <= high}), dtype=torch.int64)  # what is outside may overflow
    outside = {*inside[~torch.isin(inside, shown)].tolist(), *(one for one in lines if not low <= one <= high)}
    if outside:
        first = next(one for one in lines if one in outside)
        raise ConfigurationError(
            f"{event} lists sample {first} in line {lines[first]} of {event.ids_file}, which is not in task {event.task}: its ids run from "
            f"{low} to {high}. Name samples of that task alone."
        )
    return inside


def _read_ids(path: Path, event: Unlearn) -> dict[int, int]:
    """The numbers that a file holds, of any size, each with the line where it first stands, from 1."""
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"the file {path} of {event} is no text; it must hold sample ids separated by blanks.") from error
    except OSError as error:
        raise ConfigurationError(
            f"{event} needs the file {path}, which cannot be read ({error.strerror}). Name a text file of sample ids that is there; a "
            "relative path begins where clu is run."
        ) from error
    ids: dict[int, int] = {}
    try:
        for number, line in enumerate(lines, start=1):
            for word in line.split():
                ids.setdefault(int(word), number)
    except ValueError as error:
        raise ConfigurationError(f"the file {path} of {event} must hold sample ids separated by blanks ({error}).") from error
    if not ids:
        raise ConfigurationError(f"the file {path} of {event} lists no sample ids.")
    return ids


def _list(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values))
