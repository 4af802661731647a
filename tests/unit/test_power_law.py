"""Rehearsal environments: weights, counts and mixing against their definitions, and schedules of whole streams."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import strategies.power_law  # noqa: F401  registers it
from cl_framework import Context, Forgotten, Plan
from cl_framework.assembly import assemble
from cl_framework.errors import ConfigurationError
from cl_framework.records import RunDirectory
from cl_framework.strategy import Phase
from cl_framework.testing import CHECKS, Subject
from cl_framework.testing.laboratory import (
    assert_different_weights,
    assert_equal_outcomes,
    augmented,
    beside,
    experiment_of,
    finish,
    finish_in_pieces,
    in_place_of,
)
from cl_framework.testing.neighbours import Oblivious, TwoViews, slot
from strategies.power_law import (
    ENVIRONMENTS,
    PowerLaw,
    PowerLawConfig,
    apportioned,
    largest_remainder,
    mixed,
    randomised,
    rehearsal_counts,
    weights,
)

TASKS = 8
A_TASK = 40  # samples


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lags_of_phase(phase: int) -> Tensor:
    """Since introduced, of the tasks before `phase` (counted from 1), in order of learning."""
    return torch.arange(phase - 1, 0, -1)


def slope(xs: list[float], ys: list[float]) -> float:
    """Of the least-squares line, by its definition."""
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / sum((x - mean_x) ** 2 for x in xs)


# --- weights ---


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ("power_law", lambda lag: lag**-0.5),
        ("exponential", lambda lag: math.exp(-0.2 * (lag - 1))),
        ("uniform", lambda lag: 1.0),
        ("recency", lambda lag: 1.0 if lag <= 3 else 0.0),
        ("none", lambda lag: 0.0),
        ("joint", lambda lag: 1.0),
    ],
)
def test_weights_by_definition(environment: str, expected: Callable[[int], float]) -> None:
    found = weights(environment, torch.arange(1, 31), exponent=0.5, rate=0.2, recency=3)
    assert found.tolist() == pytest.approx([expected(lag) for lag in range(1, 31)], rel=1e-12)
    assert found.dtype == torch.float64


def test_every_environment_has_its_weights() -> None:
    swept = [weights(environment, torch.arange(1, 6)) for environment in ENVIRONMENTS]
    assert len(swept) == 6
    assert len({tuple(found.tolist()) for found in swept}) == 5  # uniform and joint weigh alike; joint takes all there is


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_lag_zero_is_never_evaluated(environment: str) -> None:
    with pytest.raises(ValueError, match="lags must be >= 1, got 0: the task of the phase itself is always shown whole"):
        weights(environment, torch.tensor([1, 0]))


def test_limits_of_the_exponent() -> None:
    lags = torch.arange(1, 20)
    assert torch.equal(weights("power_law", lags, exponent=0), weights("uniform", lags))
    assert torch.equal(weights("power_law", lags, exponent=1e9), weights("recency", lags, recency=1))
    assert not torch.equal(weights("power_law", lags, exponent=0.1), weights("uniform", lags))


def test_at_equal_budget_the_power_law_has_the_longer_tail() -> None:
    """With the default rate both weigh 19 lags together alike and lag 1 as 1; from lag 3 on the power law's tail sums are larger."""
    lags = torch.arange(1, 20)
    power, exponential = weights("power_law", lags), weights("exponential", lags, rate=PowerLawConfig().rate)
    assert float(power[0]) == float(exponential[0]) == 1
    assert float(power.sum()) == pytest.approx(float(exponential.sum()), abs=0.01)
    tails = [(float(power[lag - 1 :].sum()), float(exponential[lag - 1 :].sum())) for lag in range(1, 20)]
    larger = [lag for lag, (one, other) in enumerate(tails, start=1) if one > other]
    assert set(range(3, 20)) <= set(larger)
    assert 2 not in larger


# --- counts ---


def brute_force_shares(total: float, weight: list[float], sizes: list[int]) -> list[float]:
    """Pour the total in small drops, each spread by weight over those that are not full."""
    shares = [0.0] * len(weight)
    drop = total / 20_000
    for _ in range(20_000):
        wanting = [i for i in range(len(weight)) if weight[i] > 0 and shares[i] < sizes[i]]
        whole = sum(weight[i] for i in wanting)
        for i in wanting:
            shares[i] = min(sizes[i], shares[i] + drop * weight[i] / whole)
    return shares


@pytest.mark.parametrize("total", [0, 10, 60, 95, 1000])
def test_a_budget_is_shared_by_weight_and_what_one_cannot_give_the_others_do(total: int) -> None:
    weight, sizes = [1.0, 0.5, 0.25, 0.0], [30, 40, 25, 10]
    found = apportioned(total, torch.tensor(weight, dtype=torch.float64), torch.tensor(sizes))
    assert found.tolist() == pytest.approx(brute_force_shares(total, weight, sizes), abs=0.05)
    assert float(found.sum()) == pytest.approx(min(total, 95))


def test_largest_remainders() -> None:
    assert largest_remainder(torch.tensor([1.5, 2.25, 3.25], dtype=torch.float64)).tolist() == [2, 2, 3]
    assert largest_remainder(torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)).tolist() == [1, 0, 0]
    assert largest_remainder(torch.zeros(3, dtype=torch.float64)).tolist() == [0, 0, 0]
    assert largest_remainder(torch.empty(0, dtype=torch.float64)).tolist() == []
    for seed in range(50):
        shares = 5 * torch.rand(9, dtype=torch.float64, generator=seeded(seed))
        counts = largest_remainder(shares)
        assert int(counts.sum()) == round(float(shares.sum()))
        assert float((counts - shares).abs().max()) < 1


def test_randomised_rounding_keeps_mean_and_sum() -> None:
    shares = torch.tensor([0.1, 0.4, 2.3, 0.2, 1.0], dtype=torch.float64)
    draws = torch.stack([randomised(shares, seeded(seed)) for seed in range(4000)])
    assert set(draws.sum(1).tolist()) == {4}
    assert draws.double().mean(0).tolist() == pytest.approx(shares.tolist(), abs=0.03)
    assert bool(((draws - shares).abs() < 1).all())
    always = torch.stack([largest_remainder(shares)] * 4000).double().mean(0)  # the mean of the other rounding is another one
    assert float((always - shares).abs().max()) > 0.3


def counts_of(phase: int, seed: int = 0, new: int = 1000, **options: Any) -> Tensor:
    lags = lags_of_phase(phase)
    return rehearsal_counts(PowerLawConfig(**options), lags, torch.full_like(lags, 1000), new, seeded(seed))


@pytest.mark.parametrize("environment", ["power_law", "exponential", "uniform"])
@pytest.mark.parametrize("rounding", ["largest_remainder", "randomised"])
def test_a_budget_is_the_same_in_every_phase(environment: str, rounding: str) -> None:
    sums = [int(counts_of(phase, environment=environment, budget=0.137, rounding=rounding).sum()) for phase in range(1, 21)]
    assert sums == [0] + [137] * 19
    assert int(counts_of(2, environment=environment, budget=3.0, rounding=rounding).sum()) == 1000  # there is no more
    assert int(counts_of(20, environment=environment, budget=0.0, rounding=rounding).sum()) == 0


def test_counts_of_the_other_environments() -> None:
    assert counts_of(5, environment="none").tolist() == [0] * 4
    assert counts_of(5, environment="joint").tolist() == [1000] * 4
    assert counts_of(5, environment="recency", recency=2, budget=0.1).tolist() == [0, 0, 50, 50]
    assert counts_of(5, exponent=0, budget=0.1).tolist() == counts_of(5, environment="uniform", budget=0.1).tolist() == [25] * 4
    assert counts_of(5, exponent=1e9, budget=0.1).tolist() == [0, 0, 0, 100]


def test_absolute_counts_grow_with_the_harmonic_numbers() -> None:
    assert counts_of(5, counts="absolute", fraction=0.12).tolist() == [30, 40, 60, 120]
    totals = [int(counts_of(phases, counts="absolute", fraction=0.1, exponent=1.0).sum()) for phases in (5, 10, 20, 50)]
    assert totals == pytest.approx([100 * harmonic for harmonic in (2.08, 2.83, 3.55, 4.48)], abs=1)
    assert counts_of(5, counts="absolute", fraction=0.0).tolist() == [0] * 4
    few = rehearsal_counts(PowerLawConfig(counts="absolute", fraction=1.0), torch.tensor([2, 1]), torch.tensor([10, 20]), 100, seeded())
    assert few.tolist() == [10, 20]


@pytest.mark.parametrize("counts", ["absolute", "budget"])
@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
def test_counts_fall_with_the_lag_as_a_power_law(counts: str, exponent: float) -> None:
    found = torch.stack([counts_of(20, seed, counts=counts, exponent=exponent, rounding="randomised") for seed in range(300)])
    by_lag = found.double().mean(0).flip(0).tolist()
    logs = [math.log(lag) for lag in range(1, 20)]
    assert slope(logs, [math.log(count) for count in by_lag]) == pytest.approx(-exponent, abs=0.05)


def test_counts_fall_with_the_lag_exponentially() -> None:
    options: dict[str, Any] = {"environment": "exponential", "rate": 0.25, "rounding": "randomised"}
    by_lag = torch.stack([counts_of(20, seed, **options) for seed in range(300)]).double().mean(0).flip(0)
    lags = [float(lag) for lag in range(1, 20)]
    assert slope(lags, by_lag.log().tolist()) == pytest.approx(-0.25, abs=0.05)
    straight = slope([math.log(lag) for lag in lags[:10]], by_lag.log().tolist()[:10])
    tail = slope([math.log(lag) for lag in lags[10:]], by_lag.log().tolist()[10:])
    assert tail < straight - 1  # no power law: its log-log slope is the same everywhere


@pytest.mark.parametrize(("fraction", "exponent"), [(0.8, 0.5), (1.0, 1.0)])
def test_a_task_is_met_as_often_as_its_weight_says(fraction: float, exponent: float) -> None:
    options: dict[str, Any] = {"counts": "encounter", "fraction": fraction, "exponent": exponent, "encounter_samples": 7}
    found = torch.stack([counts_of(9, seed, **options) for seed in range(4000)])
    assert set(found.unique().tolist()) == {0, 7}
    often = (found > 0).double().mean(0).flip(0).tolist()
    assert often == pytest.approx([min(1.0, fraction * lag**-exponent) for lag in range(1, 9)], abs=0.03)


# --- mixing ---


def brute_force_check(before: Plan, after: Plan, rehearsed: Tensor) -> None:
    """Every epoch shows what it showed, in its order, and each rehearsed sample once; groups are whole within a step."""
    assert after.epochs == before.epochs
    assert Counter(after.ids.tolist()) == Counter(before.ids.tolist() + rehearsed.tolist() * before.epochs)
    strangers = set(rehearsed.tolist())
    assert [one for one in after.ids.tolist() if one not in strangers] == before.ids.tolist()
    assert int(after.offsets[-1]) == after.visits
    assert bool((after.offsets.diff() > 0).all())


@pytest.mark.parametrize("keeps", ["epochs", "steps"])
@pytest.mark.parametrize(("batch", "epochs"), [(10, 1), (7, 3), (64, 2)])
def test_nothing_is_lost_and_nothing_moves(keeps: str, batch: int, epochs: int) -> None:
    before, rehearsed = Plan.over(torch.arange(50), batch, epochs, seeded(1)), torch.arange(100, 123)
    after = mixed(before, rehearsed, seeded(2), keeps)
    brute_force_check(before, after, rehearsed)
    sizes = after.offsets.diff().tolist()
    if keeps == "epochs":
        batch = min(batch, 50)  # the size that steps had
        rest = [73 % batch] if 73 % batch else []
        assert sizes == ([batch] * (73 // batch) + rest) * epochs
    else:
        dealt = [after_size - size for after_size, size in zip(sizes, before.offsets.diff().tolist(), strict=True)]
        assert max(dealt) - min(dealt) <= 1
    for epoch in after.ids.split([73] * epochs):
        assert len(set(epoch.tolist())) == 73


def test_rehearsed_samples_are_spread_evenly_over_a_phase() -> None:
    before, rehearsed = Plan.over(torch.arange(300), 10, 1, seeded(1)), torch.arange(1000, 1100)
    places = torch.cat([(mixed(before, rehearsed, seeded(seed)).ids >= 1000).nonzero().flatten() for seed in range(40)])
    share = torch.histc(places.float(), bins=8, min=0, max=400) / len(places)
    assert share.tolist() == pytest.approx([1 / 8] * 8, abs=0.02)
    orders = {tuple(mixed(before, rehearsed, seeded(seed)).ids.tolist()) for seed in range(5)}
    assert len(orders) == 5


def test_views_of_one_sample_stay_in_one_step() -> None:
    plain = Plan.over(torch.arange(20), 4, 2, seeded(1))
    group = torch.arange(40).repeat_interleave(2)
    views = Plan(plain.ids.repeat_interleave(2), plain.offsets * 2, torch.arange(2).repeat(40), group, torch.arange(80) % 2 == 1, epochs=2)
    rehearsed = torch.arange(50, 61)
    after = mixed(views, rehearsed, seeded(2))
    brute_force_check(views, after, rehearsed)
    assert after.view is not None
    assert after.group is not None
    assert after.strong is not None
    step = torch.arange(after.steps).repeat_interleave(after.offsets.diff())
    old = after.ids < 50
    for number in group.unique().tolist():
        rows = (after.group == number).nonzero().flatten()
        assert step[rows].unique().numel() == 1
        assert sorted(after.view[rows].tolist()) == [0, 1]
        assert after.strong[rows].tolist() == [view == 1 for view in after.view[rows].tolist()]
    assert after.group[~old].unique().numel() == 22
    assert int(after.view[~old].max()) == 0
    assert not bool(after.strong[~old].any())


def test_a_plan_whose_epochs_do_not_end_with_a_step() -> None:
    before = Plan(torch.arange(10).repeat(2), torch.tensor([0, 7, 14, 20]), epochs=2)
    brute_force_check(before, mixed(before, torch.arange(20, 25), seeded()), torch.arange(20, 25))


# --- schedules of whole streams ---


def benchmark(tasks: int = TASKS) -> dict[str, Any]:
    return {"name": "synthetic", "tasks": tasks, "classes_per_task": 2, "train_per_class": A_TASK // 2, "test_per_class": 2}


def plans_of(folder: Path, stream: str = f"L0-{TASKS - 1}", seed: int = 0, tasks: int = TASKS, **options: Any) -> list[Plan]:
    """The plan of every Learn event, as a run would make it."""
    experiment = experiment_of({"power_law": options}, folder, stream=stream, benchmark=benchmark(tasks), seed=seed)
    learner = assemble(experiment)
    plans = []
    for index, event in enumerate(learner.stream):
        learner.position.event, learner.position.event_index, learner.position.phase = event, index, None
        learner.new_streams()
        phase: Phase = learner.learn_phase(event)
        learner.position.phase = phase
        plan = learner.plan_phase(phase).plan
        assert isinstance(plan, Plan)
        plans.append(plan)
    return plans


def shown(plan: Plan) -> list[int]:
    """How many samples of each task."""
    return torch.bincount(plan.ids // A_TASK, minlength=TASKS).tolist()


def test_a_phase_shows_all_of_its_task_and_nothing_of_the_future(tmp_path: Path) -> None:
    swept = 0
    for environment in ENVIRONMENTS:
        for phase, plan in enumerate(plans_of(tmp_path, environment=environment, budget=0.5)):
            counts = shown(plan)
            assert counts[phase] == A_TASK
            assert not any(counts[phase + 1 :])
            assert plan.ids.unique().numel() == plan.visits  # without replacement
            if phase and environment not in ("none", "joint"):
                assert sum(counts[:phase]) == 20
            swept += 1
    assert swept == 6 * TASKS


def test_joint_shows_all_and_none_is_the_plan_itself(tmp_path: Path) -> None:
    everything = [shown(plan) for plan in plans_of(tmp_path, environment="joint")]
    assert everything == [[A_TASK] * (phase + 1) + [0] * (TASKS - phase - 1) for phase in range(TASKS)]
    nothing = [shown(plan) for plan in plans_of(tmp_path, environment="none")]
    assert nothing == [[A_TASK if task == phase else 0 for task in range(TASKS)] for phase in range(TASKS)]


def test_lags_since_introduced(tmp_path: Path) -> None:
    plans = plans_of(tmp_path, counts="absolute", fraction=1.0, exponent=1.0)
    assert shown(plans[4])[:5] == [10, 13, 20, 40, 40]  # A_TASK / lag: 10, 13.3, 20, 40


def test_being_met_sets_the_clock_back(tmp_path: Path) -> None:
    """Under absolute counts every task is rehearsed in every phase, so all lags since it was last performed are 1."""
    plans = plans_of(tmp_path, lag="since_last_performed", counts="absolute", fraction=0.5)
    assert [shown(plan)[:phase] for phase, plan in enumerate(plans)] == [[20] * phase for phase in range(TASKS)]
    introduced = plans_of(tmp_path, lag="since_introduced", counts="absolute", fraction=0.5)
    assert shown(introduced[4])[:4] == [5, 7, 10, 20]


@pytest.mark.parametrize("lag", ["since_introduced", "since_last_performed"])
def test_encounters_in_a_stream_follow_the_lag(lag: str, tmp_path: Path) -> None:
    met: Counter[int] = Counter()
    asked: Counter[int] = Counter()
    for seed in range(30):
        last = {}
        for phase, plan in enumerate(
            plans_of(tmp_path, seed=seed, lag=lag, counts="encounter", fraction=0.6, exponent=1.0, encounter_samples=3)
        ):
            counts = shown(plan)
            for task in range(phase):
                asked[phase - last[task]] += 1
                if counts[task]:
                    assert counts[task] == 3
                    met[phase - last[task]] += 1
                    if lag == "since_last_performed":
                        last[task] = phase
            last[phase] = phase
    for steps in (1, 2, 3):
        assert met[steps] / asked[steps] == pytest.approx(0.6 / steps, abs=0.1)
    assert asked[1] > 150


def test_the_same_seed_gives_the_same_schedule(tmp_path: Path) -> None:
    options: dict[str, Any] = {"counts": "encounter", "fraction": 1.0, "source": "buffer", "capacity": 9, "rounding": "randomised"}
    one, again, other = (plans_of(tmp_path, seed=seed, **options) for seed in (3, 3, 4))
    assert all(torch.equal(a.ids, b.ids) and torch.equal(a.offsets, b.offsets) for a, b in zip(one, again, strict=True))
    assert not all(torch.equal(a.ids, b.ids) for a, b in zip(one, other, strict=True))


def test_a_buffer_gives_the_same_few_samples_of_a_task(tmp_path: Path) -> None:
    options: dict[str, Any] = {"environment": "uniform", "counts": "absolute", "fraction": 1.0}
    past = {source: [] for source in ("whole", "buffer")}
    for source, seen in past.items():
        for plan in plans_of(tmp_path, source=source, capacity=6, **options)[1:]:
            seen.append(set(plan.ids[plan.ids < A_TASK].tolist()))
    assert all(len(seen) == 6 for seen in past["buffer"])
    assert len(set(map(frozenset, past["buffer"]))) == 1
    assert all(len(seen) == A_TASK for seen in past["whole"])
    few = [set(plan.ids[plan.ids < A_TASK].tolist()) for plan in plans_of(tmp_path, counts="absolute", fraction=0.2)[1:]]
    assert len(set().union(*few)) > 8  # from the whole task, others each time


def test_a_task_learned_again_is_the_phases_own(tmp_path: Path) -> None:
    plans = plans_of(tmp_path, stream="L0 L1 L0 L2", budget=0.5)
    assert [shown(plan)[:3] for plan in plans] == [[40, 0, 0], [20, 40, 0], [40, 20, 0], [8, 12, 40]]
    plans = plans_of(tmp_path, stream="L0 L1 L0 L2", budget=0.5, lag="since_last_performed")
    assert [shown(plan)[:3] for plan in plans] == [[40, 0, 0], [20, 40, 0], [40, 20, 0], [10, 10, 40]]


# --- whole runs ---


def rows_of(path: Path) -> list[tuple[int, int]]:
    return [(row["samples_new"], row["samples_past"]) for row in RunDirectory(path).events() if row["kind"] == "learn"]


@pytest.mark.parametrize("options", [{"environment": "none"}, {"budget": 0.0}, {"counts": "absolute", "fraction": 0.0}])
def test_without_rehearsal_it_is_fine_tuning(options: dict[str, Any], tmp_path: Path) -> None:
    plain = finish(experiment_of({}, tmp_path / "plain"))
    assert_equal_outcomes(finish(experiment_of({"power_law": options}, tmp_path / "none")), plain, "without rehearsal", slot="")
    assert_different_weights(plain, finish(experiment_of({"power_law": {"budget": 0.5}}, tmp_path / "some")), "with rehearsal")


def test_budgets_stand_in_the_records(tmp_path: Path) -> None:
    outcome = finish(experiment_of({"power_law": {"budget": 0.5}}, tmp_path, stream="L0 L1 L2", epochs=2))
    assert rows_of(outcome.path) == [(72, 0), (72, 36), (72, 36)]
    assert (outcome.summary["samples_new"], outcome.summary["samples_replayed"]) == (216, 72)


@pytest.mark.parametrize("source", ["whole", "buffer"])
def test_an_unlearned_task_never_comes_back(source: str, tmp_path: Path) -> None:
    """The plan of a later phase would be refused if it did; the budget goes to the tasks that remain."""
    experiment = experiment_of(
        {"power_law": {"budget": 0.5, "source": source, "capacity": 30}}, tmp_path, stream="L0 L1 U0 L2", evaluate="seen"
    )
    outcome = finish(beside(experiment, after=[slot(Oblivious)]))
    assert rows_of(outcome.path) == [(36, 0), (36, 18), (36, 18)]
    state = outcome.learner["strategies"]["power_law"]
    assert sorted(state["met"]) == [1, 2]
    assert sorted(state["kept"]) == ([] if source == "whole" else [1, 2])


def test_samples_unlearned_one_by_one_leave_the_buffer(tmp_path: Path) -> None:
    options = {"source": "buffer", "capacity": 36, "environment": "joint"}
    experiment = experiment_of({"power_law": options}, tmp_path, stream="L0 U0:fraction=0.5@seed1 L1", evaluate="seen")
    outcome = finish(beside(experiment, after=[slot(Oblivious)]))
    assert rows_of(outcome.path) == [(36, 0), (36, 18)]
    assert sorted(outcome.learner["strategies"]["power_law"]["met"]) == [0, 1]


@pytest.mark.parametrize(
    "options",
    [
        {"lag": "since_last_performed", "counts": "encounter", "fraction": 0.9, "encounter_samples": 5},
        {"source": "buffer", "capacity": 8, "budget": 0.5, "rounding": "randomised", "keeps": "steps"},
    ],
)
@pytest.mark.slow
def test_clocks_and_buffers_survive_every_stop(options: dict[str, Any], tmp_path: Path) -> None:
    def experiment(name: str, seed: int = 0) -> Any:
        return experiment_of({"power_law": options}, tmp_path / name, stream="L0 L1 L2 L0 L1", seed=seed)

    data = augmented(experiment("whole"))
    whole = finish(experiment("whole"), data)
    pieces, stops = finish_in_pieces(experiment("pieces"), lambda step: True, data)
    assert stops == whole.summary["steps"]
    assert_equal_outcomes(whole, pieces, "stopped at every step")
    assert rows_of(pieces.path) == rows_of(whole.path)
    assert_different_weights(whole, finish(experiment("seed", 1), data), "another seed")


def test_steps_or_batches_stay(tmp_path: Path) -> None:
    plain = finish(experiment_of({}, tmp_path / "plain", stream="L0 L1 L2")).summary["steps"]
    found = {}
    for keeps in ("epochs", "steps"):
        outcome = finish(experiment_of({"power_law": {"budget": 0.5, "keeps": keeps}}, tmp_path / keeps, stream="L0 L1 L2"))
        found[keeps] = outcome.summary["steps"]
        assert outcome.summary["samples_replayed"] == 36
    assert found["steps"] == plain
    assert found["epochs"] == 5 + 7 + 7


@pytest.mark.parametrize("where", ["before", "after"])
def test_beside_views_every_sample_is_shown(where: str, tmp_path: Path) -> None:
    views: dict[str, Any] = {where: [slot(TwoViews)]}
    outcome = finish(beside(experiment_of({"power_law": {"budget": 0.5}}, tmp_path), **views))
    assert rows_of(outcome.path) == [(72, 0), (72, 18 if where == "before" else 36)]


def test_rehearsal_helps_against_forgetting(tmp_path: Path) -> None:
    def average(options: dict[str, Any], name: str) -> float:
        outcome = finish(experiment_of({"power_law": options}, tmp_path / name, stream="L0-2", epochs=8))
        return float(outcome.summary["average_accuracy"])

    assert average({"environment": "none"}, "none") + 10 < average({"budget": 0.5}, "power_law")


def test_the_plan_is_made_once_an_event(tmp_path: Path) -> None:
    """It moves the clocks, so that a second call would be a second phase."""
    asked: list[int] = []

    class Spied(PowerLaw):
        def plan(self, plan: Plan, context: Context) -> Plan:
            asked.append(len(context.live_tasks))
            return super().plan(plan, context)

    finish(in_place_of(experiment_of({"power_law": {}}, tmp_path, stream="L0 L1 L2"), Spied))
    assert asked == [1, 2, 3]


class KeepsIds(PowerLaw):
    def forget(self, forgotten: Forgotten, context: Context) -> None:
        """Forgets nothing."""


def test_the_contract_looks_for_ids_in_the_buffer(tmp_path: Path) -> None:
    """Whole tasks are the default, in which nothing is stored: `stores_with` names the settings under which something is."""
    check = CHECKS["nothing_of_a_forgotten_task_is_left"]
    check(Subject("power_law", PowerLaw))
    with pytest.raises(AssertionError, match=r"after U2 state.* holds the id of a sample"):
        check(Subject("power_law", KeepsIds))


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("environment: log", r"environment must be one of power_law, exponential, uniform, recency, none, joint, got 'log'"),
        ("lag: 0", r"lag"),
        ("exponent: -1", r"exponent must be >= 0, got -1"),
        ("recency: 0", r"recency must be >= 1, got 0"),
        ("fraction: 1.5", r"fraction must be >= 0 and <= 1, got 1.5"),
        ("budget: -0.1", r"budget must be >= 0, got -0.1"),
        ("capacity: 0", r"capacity must be >= 1, got 0"),
        ("keeps: all", r"keeps must be one of epochs, steps, got 'all'"),
        ("counts: many", r"counts must be one of budget, absolute, encounter, got 'many'"),
    ],
)
def test_bad_options_are_refused_by_name(option: str, text: str, tmp_path: Path) -> None:
    key, value = option.split(": ")
    with pytest.raises(ConfigurationError, match=text):
        experiment_of({"power_law": {}}, tmp_path, overrides=[f"strategies.power_law.{key}={value}"])
