"""Runs on texts that stop and go on: the weights, the state of the strategies and the records of the run that did not, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cl_framework import registry
from cl_framework.assembly import make_benchmark
from cl_framework.config import Experiment
from cl_framework.records import RunDirectory
from cl_framework.testing.laboratory import Outcome, assert_different_weights, assert_equal_outcomes, finish, finish_in_pieces
from tests.unit.test_language_modelling import experiment

LENDER = {"er": {"capacity": 8}}
STACKS: dict[str, dict[str, dict[str, Any]]] = {
    "npo": {"npo": {"steps": 4}, **LENDER},
    "rmu and view_batch": {"rmu": {"steps": 4}, "view_batch": {"views": 2}, **LENDER},
    "simnpo, half, infinite_rate and replay_share": {
        "simnpo": {"steps": 4},
        "half": {},
        "infinite_rate": {"anneal": 0.5},
        "replay_share": {"share": 0.25},
        **LENDER,
    },
    "lora and derpp": {"lora": {"rank": 2, "dropout": 0.2}, "derpp": {"capacity": 8}},
    "ssd and rewarm": {"ssd": {"alpha": 5.0}, "rewarm": {"start": "current"}},
}
# A resume without the state of one of them ends elsewhere.
KEEPERS = ("npo", "er", "rmu", "infinite_rate", "derpp", "rewarm")


def experiment_of_stack(name: str, folder: Path, out: str, **settings: Any) -> Experiment:
    stream = "L0 L1" if name == "lora and derpp" else "L0 L1 U0 L2"
    optimizer = {"name": "adamw", "lr": 0.01, "reset": "never"}
    made: Experiment = experiment(folder, STACKS[name], stream=stream, optimizer=optimizer, out=str(folder / out), **settings)
    return made


def moments(whole: Outcome) -> set[int]:
    """Stream steps after the first one, in the middle of every event that has some, and between the first two."""
    steps = [row["steps"] for row in RunDirectory(whole.path).events()]
    return {1, steps[0]} | {sum(steps[:event]) + taken // 2 for event, taken in enumerate(steps) if taken > 1}


@pytest.mark.slow
@pytest.mark.parametrize("name", STACKS)
def test_stopped_and_resumed_it_ends_as_if_nothing_had_happened(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = experiment_of_stack(name, tmp_path, "whole")
    data = make_benchmark(chosen)
    whole = finish(chosen, data)
    stops = moments(whole)
    pieces, count = finish_in_pieces(experiment_of_stack(name, tmp_path, "pieces"), stops.__contains__, data)
    assert count == len(stops) > 3
    assert_equal_outcomes(whole, pieces, f"stopped before {sorted(stops)}")
    assert pieces.bytes_of_records == whole.bytes_of_records
    assert_different_weights(whole, finish(experiment_of_stack(name, tmp_path, "other", seed=1), data), "another seed")
    keepers = [slot for slot in STACKS[name] if slot in KEEPERS]
    for slot in keepers:
        with monkeypatch.context() as patch:
            patch.setattr(registry.strategies.get(slot), "load_state_dict", lambda self, state: None)
            without, _ = finish_in_pieces(experiment_of_stack(name, tmp_path, f"without {slot}"), stops.__contains__, data)
        assert_different_weights(whole, without, f"the state of {slot} is lost")
    assert keepers


def test_each_keeper_stands_in_a_stack() -> None:
    assert set(KEEPERS) <= {slot for stack in STACKS.values() for slot in stack}
