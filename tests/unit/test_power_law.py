"""Rehearsal environments: weights, counts and mixing against their definitions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_framework import Plan
from strategies.power_law import ENVIRONMENTS, PowerLawConfig, apportioned, largest_remainder, mixed, randomised, rehearsal_counts, weights


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


def modes() -> list[dict[str, Any]]:
    """Every environment and way of counting that can stand together."""
    counted = [{"environment": name, "counts": counts} for name in ENVIRONMENTS[:4] for counts in ("budget", "absolute", "encounter")]
    several = [mode | ({"recency": 3} if mode["environment"] == "recency" else {}) for mode in counted]  # one task has nothing to round
    return [*several, {"environment": "none"}, {"environment": "joint"}]


def test_what_changes_no_count_in_a_mode_is_refused_there_and_nothing_else() -> None:
    lags = lags_of_phase(20)
    sizes = torch.full_like(lags, 400)
    others = {"exponent": 0.5, "rate": 0.2, "recency": 7, "budget": 0.2, "fraction": 0.2, "encounter_samples": 90, "rounding": "randomised"}
    swept = refused = 0
    for mode in modes():
        for name, value in others.items():
            as_is, changed = PowerLawConfig(**mode), PowerLawConfig(**mode)
            object.__setattr__(changed, name, value)  # past what refuses it
            found = [[rehearsal_counts(config, lags, sizes, 1003, seeded(seed)) for seed in range(20)] for config in (as_is, changed)]
            if any(not torch.equal(one, other) for one, other in zip(*found, strict=True)):
                assert getattr(PowerLawConfig(**mode | {name: value}), name) == value
            else:
                with pytest.raises(
                    ValueError, match=rf"^{name}={value} would change nothing with (environment|counts)=\w+; leave it out, or"
                ):
                    PowerLawConfig(**mode | {name: value})
                refused += 1
            swept += 1
    assert (swept, refused) == (14 * 7, 65)


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
