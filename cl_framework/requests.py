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
    ids = _read_ids(Path(event.ids_file), event)
    outside = ids[~torch.isin(ids, shown)]
    if len(outside):
        raise ConfigurationError(
            f"{event} lists sample {int(outside[0])}, which is not in task {event.task} "
            f"(its ids run from {int(shown.min())} to {int(shown.max())})."
        )
    return ids


def _read_ids(path: Path, event: Unlearn) -> Tensor:
    try:
        words = path.read_text().split()
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"the file {path} of {event} is no text; it must hold sample ids separated by blanks.") from error
    except OSError as error:
        raise ConfigurationError(f"{event} needs the file {path}, which cannot be read ({error.strerror}).") from error
    try:
        ids = sorted({int(word) for word in words})
    except ValueError as error:
        raise ConfigurationError(f"the file {path} of {event} must hold sample ids separated by blanks ({error}).") from error
    if not ids:
        raise ConfigurationError(f"the file {path} of {event} lists no sample ids.")
    return torch.tensor(ids, dtype=torch.int64)


def _list(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values))
