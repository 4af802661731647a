"""What the checks of `clu verify` look at: the run directory, its deletion record, and the data that it names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from cl_framework.assembly import assemble, make_benchmark
from cl_framework.checkpoint import CheckpointStore
from cl_framework.config import load_experiment
from cl_framework.errors import FrameworkError
from cl_framework.learner import Learner
from cl_framework.records import Row, RunDirectory
from cl_framework.stream import Learn, Unlearn
from cl_framework.unlearning.deletion import DONE, FINISHED, REQUESTED, STARTED_WITH, DeletionLog, file_digest
from cl_framework.unlearning.shadow import Canaries


class NotRun(Exception):
    """Why a check could not be made."""


@dataclass(frozen=True)
class Evidence:
    """What the checks of one run look at; each part is read when the first of them asks for it."""

    directory: RunDirectory
    log: DeletionLog
    events: Sequence[Row]
    head: str | None  # a hash of the record that was kept elsewhere

    @cached_property
    def whole(self) -> list[Row]:
        """All entries of the deletion record."""
        return self.log.entries()

    @cached_property
    def entries(self) -> list[Row]:
        """Those since the run was last begun."""
        return self.log.current()

    @property
    def done(self) -> list[Row]:
        return [entry for entry in self.entries if entry["kind"] == DONE]

    @property
    def ends(self) -> list[Row]:
        return [entry for entry in self.entries if entry["kind"] == FINISHED]

    @cached_property
    def state(self) -> dict[str, Any]:
        """The newest checkpoint."""
        found = CheckpointStore(self.directory.checkpoints).load_latest(lambda text: None)
        if found is None:
            raise FrameworkError(f"{self.directory.checkpoints} holds no whole checkpoint.")
        return found

    @cached_property
    def changed(self) -> list[Path]:
        """What the run was started with, and is not any more as the deletion record has it."""
        found = {name: file_digest(self.directory.path / name) for name in STARTED_WITH}
        seals = [entry["started_with"] for entry in self.entries if "started_with" in entry]
        return [self.directory.path / name for name in STARTED_WITH if any(seal[name] != found[name] for seal in seals)]

    @cached_property
    def learner(self) -> Learner:
        """A learner on the run's data that has learned nothing."""
        self.check_configuration()
        try:
            experiment = load_experiment(self.directory.config)
        except FrameworkError as error:
            raise NotRun(f"{self.directory.config} cannot be used here ({error})") from error
        try:
            benchmark = make_benchmark(experiment)
        except FrameworkError as error:
            raise NotRun(f"the data are not at hand ({error})") from error
        return assemble(experiment, benchmark)

    @cached_property
    def gone(self) -> list[tuple[int, Unlearn, Tensor, Canaries]]:
        """What was unlearned and not learned again since: places and requests, last first, the ids named, and how to find samples."""
        learner, found = self.learner, []
        asked = {entry["event_index"]: entry for entry in self.entries if entry["kind"] == REQUESTED}
        learned_again = set()
        for index, event in reversed(list(enumerate(learner.stream.events[: self.events[-1]["event_index"] + 1]))):
            if isinstance(event, Learn):
                learned_again.add(event.task)
            elif event.granularity != "task" or event.task not in learned_again:  # classes and samples stay deleted
                ids = learner.forgotten(event).ids
                if index in asked and hashlib.sha256(ids.numpy().tobytes()).hexdigest() != asked[index]["ids_sha256"]:
                    raise FrameworkError(
                        f"{event} names other samples here than in the deletion record: the data or its split have changed."
                    )
                items, _, _ = learner.benchmark.read(ids)
                found.append((index, event, ids, Canaries.of_items(items, learner.benchmark.transform(items, None))))
        return found

    def check_configuration(self) -> None:
        """NotRun where the configuration was changed: what follows from it says nothing about this run."""
        if self.directory.config in self.changed:
            raise NotRun(f"{self.directory.config} is not the one that the run was started with")
