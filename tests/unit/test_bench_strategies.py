"""`clu bench --strategies`: passes are counted as a method makes them, and the table says what it found. No timing is a target here."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from cl_framework import bench, bench_strategies, registry
from cl_framework.bench_strategies import half_saving, strategy
from cl_framework.errors import ConfigurationError, FrameworkError

PASSES = {  # forward passes, rows and backward passes of a step at batches of 8
    "fine-tuning": (1, 8, 1),
    "er": (1, 16, 1),
    "derpp": (3, 24, 1),
    "refresh": (2, 16, 2),
    "agem": (2, 16, 2),
    "si": (1, 8, 1),
}


def measured(name: str, model: str = "mlp", batch: int = 8, steps: int = 4) -> dict[str, Any]:
    row = strategy(Namespace(name=name, model=model, amount=float(batch), steps=steps))
    return row | bench_strategies._medians(row["pairs"])


@pytest.mark.parametrize("name", PASSES)
def test_passes_are_those_of_the_method(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_strategies, "WARM_UP_STEPS", 3)
    row = measured(name)
    assert (row["forward"], row["rows"], row["backward"]) == PASSES[name]
    assert row["steps"] == 4
    assert row["us"] > 0 and row["passes_us"] > 0


@pytest.mark.parametrize("name", PASSES)
def test_the_bare_loop_makes_the_same_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the yardstick: one that did less would make every strategy look dear, one that did more cheap."""
    forward, rows, backward = PASSES[name]
    learner = bench_strategies._learner(name, {}, 8, 12)
    bench_strategies._event(learner, 0)
    pairs = bench_strategies._Pairs(learner)
    seen: list[int] = []
    gradients = [0]
    pairs.bare.model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    real = pairs.bare.seconds

    def counted(cost: Any, steps: int) -> float:
        grad = torch.autograd.grad

        def counting(*given: Any, **options: Any) -> Any:
            gradients[0] += 1
            return grad(*given, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.autograd, "grad", counting)
            return real(cost, steps)

    monkeypatch.setattr(pairs.bare, "seconds", counted)
    bench_strategies._event(learner, 1, pairs)
    assert (len(seen), sum(seen), gradients[0]) == (12 * forward, 12 * rows, 12 * backward)


@pytest.mark.slow
def test_another_model_takes_the_same_passes_and_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_strategies, "WARM_UP_STEPS", 1)
    row = measured("si", "slim_resnet18", steps=1)
    assert (row["model"], row["forward"], row["rows"], row["backward"]) == ("slim_resnet18", *PASSES["si"])
    assert row["passes_us"] > measured("si", steps=1)["passes_us"]  # thirty times; no timing of ours


def test_phases_around_an_event_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_strategies, "WARM_UP_STEPS", 2)
    assert measured("ewc")["forward"] == 1  # its Fisher pass is not among the steps' passes
    assert measured("ewc")["phases_ms"] > measured("fine-tuning")["phases_ms"]


def test_what_has_no_steps_or_no_passes_says_so() -> None:
    row: dict[str, Any] = {"model": "mlp", "batch": 32, "strategy": "x", "steps": 4}
    row |= {"us": 30.0, "ratio": None, "forward": 0, "rows": 0, "backward": 0, "phases_ms": 1.0}
    assert "no passes" in bench_strategies._shown(row, 10.0)
    assert "no steps" in bench_strategies._shown({**row, "steps": 0}, 10.0)
    assert "2.00 (target 1.15)" in bench_strategies._shown({**row, "ratio": 2.0}, 10.0)
    assert "2.00" in bench_strategies._shown({**row, "ratio": 2.0, "batch": 10}, 10.0)


def test_the_ratio_is_that_of_pairs() -> None:
    """One slow pair, in both halves, and one disturbed half move nothing."""
    found = bench_strategies._medians([(2e-6, 1e-6), (2e-6, 1e-6), (80e-6, 40e-6), (9e-6, 1e-6), (2e-6, 1e-6)])
    assert found == {"us": 2.0, "passes_us": 1.0, "ratio": 2.0}
    assert bench_strategies._medians([(2e-6, 0.0)])["ratio"] is bench_strategies._medians([])["ratio"] is None


def test_views_are_augmented_in_the_bare_loop_as_well() -> None:
    learner = bench_strategies._learner("view_batch", {}, 8, 8)
    bare = bench_strategies._BareLoop(learner)
    weak, strong = (bare._read(8, strong)[0][0] for strong in (False, True))
    assert weak.shape == strong.shape == (8, 1, 28, 28)
    assert torch.equal((255 * weak).round() / 255, weak)  # whole steps of brightness, as stored
    assert not torch.equal((255 * strong).round() / 255, strong)


def test_half_the_matrices_have_half_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_strategies, "WARM_UP_STEPS", 1)
    whole, half = (half_saving(Namespace(amount=share, steps=1)) for share in (1.0, 0.5))
    assert whole["state_mib"] == pytest.approx(2 * whole["gradient_mib"], rel=1e-3)  # Adam's two moments
    assert half["state_mib"] == pytest.approx(2 * half["gradient_mib"], rel=1e-3)
    assert half["gradient_mib"] < 0.7 * whole["gradient_mib"]


@pytest.mark.slow
def test_every_strategy_can_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_strategies, "WARM_UP_STEPS", 1)
    names = [entry.name for entry in registry.strategies.entries() if entry.origin.startswith("cl-framework")]
    found = {name: measured(name, batch=32, steps=1) for name in names}
    assert all(row["us"] > 0 and row["passes_us"] > 0 and row["forward"] >= 1 for row in found.values())
    assert {name for name, row in found.items() if not row["backward"]} == {"analytic", "gdumb"}  # they train in a phase after the event


@pytest.mark.slow
def test_a_measurement_has_a_process_of_its_own() -> None:
    row = bench_strategies._child("strategy", 8, 4, "er")
    assert (row["strategy"], row["model"], row["steps"], row["rows"]) == ("er", "mlp", 4, 16)
    with pytest.raises(FrameworkError, match=r"the measurement of 'no_such_one' failed: .*no_such_one"):
        bench_strategies._child("strategy", 8, 4, "no_such_one")


def test_the_table_and_its_record(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def here(what: str, amount: float, steps: int, name: str = "", model: str = "mlp") -> dict[str, Any]:
        options = Namespace(name=name, model=model, amount=amount, steps=steps)
        return {"strategy": strategy, "half_saving": half_saving}[what](options)

    monkeypatch.setattr(bench_strategies, "_child", here)  # in this process, which has imported everything
    file = tmp_path / "bench.json"
    assert bench.main(["--strategies", "er", "--batch", "32", "--steps", "4", "--repeats", "1", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "er" in printed and "target 1.15" in printed and "half fine-tuning with Adam" in printed
    record = json.loads(file.read_text())
    assert [row["strategy"] for row in record["results"]] == ["fine-tuning", "er"]
    assert len(record["half"]) == 2


def test_an_unknown_strategy_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigurationError, match="there is no strategy named 'err'"):
        bench.main(["--strategies", "err"])
    with pytest.raises(ConfigurationError, match="there is no model named 'mpl'"):
        bench.main(["--strategies", "er", "--model", "mpl"])
    with pytest.raises(ConfigurationError, match=r"--model says what --strategies trains: add --strategies, or leave --model out\."):
        bench.main(["--model", "mlp"])
