"""Differences paired over seeds: known answers, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cl_framework import ConfigurationError
from cl_framework.cli import main
from cl_framework.paired import differences


def runs(name: str, values: dict[int, float]) -> list[dict[str, Any]]:
    return [{"experiment": name, "seed": seed, "average_accuracy": value} for seed, value in values.items()]


def test_a_difference_is_taken_seed_by_seed() -> None:
    found = runs("one", {0: 51.0, 1: 92.0, 2: 13.0, 3: 7.0}) + runs("other", {0: 50.0, 1: 90.0, 2: 10.0})
    assert differences(found, [("one", "other")]) == [["one", "other", "+2.00", "-0.48 to +4.48", "0, 1, 2"]]  # 2 ± 4.303 / sqrt(3)
    ((_, _, mean, interval, _),) = differences(found, [("other", "one")])
    assert (mean, interval) == ("-2.00", "-4.48 to +0.48")
    ((*_, shown, seeds),) = differences(runs("one", {4: 1.0}) + runs("other", {4: 2.0}), [("one", "other")])
    assert (shown, seeds) == ("–", "4")


@pytest.mark.parametrize(
    ("pair", "text"),
    [
        (("onne", "other"), r"--difference: there is no run of 'onne'. Did you mean 'one'\?"),
        (("one", "far"), r"--difference one far: they share no seed. Run both with the same seeds."),
        (("twice", "one"), r"--difference: 'twice' was run under several settings"),
    ],
)
def test_what_cannot_be_compared_is_refused(pair: tuple[str, str], text: str) -> None:
    found = runs("one", {0: 1.0}) + runs("other", {0: 2.0}) + runs("far", {9: 2.0}) + runs("twice", {0: 1.0}) + runs("twice", {0: 3.0})
    with pytest.raises(ConfigurationError, match=text):
        differences(found, [pair])


def test_the_command_prints_and_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = Path(__file__).parents[2] / "experiments" / "results" / "digits.csv"
    words = ["report", str(records), "--difference", "digits_er", "digits_finetune", "--out", str(tmp_path / "table.md")]
    assert main(words) == 0
    assert "minus" in capsys.readouterr().out
    assert (tmp_path / "table.md").read_text().splitlines()[0] == "| experiment | minus | average accuracy | 95 % interval | seeds |"
    assert len((tmp_path / "table.md").read_text().splitlines()) == 3
