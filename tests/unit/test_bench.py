"""The benchmark does the same work on both sides, and notices if it does not."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from cl_framework import bench

OPTIONS = Namespace(batch=[4], steps=70, capacity=50)


def test_ours_and_the_bare_loop_have_one_loss_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, bare = bench.ours(OPTIONS), bench.bare(OPTIONS)
    assert len(ours["losses"]) == 3
    assert ours["losses"] == pytest.approx(bare["losses"], abs=bench.LOSS_TOLERANCE)
    assert ours["samples"] == bare["samples"] == 280
    monkeypatch.setattr(bench, "SEED", 1)
    other = bench.bare(OPTIONS)
    assert max(abs(a - b) for a, b in zip(ours["losses"], other["losses"], strict=True)) > bench.LOSS_TOLERANCE


@pytest.mark.slow
def test_avalanches_side_takes_the_same_steps() -> None:
    theirs = bench.avalanche(OPTIONS)
    assert (theirs["steps"], theirs["samples"]) == (70, 280)


def fake_child(losses: dict[str, list[float]], samples: dict[str, int]) -> Any:
    def child(side: str, batch: int, steps: int, capacity: int) -> dict[str, Any]:
        seconds = {"ours": 1.0, "bare": 2.0, "avalanche": 4.0}[side]
        return {"seconds": seconds, "steps": steps, "samples": samples.get(side, 100), "losses": losses.get(side, [1.0])}

    return child


def test_ratios_and_the_check_of_equal_work(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["--batch", "10", "--repeats", "2", "--json", str(tmp_path / "bench.json")]
    monkeypatch.setattr(bench, "_child", fake_child({}, {}))
    assert bench.main(words) == 0
    shown = capsys.readouterr().out
    assert "0.50 (target 1.15)" in shown
    assert "0.25 (target 0.75)" in shown
    (row,) = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert row["loss_difference"] == 0.0
    for losses, samples in (({"bare": [1.1]}, {}), ({}, {"avalanche": 90})):
        monkeypatch.setattr(bench, "_child", fake_child(losses, samples))
        assert bench.main(words) == 1
        assert "the sides did not do the same work" in capsys.readouterr().err
