"""Recall schedules: visits and intervals against loops over the rows, the forgetting curve, the lines and the picture."""

from __future__ import annotations

import math

import pytest
import torch

from cl_framework.plan import Plan
from cl_framework.recall import (
    Recall,
    bars,
    best_interval,
    decay_exponent,
    first_rows,
    raster,
    recall_figure,
    recall_intervals,
    recall_lines,
    retained,
)


def random_plan(seed: int) -> Plan:
    """Steps of unequal size, some empty, over few samples; in two of three cases with groups, whose names come again in other steps."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(0, 7, (9,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    count = int(offsets[-1])
    group = None if seed % 3 == 0 else torch.randint(5, 8, (count,), generator=generator)
    ids = torch.randint(0, 8, (count,), generator=generator)
    return Plan(ids if group is None else group * 3, offsets, group=group)


def visits_by_loop(plan: Plan) -> list[tuple[int, int, int, int]]:
    """(first row, id, step, rows) of each visit, in the order of the rows."""
    found: list[tuple[int, int, int, int]] = []
    for step in range(plan.steps):
        begun: dict[int, int] = {}  # group -> place in `found`
        for row in range(int(plan.offsets[step]), int(plan.offsets[step + 1])):
            name = row if plan.group is None else int(plan.group[row])
            if name in begun:
                first, sample, where, rows = found[begun[name]]
                found[begun[name]] = (first, sample, where, rows + 1)
            else:
                begun[name] = len(found)
                found.append((row, int(plan.ids[row]), step, 1))
    return found


def intervals_by_loop(plan: Plan) -> list[int]:
    last: dict[int, int] = {}
    found = []
    for row, sample, _, _ in visits_by_loop(plan):
        if sample in last:
            found.append(row - last[sample])
        last[sample] = row
    return found


def test_visits_and_intervals_are_those_of_a_loop_over_the_rows() -> None:
    grouped = 0
    for seed in range(120):
        plan = random_plan(seed)
        expected = visits_by_loop(plan)
        assert first_rows(plan).tolist() == [row for row, *_ in expected]
        assert sorted(recall_intervals(plan).tolist()) == sorted(intervals_by_loop(plan))
        grouped += len(expected) < plan.visits
        recall = Recall.of(plan)
        counts = [[sample for _, sample, _, _ in expected].count(sample) for sample in {sample for _, sample, _, _ in expected}]
        assert (recall.samples, recall.visits) == (len(counts), (min(counts), max(counts)))
        assert recall.views == (min(rows for *_, rows in expected), max(rows for *_, rows in expected))
    assert grouped > 60, "without groups of several rows this shows little"


def test_a_shuffled_pass_brings_samples_back_after_one_pass_in_the_mean() -> None:
    plan = Plan.over(torch.arange(50), 8, 2, torch.Generator().manual_seed(0))
    intervals = recall_intervals(plan)
    assert len(intervals) == 50 and float(intervals.double().mean()) == 50
    assert not len(recall_intervals(Plan.over(torch.arange(50), 8, 1, torch.Generator())))


def test_a_plan_without_visits() -> None:
    for plan in (Plan.empty(), Plan(torch.empty(0, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), group=torch.empty(0).long())):
        assert first_rows(plan).tolist() == [] and recall_intervals(plan).tolist() == []
        assert Recall.of(plan).visits == (0, 0)


# --- the model of forgetting ---


def test_memories_fade_most_slowly_at_the_best_interval() -> None:
    swept = 0
    for optimum in (0.5, 2.0, 6.0):
        best = best_interval(optimum)
        assert decay_exponent(best, 0.3, optimum) == pytest.approx(1)
        for other in (best / 4, best / 1.1, best * 1.1, best * 16):
            assert decay_exponent(other, 0.3, optimum) > 1
            assert retained(9, 0.8, 0.1, decay_exponent(other, 0.3, optimum)) < retained(9, 0.8, 0.1, 1.0)
            swept += 1
    assert swept == 12


def test_the_forgetting_curve() -> None:
    assert retained(0, 0.8, 0.1, 3) == 0.8
    assert retained(30, 0.8, 0.1, 2) == pytest.approx(0.8 / 16)
    assert decay_exponent(math.e - 1, 0.5, 3) == pytest.approx(1 + 0.5 * 4)


# --- in words and as a picture ---


def test_bars() -> None:
    assert bars(torch.tensor([], dtype=torch.int64)) == ""
    assert bars(torch.tensor([7, 7])) == "█"
    assert bars(torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 3])) == "█▂ ▂"
    flat = bars(torch.arange(100))  # 4 or 5 in a column
    assert len(flat) == 24 and set(flat) == {"▇", "█"} and flat.count("█") == 100 - 4 * 24


def test_lines() -> None:
    plan = Plan(torch.tensor([3, 3, 4, 4, 9, 9, 3, 3]), torch.tensor([0, 4, 8]), group=torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
    assert recall_lines(plan, torch.tensor([3, 4, 5])) == [
        "2 of 3 samples (1 not shown in it) and 1 of earlier tasks, 1 to 2 visits each, 2 views a visit, most steps: 2 visits in 4 rows",
        "comes back after 6 / 6 / 6 slots (min / median / max)  █",
    ]
    plain = Plan.over(torch.arange(3), 1, 1, torch.Generator())
    assert recall_lines(plain, torch.arange(3)) == [
        "3 of 3 samples, 1 visit each, 1 view a visit, most steps: 1 visit in 1 row",
        "no sample comes back",
    ]


def test_a_raster_holds_each_visit_of_the_subset() -> None:
    plan = random_plan(1)
    subset = torch.tensor([15, 21])
    steps, places = raster(plan, subset)
    expected = [(step, [15, 21].index(sample)) for _, sample, step, _ in visits_by_loop(plan) if sample in (15, 21)]
    assert list(zip(steps.tolist(), places.tolist(), strict=True)) == expected and len(expected) > 3


def test_the_figure_shows_events_one_after_the_other() -> None:
    plans = [
        (name, Plan.over(torch.arange(first, first + 9), 4, 3, torch.Generator())) for name, first in (("L0", 0), ("L1", 9), ("L0", 0))
    ]
    above, below = recall_figure(plans, samples=18).axes
    shown = [collection.get_offsets() for collection in above.collections]
    assert [len(visits) for visits in shown] == [27, 27, 27]
    assert [float(visits[:, 0].min()) for visits in shown] == [0, 9, 18]
    assert below.get_xlabel() == "slots until the sample comes back"
