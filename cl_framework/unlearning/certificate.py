"""What a run writes into its deletion record around an Unlearn, and what it searches before it says that the data are gone."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cl_framework.digests import digest_of
from cl_framework.evaluation import evenly
from cl_framework.learner import Learner
from cl_framework.records import EVENTS, RECORDS, RunDirectory
from cl_framework.stream import Unlearn
from cl_framework.unlearning.ancestry import Ancestry, known_since
from cl_framework.unlearning.deletion import BEGUN_AGAIN, DONE, FINISHED, REQUESTED, DeletionLog, digest_of_rows
from cl_framework.unlearning.shadow import MOST, Canaries, artefacts_in_memory, artefacts_on_disk, places_that_name

OUT_OF_REACH = (
    "the data set itself and decoded copies of it in caches",
    "copies of this run's files made by others, and figures logged elsewhere",
)


class Certifier:
    """Keeps the deletion record of one run."""

    def __init__(self, directory: RunDirectory, learner: Learner) -> None:
        self.directory = directory
        self.learner = learner
        self.log = DeletionLog(directory.path / "deletion")
        self.ancestry = Ancestry()
        self._watches = any(isinstance(event, Unlearn) for event in learner.stream.events)

    def note(self, index: int) -> None:
        """After an event, before its checkpoint: what is new in the state."""
        if self._watches:
            self.ancestry.note(index, self.learner.state_dict())

    def begin_again(self) -> None:
        """At the start of a run: what its record says of an earlier walk, of which no checkpoint is whole, holds no longer."""
        if self.log.current():
            self.log.append(BEGUN_AGAIN, {"event_index": -1, "event": "start"})

    def request(self, index: int) -> None:
        """Before anything of an Unlearn is done; after a resume the request stands already."""
        event = self._event(index)
        standing = self.log.open_request()
        if standing is not None and standing["event_index"] == index:
            return
        member = self.learner.stack.unlearner_of(event)
        traits = member.strategy.traits
        ids = self.learner.forgotten(event).ids
        self.log.append(
            REQUESTED,
            {
                "event_index": index,
                "event": str(event),
                "granularity": event.granularity,
                "samples": len(ids),
                "ids_sha256": hashlib.sha256(ids.numpy().tobytes()).hexdigest(),
                "strategy": member.slot,
                "guarantee_declared": "exact" if traits.exact else "approximate",
                "reads": sorted(traits.unlearning_reads),
                "state_before": digest_of(self.learner.state_dict()),
                "weights_before": digest_of(self.learner.model.state_dict()),
                "states_before": sorted(path.name for path in self.directory.checkpoints.rglob("*.pt")),
            },
        )

    def done(self, index: int, purged: Sequence[str], *, on_resume: bool = False) -> None:
        """When the new state is on disk and everything older is gone: search what is left, and close the request."""
        started, event = time.monotonic(), self._event(index)
        standing = self.log.open_request()
        assert standing is not None and standing["event_index"] == index
        canaries = self._canaries(event)
        state = self.learner.state_dict()
        named = places_that_name(self.learner.forgotten(event).ids, state["strategies"], "memory.strategies")
        found = [*artefacts_in_memory(state, canaries), *named, *artefacts_on_disk(self.directory.path, canaries)]
        exact = self.learner.stack.is_exact(event)
        if not exact:
            found += self.ancestry.older(known_since(self.learner.stream, index), index, state, "memory")
        untouched = digest_of(self.learner.model.state_dict()) == standing.get("weights_before")
        if untouched and not exact:
            found.append("memory.weights, which the request did not change")
        there = {path.name for path in self.directory.checkpoints.rglob("*.pt")}
        gone = {*purged, *standing.get("states_before", ())} - there
        self.log.append(
            DONE,
            {
                "event_index": index,
                "event": str(event),
                "state_after": digest_of(state),
                "purged": sorted(gone),
                "recomputed": self._recomputed(exact),
                "out_of_reach": list(OUT_OF_REACH),
                "canaries": {"searched": canaries.searched, "of": canaries.of},
                "contains": found,
                "guarantee_achieved": "none" if found else ("exact" if exact else "approximate"),
                **self._rows(),
                "ancestry": self._ancestry(exact, found),
                "finished_on_resume": on_resume,
                "seconds": time.monotonic() - started,  # of the search, which comes after the event's row
                "check": f"clu verify {self.directory.path}",
            },
        )

    def finished(self) -> None:
        """At the end of a run in which something was unlearned: seal its rows and its state."""
        if self.log.entries():
            self.log.append(
                FINISHED,
                {"event_index": -1, "event": "end", "state_after": digest_of(self.learner.state_dict()), **self._rows()},
            )

    def finish_open(self, before: int, purged: Sequence[str]) -> None:
        """After a resume: close a request whose event was done, its state safe, when the process died; `purged` are files dropped since."""
        standing = self.log.open_request()
        if standing is not None and standing["event_index"] < before:
            self.done(standing["event_index"], purged, on_resume=True)

    def _event(self, index: int) -> Unlearn:
        event = self.learner.stream.events[index]
        assert isinstance(event, Unlearn)
        return event

    def _canaries(self, event: Unlearn) -> Canaries:
        ids = self.learner.forgotten(event).ids
        items, _, _ = self.learner.benchmark.read(ids[evenly(len(ids), MOST)])  # to read all of them took longer than the search
        return replace(Canaries.of_items(items, self.learner.benchmark.transform(items, None)), of=len(ids))

    def _rows(self) -> dict[str, dict[str, Any]]:
        return {"records": digest_of_rows(self.directory.path / RECORDS), "events": digest_of_rows(self.directory.path / EVENTS)}

    def _recomputed(self, exact: bool) -> list[str]:
        return ["weights", *(f"strategies.{slot}" for slot in self.learner.stack.slots)] if exact else []

    def _ancestry(self, exact: bool, found: Sequence[str]) -> dict[str, str]:
        """Of what the run still has, towards the request: clean, treated (by the strategy, with its guarantee) or contains.

        What is made of treated weights is treated, and what strategies made before is found by its age.
        """
        state = self.learner.state_dict()
        parts: dict[str, Any] = {"weights": state["model"], "optimizer_memory": state["optimizer_memory"]}
        parts |= {f"strategies.{slot}": part for slot, part in state["strategies"].items()}
        ancestry = {name: "clean" if exact or not part else "treated" for name, part in parts.items()}
        return ancestry | dict.fromkeys(found, "contains")
