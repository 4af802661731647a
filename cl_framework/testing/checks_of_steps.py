"""Checks of a step's laws: purity, one draw and one commit, frozen parameters, composition with each kind of seam."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cl_framework.assembly import make_stack
from cl_framework.config import Experiment
from cl_framework.errors import ConfigurationError
from cl_framework.strategy import Batch, Context, Draw, Output, Strategy
from cl_framework.testing.contract import Subject, check
from cl_framework.testing.laboratory import ROUGH, Outcome, beside, finish, first_difference, in_place_of
from cl_framework.testing.neighbours import SEAM_NEIGHBOURS, Auditing, Freezing, Place, Thrice, Watching, place_of, slot, snapshot


@check()
def loss_is_pure(subject: Subject, folder: Path) -> None:
    """The same batch gives the same value however often it is asked for, and no state moves."""
    auditor = slot(Auditing)
    finish(beside(subject.experiment(folder, model=ROUGH), before=[auditor]))
    journal = auditor.strategy_class.journal
    assert journal, "no step was audited"
    for place, moved, repeated in journal:
        assert moved is None, f"calling the closure at {place} moved {moved}"
        assert repeated is None, f"the closure at {place} gave another value when asked again: {repeated}"


def spied(strategy: type[Strategy], draws: list[Place], commits: list[Place], moved: list[str]) -> type[Strategy]:
    """The strategy, noting when its draw and its commit are called, and what a draw writes."""

    def draw(self: Strategy, batch: Batch, context: Context) -> Mapping[str, Draw]:
        before = snapshot(self.state_dict())
        named = strategy.draw(self, batch, context)
        difference = first_difference(before, self.state_dict())
        moved.extend([f"{place_of(context)}: {difference}"] if difference else [])
        draws.append(place_of(context))
        return named

    def commit(self: Strategy, batch: Batch, output: Output, context: Context) -> None:
        commits.append(place_of(context))
        strategy.commit(self, batch, output, context)

    return type(strategy.__name__, (strategy,), {"draw": draw, "commit": commit})


@check()
def one_draw_and_one_commit_a_step(subject: Subject, folder: Path) -> None:
    """Under a wrapper that calls the closure three times a step still draws once and commits once, and a draw writes nothing."""
    draws: list[Place] = []
    commits: list[Place] = []
    moved: list[str] = []
    wrapper = slot(Thrice)
    experiment = in_place_of(subject.experiment(folder), spied(subject.strategy, draws, commits, moved))
    steps = finish(beside(experiment, before=[wrapper])).summary["steps"]
    for what, places in (("draw", draws), ("commit", commits)):
        repeated = [place for place, count in Counter(places).items() if count > 1]
        assert not repeated, f"{what} ran more than once at {repeated[0]}"
    assert draws == commits and len(draws) == steps, f"{steps} steps, but {len(draws)} draws and {len(commits)} commits"
    assert wrapper.strategy_class.journal or not steps, "the wrapper did not run"
    assert not moved, f"a draw wrote to the strategy's state at {moved[0]}"


@check(slow=True)
def frozen_parameters_do_not_move(subject: Subject, folder: Path) -> None:
    """What a neighbour's mask freezes, a whole tensor or part of one, is bit-identical after every step."""
    freezing, watching = slot(Freezing), slot(Watching)
    frozen = beside(subject.experiment(folder / "frozen"), after=[freezing])
    if refused(subject, frozen):
        return
    finish(frozen)
    assert freezing.strategy_class.journal, "no step was watched"
    for entry in freezing.strategy_class.journal:
        assert entry["whole"], f"a frozen tensor moved at {entry['place']}"
        assert entry["part"], f"frozen entries of a tensor moved at {entry['place']}"
    finish(beside(subject.experiment(folder / "free"), after=[watching]))
    journal = watching.strategy_class.journal
    assert journal, "no step was watched"
    if subject.traits.inner_calls != "never" and "mask" not in subject.seams:
        assert not all(entry["whole"] for entry in journal), "the tensor does not move without a mask either: this shows nothing"
        assert not all(entry["part"] for entry in journal), "the entries do not move without a mask either: this shows nothing"


@check(slow=True)
def composes_with_each_kind_of_seam(subject: Subject, folder: Path) -> None:
    """Beside a neighbour in each seam, outside and inside of it, the run ends and its numbers are finite, or it was refused."""
    swept = 0
    for seam, kind in SEAM_NEIGHBOURS.items():
        if seam in ("build", "predict") and seam in subject.seams:
            continue  # at most one strategy of a stack may have it
        for where in ("before", "after"):
            neighbour = slot(kind)
            neighbours: dict[str, Any] = {where: [neighbour]}
            experiment = beside(subject.experiment(folder / where), **neighbours)
            swept += 1
            if refused(subject, experiment):
                continue
            assert_finite(finish(experiment), f"with a neighbour that uses {seam}, {where}")
            acted = bool(neighbour.strategy_class.journal)
            assert acted or subject.traits.inner_calls == "never", f"the neighbour that uses {seam} never acted"
    assert swept >= 2 * (len(SEAM_NEIGHBOURS) - 2)


def refused(subject: Subject, experiment: Experiment) -> bool:
    """Whether its stack is refused, which is for strategies whose steps never call inward: a part in them would have no effect."""
    try:
        make_stack(experiment)
    except ConfigurationError:
        if subject.traits.inner_calls != "never":
            raise
        return True
    return False


def assert_finite(outcome: Outcome, what: str) -> None:
    for name, value in outcome.weights.items():
        assert bool(torch.isfinite(value.double()).all()), f"{what}: {name} is not finite"
    assert all(value is not None and math.isfinite(value) for *_, value in outcome.records), f"{what}: a figure is not finite"
