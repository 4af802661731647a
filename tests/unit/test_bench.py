"""The benchmark does the same work on both sides, and notices if it does not."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from cl_framework import bench, bench_sides, bench_strategies, bench_text
from cl_framework.errors import FrameworkError

OPTIONS = Namespace(batch=4, steps=70, capacity=50)


def test_ours_and_the_bare_loop_have_one_loss_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, bare = bench_sides.ours(OPTIONS), bench_sides.bare(OPTIONS)
    assert len(ours["losses"]) == 3
    assert ours["losses"] == pytest.approx(bare["losses"], abs=bench.LOSS_TOLERANCE)
    assert (ours["steps"], ours["samples"]) == (bare["steps"], bare["samples"]) == (70, 560)
    monkeypatch.setattr(bench_sides, "SEED", 1)
    other = bench_sides.bare(OPTIONS)
    assert max(abs(a - b) for a, b in zip(ours["losses"], other["losses"], strict=True)) > bench.LOSS_TOLERANCE


@pytest.mark.slow
def test_avalanches_side_takes_the_same_steps() -> None:
    theirs = bench_sides.avalanche(OPTIONS)
    assert theirs["steps"] == 70 and 560 * (1 - bench.FEWER) <= theirs["samples"] <= 560, "new and replayed"


def fake_child(losses: dict[str, list[float]], samples: dict[str, int]) -> Any:
    def child(side: str, batch: int, steps: int, capacity: int) -> dict[str, Any]:
        seconds = {"ours": 1.0, "bare": 2.0, "avalanche": 4.0}[side]
        return {"seconds": seconds, "steps": steps, "samples": samples.get(side, 100), "losses": losses.get(side, [1.0])}

    return child


def test_ratios_and_the_check_of_equal_work(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["--batch", "10", "--repeats", "2", "--json", str(tmp_path / "bench.json")]
    monkeypatch.setattr(bench, "child", fake_child({}, {}))
    assert bench.main(words) == 0
    shown, told = capsys.readouterr()
    assert told.splitlines() == [f"measuring {side}, batches of 10, {one} of 2" for one in (1, 2) for side in bench.SIDES]
    assert "0.50 (target 1.15)" in shown
    assert "0.25 (target 0.75)" in shown
    (row,) = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert row["loss_difference"] == 0.0
    for losses, samples in (({"bare": [1.1]}, {}), ({}, {"avalanche": 96}), ({}, {"bare": 99})):
        monkeypatch.setattr(bench, "child", fake_child(losses, samples))
        assert bench.main(words) == 1
        assert "the sides did not do the same work" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["0", "-1", "x"])
def test_counts_are_checked(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--batch", "--steps", "--repeats", "--capacity"):
        with pytest.raises(SystemExit):
            bench.main([option, word])
        assert f"must be a whole number >= 1, got '{word}'" in capsys.readouterr().err or word == "-1"


def test_an_event_is_one_pass_over_mnists_size_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def child(side: str, batch: int, steps: int, capacity: int) -> dict[str, Any]:
        asked.append((side, batch, steps, capacity))
        return {"seconds": 1.0, "steps": steps, "samples": batch * steps, "losses": [1.0]}

    monkeypatch.setattr(bench, "child", child)
    bench.main(["--without-avalanche", "--repeats", "1"])
    assert asked == [(side, batch, 60_000 // batch, 500) for batch in (10, 32, 128) for side in ("ours", "bare")]
    asked.clear()
    bench.main(["--quick", "--batch", "10"])
    assert asked == [(side, 10, 300, 500) for side in ("ours", "bare", "avalanche")]
    asked.clear()
    record = tmp_path / "memory.json"
    bench.main(["--memory", "--steps", "50", "--repeats", "1", "--json", str(record)])
    assert [capacity for _, _, _, capacity in asked] == [10**3, 10**4, 10**5, 10**6]
    assert [result["ratio"] for result in json.loads(record.read_text())["results"]] == [1.0] * 4


def test_batches_are_those_asked_for_even_where_they_are_anothers_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    sides: list[str] = []

    def child(side: str, batch: int, steps: int, capacity: int) -> dict[str, Any]:
        asked.append(batch)
        sides.append(side)
        return {
            "seconds": 1.0,
            "steps": steps,
            "samples": batch * steps,
            "losses": [1.0],
            "trained": 1.0,
            "moments": 1.0,
            "peak_rss_mib": 1.0,
        }

    def table(names: Any, model: str, batches: list[int], *rest: Any) -> None:
        asked.extend(batches)

    monkeypatch.setattr(bench, "child", child)
    bench.main(["--text", "--batch", "7", "--repeats", "2"])
    assert sides == ["bare_text", "text", "half_text", "half_text", "text", "bare_text"], "forth and back"
    monkeypatch.setattr(bench_strategies, "table", table)
    for words, default in (
        (["--text"], bench_text.DEFAULT_BATCHES),
        (["--strategies", "er"], bench.DEFAULT_BATCHES[1:]),
        (["--quick"], bench.DEFAULT_BATCHES),
    ):
        for given, expected in (
            ([], default),
            (["--batch", *map(str, bench.DEFAULT_BATCHES)], bench.DEFAULT_BATCHES),
            (["--batch", "7"], [7]),
        ):
            asked.clear()
            bench.main([*words, "--repeats", "1", *given])
            assert list(dict.fromkeys(asked)) == expected, (words, given)


def test_cost_with_a_large_memory_is_measured_on_a_full_one() -> None:
    result = bench_sides.full_memory(Namespace(batch=4, steps=40, capacity=3000))
    assert (result["steps"], result["samples"]) == (40, 320), "new and replayed"


def test_evaluation_is_measured_over_all_tasks() -> None:
    result = bench_sides.evaluation(Namespace(batch=3))
    assert (result["tasks"], result["samples"]) == (3, 6000)
    assert result["seconds"] > 0


@pytest.mark.parametrize(("said", "reason"), [("Traceback\nMemoryError: no room\n", "MemoryError: no room"), ("", "exit code -9")])
def test_a_side_that_fails_is_named(said: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.subprocess, "run", lambda *words, **options: Namespace(returncode=-9, stdout="", stderr=said))
    with pytest.raises(FrameworkError, match=f"^the side 'ours' of the benchmark failed: {reason}$"):
        bench.main(["--quick"])


def test_the_interval_of_rounds_follows_the_rounds_and_not_the_hours() -> None:
    """A machine that grows three times as fast meanwhile changes both sides of a round alike."""
    hours = (1.0, 2.0, 3.0)
    steady = bench_text.by_rounds([0.5 * hour for hour in hours], list(hours))
    assert bench_text.rounds_in_words(steady) == "0.50 (0.50 to 0.50)"
    noisy = bench_text.by_rounds([0.5, 0.5, 0.5], list(hours))
    assert noisy["interval"][0] < 0.2 < 0.5 < noisy["interval"][1]
    there, back = bench_text.by_rounds([1.0, 2.0], [2.0, 1.0]), bench_text.by_rounds([2.0, 1.0], [1.0, 2.0])
    assert there["mean"] == back["mean"] == pytest.approx(1.0), "as much either way"
    assert bench_text.rounds_in_words(bench_text.by_rounds([3.0], [2.0])) == "1.50"


@pytest.mark.slow
def test_text_is_measured_beside_a_loop_that_does_the_same(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    sides = {"bare_text": bench_text.bare, "text": bench_text.ours, "half_text": bench_text.half}
    asked = []

    def child(side: str, batch: int, steps: int, capacity: int) -> dict[str, Any]:
        asked.append(side)
        return sides[side](Namespace(batch=batch, steps=steps))

    monkeypatch.setattr(bench, "child", child)
    words = ["--text", "--batch", "2", "--steps", "3", "--repeats", "1"]
    assert bench.main(words) == 0 and asked == list(sides)
    shown, told = capsys.readouterr()
    assert told.splitlines() == [f"measuring {side}, batches of 2, 1 of 1" for side in sides]
    assert "(target 0.95)" in shown and "peak memory" in shown
    assert "(" not in shown.replace("(target 0.95)", ""), "one process a side has no interval"
    assert "0.70" in shown  # the share that half fine-tuning trains, embedding and head included
    sides["bare_text"] = lambda options: {**bench_text.bare(options), "losses": [9.0]}
    assert bench.main(words) == 1 and "the sides did not do the same work" in capsys.readouterr().err
