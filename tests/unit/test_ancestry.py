"""What strategies made while a task was known and kept after it was unlearned: rows by age, and runs that keep some on purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cl_framework import run
from cl_framework.assembly import make_benchmark
from cl_framework.stream import Stream
from cl_framework.testing.laboratory import experiment_of, finish_in_pieces
from cl_framework.unlearning.ancestry import Ancestry, known_since
from cl_framework.unlearning.deletion import DeletionLog
from cl_framework.unlearning.verify import verify
from strategies.der import DER
from strategies.derpp import DERPP
from strategies.ewc import EWC
from strategies.si import SI


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
        {"columns": {"items": ROWS}},  # samples: what canaries look for
        {"ids": torch.arange(12)},
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


# --- runs ---


def contains(path: Path) -> list[str]:
    """What the deletion record says is left after the last request, without the weights."""
    done = [entry for entry in DeletionLog(path / "deletion").entries() if entry["kind"] == "done"]
    return [place for place in done[-1]["contains"] if not place.startswith("memory.weights")]


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


def test_a_stop_does_not_make_what_is_left_look_new(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"benchmark": {"name": "split_digits"}, "batch_size": 32, "stream": "L0 L1 U0"}
    whole = experiment_of({"ssd": {}}, tmp_path / "whole", **settings)
    data = make_benchmark(whole)
    pieces, stops = finish_in_pieces(experiment_of({"ssd": {}}, tmp_path / "pieces", **settings), lambda step: step % 7 == 0, data)
    assert stops > 2 and contains(pieces.path) == contains(run(whole, benchmark=data).path) != []
