"""The figures of unlearning that need no oracle: against values worked out by hand, and from real runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from cl_framework import runner
from cl_framework.cli import main
from cl_framework.records import RunDirectory
from cl_framework.report import figures_line
from cl_framework.stream import Stream
from cl_framework.testing.laboratory import experiment_of, finish
from cl_framework.unlearning import certificate
from cl_framework.unlearning.certificate import Certifier
from cl_framework.unlearning.deletion import DeletionLog
from cl_framework.unlearning.fast import (
    FAIL,
    INCONCLUSIVE,
    INVALID,
    NOT_RUN,
    PASS,
    Figure,
    Recorded,
    artefacts,
    audit_seconds,
    figures_of,
    unlearning_entries,
)


def rows(matrix: Sequence[Sequence[float | None]], chance: float = 10.0, n: int = 1000, split: str = "test") -> list[dict[str, Any]]:
    """Records with these accuracies: a row an event, a column a task."""
    made = []
    for index, values in enumerate(matrix):
        for task, value in enumerate(values):
            if value is None:
                continue
            row = {
                "event_index": index,
                "eval_task": task,
                "split": split,
                "scenario": "class_il",
                "metric": "accuracy",
                "value": value,
                "n": n,
            }
            made += [row, {**row, "metric": "chance", "value": chance}]
    return made


def figures(stream: str, matrix: Sequence[Sequence[float | None]], index: int, **more: Any) -> dict[str, Figure]:
    parsed = Stream.parse(stream)
    return {figure.name: figure for figure in figures_of(Recorded.of(rows(matrix, **more), "class_il"), parsed, index)}


@pytest.mark.parametrize(
    ("before", "after", "verdict", "gap"),
    [
        (95.0, 10.0, PASS, 0.0),
        (95.0, 0.0, PASS, -10.0),
        (95.0, 12.0, PASS, 2.0),
        (95.0, 12.1, FAIL, 2.1),
        (95.0, 95.0, FAIL, 85.0),
        (19.9, 10.0, INVALID, 0.0),
        (20.0, 10.0, PASS, 0.0),
    ],
)
def test_the_forget_gap(before: float, after: float, verdict: str, gap: float) -> None:
    found = figures("L0 L1 U0", [[99.0, 10.0], [before, 95.0], [after, 95.0]], 2)["M1"]
    assert (found.verdict, found.value) == (verdict, pytest.approx(gap))
    assert found.interval is not None and found.interval[0] <= gap <= found.interval[1]


def test_few_test_samples_must_have_known_more() -> None:
    matrix = [[99.0, 10.0], [30.0, 95.0], [10.0, 95.0]]
    assert figures("L0 L1 U0", matrix, 2)["M1"].verdict == PASS
    assert figures("L0 L1 U0", matrix, 2, n=20)["M1"].verdict == INVALID  # three standard errors are 31 points


def test_spill_is_the_mean_and_the_worst_of_losses() -> None:
    matrix = [[99.0, 1.0, 1.0], [90.0, 95.0, 1.0], [80.0, 85.0, 90.0], [10.0, 84.0, 92.0]]
    found = figures("L0 L1 L2 U0", matrix, 3)["M2"]
    assert (found.value, found.worst, found.verdict) == (0.5, 1.0, FAIL)  # a gain of 2 makes up for no loss
    matrix[3] = [10.0, 84.6, 90.0]
    assert figures("L0 L1 L2 U0", matrix, 3)["M2"].verdict == PASS
    assert figures("L0 U0", [[99.0], [10.0]], 1)["M2"].verdict == NOT_RUN


def test_relapse_is_the_most_that_came_back_until_it_is_learned_again() -> None:
    stream = "L0 L1 U0 L2 L3 L0"
    matrix: list[list[float | None]] = [[99.0], [90.0], [10.0], [10.4], [9.0], [99.0]]
    found = figures(stream, matrix, 2)["M3"]
    assert (found.value, found.verdict) == (pytest.approx(0.4), PASS)
    matrix[3] = [14.0]
    found = figures(stream, matrix, 2)["M3"]
    assert (found.value, found.verdict) == (4.0, INCONCLUSIVE) and "an oracle tells" in found.why
    assert figures("L0 L1 U0 L0", [[99.0], [90.0], [10.0], [99.0]], 2)["M3"].verdict == NOT_RUN
    assert figures("L0 L1 U0", [[99.0], [90.0], [10.0]], 2)["M3"].verdict == NOT_RUN


@pytest.mark.parametrize(
    ("retained", "void", "spilled"),
    [
        ((18.0, 20.0), True, FAIL),
        ((20.0, 19.8), True, FAIL),
        ((20.0, 20.0), False, FAIL),
        ((95.0, 0.0), False, FAIL),
        ((95.0, 90.0), False, PASS),
    ],
)
def test_a_model_that_knows_nothing_of_what_it_retains_answers_no_request(retained: tuple[float, float], void: bool, spilled: str) -> None:
    """Chance is 10: the mean over what is retained must lie 10 points above it."""
    matrix = [[99.0, 10.0, 10.0], [95.0, 95.0, 10.0], [95.0, 95.0, 90.0], [0.0, *retained], [0.0, *retained]]
    found = figures("L0 L1 L2 U0 L2", matrix, 3)
    assert {name: found[name].verdict for name in ("M1", "M3")} == dict.fromkeys(("M1", "M3"), INVALID if void else PASS)
    assert found["M2"].verdict == spilled and found["M8"].verdict == NOT_RUN
    if void:
        assert found["M1"].why == f"the model does not know what it retains: {sum(retained) / 2:.1f} where chance is 10.0"
    chances = [row for row in rows(matrix) if row["metric"] == "chance" and row["eval_task"] == 0]
    older = [*(row for row in rows(matrix) if row["metric"] == "accuracy"), *chances]
    first = figures_of(Recorded.of(older, "class_il"), Stream.parse("L0 L1 L2 U0 L2"), 3)[0]
    assert first.verdict == PASS, "older records do not tell what chance is on retained tasks"


def test_what_was_lost_before_cannot_be_spilled() -> None:
    for before, verdict in ((12.0, INVALID), (95.0, PASS)):
        found = figures("L0 L1 U0", [[99.0, 10.0], [95.0, before], [0.0, before]], 2)["M2"]
        assert (found.value, found.verdict) == (0.0, verdict)


def test_a_model_that_has_diverged_answers_no_request() -> None:
    matrix = [[99.0, 10.0], [95.0, 95.0], [10.0, 95.0], [10.0, 95.0]]
    for stream, index in (("L0 L1 U0 L2", 2), ("L0 U0 L1 L2", 1)):
        measured, parsed = Recorded.of(rows(matrix), "class_il"), Stream.parse(stream)
        found = {finite: figures_of(measured, parsed, index, finite) for finite in (True, False)}
        assert INVALID not in {figure.verdict for figure in found[True]}
        assert {figure.verdict for figure in found[False] if figure.name in ("M1", "M3")} == {INVALID}
        assert found[False][0].why == "the model has diverged: its answers are not numbers"


@pytest.mark.parametrize(("rate", "finite", "void"), [(500.0, False, True), (0.5, True, True), (0.05, True, False)])
def test_a_run_that_destroyed_its_model_is_void_in_the_fast_tier(
    rate: float, finite: bool, void: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"benchmark": {"name": "split_digits"}, "epochs": 3, "batch_size": 32, "optimizer": {"lr": 0.1}}
    strategies: dict[str, Any] = {"er": {"capacity": 20}, "gradient_ascent": {"lr": rate}}
    experiment = experiment_of(strategies, tmp_path, stream="L0 L1 U1 L2", **settings)
    with nullcontext() if finite else pytest.warns(UserWarning, match="weights are not finite after U1"):
        outcome = finish(experiment)
    assert [row["finite"] for row in RunDirectory(outcome.path).events()] == [True, True, finite, finite]
    (entry,) = outcome.summary["unlearning"]
    found = {figure["name"]: (figure["verdict"], figure["why"]) for figure in entry["figures"]}
    assert {found[name][0] for name in ("M1", "M2", "M3", "M8")} == {INVALID if void else PASS}
    if void:
        assert found["M1"][1].startswith("the model does not know what it retains" if finite else "the model has diverged")
    assert main(["audit", str(outcome.path), "--tier", "fast"]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("INVALID")]
    reasons = [one.partition(": ")[2] for one in told]
    assert reasons == list(dict.fromkeys(why for verdict, why in found.values() if verdict == INVALID)), "each reason once"
    assert bool(told) == void and all(one.startswith("INVALID, U1 (event 2) M1") for one in told[:1])


def test_what_was_not_measured_is_not_run() -> None:
    found = figures("L0 L1 U0 L2", [[99.0, 10.0], [None, None], [10.0, 95.0], [None, 95.0]], 2)
    assert {name: (figure.verdict, figure.value) for name, figure in found.items()} == {
        "M1": (NOT_RUN, None),
        "M2": (NOT_RUN, None),
        "M3": (NOT_RUN, None),
        "M8": (NOT_RUN, None),
    }


def test_samples_are_no_matter_of_chance() -> None:
    matrix = [[99.0, 10.0], [90.0, 95.0], [89.0, 95.0], [95.0, 95.0]]
    found = figures("L0 L1 U0:fraction=0.1@seed0 L1", matrix, 2)
    assert found["M1"].verdict == found["M3"].verdict == NOT_RUN
    assert (found["M2"].value, found["M2"].worst) == (0.5, 1.0)  # its own task is retained


def test_a_class_is_measured_on_its_own_samples_and_the_rest_is_retained() -> None:
    records = rows([[99.0, 10.0], [90.0, 95.0], [45.0, 95.0]])
    records += rows([[99.0], [92.0], [0.0]], split="test:class=1") + rows([[99.0], [88.0], [87.0]], split="test:class!=1")
    found = {figure.name: figure for figure in figures_of(Recorded.of(records, "class_il"), Stream.parse("L0 L1 U0:class=1"), 2)}
    assert (found["M1"].value, found["M1"].verdict) == (-10.0, PASS)
    assert (found["M2"].value, found["M2"].worst) == (0.5, 1.0)


def test_a_run_records_the_parts_of_a_task_whose_classes_go(tmp_path: Path) -> None:
    outcome = finish(experiment_of({"rewind": {}}, tmp_path, stream="L0 L1 U0:class=1 L2"))
    records = [json.loads(line) for line in (outcome.path / "records.jsonl").read_text().splitlines()]
    for index in range(4):
        mine = {
            row["split"]: row
            for row in records
            if (row["event_index"], row["eval_task"], row["scenario"], row["metric"]) == (index, 0, "class_il", "accuracy")
        }
        assert set(mine) == {"test", "test:class=1", "test:class!=1"}
        whole, one, rest = (mine[split] for split in ("test", "test:class=1", "test:class!=1"))
        assert one["n"] + rest["n"] == whole["n"] == 40
        assert one["n"] * one["value"] + rest["n"] * rest["value"] == pytest.approx(whole["n"] * whole["value"])
    chances = [(row["event_index"], row["split"], row["scenario"], row["value"]) for row in records if row["metric"] == "chance"]
    asked = [(2, "test:class=1", "class_il", 25.0), (2, "test:class=1", "task_il", 50.0)]
    left = [(2, "test:class!=1", "class_il", 25.0), (2, "test:class!=1", "task_il", 50.0)]
    assert chances == [*asked, *left, (2, "test", "class_il", 25.0), (2, "test", "task_il", 50.0)]
    (entry,) = outcome.summary["unlearning"]
    assert entry["event"] == "U0:class=1" and {figure["name"] for figure in entry["figures"]} == {"M1", "M2", "M3", "M8", "M11", "M12"}
    directory = RunDirectory(outcome.path)
    again = unlearning_entries(records, directory.events(), DeletionLog(outcome.path / "deletion").done(), "class_il")
    assert json.loads(json.dumps(again)) == outcome.summary["unlearning"]


def rounded(matrix: Sequence[Sequence[float]], bits: int) -> list[dict[str, Any]]:
    accuracies = [row for row in rows(matrix) if row["metric"] == "accuracy"]
    return [{**row, "metric": f"accuracy_int{bits}"} for row in accuracies]


def rounding_of(eight: Sequence[float], four: Sequence[float]) -> Figure:
    matrix = [[99.0, 10.0], [90.0, 95.0], [10.0, 94.0]]
    nothing: list[list[Any]] = [[], []]
    records = [*rows(matrix), *rounded([*nothing, eight], 8), *rounded([*nothing, four], 4)]
    found = figures_of(Recorded.of(records, "class_il"), Stream.parse("L0 L1 U0"), 2)
    return {figure.name: figure for figure in found}["M8"]


def test_what_comes_back_when_weights_are_rounded() -> None:
    found = rounding_of([10.5, 94.0], [31.0, 90.0])
    assert (found.value, found.verdict, found.details) == (21.0, FAIL, {"int8": 0.5, "int4": 21.0})
    found = rounding_of([9.0, 94.0], [12.0, 90.0])
    assert (found.value, found.verdict) == (2.0, PASS)
    found = rounding_of([10.5, 94.0], [31.0, 70.0])  # in four bits the model has lost what it retains: that says nothing
    assert (found.value, found.verdict, found.details) == (0.5, PASS, {"int8": 0.5})
    assert rounding_of([10.5, 50.0], [31.0, 70.0]).verdict == INVALID


def test_it_is_said_on_how_many_samples_retained_tasks_were_tried_where_not_on_all() -> None:
    matrix = [[99.0, 10.0], [90.0, 95.0], [10.0, 94.0]]
    for tried, expected in ((600, {"retained_samples": 600}), (1000, {})):
        eight = [{**row, "n": tried if row["eval_task"] == 1 else 1000} for row in rounded([[], [], [10.5, 93.0]], 8)]
        found = figures_of(Recorded.of([*rows(matrix), *eight], "class_il"), Stream.parse("L0 L1 U0"), 2)
        (figure,) = [figure for figure in found if figure.name == "M8"]
        assert (figure.value, figure.verdict, figure.details) == (0.5, PASS, {"int8": 0.5, **expected})


def slowed(call: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*arguments: Any) -> Any:
        time.sleep(0.1)
        return call(*arguments)

    return slow


def test_a_run_says_what_its_figures_and_its_record_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "rounded_accuracies", slowed(runner.rounded_accuracies))
    monkeypatch.setattr(Certifier, "request", slowed(Certifier.request))
    monkeypatch.setattr(Certifier, "note", slowed(Certifier.note))
    monkeypatch.setattr(certificate, "artefacts_on_disk", slowed(certificate.artefacts_on_disk))
    outcome = finish(experiment_of({"rewind": {}}, tmp_path, stream="L0 L1 U0:class=1 L2"))
    events = RunDirectory(outcome.path).events()
    done = DeletionLog(outcome.path / "deletion").done()
    took = [row["audit_seconds"] for row in events]
    assert took[2] >= 0.3 and min(took) >= 0.1, "roundings and the request are in the event that unlearns"
    assert done[2]["seconds"] >= 0.1
    assert outcome.summary["audit_seconds"] == pytest.approx(sum(took) + done[2]["seconds"])
    assert f"audit s {outcome.summary['audit_seconds']:.2f}" in figures_line(outcome.summary)
    older = [{key: value for key, value in row.items() if key != "audit_seconds"} for row in events]
    assert audit_seconds(older, done) is None, "what an older run took is not on record"
    assert "audit_seconds" not in finish(experiment_of({}, tmp_path / "learns")).summary


def test_artefacts_are_those_of_the_deletion_record() -> None:
    assert artefacts(None).verdict == NOT_RUN
    assert artefacts({"contains": [], "canaries": {"searched": 0}}).verdict == NOT_RUN
    assert (artefacts({"contains": [], "canaries": {"searched": 3}}).verdict) == PASS
    found = artefacts({"contains": ["memory.er", "ckpt/a.pt"], "canaries": {"searched": 3}})
    assert (found.value, found.verdict) == (2.0, FAIL)


def test_averages_count_the_classes_that_are_left(tmp_path: Path) -> None:
    outcome = finish(experiment_of({"rewind": {}}, tmp_path, stream="L0 L1 U1:class=2 U0:class=1 L2", epochs=3))
    records = [json.loads(line) for line in (outcome.path / "records.jsonl").read_text().splitlines()]

    def recorded(index: int, task: int, split: str) -> float:
        mine = [row["value"] for row in records if (row["event_index"], row["eval_task"], row["split"]) == (index, task, split)]
        return mine[0]  # the run's own scenario comes first

    matrix = outcome.summary["accuracy_matrix"]
    assert matrix[1][1] == recorded(1, 1, "test") and matrix[2][1] == recorded(2, 1, "test:class!=2")
    assert matrix[2][0] == recorded(2, 0, "test") and matrix[3][0] == recorded(3, 0, "test:class!=1")
    assert matrix[4][1] == recorded(4, 1, "test:class!=2") != recorded(4, 1, "test")
    assert outcome.summary["average_accuracy"] == pytest.approx(sum(matrix[4]) / 3)
    lost = [max(recorded(index, 0, "test:class!=1") for index in range(5)) - matrix[4][0]]
    lost.append(max(recorded(index, 1, "test:class!=2") for index in range(1, 5)) - matrix[4][1])
    assert outcome.summary["forgetting"] == pytest.approx(sum(lost) / 2)


def test_classes_of_several_requests_are_gone_together(tmp_path: Path) -> None:
    benchmark = {"name": "synthetic", "tasks": 2, "classes_per_task": 3, "train_per_class": 18, "test_per_class": 20, "seed": 0}
    outcome = finish(experiment_of({"rewind": {}}, tmp_path, stream="L0 L1 U0:class=1 U0:class=0", benchmark=benchmark))
    splits = {json.loads(line)["split"] for line in (outcome.path / "records.jsonl").read_text().splitlines()}
    assert {"test:class=1", "test:class!=1", "test:class=0", "test:class!=0", "test:class=0,1", "test:class!=0,1"} <= splits
    row = [
        json.loads(line)["value"]
        for line in (outcome.path / "records.jsonl").read_text().splitlines()
        if '"event_index": 3, ' in line and '"test:class!=0,1"' in line and '"class_il", "metric": "accuracy"' in line
    ]
    assert outcome.summary["accuracy_matrix"][3][0] == row[0]
