"""Schedules of the learning rate over a stream, and replay at an equal number of samples."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from cl_framework import Plan, load_experiment, run
from cl_framework.assembly import assemble
from cl_framework.errors import ConfigurationError
from cl_framework.learner import Learner
from cl_framework.runner import resume
from strategies.infinite_rate import annealed, plateaued
from strategies.milestones import milestones_passed
from strategies.replay_share import replaced
from strategies.rewarm import rewarmed


def experiment(folder: Path, strategies: dict[str, Any], **settings: Any) -> Any:
    base = {
        "benchmark": {"name": "synthetic"},
        "model": {"name": "mlp", "hidden": [16]},
        "optimizer": {"lr": 0.5},
        "strategies": strategies,
        "batch_size": 4,
        "stream": "L0 L1 L2",
        "out": str(folder),
        "threads": 1,
    }
    return load_experiment({**base, **settings})


def rates(monkeypatch: pytest.MonkeyPatch, asked: Any, stop: int | None = None) -> list[float]:
    """The learning rate of every step of a run, stopped and resumed after `stop` steps if that is given."""
    seen: list[float] = []
    step = Learner.step

    def watched(self: Learner, batch: Any) -> Any:
        evaluation = step(self, batch)
        seen.append(self.learning_rate)
        return evaluation

    monkeypatch.setattr(Learner, "step", watched)
    result = run(asked, stop_requested=lambda done: stop is not None and done >= stop)
    if stop is not None:
        assert result.status == "stopped" and resume(result.path).status == "done"
    monkeypatch.setattr(Learner, "step", step)
    return seen


# --- re-warming and re-decaying ---


def test_the_rate_rises_to_the_top_and_decays_to_the_minimum() -> None:
    curve = [rewarmed(step, 200, 0.1, 0.2, 0.0) for step in range(201)]
    assert curve[0] == 0.0 and curve[20] == 1.0 and curve[200] == pytest.approx(0.2)
    assert curve[10] == pytest.approx(0.5) and curve[110] == pytest.approx(0.6)  # halfway up; halfway down
    assert all(one < two for one, two in pairwise(curve[:21]))
    assert all(one > two for one, two in pairwise(curve[20:]))
    assert max(abs(one - two) for one, two in pairwise(curve)) <= 1 / 20 + 1e-12  # no jump
    assert rewarmed(0, 200, 0.0, 0.2, 0.0) == 1.0  # a restart
    assert rewarmed(0, 200, 0.1, 0.2, 0.2) == 0.2


def test_each_task_is_rewarmed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rates(monkeypatch, experiment(tmp_path, {"rewarm": {"warmup": 0.2, "minimum": 0.3}}))
    steps = len(found) // 3
    assert found == [0.5 * rewarmed(step, steps, 0.2, 0.3, 0.0) for _ in range(3) for step in range(steps)]
    current = rates(monkeypatch, experiment(tmp_path, {"rewarm": {"warmup": 0.2, "minimum": 0.3, "start": "current"}}))
    assert current[0] == 0.0 and current[steps] == current[2 * steps] == pytest.approx(0.15) and current != found


# --- milestones ---


def test_milestones_are_those_of_torchs_scheduler() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 4], gamma=0.1)
    for epoch in range(6):
        for step in range(7 * epoch, 7 * epoch + 7):
            assert 0.1 ** milestones_passed(step, 42, 6, (3, 4)) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert [milestones_passed(step, 42, 6, (3, 4)) for step in (20, 21, 27, 28, 42)] == [0, 1, 1, 2, 2]


def test_the_rate_falls_at_the_same_epochs_of_each_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rates(monkeypatch, experiment(tmp_path, {"milestones": {"epochs": [1, 3], "factor": 0.5}}, epochs=4))
    epoch = len(found) // 12
    assert found == [rate for _ in range(3) for rate in (0.5, 0.25, 0.25, 0.125) for _ in range(epoch)] and epoch > 1
    late = rates(monkeypatch, experiment(tmp_path, {"milestones": {"epochs": [4, 9]}}, epochs=4))
    assert late == [0.5] * len(found)  # not reached


def test_milestones_keep_to_epochs_that_are_longer_and_leave_other_phases_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """iCaRL's exemplars lengthen an epoch; LwF warms the head up in a phase of its own."""
    lengthened = {"icarl": {"capacity": 12}, "milestones": {"epochs": [1], "factor": 0.5}}
    found = rates(monkeypatch, experiment(tmp_path, lengthened, epochs=2, stream="L0 L1"))
    first = 2 * found.index(0.25)
    second = len(found) - first
    assert second > first and found == [rate for steps in (first, second) for rate in (0.5, 0.25) for _ in range(steps // 2)]
    warmed = {"lwf": {"warm_up": 1}, "milestones": {"epochs": [1], "factor": 0.5}}
    found = rates(monkeypatch, experiment(tmp_path, warmed, epochs=2, stream="L0 L1"))
    epoch = found.index(0.25)
    assert found == [rate for rate, epochs in ((0.5, 1), (0.25, 1), (0.5, 2), (0.25, 1)) for _ in range(epochs * epoch)]


# --- the infinite schedule ---


def test_one_warm_up_one_cool_down_and_a_plateau() -> None:
    curve = [plateaued(step, 10, 50, 0.25) for step in range(200)]
    assert curve[0] == 0.0 and curve[10] == 1.0 and set(curve[60:]) == {0.25}
    assert curve[35] == pytest.approx((1 + 0.25) / 2)
    assert all(one >= two for one, two in pairwise(curve[10:]))
    assert max(abs(one - two) for one, two in pairwise(curve)) <= 0.1 + 1e-12
    assert [plateaued(step, 10, 0, 0.25) for step in (0, 5, 10, 11)] == [0.0, 0.125, 0.25, 0.25]  # no jump without cool-down


@pytest.mark.parametrize("steepness", [0.1, 10.0, 1000.0])
def test_a_cool_down_along_an_inverse_square_root_has_the_same_ends(steepness: float) -> None:
    curve = [plateaued(step, 10, 50, 0.25, steepness) for step in range(200)]
    cosine = [plateaued(step, 10, 50, 0.25) for step in range(200)]
    assert curve[:11] == cosine[:11] and curve[60:] == cosine[60:] and curve[11:60] != cosine[11:60]
    assert all(one > two for one, two in pairwise(curve[10:61]))
    assert plateaued(59.999, 10, 50, 0.25, steepness) == pytest.approx(0.25, abs=1e-4)  # no jump
    share = [(1 / math.sqrt(1 + steepness * u) - 1) / (1 / math.sqrt(1 + steepness) - 1) for u in (0.2, 0.5)]
    assert [curve[20], curve[35]] == pytest.approx([1 - 0.75 * one for one in share])
    assert curve[35] < cosine[35]  # convex: most of the fall comes first


@pytest.mark.parametrize(("form", "middle"), [("exp", 0.2), ("linear", 0.25), ("rsqrt", 0.16)])
def test_annealing_ends_at_the_minimum_and_stays_there(form: str, middle: float) -> None:
    assert annealed(0.4, 0.1, 0.0, form) == pytest.approx(0.4)
    assert annealed(0.4, 0.1, 0.5, form) == pytest.approx(middle)
    assert annealed(0.4, 0.1, 1.0, form) == annealed(0.4, 0.1, 2.0, form) == pytest.approx(0.1)


def test_annealing_by_a_time_constant_nears_the_minimum() -> None:
    assert annealed(0.4, 0.1, 0.0, "exp_tau") == pytest.approx(0.4)
    assert [annealed(0.4, 0.1, share, "exp_tau", 0.25) for share in (0.25, 0.5)] == pytest.approx(
        [0.1 + 0.3 / math.e, 0.1 + 0.3 / math.e**2]
    )
    assert annealed(0.4, 0.1, 1.0, "exp_tau", 1.0) == annealed(0.4, 0.1, 2.0, "exp_tau", 1.0) == pytest.approx(0.1 + 0.3 / math.e)
    assert 0.1 < annealed(0.4, 0.1, 1.0, "exp_tau", 0.1) < 0.1001 and annealed(0.4, 0.1, 1.0) == pytest.approx(0.1)


@pytest.mark.parametrize("form", ["exp", "exp_tau", "linear", "rsqrt"])
@pytest.mark.parametrize("options", [{"anneal": 1.0}, {"anneal": 0.9, "warmup": 0.5}, {"anneal": 1.0, "cooldown": 0.0}, {"minimum": 0.4}])
def test_annealing_waits_for_the_end_of_the_warm_up_and_never_rises(
    form: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the only task is the last one, a long annealing reaches back into its warm-up."""
    cooldown = {} if options.get("cooldown") == 0.0 else {"cooldown_form": "rsqrt"}
    whole = {"warmup": 0.2, "form": form, **cooldown, **options}
    never = {"warmup": whole["warmup"], **cooldown, **{name: options[name] for name in ("cooldown",) if name in options}, "anneal": 0.0}
    found = rates(monkeypatch, experiment(tmp_path, {"infinite_rate": whole}, stream="L0"))
    plain = rates(monkeypatch, experiment(tmp_path, {"infinite_rate": never}, stream="L0"))
    warm = math.floor(whole["warmup"] * len(found)) + 1
    assert len(found) > warm > 2 and found[:warm] == plain[:warm] and found[0] == 0.0
    assert all(one < two for one, two in pairwise(found[: warm - 1]))
    assert all(one >= two for one, two in pairwise(found[warm:])) and min(found[warm:]) >= 0.5 * whole.get("minimum", 0.1)
    assert (found[warm:] == plain[warm:]) == ("minimum" in options)  # there it starts where it ends, on the plateau


def test_a_warm_up_that_outlasts_the_stream_is_not_annealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rates(monkeypatch, experiment(tmp_path, {"infinite_rate": {"warmup": 5.0, "anneal": 1.0}}, stream="L0 L1"))
    assert all(one < two for one, two in pairwise(found)) and found[-1] < 0.5 * 2 / 5
    inside = rates(monkeypatch, experiment(tmp_path, {"infinite_rate": {"warmup": 1.5, "anneal": 1.0}}, stream="L0 L1"))
    steps = len(inside) // 2
    top = math.floor(1.5 * steps)
    assert max(inside) == inside[top] and inside[-1] < inside[top + 1]  # the other way round, it is


def test_the_plateau_lasts_over_tasks_and_the_last_one_is_annealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"warmup": 0.2, "cooldown": 0.5, "constant": 0.4, "minimum": 0.1, "anneal": 0.5}
    found = rates(monkeypatch, experiment(tmp_path, {"infinite_rate": options}))
    steps = len(found) // 3
    plain = [0.5 * plateaued(step, 0.2 * steps, 0.5 * steps, 0.4) for step in range(3 * steps)]
    begun = 2 * steps + math.floor(0.5 * steps) + 1
    assert found[:begun] == plain[:begun] and found[begun] < plain[begun]
    assert found[-1] == pytest.approx(0.5 * annealed(0.4, 0.1, 1 - 1 / (0.5 * steps)))
    never = rates(monkeypatch, experiment(tmp_path, {"infinite_rate": {**options, "anneal": 0.0}}))
    assert never == plain
    alone = rates(monkeypatch, experiment(tmp_path, {"infinite_rate": options}, stream="L0"))
    assert alone[: steps // 2] == found[: steps // 2] and alone[-1] < found[steps - 1]  # its only task is the last


@pytest.mark.slow
@pytest.mark.parametrize("strategies", [{"rewarm": {"start": "current", "warmup": 0.3}}, {"infinite_rate": {"anneal": 0.3}}])
def test_a_resumed_run_goes_through_the_same_rates(strategies: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rates(monkeypatch, experiment(tmp_path / "whole", strategies))
    stops = (3, len(whole) // 3, len(whole) // 2, len(whole) - 2)
    for stop in stops:
        assert rates(monkeypatch, experiment(tmp_path / f"at {stop}", strategies), stop) == whole
    assert len(set(whole)) > 10


# --- replay at an equal number of samples ---


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.99])
def test_replay_takes_the_place_of_new_samples(share: float) -> None:
    plan = Plan.over(torch.arange(103), 8, 2, torch.Generator().manual_seed(0))
    past = torch.arange(1000, 1040)
    made = replaced(plan, past, share, torch.Generator().manual_seed(1))
    assert torch.equal(made.offsets, plan.offsets) and made.epochs == plan.epochs
    old = made.ids >= 1000
    assert set(made.ids[old].tolist()) <= set(past.tolist()) and torch.equal(made.ids[~old], plan.ids[~old])
    for step in range(plan.steps):
        first, last = plan.offsets[step : step + 2].tolist()
        assert abs(int(old[:last].sum()) - share * last) < 1  # by hand: the running share
        count = int(old[first:last].sum())
        assert old[first:last].tolist() == [False] * (last - first - count) + [True] * count
    again = replaced(plan, past, share, torch.Generator().manual_seed(1))
    other = replaced(plan, past, share, torch.Generator().manual_seed(2))
    assert torch.equal(again.ids, made.ids) and not torch.equal(other.ids, made.ids)


def test_samples_and_steps_stay_and_what_is_unlearned_is_not_replayed(tmp_path: Path) -> None:
    strategies = {"replay_share": {"share": 0.5}, "er": {"capacity": 8}, "finetune_retain": {}}
    learner = assemble(experiment(tmp_path, strategies, stream="L0 L1 U0 L2"))
    plain = run(experiment(tmp_path, {}))
    mixed = run(experiment(tmp_path, {"replay_share": {"share": 0.5}}))
    assert plain.summary is not None and mixed.summary is not None
    assert (mixed.summary["steps"], mixed.summary["samples"]) == (plain.summary["steps"], plain.summary["samples"])
    assert plain.summary["samples_replayed"] == 0
    assert mixed.summary["samples_replayed"] == pytest.approx(mixed.summary["samples"] / 3, abs=2)  # half of two of three tasks
    gone = set(learner.benchmark.ids_of(0).tolist())
    seen: list[set[int]] = []
    step = Learner.step

    def watched(self: Learner, batch: Any) -> Any:
        if str(self.position.event) == "L2":
            seen.append(set(batch.ids.tolist()))
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "step", watched)
        run(experiment(tmp_path, strategies, stream="L0 L1 U0 L2"))
        shown = set().union(*seen)
        assert not shown & gone and shown & set(learner.benchmark.ids_of(1).tolist())
        seen.clear()
        run(experiment(tmp_path / "kept", {"replay_share": {"share": 0.5}}))
        assert set().union(*seen) & gone  # without the Unlearn it is replayed


def test_an_arrangement_that_it_would_break_is_refused(tmp_path: Path) -> None:
    refused = r"replay_share.share: the last visits of every step are replaced, which would break what views arranged. Put this slot before"
    with pytest.raises(ConfigurationError, match=refused):
        assemble(experiment(tmp_path, {"views": {"use": "view_batch", "views": 2}, "replay_share": {}}))
    assert run(experiment(tmp_path, {"replay_share": {}, "views": {"use": "view_batch", "views": 2}})).status == "done"
    for other in ("joint", "power_law"):
        with pytest.raises(ConfigurationError, match=f"replay_share.share: {other} decides which samples of earlier tasks are shown."):
            assemble(experiment(tmp_path, {"replay_share": {}, other: {}}))


@pytest.mark.parametrize(
    ("strategies", "text"),
    [
        ({"rewarm": {"warmup": 1.0}}, "strategies.rewarm.warmup must be >= 0 and < 1, got 1.0"),
        ({"rewarm": {"start": "top"}}, "strategies.rewarm.start must be one of zero, current, got 'top'"),
        ({"infinite_rate": {"constant": 0.0}}, "strategies.infinite_rate.constant must be > 0 and <= 1, got 0.0"),
        ({"infinite_rate": {"form": "cosine"}}, "strategies.infinite_rate.form must be one of exp, exp_tau, linear, rsqrt, got 'cosine'"),
        (
            {"infinite_rate": {"constant": 0.05, "minimum": 0.1}},
            "strategies.infinite_rate.minimum must be <= constant=0.05, from which the rate is annealed, got 0.1",
        ),
        ({"infinite_rate": {"tau": 0.0}}, "strategies.infinite_rate.tau must be > 0, got 0.0"),
        ({"infinite_rate": {"steepness": -1.0}}, "strategies.infinite_rate.steepness must be > 0, got -1.0"),
        ({"infinite_rate": {"cooldown_form": "exp"}}, "strategies.infinite_rate.cooldown_form must be one of cosine, rsqrt, got 'exp'"),
        ({"infinite_rate": {"tau": 0.3}}, "infinite_rate.tau=0.3 would change nothing without form=exp_tau; leave it out, or set that"),
        ({"infinite_rate": {"tau": 0.3, "form": "exp_tau", "anneal": 0.0}}, "form=exp_tau would change nothing without anneal above 0"),
        ({"infinite_rate": {"form": "linear", "anneal": 0.0}}, "form=linear would change nothing without anneal above 0; leave it out"),
        ({"infinite_rate": {"minimum": 0.2, "anneal": 0.0}}, "minimum=0.2 would change nothing without anneal above 0; leave it out"),
        (
            {"infinite_rate": {"steepness": 5.0}},
            "steepness=5.0 would change nothing without cooldown_form=rsqrt; leave it out",
        ),
        ({"infinite_rate": {"cooldown_form": "rsqrt", "cooldown": 0.0}}, "rsqrt would change nothing without cooldown above 0; leave it"),
        ({"milestones": {"epochs": [0, 5]}}, "strategies.milestones.epochs must be >= 1, got 0"),
        ({"milestones": {"epochs": [5, 5]}}, "strategies.milestones.epochs must rise from one milestone to the next, got 5, 5"),
        ({"milestones": {"factor": 0.0}}, "strategies.milestones.factor must be > 0, got 0.0"),
        ({"replay_share": {"share": 1.0}}, "strategies.replay_share.share must be >= 0 and < 1, got 1.0"),
    ],
)
def test_options_out_of_range_are_refused(strategies: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        experiment(tmp_path, strategies)
    assert text in str(caught.value)


def test_a_plateau_below_the_minimum_is_one_where_nothing_is_annealed(tmp_path: Path) -> None:
    for options in ({"constant": 0.05, "anneal": 0.0}, {"constant": 0.1, "minimum": 0.1}):
        experiment(tmp_path, {"infinite_rate": options})


def test_options_that_are_read_are_taken(tmp_path: Path) -> None:
    read = (
        {"tau": 0.3, "form": "exp_tau", "minimum": 0.2},
        {"steepness": 5.0, "cooldown_form": "rsqrt"},
        {"anneal": 0.0},
        {"cooldown": 0.0},
    )
    for options in read:
        experiment(tmp_path, {"infinite_rate": options})
