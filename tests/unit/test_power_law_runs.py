"""Rehearsal environments in runs: schedules of whole streams, records, stops, and what is forgotten or refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

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
from strategies.power_law import ENVIRONMENTS, PowerLaw

TASKS = 8
A_TASK = 40  # samples


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
        budget = {} if environment in ("none", "joint") else {"budget": 0.5}
        for phase, plan in enumerate(plans_of(tmp_path, environment=environment, **budget)):
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
    options: dict[str, Any] = {"counts": "encounter", "fraction": 1.0, "source": "buffer", "capacity": 9}
    one, again, other = (plans_of(tmp_path, seed=seed, **options) for seed in (3, 3, 4))
    assert all(torch.equal(a.ids, b.ids) and torch.equal(a.offsets, b.offsets) for a, b in zip(one, again, strict=True))
    assert not all(torch.equal(a.ids, b.ids) for a, b in zip(one, other, strict=True))


def test_a_buffer_gives_the_same_few_samples_of_a_task(tmp_path: Path) -> None:
    options: dict[str, Any] = {"environment": "uniform", "counts": "absolute", "fraction": 1.0}
    past = {source: [] for source in ("whole", "buffer")}
    for source, seen in past.items():
        for plan in plans_of(tmp_path, source=source, **{"capacity": 6} if source == "buffer" else {}, **options)[1:]:
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
    options = {"budget": 0.5, "source": source} | ({"capacity": 30} if source == "buffer" else {})
    experiment = experiment_of({"power_law": options}, tmp_path, stream="L0 L1 U0 L2", evaluate="seen")
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


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("rate=0.5", "rate=0.5 would change nothing with environment=power_law; leave it out, or set environment=exponential"),
        ("environment=uniform exponent=2", "exponent=2.0 would change nothing with environment=uniform; leave it out, or set"),
        ("environment=joint budget=0.5", "set environment=power_law, exponential, uniform or recency."),
        ("environment=none keeps=steps", "keeps=steps would change nothing with environment=none; leave it out, or set"),
        ("fraction=0.2", "fraction=0.2 would change nothing with counts=budget; leave it out, or set counts=absolute or encounter."),
        ("capacity=9", "capacity=9 would change nothing with source=whole; leave it out, or set source=buffer."),
    ],
)
def test_an_option_that_is_not_read_is_refused(options: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"strategies.power_law.*{text}"):
        experiment_of({"power_law": {}}, tmp_path, overrides=[f"strategies.power_law.{option}" for option in options.split()])
