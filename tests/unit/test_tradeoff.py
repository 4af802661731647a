"""The trade-off picture: the table's means, a panel a granularity, oracles where they stand, stacks that can be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cl_framework.records import Row
from cl_framework.unlearning.audit_pictures import Standing, standings, tradeoff_picture
from cl_framework.unlearning.audit_report import ORACLE
from cl_framework.unlearning.fast import FAIL, INVALID, PASS

Given = tuple[float | None, str, dict[str, float]]  # value, verdict, details


def request(who: str, granularity: str, seed: int = 0, **figures: Given) -> list[Row]:
    shared = {"experiment": "e", "fingerprint": who, "stream": "L0 U0", "strategies": [who], "seed": seed, "event_index": 1}
    shared |= {"granularity": granularity, "model": "unlearned", "bound": None, "worst": 0.0}
    return [
        {**shared, "name": name, "value": value, "verdict": verdict, "details": told} for name, (value, verdict, told) in figures.items()
    ]


def both(gap: float, spill: float, oracle: float, verdict: str = PASS) -> dict[str, Given]:
    return {"M1": (gap, verdict, {}), "M2": (spill, PASS, {"oracle": oracle})}


def stars(rows: Sequence[Row]) -> list[list[tuple[float, float]]]:
    """Of each panel where its stars are."""
    panels = tradeoff_picture(rows).axes
    return [[(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_marker() == "*"] for axes in panels]


def test_a_panel_a_granularity_and_void_values_in_none() -> None:
    rows = [
        *request("a", "task", **both(-4, 1, 3)),
        *request("a", "task", 1, **both(99, 2, 5, INVALID)),
        *request("a", "class", **both(8, 6, 0)),
    ]
    assert standings(rows) == {"task": [Standing("a", [4], [1, 2], [3, 5])], "class": [Standing("a", [8], [6], [0])]}
    assert stars(rows) == [[(0, 4)], [(0, 0)]]
    panels = tradeoff_picture(rows).axes
    assert [axes.get_title() for axes in panels] == ["task", "class"]
    assert [axes.lines[0].get_xydata().tolist() for axes in panels] == [[[4, 1.5]], [[8, 6]]]


def test_a_stack_with_nothing_but_void_values_is_named() -> None:
    rows = [*request("a", "task", **both(5, 5, 0, INVALID)), *request("b", "task", **both(1, 1, 0))]
    (axes,) = tradeoff_picture(rows).axes
    assert axes.get_title() == "task\nvoid: a" and [line.get_label() for line in axes.lines if line.get_label() in ("a", "b")] == []
    assert [container.get_label() for container in axes.containers] == ["b"]


def test_an_oracle_in_the_place_of_another_model_is_no_stack() -> None:
    rows = request("a", "task", **both(1, 1, 0))
    controls: list[Row] = [{**row, "model": ORACLE, "value": 50.0} for row in rows]
    assert standings([*rows, *controls]) == standings(rows) != standings([*rows, *request("b", "task", **both(1, 1, 0))])


def test_rows_from_before_the_oracle_was_measured_have_a_star_where_a_model_is_the_oracle() -> None:
    spill: Given = (3.0, FAIL, {})
    same = request("exact", "task", M1=(0, PASS, {}), M2=spill, M6=(0.0, PASS, {}))
    other = request("rough", "task", M1=(0, PASS, {}), M2=spill, M6=(0.1, FAIL, {}))
    assert stars(same) == [[(0, 3)]] and stars(other) == [[]]
    half = [*same, *request("exact", "task", 1, M1=(0, PASS, {}), M2=spill, M6=(0.1, FAIL, {}))]
    assert stars(half) == [[]]  # a mean over some of the requests would stand elsewhere than the model


def test_thirty_stacks_look_different() -> None:
    rows = [row for number in range(30) for row in request(f"s{number}", "task", **both(number, number, 0))]
    (legend,) = tradeoff_picture(rows).legends
    looks: list[Any] = [(line.get_color(), line.get_marker()) for line in legend.get_lines()]
    assert len(set(looks)) == len(looks) == 31
    assert [text.get_text() for text in legend.get_texts()][-1] == "the oracle in its place"
