"""What README says is held against the committed records: differences over seeds, rows of audits, and the words for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cl_framework.collected import FIGURES, collect
from cl_framework.paired import differences
from cl_framework.records import Row
from cl_framework.unlearning.audit_report import UNLEARNED, read_csv

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
RESULTS = ROOT / "experiments" / "results"
IN_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def prose() -> str:
    """README in one line."""
    return " ".join(README.read_text().split())


def assert_numbers(said: str, numbers: Sequence[float | str]) -> None:
    """README says this with these numbers, and not where one of them, whichever, is another."""
    text = prose()
    assert said.format(*numbers) in text, said.format(*numbers)
    for place, number in enumerate(numbers):
        other = f"not {number}" if isinstance(number, str) else 1.1 * number + 1
        assert said.format(*numbers[:place], other, *numbers[place + 1 :]) not in text, (said, place)


SEEDS = {"seq_mnist": "0, 1, 2, 3, 4", "perm_mnist": "0, 1, 2, 3, 4"}  # of the records that have more than three


def said_of(name: str, one: str, other: str, figure: str) -> tuple[float, str]:
    """The mean difference of two experiments in a figure, and in words: mean, then Student's interval over their seeds."""
    committed = collect([ROOT / "experiments" / "results" / f"{name}.csv"])
    ((*_, apart, interval, seeds),) = differences(committed.summaries, [(one, other)], [figure], FIGURES)[1]
    assert seeds == SEEDS.get(name, "0, 1, 2")
    places = 2 if figure in ("loss_rise", "stability_gap") else None  # of nats; else as a table of differences has it
    shown = [number if places is None else f"{float(number):+.{places}f}" for number in (apart, *interval.split(" to "))]
    return float(apart), f"{shown[0]}, {shown[1]} to {shown[2]}"


@dataclass(frozen=True)
class Apart:
    """A difference in words: "+0.61" and "-0.56 to +1.77", `size` and `ends` without a plus."""

    mean: str
    interval: str

    def __str__(self) -> str:
        return f"{self.mean}, {self.interval}"

    @property
    def size(self) -> str:
        return self.mean.removeprefix("+")

    @property
    def ends(self) -> str:
        return self.interval.replace("+", "")


Pair = tuple[str, str, str]  # one, minus other, in this figure


def assert_said(name: str, said: str, pairs: list[Pair]) -> None:
    """README says this of the differences of these pairs, and not of those the other way round."""
    text = " ".join(README.read_text().split())
    apart, reversed_ = (
        [Apart(*said_of(name, *pair, figure)[1].split(", ")) for *pair, figure in some]
        for some in (pairs, [(other, one, figure) for one, other, figure in pairs])
    )
    assert said.format(*apart) in text
    assert said.format(*reversed_) not in text  # the control: the other way round


def figures_in(name: str, strategies: str, figure: str) -> list[Row]:
    """The rows of committed audits about the models that a stack has unlearned, of one figure."""
    rows = read_csv(ROOT / "experiments" / "results" / f"{name}.csv")
    return [row for row in rows if (row["model"], row["name"], " ".join(row["strategies"])) == (UNLEARNED, figure, strategies)]


@cache
def rows_of(name: str) -> list[Row]:
    return read_csv(RESULTS / f"{name}.csv")


def audited(name: str, figure: str, strategy: str = "", model: str = UNLEARNED, **where: object) -> list[Row]:
    """Rows of one figure: of a strategy, or of all; `where`: columns."""
    some = [row for row in rows_of(name) if (row["name"], row["model"]) == (figure, model) and strategy in ("", row["strategy"])]
    return [row for row in some if all(row[column] == value for column, value in where.items())]


def values(rows: Sequence[Row]) -> list[float]:
    return [row["value"] for row in rows if row["value"] is not None]


def details(rows: Sequence[Row], name: str) -> list[float]:
    return [row["details"][name] for row in rows]


def count(rows: Sequence[Row], verdict: str) -> int:
    return sum(row["verdict"] == verdict for row in rows)
