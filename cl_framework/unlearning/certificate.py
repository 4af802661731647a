"""What a run writes into its deletion record around an Unlearn, and what it searches before it says that the data are gone."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cl_framework.checkpoint import CheckpointStore, files_of_states
from cl_framework.digests import digest_of
from cl_framework.evaluation import evenly
from cl_framework.history import History
from cl_framework.learner import Learner
from cl_framework.records import EVENTS, RECORDS, RunDirectory
from cl_framework.stream import Unlearn
from cl_framework.unlearning.ancestry import Ancestry, Movements, Values, known_since, removed, still_there
from cl_framework.unlearning.deletion import (
    BEGUN_AGAIN,
    DONE,
    FINISHED,
    REQUESTED,
    STARTED_WITH,
    DeletionLog,
    digest_of_rows,
    file_digest,
)
from cl_framework.unlearning.samples import Samples, kept_of, samples_in_memory
from cl_framework.unlearning.shadow import MOST, Canaries, artefacts_in_memory, artefacts_on_disk, places_that_name

CLEAN, TREATED, CONTAINS, REMOVED = "clean", "treated", "contains", "removed"
OUT_OF_REACH = (
    "the data set itself and decoded copies of it in caches",
    "copies of this run's files made by others, and figures logged elsewhere",
    "models that audits keep beside the runs, in a folder `oracles`",
)


class Certifier:
    """Keeps the deletion record of one run."""

    def __init__(self, directory: RunDirectory, learner: Learner) -> None:
        self.directory = directory
        self.learner = learner
        self.log = DeletionLog(directory.path / "deletion")
        self.ancestry = Ancestry()
        self.movements = Movements()
        self.values = Values()
        self._watches = any(isinstance(event, Unlearn) for event in learner.stream.events)

    def note(self, index: int) -> None:
        """Before the first event (-1), and after each, before its checkpoint: what is new in the state."""
        if self._watches:
            state = self.learner.state_dict()
            self.ancestry.note(index, state)
            self.movements.note(index, state["model"])
            self.values.note(index, state)

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
        ids, state = self.learner.forgotten(event).ids, self.learner.state_dict()
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
                "state_before": digest_of(state),
                "held": self.values.held(known_since(self.learner.stream, index), index, state),
                "states_before": sorted(path.name for path in self.directory.checkpoints.rglob("*.pt")),
                "started_with": self._started_with(),
            },
        )

    def done(self, index: int, purged: Sequence[str], *, on_resume: bool = False) -> None:
        """When the new state is on disk and everything older is gone: search what is left, and close the request."""
        started, event = time.monotonic(), self._event(index)
        standing = self.log.open_request()
        assert standing is not None and standing["event_index"] == index
        canaries = self._canaries(event)
        state = self.learner.state_dict()
        ids = self.learner.forgotten(event).ids
        kept = kept_of(self.learner, index, ids, state)
        held = {*artefacts_in_memory(state, canaries), *samples_in_memory(state, Samples(self.learner, ids), kept, "memory")}
        named = places_that_name(ids, state["strategies"], "memory.strategies")
        found = [*sorted(held), *named, *artefacts_on_disk(self.directory.path, canaries)]
        found += self._kept_that_knew(index)
        found += [place for place in self._strangers() if place not in found]
        exact, since = self.learner.is_exact(event), known_since(self.learner.stream, index)
        gone_values = removed(standing.get("held", {}), state)
        found += [f"{place} (what the request took away)" for place in self._still_there(gone_values, state, found)]
        if not exact:
            found += self.ancestry.older(since, index, state, "memory", kept)
        if not (exact and self.learner.stack.unlearner_of(event).strategy.traits.replays):  # a replay starts from older weights
            untreated = self.movements.untreated(since, index, event.task, self.learner.model)
            found += [f"memory.weights.{name} (as it was before the request)" for name in untreated]
        residual = self.learner.benchmark.residual(ids)
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
                "residual": residual,
                "removed": gone_values,
                "guarantee_achieved": "none" if found else ("exact" if exact and not residual else "approximate"),
                **self._rows(),
                "states": self._states(),
                "ancestry": self._ancestry(exact, found) | dict.fromkeys(sorted(gone), REMOVED),
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
                {
                    "event_index": -1,
                    "event": "end",
                    "state_after": digest_of(self.learner.state_dict()),
                    **self._rows(),
                    "states": self._states(),
                    "started_with": self._started_with(),
                },
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

    def _states(self) -> dict[str, str | None]:
        """The run's own files of states, by their place, with their digests."""
        folder = self.directory.checkpoints
        return {self._place(path): file_digest(path) for path in (*CheckpointStore(folder).paths(), *History(folder / "history").paths())}

    def _started_with(self) -> dict[str, str | None]:
        return {name: file_digest(self.directory.path / name) for name in STARTED_WITH}

    def _recomputed(self, exact: bool) -> list[str]:
        return ["weights", *(f"strategies.{slot}" for slot in self.learner.stack.slots)] if exact else []

    def _still_there(self, gone: Sequence[str], state: Mapping[str, Any], known: Sequence[str]) -> list[str]:
        """The places in memory and in kept states, but those whose file is `known` to contain it, with a value that a request took away."""
        found = still_there(gone, {"weights": state["model"], **{part: state[part] for part in state if part != "model"}}, "memory")
        for path, kept in History(self.directory.checkpoints / "history").states() if gone else ():
            found += still_there(gone, kept, self._place(path)) if self._place(path) not in known else []
        return found

    def _kept_that_knew(self, index: int) -> list[str]:
        """Kept states to which the way, as their names tell, showed what was unlearned."""
        folder = self.directory.checkpoints / "history"
        stream, count = self.learner.stream.without_unlearned(index)
        return [self._place(path) for path in History(folder).beside(stream, count, self.learner)]

    def _strangers(self) -> list[str]:
        """Files of states that the run has not written: nobody can tell what they know."""
        own = self._states()
        return [place for path in files_of_states(self.directory.path) if (place := self._place(path)) not in own]

    def _ancestry(self, exact: bool, found: Sequence[str]) -> dict[str, str]:
        """Of what the run still has, in memory and on disk, towards the request: clean, treated (by the strategy, with its guarantee) or
        contains.

        What is made of treated weights is treated, and so are states kept by an approximate stack; what strategies made before is found by
        its age. A checkpoint is a copy of what is in memory. All other files hold figures, the record of what was measured while the
        data were known, and no picture of a sample: they are clean unless a sample was found in them.
        """
        state, made = self.learner.state_dict(), CLEAN if exact else TREATED
        parts: dict[str, Any] = {"weights": state["model"], "optimizer_memory": state["optimizer_memory"]}
        parts |= {f"strategies.{slot}": part for slot, part in state["strategies"].items()}
        ancestry = {name: made if part else CLEAN for name, part in parts.items()}
        ancestry |= {name: CONTAINS for name in parts if any(place.startswith(f"memory.{name}.") for place in found)}
        in_memory = CONTAINS if any(place.startswith("memory.") for place in found) else made
        for path in sorted(path for path in self.directory.path.rglob("*") if path.is_file()):
            of_checkpoint = in_memory if path.parent == self.directory.checkpoints else made
            ancestry[self._place(path)] = of_checkpoint if path.suffix == ".pt" else CLEAN
        return ancestry | dict.fromkeys(found, CONTAINS)

    def _place(self, path: Path) -> str:
        return str(path.relative_to(self.directory.path))
