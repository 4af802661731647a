"""Who hears of a run: the console, Weights & Biases. A listener changes nothing; it overrides what it wants to hear."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_framework.config import Experiment
from cl_framework.criterion import asked, right
from cl_framework.records import RunDirectory
from cl_framework.strategy import Batch, Evaluation, Position
from cl_framework.stream import Stream


@dataclass(frozen=True)
class RunInfo:
    """What is known when a run starts or is resumed."""

    experiment: Experiment
    directory: RunDirectory
    stream: Stream
    resumed: bool
    notes: Mapping[str, str]  # the benchmark's: what it found in the data and did with it


@dataclass(frozen=True)
class Progress:
    """The state after a chunk of steps. Reading `loss`, `terms` or `accuracy` waits for the device: do it seldom."""

    position: Position
    evaluation: Evaluation
    batch: Batch

    @property
    def loss(self) -> float:
        return float(self.evaluation.loss)

    @property
    def terms(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.evaluation.terms.items()}

    @property
    def accuracy(self) -> float | None:
        """Percent of the answers asked of the last step's stream rows, of texts tokens, that were right before its update; None without
        rows."""
        if not len(self.batch):
            return None
        logits, targets = self.evaluation.output.logits, self.batch.targets
        return 100.0 * float(right(logits, targets).sum() / asked(targets).sum().clamp(min=1))


class Listener:
    """Hears of a run; every method may be left out."""

    def on_start(self, info: RunInfo) -> None:
        """The run starts or is resumed."""

    def on_event_start(self, index: int) -> None:
        """Event `index` of the stream starts or is continued."""

    def on_progress(self, progress: Progress) -> None:
        """A chunk of steps is done."""

    def on_evaluation(self, index: int, event: str, rows: Sequence[Mapping[str, Any]], scenario: str) -> None:
        """Event `index` (-1: the untrained model) was evaluated; `rows` are its records, `scenario` the run's own."""

    def on_warning(self, text: str) -> None:
        """Something a user should know, in a sentence."""

    def on_stop(self, path: Path) -> None:
        """The run stopped at a checkpoint."""

    def on_failure(self, text: str) -> None:
        """The run failed."""

    def on_finish(self, summary: Mapping[str, Any]) -> None:
        """The stream is done."""


def warn_listeners(listeners: Sequence[Listener], text: str) -> None:
    """Tell every listener; where nobody listens, as in a run from Python, it is a Python warning."""
    for listener in listeners:
        listener.on_warning(text)
    if not listeners:
        warnings.warn(text, stacklevel=3)
