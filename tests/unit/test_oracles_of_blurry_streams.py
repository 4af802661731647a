"""Oracles of a stream with blurry boundaries: under no seed do they see what was unlearned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_framework.assembly import assemble, make_benchmark
from cl_framework.config import Experiment
from cl_framework.learner import Learner
from cl_framework.plan import Plan
from cl_framework.strategy import Phase
from cl_framework.stream import Unlearn
from cl_framework.testing.laboratory import experiment_of
from cl_framework.unlearning.oracle import Oracles


def made(folder: Path, request: str, **settings: Any) -> Experiment:
    more: dict[str, Any] = {"benchmark": {"name": "split_digits"}, "epochs": 1, "batch_size": 64, "blurry": 0.2, **settings}
    return experiment_of({"rewind": {}}, folder, stream=f"L0 L1 L2 {request}", **more)


def asked(learner: Learner) -> Tensor:
    """Ids that the stream's request names."""
    (event,) = (event for event in learner.stream if isinstance(event, Unlearn))
    return learner.forgotten(event).ids


def planned(oracles: Oracles, index: int, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Ids in the plans by which an oracle is trained."""
    seen: list[Tensor] = []
    begin = Learner.begin_phase

    def noted(learner: Learner, phase: Phase) -> None:
        assert isinstance(phase.plan, Plan)
        seen.append(phase.plan.ids)
        begin(learner, phase)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "begin_phase", noted)
        oracles.after(index)
    return torch.cat(seen)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("request_text", ["U1", "U1:class=3", "U1:fraction=0.3@seed5"])
def test_no_oracle_sees_what_was_unlearned(request_text: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = made(tmp_path, request_text)
    benchmark = make_benchmark(experiment)
    run = assemble(experiment, benchmark)
    shown = planned(Oracles(experiment, benchmark, seed, tmp_path / "oracles"), 3, monkeypatch)
    wanted = torch.cat([run.planned_ids(task) for task in range(3)])
    assert torch.equal(shown.sort().values, wanted[~torch.isin(wanted, asked(run))].sort().values), "all that is retained, and no more"


def test_under_another_seed_a_run_deals_the_samples_otherwise(tmp_path: Path) -> None:
    """Which is why the run's own seed deals those of its oracles: two runs that differ in their seed retain other samples."""
    first, second = (assemble(made(tmp_path, "U1", seed=seed)) for seed in (0, 1))
    retained = torch.cat([second.planned_ids(task) for task in (0, 2)])
    assert bool(torch.isin(asked(first), retained).any())
    same = assemble(made(tmp_path, "U1", seed=1), dealt_by=0)
    assert torch.equal(same.planned_ids(1), first.planned_ids(1)) and not torch.equal(same.planned_ids(1), second.planned_ids(1))
