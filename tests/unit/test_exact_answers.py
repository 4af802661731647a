"""What answers take away is nowhere any more: strategies that put it aside before it goes, and built-in ones, which do not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_framework import Context, Done, Phase, Strategy, Traits, Unlearn, register, run
from cl_framework.assembly import make_benchmark
from cl_framework.testing.laboratory import experiment_of, finish_in_pieces
from cl_framework.testing.neighbours import NoOptions
from cl_framework.unlearning.ancestry import Values, made_of_data, removed, still_there, unlike
from cl_framework.unlearning.audit import audit
from cl_framework.unlearning.fast import FAIL, PASS
from tests.unit.deletion_runs import done_in, failures

DESCENDS = "no state descends from what was unlearned"
SETTINGS: dict[str, Any] = {"benchmark": {"name": "split_digits"}, "batch_size": 64, "epochs": 1}
FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "float": lambda value: value,
    "bytes": lambda value: value.flatten().view(torch.uint8),
    "twice": lambda value: 2 * value,
    "whole": lambda value: (1e6 * value).round().int(),
    "complex": lambda value: torch.complex(value, value),
}


@register("fake_vault")
class Vault(Strategy):
    """Puts the task's part aside when it hears of the request, in a form of its own."""

    Config = NoOptions
    traits = Traits(neutral={})
    form = "float"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.vault: dict[str, torch.Tensor] = {}

    def begin(self, context: Context) -> Sequence[Phase]:
        if isinstance(context.position.event, Unlearn) and self.form != "nothing":
            state = {name: value.clone() for name, value in context.snapshot().items() if value.is_floating_point()}
            self.vault = {name.replace(".", "_"): FORMS[self.form](value) for name, value in state.items()}
        return ()

    def state_dict(self) -> dict[str, Any]:
        return {"vault": dict(self.vault)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What it has put aside outlives a rewind, too."""
        self.vault = dict(state["vault"]) or self.vault


@register("fake_liar")
class Liar(Strategy):
    """Says that it unlearns exactly, and does nothing."""

    Config = NoOptions
    traits = Traits(unlearns=frozenset({"task"}), exact=True, neutral={})

    def unlearn(self, event: Unlearn, context: Context) -> Done:
        return Done()


def answered(stack: dict[str, Any], folder: Path, stream: str, **settings: Any) -> Path:
    scenario = {"scenario": "task_il"} if "isolation" in stack else {}
    return run(experiment_of(stack, folder, **SETTINGS | scenario | settings, stream=stream)).path


def m11(path: Path) -> str:
    figures = json.loads((path / "summary.json").read_text())["unlearning"][0]["figures"]
    return next(str(figure["verdict"]) for figure in figures if figure["name"] == "M11")


@pytest.mark.parametrize("answer", ["isolation", "rewind", "gradient_ascent"])
@pytest.mark.parametrize(("form", "caught"), [("float", True), ("bytes", True), ("nothing", False), ("twice", False)])
def test_what_is_put_aside_before_it_goes_is_found(
    answer: str, form: str, caught: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its bytes, whatever its type. A copy times two is not: no search for bytes finds that."""
    monkeypatch.setattr(Vault, "form", form)
    path = answered({answer: {}, "fake_vault": {}}, tmp_path, "L0 L1 U0 L2")
    (done,) = done_in(path)
    told = [place for place in done["contains"] if place.startswith("memory.strategies.fake_vault.vault.")]
    assert bool(told) is bool(done["contains"]) is caught
    assert done["guarantee_achieved"] == ("none" if caught else "approximate" if answer == "gradient_ascent" else "exact")
    assert m11(path) == ("FAIL" if caught else "PASS")
    assert ("learner.strategies.fake_vault.vault" in failures(path).get(DESCENDS, "")) is caught


def test_an_answer_that_does_nothing_is_not_exact(tmp_path: Path) -> None:
    path = answered({"fake_liar": {}}, tmp_path, "L0 L1 U0")
    assert done_in(path)[0]["guarantee_achieved"] == "none" and m11(path) == "FAIL"
    assert "still holds what U0 unlearned, at learner.model." in failures(path)[DESCENDS]


HONEST: dict[str, tuple[dict[str, Any], str]] = {
    "isolation": ({"isolation": {}}, "L0 L1 U0 L0 L2 U1"),
    "isolation of the first and the last": ({"isolation": {}}, "L0 L1 U1 U0 L1"),
    "isolation beside masks and views": ({"isolation": {}, "half": {}, "view_batch": {}}, "L0 L1 U0 L2 U2 L0"),
    "analytic": ({"analytic": {}}, "L0 L1 U0:class=1 U1 L2"),
    "analytic, of which nothing is left": ({"analytic": {}}, "L0 U0:class=0 U0:class=1 L1 U1"),
    "rewind to where it was before, and there again": ({"rewind": {}, "er": {"capacity": 60}}, "L0 L1 U1 U0 L0 L1"),
    "rewind to where a teacher was the model": ({"rewind": {}, "lwf": {}}, "L0 L1 U1 L2"),
    "rewind to where an anchor was the model": ({"rewind": {}, "ewc": {"weight": 1.0}}, "L0 L1 U1 L2 U0"),
    "rewind beside memories": ({"rewind": {}, "derpp": {"capacity": 60}, "er": {"capacity": 60}}, "L0 L1 U0:fraction=0.2@seed1 L2 U1 L1"),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_answers_leave_nothing_of_what_they_took_away(name: str, tmp_path: Path) -> None:
    stack, stream = HONEST[name]
    path = answered(stack, tmp_path, stream)
    assert {(entry["guarantee_achieved"], *entry["contains"]) for entry in done_in(path)} == {("exact",)}
    assert all(entry["removed"] for entry in done_in(path)[:1]) and failures(path) == {}


def claims(path: Path) -> list[tuple[str, str]]:
    """The verdicts on the claims to be exact, with their reasons."""
    figures = (figure for request in audit(path, seeds=1)["requests"] for figure in request["figures"])
    return [(figure["verdict"], figure["why"]) for figure in figures if figure["name"] == "E1"]


@pytest.mark.parametrize("name", HONEST)
def test_beside_honest_answers_is_kept_what_is_kept_beside_the_oracle(name: str, tmp_path: Path) -> None:
    stack, stream = HONEST[name]
    found = claims(answered(stack, tmp_path, stream))
    assert {verdict for verdict, _ in found} == {PASS} and not any("kept beside the oracle" in why for _, why in found)


@pytest.mark.parametrize("answer", ["isolation", "rewind"])
@pytest.mark.parametrize(("form", "verdict"), [("twice", FAIL), ("whole", FAIL), ("complex", FAIL), ("nothing", PASS)])
def test_an_audit_finds_what_is_put_aside_in_another_form(
    answer: str, form: str, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not what is kept beside the oracle, however it was changed."""
    monkeypatch.setattr(Vault, "form", form)
    ((told, why),) = claims(answered({answer: {}, "fake_vault": {}}, tmp_path, "L0 L1 U0"))
    assert told == verdict and ("is not what is kept beside the oracle: strategies.fake_vault.vault." in why) is (verdict == FAIL)


class LosesItsMemory(Vault):
    """Keeps the samples of the last event, and loses them when it is asked to forget."""

    def begin(self, context: Context) -> Sequence[Phase]:
        learns = not isinstance(context.position.event, Unlearn)
        self.vault = {"ids": context.ids_of(context.position.event.task)} if learns else {}
        return ()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.vault = {}


def test_an_audit_finds_what_is_kept_beside_the_oracle_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("begin", "load_state_dict"):
        monkeypatch.setattr(Vault, name, vars(LosesItsMemory)[name])
    ((verdict, why),) = claims(answered({"isolation": {}, "fake_vault": {}}, tmp_path, "L0 L1 U0"))
    assert verdict == FAIL and "kept beside the oracle: strategies.fake_vault.vault.ids" in why


def test_a_stop_inside_the_answer_hides_nothing(tmp_path: Path) -> None:
    stack = {"rewind": {}, "fake_vault": {}}
    whole, parts = (experiment_of(stack, tmp_path / name, **SETTINGS, stream="L0 L1 U0") for name in ("whole", "pieces"))
    data = make_benchmark(whole)
    pieces, stops = finish_in_pieces(parts, lambda step: step % 4 == 0, data)
    left, expected = (done_in(path)[-1]["contains"] for path in (pieces.path, run(whole, benchmark=data).path))
    assert stops > 2 and left == expected != []


def test_values_by_age_and_place() -> None:
    register, old, young = Values(), torch.arange(4.0), torch.arange(4.0) + 1
    register.note(0, {"model": {"a": old}})
    register.note(1, {"model": {"a": young}, "teacher": old, "counts": torch.arange(4), "even": torch.ones(4)})
    before = {"model": {"a": young}, "teacher": old, "counts": torch.arange(4), "even": torch.ones(4)}
    held = register.held(1, 2, before)
    assert set(held) == {"model.a"} and set(register.held(0, 2, before)) == {"model.a", "teacher"}
    assert register.held(2, 2, before) == {} == Values().held(0, 2, before)
    copied = {"model.a": held["model.a"], "anchors.a": held["model.a"]}
    assert removed(copied, {"model": {"a": young}}) == [], "what a strategy lets go of and the weights still are"
    gone = removed(copied, {"model": {"a": old}, "anchors": {"a": young}})
    assert gone == removed(held, {"model": {"a": old}})
    assert len(gone) == 1 and removed(held, before) == []
    assert still_there(gone, {"x": [young.view(torch.int32), young * 2]}, "memory") == ["memory.x[0]"]
    assert still_there(gone, {"x": old}, "memory") == still_there([], {"x": young}, "memory") == []
    assert Values(register.born).held(1, 2, before) == held, "a register outlives a stop"


def test_values_that_are_nowhere_beside_the_oracle() -> None:
    theirs = {"a": torch.arange(4.0), "b": torch.arange(6.0)}
    moved = {"a": torch.arange(4.0) * (1 + 1e-7), "c": torch.arange(6.0)}  # equal to rounding; at another place
    assert unlike(moved, theirs) == [] == unlike({}, theirs)
    changed = {"a": torch.arange(4.0) * 0.9999, "b": torch.arange(6.0).view(2, 3), "d": torch.full((4,), float("nan"))}
    assert unlike(changed, theirs) == ["a", "b", "d"]
    hidden = {"a": torch.complex(theirs["a"], theirs["a"]), "b": torch.arange(6.0).int(), "e": torch.arange(6, dtype=torch.uint8) ^ 85}
    assert unlike(hidden, theirs) == ["a", "b", "e"] and unlike(hidden, hidden) == []
    endless = {"a": torch.tensor([0, -torch.inf, torch.nan])}
    assert unlike(endless, endless) == []
    state = {"model": {"x": torch.arange(3.0)}, "optimizer_memory": {}, "strategies": {"er": [torch.arange(3), torch.ones(3), theirs["b"]]}}
    assert list(made_of_data(state)) == ["strategies.er[0]", "strategies.er[2]"]
