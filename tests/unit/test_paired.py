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


TITLES = {"average_accuracy": "average accuracy", "average_loss": "loss"}


def rows(found: list[dict[str, Any]], *pair: str) -> list[list[str]]:
    return differences(found, [(pair[0], pair[1])], ["average_accuracy"], TITLES)[1]


def test_a_difference_is_taken_seed_by_seed() -> None:
    found = runs("one", {0: 51.0, 1: 92.0, 2: 13.0, 3: 7.0}) + runs("other", {0: 50.0, 1: 90.0, 2: 10.0})
    assert rows(found, "one", "other") == [["one", "other", "+2.00", "-0.48 to +4.48", "0, 1, 2"]]  # 2 ± 4.303 / sqrt(3)
    ((_, _, mean, interval, _),) = rows(found, "other", "one")
    assert (mean, interval) == ("-2.00", "-4.48 to +0.48")
    ((*_, shown, seeds),) = rows(runs("one", {4: 1.0}) + runs("other", {4: 2.0}), "one", "other")
    assert (shown, seeds) == ("–", "4")


@pytest.mark.parametrize(
    ("pair", "text"),
    [
        (("onne", "other"), r"--difference: there is no run of 'onne'. Did you mean 'one'\?"),
        (("one", "far"), r"--difference one far: they share no seed. Run both with the same seeds."),
        (("twice", "one"), r"--difference: 'twice' was run under several settings. Name the run directories of one of them.$"),
    ],
)
def test_what_cannot_be_compared_is_refused(pair: tuple[str, str], text: str) -> None:
    found = runs("one", {0: 1.0}) + runs("other", {0: 2.0}) + runs("far", {9: 2.0}) + runs("twice", {0: 1.0}) + runs("twice", {0: 3.0})
    with pytest.raises(ConfigurationError, match=text):
        rows(found, *pair)


def test_the_command_prints_and_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = Path(__file__).parents[2] / "experiments" / "results" / "digits.csv"
    words = ["report", str(records), "--difference", "digits_er", "digits_finetune", "--out", str(tmp_path / "table.md")]
    assert main(words) == 0
    assert "minus" in capsys.readouterr().out
    assert (tmp_path / "table.md").read_text().splitlines()[0] == "| experiment | minus | average accuracy | 95 % interval | seeds |"
    assert len((tmp_path / "table.md").read_text().splitlines()) == 3


def with_losses(name: str, settings: str, losses: dict[int, float]) -> list[dict[str, Any]]:
    return [{**run, "settings": settings, "average_loss": losses[run["seed"]]} for run in runs(name, dict.fromkeys(losses, 50.0))]


def test_losses_are_compared_too_and_one_of_several_settings_can_be_named() -> None:
    found = with_losses("one", "", {0: 4.0, 1: 5.0})
    found += with_losses("two", "a=1", {0: 4.0, 1: 5.0}) + with_losses("two", "a=2", {0: 4.125, 1: 5.25})
    pairs, figures = [("two a=2", "one"), ("two a=1", "one")], ["average_loss", "average_accuracy"]
    header, table = differences(found, pairs, figures, TITLES)
    assert header == ["experiment", "minus", "loss", "95 % interval", "average accuracy", "95 % interval", "seeds"]
    assert table[0] == ["two a=2", "one", "+0.188", "-0.607 to +0.982", "+0.00", "+0.00 to +0.00", "0, 1"]  # 0.1875 ± 12.706 * 0.0625
    assert table[1][2] == "+0.000"
    with pytest.raises(ConfigurationError, match=r"'two' was run under several settings. Name one of them, such as 'two a=1'.$"):
        differences(found, [("two", "one")], figures, TITLES)


def test_a_figure_that_runs_do_not_have_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    records = str(Path(__file__).parents[2] / "experiments" / "results" / "digits.csv")
    words = ["report", records, "--difference", "digits_er", "digits_finetune"]
    assert main([*words, "--figure", "forgetting", "--figure", "bwt"]) == 0
    assert "forgetting" in capsys.readouterr().out
    for figure, said in (
        ("average_loss", "clu: --figure: seed 0 of 'digits_er' has no average_loss. Name a figure that its report shows.\n"),
        ("forgeting", "clu: --figure: there is no figure 'forgeting'. Did you mean 'forgetting'?\n"),
    ):
        assert main([*words, "--figure", figure]) == 2
        assert capsys.readouterr().err == said
    assert main(["report", records, "--figure", "forgetting"]) == 2
    assert capsys.readouterr().err == "clu: --figure says what --difference compares. Add --difference EXPERIMENT OTHER.\n"
