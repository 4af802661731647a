"""Recall schedules: when a plan shows a sample again, in words and as a picture; and the forgetting curve that motivates spacing.

A visit is a sample shown in a step, however many views it has there. Its place is the slot (row of the plan) where it begins, so that
N slots are one pass over N samples whatever the batch size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cl_framework.plan import Plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BARS = "▁▂▃▄▅▆▇█"


# --- the model of forgetting: motivation only, nothing in a run depends on it ---


def retained(time: float, scale: float, rate: float, exponent: float) -> float:
    """What is left of a memory `time` >= 0 after its last visit: R(t) = A (b t + 1)^-S with A = scale, b = rate, S = exponent, all > 0."""
    return scale * (rate * time + 1) ** -exponent


def decay_exponent(interval: float, curvature: float, optimum: float) -> float:
    """How fast a memory fades that was visited every `interval` >= 0: S = 1 + c (ln(I + 1) - d)^2 with c = curvature, d = optimum."""
    return 1 + curvature * (math.log(interval + 1) - optimum) ** 2


def best_interval(optimum: float) -> float:
    """The interval at which a memory fades most slowly: I* = e^d - 1, where `decay_exponent` is 1."""
    return math.expm1(optimum)


# --- what a plan shows ---


def first_rows(plan: Plan) -> Tensor:
    """The rows that begin a visit, (M,) ascending: the first row of each group in its step; without groups every row."""
    if plan.group is None or not plan.visits:
        return torch.arange(plan.visits)
    visit = _visit_of_row(plan)
    order = visit.argsort(stable=True)
    begins = torch.ones_like(order, dtype=torch.bool)
    begins[1:] = visit[order].diff() != 0
    return order[begins].sort().values


def recall_intervals(plan: Plan) -> Tensor:
    """Slots from a visit to the next one of the same sample, for all that have a next one: (K,) int64 >= 1."""
    rows = first_rows(plan)
    ids = plan.ids[rows]
    order = ids.argsort(stable=True)
    return rows[order].diff()[ids[order].diff() == 0]


def _step_of_row(plan: Plan) -> Tensor:
    return torch.arange(plan.steps).repeat_interleave(plan.offsets.diff())


def _visit_of_row(plan: Plan) -> Tensor:
    """A number for each row, (V,), equal for the rows of one group in one step; the plan has groups and rows."""
    assert plan.group is not None
    dense = plan.group.unique(return_inverse=True)[1]
    return _step_of_row(plan) * (int(dense.max()) + 1) + dense


@dataclass(frozen=True)
class Recall:
    """The recall schedule of a plan in numbers."""

    samples: int  # distinct ones
    visits: tuple[int, int]  # of a sample that is shown: fewest, most
    views: tuple[int, int]  # rows of a visit: fewest, most
    step: tuple[int, int]  # the most frequent kind of step: visits, rows
    intervals: Tensor  # (K,) see `recall_intervals`

    @classmethod
    def of(cls, plan: Plan) -> Recall:
        rows = first_rows(plan)
        visits = plan.ids[rows].unique(return_counts=True)[1]
        single = plan.group is None or not plan.visits
        views = torch.ones_like(rows) if single else _visit_of_row(plan).unique(return_counts=True)[1]
        visits_of_step = _step_of_row(plan)[rows].bincount(minlength=plan.steps)
        kinds, often = torch.stack([visits_of_step, plan.offsets.diff()], 1).unique(dim=0, return_counts=True)
        visits_a_step, rows_a_step = kinds[often.argmax()].tolist() if plan.steps else (0, 0)
        return cls(len(visits), _range(visits), _range(views), (visits_a_step, rows_a_step), recall_intervals(plan))


def _range(values: Tensor) -> tuple[int, int]:
    return (int(values.min()), int(values.max())) if len(values) else (0, 0)


# --- in words ---


def bars(values: Tensor, columns: int = 24) -> str:
    """A histogram of (K,) whole numbers in one line: at most `columns` columns of equal width from the smallest to the largest."""
    if not len(values):
        return ""
    low, high = int(values.min()), int(values.max())
    columns = min(columns, high - low + 1)
    counts = ((values - low) * columns // (high - low + 1)).bincount(minlength=columns)
    heights = (counts * (len(_BARS) - 1) / counts.max()).round().long()
    return "".join(_BARS[height] if count else " " for height, count in zip(heights.tolist(), counts.tolist(), strict=True))


def recall_lines(plan: Plan, own: Tensor) -> list[str]:
    """A plan's recall schedule in two lines; `own` (N,) are the ids of the training samples of the event's task."""
    recall = Recall.of(plan)
    shown = int(torch.isin(own, plan.ids).sum())
    samples = f"{shown} of {len(own)} samples"
    if shown < len(own):
        samples += f" ({len(own) - shown} not shown in it)"
    if recall.samples > shown:
        samples += f" and {recall.samples - shown} of earlier tasks"
    visits, rows = recall.step
    parts = (samples, f"{_spread(recall.visits, 'visit')} each", f"{_spread(recall.views, 'view')} a visit")
    return [", ".join([*parts, f"most steps: {_amount(visits, 'visit')} in {_amount(rows, 'row')}"]), _intervals_line(recall.intervals)]


def _intervals_line(intervals: Tensor) -> str:
    if not len(intervals):
        return "no sample comes back"
    low, middle, high = int(intervals.min()), int(intervals.median()), int(intervals.max())
    return f"comes back after {low} / {middle} / {high} slots (min / median / max)  {bars(intervals)}"


def _spread(numbers: tuple[int, int], what: str) -> str:
    low, high = numbers
    return _amount(high, what) if low == high else f"{low} to {_amount(high, what)}"


def _amount(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# --- as a picture ---


def raster(plan: Plan, subset: Tensor) -> tuple[Tensor, Tensor]:
    """Which step visits which of the samples `subset` (M,) sorted: steps (K,) and places in the subset (K,), in order of the visits."""
    rows = first_rows(plan)
    wanted = torch.isin(plan.ids[rows], subset)
    return _step_of_row(plan)[rows][wanted], torch.searchsorted(subset, plan.ids[rows][wanted])


def recall_figure(plans: Sequence[tuple[str, Plan]], samples: int = 60) -> Figure:
    """Two panels: visits to some of the samples by step over all events, and the recall intervals; `plans` with the events' names."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ids = torch.cat([plan.ids for _, plan in plans]).unique()
    subset = ids[torch.linspace(0, len(ids) - 1, min(samples, len(ids))).round().long()]
    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, height_ratios=(3, 1))
    first = 0
    for name, plan in plans:
        steps, places = raster(plan, subset)
        above.scatter((steps + first).numpy(), places.numpy(), s=6, marker="|", linewidths=0.8, color="C0")
        above.axvline(first, color="0.8", linewidth=0.8, zorder=0)
        above.annotate(name, (first, len(subset)), fontsize=8)
        first += plan.steps
    above.set_xlabel("step")
    above.set_ylabel(f"{len(subset)} of {len(ids)} samples")
    below.hist([recall_intervals(plan).numpy() for _, plan in plans], bins=40, stacked=True, label=[name for name, _ in plans])
    below.set_xlabel("slots until the sample comes back")
    below.set_ylabel("visits")
    if len(plans) <= 12:
        below.legend(fontsize=7, ncols=2)
    return figure
