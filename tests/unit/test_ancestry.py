"""What strategies made while a task was known and kept after it was unlearned: rows by age, and runs that keep some on purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cl_framework import Done, IsolatedModel, TaskConditionedModel, run
from cl_framework.assembly import make_benchmark
from cl_framework.models.lora import TaskAdaptedModel
from cl_framework.stream import Stream
from cl_framework.testing.laboratory import experiment_of, finish, finish_in_pieces
from cl_framework.unlearning.ancestry import Ancestry, Movements, known_since
from cl_framework.unlearning.verify import verify
from strategies.der import DER
from strategies.derpp import DERPP
from strategies.ewc import EWC
from strategies.si import SI
from tests.unit.deletion_runs import done_in


def state_of(*, weights: torch.Tensor | None = None, optimizer: Any = (), **parts: Any) -> dict[str, Any]:
    model = torch.arange(100.0, 104.0)[None] if weights is None else weights
    return {"model": {"weight": model}, "optimizer_memory": dict(optimizer), "strategies": {"some": parts}}


ROWS = torch.arange(12.0).view(3, 4)


def test_a_row_is_as_old_as_the_event_after_which_it_was_first_seen() -> None:
    register = Ancestry()
    register.note(0, state_of(logits=ROWS[:1]))
    register.note(1, state_of(logits=ROWS[:2]))
    now = state_of(logits=ROWS)  # the last row was made after event 2
    register.note(2, now)
    place = "memory.strategies.some.logits (made while it was known)"
    assert register.older(1, 2, now, "memory") == [place], "the second row"
    assert register.older(0, 1, now, "memory") == [place], "the first"
    assert register.older(2, 2, now, "memory") == register.older(3, 9, now, "memory") == []
    assert register.older(1, 2, state_of(logits=ROWS[[0, 2]]), "memory") == []


def test_a_row_that_went_is_new_when_it_comes_again() -> None:
    register = Ancestry()
    for index, rows in enumerate((ROWS, ROWS[:1], ROWS)):
        register.note(index, state_of(logits=rows))
    assert register.older(0, 2, state_of(logits=ROWS[1:]), "memory") == []
    assert register.older(0, 2, state_of(logits=ROWS[:1]), "memory")


@pytest.mark.parametrize(
    "harmless",
    [
        {"ids": torch.arange(12), "counts": torch.tensor([7, 90000], dtype=torch.int32), "mask": torch.tensor([True, False])},
        {"fisher": torch.zeros(3, 4)},
        {"fisher": torch.full((4,), 0.5)},
        {"anchor": torch.arange(100.0, 104.0)},  # the present weights
        {"empty": torch.empty(0, 3)},
    ],
)
def test_what_says_nothing_of_the_past_is_not_named(harmless: dict[str, Any]) -> None:
    register = Ancestry()
    state = state_of(**harmless)
    register.note(0, state)
    assert register.older(0, 1, state, "memory") == []


@pytest.mark.parametrize(
    "dressed",
    [
        {"columns": {"items": ROWS}},  # the name of samples makes no sample
        {"again": ROWS.view(torch.uint8)},
        {"again": ROWS.view(torch.int32)},
        {"again": ROWS.view(torch.int64)},
        {"again": ROWS.view(torch.uint8).view(torch.bool)},
    ],
)
def test_age_counts_whatever_the_name_and_the_type(dressed: dict[str, Any]) -> None:
    register, state = Ancestry(), state_of(**dressed)
    register.note(0, state)
    assert register.older(0, 1, state, "memory") and register.older(1, 1, state, "memory") == []


def test_vectors_and_moments_of_the_optimizer_are_looked_at() -> None:
    register = Ancestry()
    state = state_of(optimizer={"layer": {"exp_avg": torch.tensor([1.0, 2.0])}}, path=torch.tensor([3.0, 4.0]))
    register.note(0, state)
    told = " (made while it was known)"
    assert register.older(0, 1, state, "memory") == [f"memory.optimizer_memory.layer.exp_avg{told}", f"memory.strategies.some.path{told}"]


def test_the_register_outlives_a_stop() -> None:
    register = Ancestry()
    register.note(0, state_of(logits=ROWS))
    assert Ancestry(register.born).older(0, 1, state_of(logits=ROWS), "memory")
    assert not Ancestry().older(0, 1, state_of(logits=ROWS), "memory")


@pytest.mark.parametrize(
    ("stream", "index", "since"),
    [
        ("L0 L1 U0", 2, 0),
        ("L0 L1 U1", 2, 1),
        ("L0 L1 L0 U0", 3, 0),
        ("L0 U0 L1 L0 U0", 4, 3),
        ("L0 U0:class=1 L0 U0", 3, 0),  # classes and samples do not make the rest unknown
    ],
)
def test_since_when_a_task_was_known(stream: str, index: int, since: int) -> None:
    assert known_since(Stream.parse(stream, 2), index) == since


# --- weights ---


class OnePartATask(nn.Module):
    one_a_task = "parts"


def test_weights_that_moved_while_a_task_was_known_must_move_in_its_request() -> None:
    register = Movements()
    stays, moves = torch.zeros(2), [torch.full((2,), float(step)) for step in range(4)]
    for index, (first, last) in enumerate([(0, 0), (1, 0), (1, 1), (2, 1)], start=-1):
        register.note(index, {"first": moves[first], "last": moves[last], "never": stays, "steps": torch.tensor(index)})
    assert register.events == {"first": [0, 2], "last": [1]}
    model = nn.Module()
    assert register.untreated(0, 2, 0, model) == ["last"], "event 2 moved the first"
    assert register.untreated(0, 3, 0, model) == ["first", "last"]
    assert register.untreated(2, 3, 0, model) == ["first"], "the last did not move since"
    again = Movements(register.state_dict())
    again.note(3, {"first": moves[2], "last": moves[2], "never": stays})
    assert again.events == {"first": [0, 2], "last": [1, 3]} and register.events["last"] == [1], "a register outlives a stop"


def test_what_serves_another_task_alone_never_met_the_one_that_goes() -> None:
    register = Movements()
    for index in (-1, 0):
        register.note(index, {name: torch.full((2,), float(index)) for name in ("body", "parts.0", "parts.1.bias", "parts.10.bias")})
    assert register.untreated(0, 1, 1, OnePartATask()) == ["body", "parts.1.bias"]
    assert register.untreated(0, 1, 1, nn.Module()) == ["body", "parts.0", "parts.1.bias", "parts.10.bias"]


# --- runs ---


def contains(path: Path) -> list[str]:
    """What the deletion record says is left after the last request, without the weights."""
    return [place for place in done_in(path)[-1]["contains"] if not place.startswith("memory.weights")]


def untreated(path: Path, request_: int = -1) -> set[str]:
    """The tensors of the model that the deletion record says are as they were before a request, the last by default."""
    told = [place.partition(" (as it was before the request)") for place in done_in(path)[request_]["contains"]]
    return {place.removeprefix("memory.weights.") for place, known, _ in told if known}


def descends(path: Path) -> str:
    finding = next(one for one in verify(path) if one.claim == "no state descends from what was unlearned")
    return "" if finding.verdict == "PASS" else finding.why


KEPT: dict[str, tuple[type, dict[str, Any], str]] = {
    "der": (DER, {"der": {"capacity": 60}}, "der.memory.columns.extra/logits"),
    "derpp": (DERPP, {"derpp": {"capacity": 60}}, "derpp.memory.columns.extra/logits"),
    "ewc": (EWC, {"ewc": {"weight": 1.0}}, "ewc.fisher"),
    "si": (SI, {"si": {"c": 1.0}}, "si.importance"),
}


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("request_", ["U0", "U0:class=1", "U0:fraction=0.5@seed1"])
def test_what_a_strategy_makes_anew_is_clean_and_what_it_keeps_is_found(
    name: str, request_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, chosen, place = KEPT[name]
    stack = {**chosen, "gradient_ascent": {}}
    settings: dict[str, Any] = {"benchmark": {"name": "split_digits"}, "stream": f"L0 L1 {request_}", "batch_size": 32}
    whole = run(experiment_of(stack, tmp_path / "whole", **settings)).path
    assert contains(whole) == [] and descends(whole) == ""

    def only_samples(self: Any, forgotten: Any, context: Any) -> None:
        if hasattr(self, "memory"):
            self.memory.forget(forgotten.ids, context.random("forget"))

    monkeypatch.setattr(kind, "forget", only_samples)
    broken = run(experiment_of(stack, tmp_path / "broken", **settings)).path
    found = contains(broken)
    assert found and any(one.startswith(f"memory.strategies.{place}") for one in found), found
    assert "still holds what" in descends(broken) and place.partition(".")[0] in descends(broken)


def test_importances_of_later_tasks_were_measured_while_the_task_was_known(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"benchmark": {"name": "split_digits"}, "batch_size": 32}
    earlier, later = (run(experiment_of({"ssd": {}}, tmp_path, **settings, stream=stream)).path for stream in ("L0 L1 U1", "L0 L1 U0"))
    assert contains(earlier) == []
    found = contains(later)
    assert found and all(one.startswith("memory.strategies.ssd.importances.1.") for one in found)


@pytest.mark.parametrize("name", ["ssd", "reset_head"])  # what strategies made; what the model learned
def test_a_stop_does_not_make_what_is_left_look_new(name: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"benchmark": {"name": "split_digits"}, "batch_size": 32, "stream": "L0 L1 U0"}
    whole = experiment_of({name: {}}, tmp_path / "whole", **settings)
    data = make_benchmark(whole)
    pieces, stops = finish_in_pieces(experiment_of({name: {}}, tmp_path / "pieces", **settings), lambda step: step % 7 == 0, data)
    left, expected = (done_in(path)[-1]["contains"] for path in (pieces.path, run(whole, benchmark=data).path))
    assert stops > 2 and left == expected != []


STATISTICS = {f"body.{layer}.running_{part}" for layer in (2, 5) for part in ("mean", "var")}
BODY = STATISTICS | {f"body.{layer}.{part}" for layer in (1, 2, 4, 5) for part in ("weight", "bias")}
HEAD = {"head.weight", "head.bias"}

LEFT_AS_THEY_WERE: dict[str, tuple[dict[str, Any], set[str]]] = {
    "do_nothing": ({"do_nothing": {}}, BODY | HEAD),
    "reset_head": ({"reset_head": {}}, BODY),
    "noise": ({"noise": {}}, STATISTICS),
    "gradient_ascent": ({"gradient_ascent": {}}, set()),  # its passes are the model's last look at the data, and move the statistics
    "finetune_retain": ({"finetune_retain": {"steps": 5}, "er": {"capacity": 60}}, set()),
    "rewind": ({"rewind": {}}, set()),
}


@pytest.mark.parametrize("name", LEFT_AS_THEY_WERE)
def test_weights_and_statistics_left_as_they_were_still_hold_the_data(name: str, tmp_path: Path) -> None:
    stack, left = LEFT_AS_THEY_WERE[name]
    settings: dict[str, Any] = {"benchmark": {"name": "split_digits"}, "batch_size": 32, "stream": "L0 L1 U0"}
    result = run(experiment_of(stack, tmp_path, **settings, model={"name": "mlp", "hidden": [32, 16], "batch_norm": True}))
    assert untreated(result.path) == left
    assert result.summary is not None
    (entry,) = result.summary["unlearning"]
    (figure,) = [one for one in entry["figures"] if one["name"] == "M11"]
    assert (figure["value"], figure["verdict"]) == (float(len(left)), "FAIL" if left else "PASS")
    (done,) = done_in(result.path)
    assert done["guarantee_achieved"] == ("none" if left else "exact" if name == "rewind" else "approximate")


def test_a_weight_is_treated_by_the_request_for_each_task_that_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second request finds what the first has moved, and must move it again."""
    from strategies.gradient_ascent import GradientAscent

    answer = GradientAscent.unlearn
    monkeypatch.setattr(GradientAscent, "unlearn", lambda self, event, context: answer(self, event, context) if event.task == 0 else Done())
    settings: dict[str, Any] = {"benchmark": {"name": "split_digits"}, "batch_size": 32, "stream": "L0 L1 L2 U0 U1"}
    path = run(experiment_of({"gradient_ascent": {}}, tmp_path, **settings)).path
    assert untreated(path, 0) == set() and untreated(path, 1) > HEAD


BY_TASK: dict[str, dict[str, Any]] = {
    "hypernetwork": {"hypernetwork": {"chunk_size": 500, "hidden": [16], "embedding": 8, "chunk_embedding": 8}},
    "isolation": {"isolation": {}, "er": {"capacity": 60}},  # beside a memory it is not exact
    "lora": {"lora": {"per_task": True, "rank": 2}, "er": {"capacity": 60}},
}


@pytest.mark.parametrize("name", BY_TASK)
def test_what_a_task_has_of_its_own_goes_and_what_others_have_is_theirs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"benchmark": {"name": "split_digits"}, "batch_size": 32, "stream": "L0 L1 U0", "scenario": "task_il"}
    settings["model"] = {"name": "mlp", "hidden": [32, 16], "batch_norm": True}
    assert untreated(run(experiment_of(BY_TASK[name], tmp_path / "whole", **settings)).path) == set()
    for kind in (TaskConditionedModel, IsolatedModel, TaskAdaptedModel):
        monkeypatch.setattr(kind, "replace_embedding" if kind is TaskConditionedModel else "reset", lambda self, *arguments: None)
    found = untreated(run(experiment_of(BY_TASK[name], tmp_path / "kept", **settings)).path)
    assert found and {name.split(".")[:2][1] for name in found} == {"0"}


@pytest.mark.parametrize("name", ["noise", "gradient_ascent"])
def test_moments_of_the_optimizer_go_with_what_was_unlearned(name: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"benchmark": {"name": "split_digits"}, "batch_size": 32}
    settings["optimizer"] = {"name": "adam", "lr": 0.003, "reset": "never"}
    learned = finish(experiment_of({name: {}}, tmp_path / "learned", **settings, stream="L0 L1")).learner
    assert all(bool(moments["exp_avg"].any()) for moments in learned["optimizer_memory"].values()) and learned["optimizer_memory"]
    unlearned = finish(experiment_of({name: {}}, tmp_path / "unlearned", **settings, stream="L0 L1 U0"))
    assert unlearned.learner["optimizer_memory"] == {} and contains(unlearned.path) == []
