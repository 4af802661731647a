"""Rewind: bit for bit the run that never saw the data, whatever is in the stack; what it keeps, what it costs, what it survives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cl_framework import FrameworkError, resume, run
from cl_framework.assembly import make_benchmark
from cl_framework.records import RunDirectory
from cl_framework.testing.laboratory import (
    Outcome,
    assert_different_weights,
    assert_equal_outcomes,
    experiment_of,
    finish,
    finish_in_pieces,
    first_difference,
)

MOMENTS = {"name": "adam", "lr": 0.01, "reset": "never"}
STACKS: dict[str, dict[str, dict[str, Any]]] = {
    "alone": {},
    "derpp": {"derpp": {"capacity": 20}},
    "views, refresh, er": {"view_batch": {}, "refresh": {}, "er": {"capacity": 20}},
    "ewc": {"ewc": {}},
    "icarl": {"icarl": {"capacity": 20}},
    "power_law, half": {"power_law": {}, "half": {}},
    "joint": {"joint": {}},
}
# what is run, what a model that never saw the data lives through: its stream, and what it leaves out of it
TASKS = [("L0 L1 U0", "L1"), ("L0 L1 U0 L2", "L1 L2"), ("L0 L1 L2 U1 U0 L1", "L2 L1"), ("L0 L1 U1", "L0"), ("L0 L1 L0 U0 L0", "L1 L0")]
SAMPLES = [
    ("L0 L1 U0:class=1", "L0 L1", "U0:class=1"),
    ("L0 L1 U0:fraction=0.3@seed1 U1:class=2 L2", "L0 L1 L2", "U0:fraction=0.3@seed1 U1:class=2"),
    ("L0 L1 U0:fraction=0.3@seed1 L0", "L0 L1 L0", "U0:fraction=0.3@seed1"),
]


def outcome(
    folder: Path, stream: str, strategies: dict[str, Any] | None = None, without: str = "", rewinds: bool = True, seed: int = 0
) -> Outcome:
    stack = {**({"rewind": {}} if rewinds else {}), **(strategies or {})}
    return finish(experiment_of(stack, folder, stream=stream, optimizer=MOMENTS, without=without, seed=seed))


def difference(one: Outcome, other: Outcome) -> str | None:
    """Between weights, optimizer memory and states of strategies."""
    parts = ("model", "optimizer_memory", "strategies")
    return first_difference({part: one.learner[part] for part in parts}, {part: other.learner[part] for part in parts}, "state")


@pytest.mark.slow
@pytest.mark.parametrize("stack", STACKS)
def test_after_a_task_was_unlearned_all_is_as_if_it_had_never_been_seen(stack: str, tmp_path: Path) -> None:
    for number, (stream, never) in enumerate(TASKS):
        unlearned = outcome(tmp_path / f"unlearned-{number}", stream, STACKS[stack])
        clean = outcome(tmp_path / f"clean-{number}", never, STACKS[stack])
        assert difference(unlearned, clean) is None, f"{stream} against {never}: {difference(unlearned, clean)}"
        values = [row[-1] for row in unlearned.records if row[0] == len(stream.split()) - 1 and row[1] in (0, 1)]
        assert values
    knowing = outcome(tmp_path / "knowing", "L0 L1", STACKS[stack])
    assert_different_weights(knowing, outcome(tmp_path / "never", "L1", STACKS[stack]), "L0 L1 against L1")


@pytest.mark.slow
@pytest.mark.parametrize("stack", STACKS)
def test_so_it_is_after_classes_and_samples_were_unlearned(stack: str, tmp_path: Path) -> None:
    for number, (stream, never, without) in enumerate(SAMPLES):
        unlearned = outcome(tmp_path / f"unlearned-{number}", stream, STACKS[stack])
        clean = outcome(tmp_path / f"clean-{number}", never, STACKS[stack], without)
        assert difference(unlearned, clean) is None, f"{stream} against {never} without {without}: {difference(unlearned, clean)}"
        knowing = outcome(tmp_path / f"knowing-{number}", never, STACKS[stack])
        assert_different_weights(clean, knowing, f"{never} with and without {without}")


@pytest.mark.parametrize("seed", range(3))
def test_the_oracle_needs_no_rewind_beside_it(seed: int, tmp_path: Path) -> None:
    unlearned = outcome(tmp_path / "unlearned", "L0 L1 U0 L2", {"er": {"capacity": 20}}, seed=seed)
    oracle = outcome(tmp_path / "oracle", "L1 L2", {"er": {"capacity": 20}}, rewinds=False, seed=seed)
    assert first_difference(unlearned.learner["model"], oracle.learner["model"], "weights") is None
    knowing = outcome(tmp_path / "knowing", "L0 L1 L2", {"er": {"capacity": 20}}, rewinds=False, seed=seed)
    assert_different_weights(unlearned, knowing, "L0 L1 U0 L2 against L0 L1 L2")


@pytest.mark.slow
def test_an_unlearn_stopped_before_every_step_ends_the_same(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"stream": "L0 L1 L2 U0 L0 U1:class=2", "optimizer": MOMENTS, "epochs": 2}
    stack: dict[str, Any] = {"rewind": {}, "derpp": {"capacity": 20}, "ewc": {}}
    whole = finish(experiment_of(stack, tmp_path / "whole", **settings))
    again = experiment_of(stack, tmp_path / "pieces", **settings)
    pieces, stops = finish_in_pieces(again, lambda step: True, make_benchmark(again))
    assert_equal_outcomes(whole, pieces, "stopped before every step")
    assert stops == whole.summary["steps"] > 60
    rows = [RunDirectory(path).events() for path in (whole.path, pieces.path)]
    told = [
        [
            {key: row[key] for key in ("event", "steps", "samples", "samples_new", "phases", "forward_passes", "samples_drawn")}
            for row in part
        ]
        for part in rows
    ]
    assert told[0] == told[1]


def test_it_costs_the_suffix_and_no_more(tmp_path: Path) -> None:
    events = RunDirectory(outcome(tmp_path, "L0 L1 L2 U2 U1 L1 U0").path).events()
    assert [row["steps"] for row in events] == [
        5,
        5,
        5,
        0,
        0,
        5,
        5,
    ]  # nothing after task 2; nothing after 1 but 2, gone; task 1 after task 0
    learned, replayed = events[-2], events[-1]
    assert (learned["samples_new"], learned["samples_past"]) == (36, 0)
    assert (replayed["samples"], replayed["samples_new"], replayed["samples_past"]) == (36, 0, 36), "what is replayed is retained"


def test_kept_states_know_only_what_was_not_unlearned(tmp_path: Path) -> None:
    def kept(stream: str) -> list[str]:
        path = outcome(tmp_path / stream.replace(" ", ""), stream).path
        return ["-".join(file.stem.split("-")[:2]) for file in sorted((path / "ckpt" / "history").iterdir())]

    assert len(kept("L0 L1 L2")) == 4
    assert kept("L0 L1 L2 U0") == kept("L1 L2")
    assert kept("L0 L1 L2 U2") == kept("L0 L1")
    assert kept("L0 L1 L2 U1") != kept("L0 L1")  # the control: other events, other keys
    assert not (outcome(tmp_path / "none", "L0 L1", rewinds=False).path / "ckpt" / "history").exists()


def test_a_damaged_state_costs_training_and_nothing_else(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"stream": "L0 L1 L2 U2:class=4", "optimizer": MOMENTS}
    straight = finish(experiment_of({"rewind": {}}, tmp_path / "straight", **settings))
    experiment = experiment_of({"rewind": {}}, tmp_path / "damaged", **settings)
    stopped = run(experiment, stop_requested=lambda step: step == 14)
    states = sorted((stopped.path / "ckpt" / "history").iterdir())
    for file in states[1:]:
        file.write_bytes(file.read_bytes()[:-1])
    resumed = resume(stopped.path)
    rows = [RunDirectory(path).events()[-1]["steps"] for path in (straight.path, resumed.path)]
    assert rows == [5, 15]
    values = [[row["value"] for row in RunDirectory(path).records()] for path in (straight.path, resumed.path)]
    assert values[0] == values[1]


def test_without_any_kept_state_the_unlearn_is_refused(tmp_path: Path) -> None:
    experiment = experiment_of({"rewind": {}}, tmp_path, stream="L0 L1 U0")
    stopped = run(experiment, stop_requested=lambda step: step == 7)
    for file in (stopped.path / "ckpt" / "history").iterdir():
        file.unlink()
    from cl_framework import resume

    with pytest.raises(
        FrameworkError, match=r"history holds no state from before the stream began: U0 cannot train again without the data"
    ):
        resume(stopped.path)
