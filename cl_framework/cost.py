"""What an event costs, counted in plain numbers: no count waits for the device or looks at a single sample."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

import torch
from torch import Tensor

from cl_framework.plan import Plan


@dataclass(slots=True)
class Cost:
    """What the model was run for in an event, and what was drawn beside the stream. Evaluation is not part of it.

    Passes are those that the framework runs, of a step's objective, however often it is called, and of looks at the model through the
    context, and those that a strategy counts itself (`Context.count_pass`). What else a strategy computes is not seen.
    """

    forward_passes: int = 0
    forward_rows: int = 0  # rows of all these passes
    graph_passes: int = 0  # those through which gradients can pass back
    graph_rows: int = 0
    backward_passes: int = 0  # gradients of a scalar; one for each term where they are asked for term by term
    drawn_rows: int = 0  # rows of all draws, whether or not a term reads them
    read_rows: int = 0  # samples that strategies read through the context, once for each time that they do
    read_forgotten: int = 0  # of these, samples that the Unlearn under way names

    def add(self, other: Cost) -> None:
        for counted in fields(Cost):
            setattr(self, counted.name, getattr(self, counted.name) + getattr(other, counted.name))

    def since(self, earlier: Cost) -> Cost:
        """What was counted after `earlier`."""
        return Cost(*(getattr(self, counted.name) - getattr(earlier, counted.name) for counted in fields(Cost)))

    def forward(self, rows: int, passes: int = 1) -> None:
        """Note forward passes over so many rows each."""
        self.forward_passes += passes
        self.forward_rows += rows * passes
        if torch.is_grad_enabled():
            self.graph_passes += passes
            self.graph_rows += rows * passes


@dataclass
class EventTally:
    """What one event has cost so far, beside `Cost`; survives a resume."""

    steps: int = 0
    samples: int = 0  # visits of the plan: samples_new + samples_past
    samples_new: int = 0  # visits to the event's own task
    samples_past: int = 0  # visits to earlier tasks that a plan shows, and all of a replay
    samples_forgotten: int = 0  # visits to what an Unlearn names; >= 0
    train_seconds: float = 0.0  # of steps
    seconds: float = 0.0  # of all that strategies do in the event, its steps included; without evaluations, records and checkpoints
    phases: list[dict[str, Any]] = field(default_factory=list)  # name, steps, trained_share of parameters, optimizer_bytes at its end

    def add(self, other: EventTally) -> None:
        for counted in fields(EventTally):
            setattr(self, counted.name, getattr(self, counted.name) + getattr(other, counted.name))

    def count(self, plan: Plan | int, own_ids: Tensor, first: int, last: int, seconds: float, asked: Tensor | None = None) -> None:
        """Add the steps from `first` to `last` of a phase; `own_ids` are the training samples of the event's task.

        asked: ids that the event unlearns; None where it is a Learn.
        """
        self.steps += last - first
        self.train_seconds += seconds
        self.seconds += seconds
        if isinstance(plan, int):
            return
        ids = plan.ids[int(plan.offsets[first]) : int(plan.offsets[last])]
        new, past = new_and_past(ids, own_ids)
        self.samples += new + past
        self.samples_new += new
        self.samples_past += past
        if asked is not None:
            self.samples_forgotten += int(torch.isin(ids, asked).sum())


def new_and_past(ids: Tensor, own_ids: Tensor) -> tuple[int, int]:
    """How many visits of a plan (V,) are to the event's own training samples, and how many to earlier tasks'."""
    new = int(torch.isin(ids, own_ids).sum())
    return new, len(ids) - new


def cost_row(tally: EventTally, cost: Cost) -> dict[str, Any]:
    """Its part of a row in events.jsonl."""
    return {
        "steps": tally.steps,
        "samples": tally.samples,
        "samples_new": tally.samples_new,
        "samples_past": tally.samples_past,
        "samples_drawn": cost.drawn_rows,
        "forward_passes": cost.forward_passes,
        "forward_rows": cost.forward_rows,
        "backward_passes": cost.backward_passes,
        "phases": tally.phases,
        "train_seconds": tally.train_seconds,
    }


def answer_row(tally: EventTally, cost: Cost) -> dict[str, Any]:
    """What an answer to an Unlearn has cost, in steps and outside of them: its further part of a row in events.jsonl.

    Samples are visits of plans, rows drawn from memories (which hold what is retained), and reads through the context.
    """
    forgotten = tally.samples_forgotten + cost.read_forgotten
    return {
        "answer_seconds": tally.seconds,
        "samples_forgotten": forgotten,
        "samples_retained": tally.samples + cost.drawn_rows + cost.read_rows - forgotten,
    }


class Stopwatch:
    """Adds up the seconds that `with` blocks of it take."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds += time.monotonic() - self._started


def stored_bytes(state: Any) -> int:
    """Bytes of all tensors in a nested state."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping):
        return sum(stored_bytes(part) for part in state.values())
    if isinstance(state, list | tuple):
        return sum(stored_bytes(part) for part in state)
    return 0


def peak_rss_mib() -> float:
    """Peak resident memory of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
