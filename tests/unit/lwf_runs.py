"""Runs of LwF with a journal of its steps, on plain images or on moved, flipped and normalised ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cl_framework import Batch, Context, Output
from cl_framework.assembly import make_benchmark
from cl_framework.augment import Augmented
from cl_framework.benchmarks.base import Benchmark
from cl_framework.config import Experiment
from cl_framework.testing.laboratory import beside, experiment_of, finish, in_place_of
from cl_framework.testing.neighbours import Oblivious, slot, snapshot
from strategies.lwf import LwF

PICTURES = Augmented(padding=1, flip=True, mean=(0.5,), deviation=(0.25,))
RELEASED = {"variant": "released"}


def on_pictures(experiment: Experiment) -> Benchmark:
    """The experiment's images, moved and flipped in training, and normalised."""
    return replace(make_benchmark(experiment), transform=PICTURES)


class Spied(LwF):
    """Notes of each step the model, the batch, the term and what the draw used; of each event's end what is known."""

    journal: list[dict[str, Any]] = []  # noqa: RUF012 - one test at a time reads it

    def begin(self, context: Context) -> Any:
        self.weights = context.snapshot()
        return super().begin(context)

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        with torch.no_grad():
            terms = {name: (float(term.value()), term.weight) for name, term in self.loss(batch, output, context).items()}
        position = context.position
        entry = {"event": position.event_index, "phase": position.phase.name, "step": position.step, "terms": terms}  # type: ignore[union-attr]
        state = snapshot(self.state_dict())
        self.journal.append({**entry, "batch": batch, "logits": output.logits, "began": self.weights, "state": state})


def run_spied(
    folder: Path, options: dict[str, Any], stream: str = "L0 L1 L2", *, pictures: bool = False, **settings: Any
) -> list[dict[str, Any]]:
    Spied.journal.clear()
    experiment = in_place_of(experiment_of({"lwf": options}, folder, stream=stream, **settings), Spied)
    finish(beside(experiment, after=[slot(Oblivious)]), on_pictures(experiment) if pictures else None)
    return list(Spied.journal)
