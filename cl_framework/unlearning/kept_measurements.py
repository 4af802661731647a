"""Measurements kept beside the models they were made of, so that audits of runs that differ only in how they unlearn share them.

They lie in `measured/` under the folder of an oracle's states, which goes by configuration, code, versions, threads and device, and are
found by the model's digest and by all that was asked of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cl_framework.benchmarks.base import Alternatives
from cl_framework.checkpoint import damage, load_state, write_state
from cl_framework.digests import digest_of
from cl_framework.learner import Learner
from cl_framework.unlearning.measure import Glance, Measured, Question, measure
from cl_framework.unlearning.recall_of_answers import Recalled


@dataclass
class KeptMeasurements:
    """The measurements of models that were trained under one configuration and seed, but for how they unlearn."""

    folder: Path
    taken: list[str] = field(default_factory=list)  # names of the files that were read, each with its digest

    def of(self, learner: Learner, question: Question, *, keep: bool = True) -> Measured:
        """As `measure` has it, from the file where it was measured before; else it is kept, but with `keep=False`.

        What answers in the model's place is always measured.
        """
        if learner.stack.predictor is not None:
            return measure(learner, question)
        key = digest_of([learner.model.state_dict(), learner.stack.reads_tasks, asdict(question), contents_of(learner, question)])[:16]
        for path in self.folder.glob(f"{key}-*.pt"):
            if damage(path) is None:
                self.taken.append(path.name)
                return measured_from(load_state(path))
        measured = measure(learner, question)
        if keep:
            write_state(self.folder, key, asdict(measured))
        return measured

    def remove(self) -> None:
        for path in self.folder.glob("*-*.pt"):
            path.unlink()


def contents_of(learner: Learner, question: Question) -> list[Any]:
    """All that a model is shown by a question: the data may change where their places stay the same."""
    benchmark = learner.benchmark
    samples = (question.members, question.others, question.pool, question.probed, *question.retained, *question.questions)
    rows = [part.read(learner) for part in samples if len(part)]
    beside = (benchmark.alternatives, benchmark.utility, benchmark.general or ())  # no part of the benchmark's digest
    return [[[part.items, part.targets] for part in rows], [as_plain(part) for part in beside]]


def as_plain(value: Any) -> Any:
    """Nested tuples and mappings with dataclasses in them as what `digest_of` takes."""
    if isinstance(value, Mapping):
        return {name: as_plain(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return [as_plain(part) for part in value]
    return asdict(value) if isinstance(value, Alternatives) else value


def measured_from(state: Mapping[str, Any]) -> Measured:
    """What `dataclasses.asdict` was made of."""
    recalled = None if state["recalled"] is None else Recalled(**state["recalled"])
    return Measured(**{**state, "glance": Glance(**state["glance"]), "recalled": recalled})
