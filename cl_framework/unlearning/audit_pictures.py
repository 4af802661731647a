"""Pictures of audits: the relearning of each request beside its controls, and what is lost against what is gone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any

from cl_framework.metrics import mean_and_deviation
from cl_framework.records import Row
from cl_framework.unlearning.audit_report import CURVES, GRANULARITIES, SAME, UNLEARNED, by_request, curves_of, told_by

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture
    from matplotlib.lines import Line2D

_MARKERS = "osD^v<>pP"  # none of them the oracle's star


def relearning_picture(audit: Mapping[str, Any]) -> Picture:
    """Of each request, above: relearning of the unlearned model, the oracle, the model before, a task never seen; below: accuracy in the
    events after the request, beside the oracle's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture

    requests, events = audit["requests"], audit["stream"].split()
    figure = Picture(figsize=(3.2 * len(requests), 5), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(2, len(requests), squeeze=False, sharey=True)
    for above, below, request in zip(*rows, requests, strict=True):
        steps, relearning, later = curves_of(request)
        for who, style in CURVES.items():
            if relearning[who]:
                above.plot(steps, relearning[who], style, label=who.replace("_", " "))
        above.set_title(request["event"], fontsize=9)
        above.set_xlabel("steps of relearning")
        for who, values in later.items():
            below.plot(range(len(values)), values, CURVES[who], marker="o", markersize=3, label=who)
        first, shown = request["event_index"], len(later[UNLEARNED])
        below.set_xticks(range(shown), events[first : first + shown], fontsize=7)
        below.set_xlabel("after event")
    for row in rows:
        row[0].set_ylabel("accuracy, percent")
        row[0].legend(fontsize=7)
    return figure


@dataclass(frozen=True)
class Standing:
    """Where a stack stands at one granularity: a value a request, void ones left out as in the table."""

    who: str
    gaps: list[float]  # points from the oracle on what was unlearned, from chance where none was asked; >= 0
    spills: list[float]  # points lost on what is retained; >= 0
    oracle: list[float]  # points lost where the oracle takes the model's place; empty if a request does not tell


def standings(rows: Sequence[Row]) -> dict[str, list[Standing]]:
    """Of each granularity that was asked for, the stacks in the order of their names."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["model"] == UNLEARNED:
            groups.setdefault((row["granularity"], ", ".join(row["strategies"])), []).append(row)
    found: dict[str, list[Standing]] = {one: [] for one in GRANULARITIES if any(key[0] == one for key in groups)}
    for granularity, who in sorted(groups):
        mine = groups[granularity, who]
        lost = [value for figures in by_request(mine) if (value := _lost_by_oracle(figures)) is not None]
        spills = told_by(mine, "M2")
        gaps = [abs(value) for value in told_by(mine, "M1")]
        found[granularity].append(Standing(who, gaps, spills, lost if len(lost) == len(spills) else []))
    return found


def _lost_by_oracle(figures: Mapping[str, Row]) -> float | None:
    """What the oracle loses on what is retained, against the model before a request; None where rows from before it was measured have no
    model that is the oracle, to tell it in its place."""
    spill, divergence = figures.get("M2"), figures.get("M6")
    if spill is None or "oracle" in spill["details"]:
        return None if spill is None else spill["details"]["oracle"]
    same = divergence is not None and all(divergence[key] is not None and abs(divergence[key]) <= SAME for key in ("value", "worst"))
    return spill["value"] if same else None


def tradeoff_picture(rows: Sequence[Row]) -> Picture:
    """What is gone against what is kept: a panel a granularity, a point a stack, means over requests with their deviations.

    A star of a stack's colour is the oracle in the place of its unlearned model: training again without the data loses something too.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture

    panels = standings(rows)
    looks = _looks({one.who for found in panels.values() for one in found})
    figure = Picture(figsize=(3.5 * len(panels) + 2, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (granularity, found) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for one in found:
            _place(axes, one, looks[one.who])
        void = [one.who for one in found if not (one.gaps and one.spills)]
        axes.set_title("\n".join([granularity, *(f"void: {who}" for who in void)]), fontsize=8)
        axes.set_xlabel("distance from the oracle (chance without one)\non what was unlearned, points (M1)", fontsize=8)
    figure.axes[0].set_ylabel("points lost on what is retained (M2)", fontsize=8)
    figure.legend(handles=_legend(looks), fontsize=7, loc="outside right center")
    return figure


def _looks(stacks: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each stack, which it has in all panels."""
    from matplotlib import colormaps

    colours, names = colormaps["tab20"], sorted(stacks)
    return {who: {"color": colours(index % colours.N), "marker": _MARKERS[index % len(_MARKERS)]} for index, who in enumerate(names)}


def _place(axes: Axes, one: Standing, look: Mapping[str, Any]) -> None:
    if one.gaps and one.spills:
        (x, dx, _), (y, dy, _) = mean_and_deviation(one.gaps), mean_and_deviation(one.spills)
        axes.errorbar(x, y, xerr=dx, yerr=dy, linestyle="", capsize=2, label=one.who, **look)
    if one.oracle:
        axes.plot(0, mean(one.oracle), "*", color=look["color"], markersize=16, markerfacecolor="none", label=f"oracle of {one.who}")


def _legend(looks: Mapping[str, Mapping[str, Any]]) -> list[Line2D]:
    from matplotlib.lines import Line2D

    stacks = [Line2D([], [], linestyle="", label=who, **look) for who, look in looks.items()]
    star: dict[str, Any] = {"marker": "*", "markersize": 12, "markerfacecolor": "none", "color": "black", "linestyle": ""}
    return [*stacks, Line2D([], [], label="the oracle in its place", **star)]
