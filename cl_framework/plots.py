"""Plots of runs as PNG, and a page that holds those of one: matplotlib without a screen and without its global state."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from cl_framework.collected import grouped, strategies_in_words
from cl_framework.errors import ConfigurationError
from cl_framework.metrics import mean_and_deviation
from cl_framework.records import RunDirectory, atomic_write
from cl_framework.report import figures_line
from cl_framework.retention import CRITERION, retention_fit
from cl_framework.tables import number, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Groups = Mapping[str, Sequence[Mapping[str, Any]]]  # what a line is called -> the runs behind it, one a seed


def matrix_figure(summary: Mapping[str, Any]) -> Figure:
    """Heat map of the accuracy matrix: a row an event, a column a task."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    matrix, events = summary["accuracy_matrix"], summary["stream"].split()
    values = [[float("nan") if value is None else value for value in row] for row in matrix]
    longest = max(map(len, events))
    figure = Figure(figsize=(1.5 + 0.6 * len(matrix[0]) + 0.08 * longest, 1.5 + 0.45 * len(matrix)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(values, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(matrix[0])), [str(task) for task in range(len(matrix[0]))])
    axes.set_yticks(range(len(events)), events)
    axes.set_xlabel("accuracy on task")
    axes.set_ylabel("after event")
    if len(matrix) * len(matrix[0]) <= 150:
        for row, line in enumerate(matrix):
            for column, value in enumerate(line):
                if value is not None:
                    axes.text(column, row, f"{value:.0f}", ha="center", va="center", color="black" if value > 60 else "white", fontsize=8)
    figure.colorbar(image, label="percent")
    return figure


def curves_figure(summary: Mapping[str, Any]) -> Figure:
    """Accuracy of each task over the events; learning marked by a dot, unlearning by a cross."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    matrix, events = summary["accuracy_matrix"], summary["stream"].split()
    longest = max(map(len, events))
    upright = longest > 6  # as `U0:fraction=0.1@seed7` is: side by side they would overlap
    figure = Figure(figsize=(7, 3.5 + (0.08 * longest if upright else 0)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for task in range(len(matrix[0])):
        values = [float("nan") if row[task] is None else row[task] for row in matrix]
        (line,) = axes.plot(range(len(events)), values, linewidth=1.2, label=f"task {task}")
        for index, event in enumerate(events):
            if event[1:].partition(":")[0].rstrip("!") == str(task):
                axes.plot(index, values[index], "o" if event.startswith("L") else "X", color=line.get_color())
    axes.set_xticks(range(len(events)), events, rotation=90 if upright else 0)
    axes.set_ylim(-2, 102)
    axes.set_xlabel("after event")
    axes.set_ylabel("accuracy, percent")
    if len(matrix[0]) <= 12:
        axes.legend(fontsize=7, ncols=2)
    return figure


# --- many runs: how tasks are kept, and how the next ones are learned ---


def over_seeds(curves: Sequence[Sequence[float | None]]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of curves of one length, place by place; NaN where a seed has no value, deviation 0 of one seed."""
    places = [mean_and_deviation(place) if None not in place else (math.nan, math.nan, 0) for place in zip(*curves, strict=True)]
    return [found for found, _, _ in places], [deviation or 0.0 for _, deviation, _ in places]


def living_figure(groups: Groups) -> Figure:
    """Above: accuracy by lag, both logarithmic, with the fitted powers. Below: steps to the criterion by task. Means with deviations.

    Steps are drawn where all seeds reached the criterion: a mean of those that did would flatter.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.5 + 0.06 * max(map(len, groups), default=0), 7), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2)
    colours = colormaps["tab10" if len(groups) <= 10 else "tab20"]
    for index, (name, runs) in enumerate(groups.items()):
        colour = colours(index % colours.N)
        kept = [run["retention"] for run in runs if len(run.get("retention") or ()) > 1]
        if kept:
            _retention(above, name, kept, colour)
        learned = [run for run in runs if run.get("steps_to_criterion")]
        if learned:
            _speed(below, name, learned, colour)
    _logarithmic(above)
    above.set_xlabel("lag: Learn events since the task was learned")
    above.set_ylabel("accuracy, percent")
    below.set_xlabel("task, in the order learned")
    below.set_ylabel(f"steps to {CRITERION:.0f} percent")
    below.set_ylim(bottom=0)
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes, title in ((above, "slope of the fit (dashed)"), (below, "more steps from task to task")):
        if axes.lines:
            axes.legend(title=title, title_fontsize=8, fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
        else:
            axes.text(0.5, 0.5, "not in these records", ha="center", va="center", transform=axes.transAxes)
    return figure


def _retention(axes: Axes, name: str, kept: Sequence[Sequence[float | None]], colour: Any) -> None:
    fits = [fit for curve in kept if (fit := retention_fit(curve)) is not None]
    told = len(fits) == len(kept)
    label = f"{name}: {spread([slope for _, slope in fits])}" if told else f"{name}: no fit"
    lags = range(1, len(kept[0]))
    _band(axes, lags, [curve[1:] for curve in kept], label, colour)
    if told:  # the mean of the seeds' lines, as logarithms: the one with the mean slope
        first, slope = math.exp(mean(math.log(accuracy) for accuracy, _ in fits)), mean(slope for _, slope in fits)
        axes.plot(lags, [first * lag**slope for lag in lags], "--", color=colour, linewidth=1)


def _speed(axes: Axes, name: str, runs: Sequence[Mapping[str, Any]], colour: Any) -> None:
    curves = [run["steps_to_criterion"] for run in runs]
    slopes = [run["facilitation_in_steps"] for run in runs if run["facilitation_in_steps"] is not None]
    missed = sum(value is None for curve in curves for value in curve)
    said = spread(slopes) if len(slopes) == len(runs) else f"missed {missed} of {sum(map(len, curves))}"
    _band(axes, range(1, len(curves[0]) + 1), curves, f"{name}: {said}", colour)


def _band(axes: Axes, places: Sequence[int], curves: Sequence[Sequence[float | None]], label: str, colour: Any) -> None:
    means, deviations = over_seeds(curves)
    axes.plot(places, means, ".-", color=colour, linewidth=1.2, label=label)
    if len(curves) > 1:
        low, high = ([one + sign * by for one, by in zip(means, deviations, strict=True)] for sign in (-1, 1))
        axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)


def _logarithmic(axes: Axes) -> None:
    """Both axes, with ticks at plain numbers; from the tick below the least accuracy to 100 percent."""
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    least = axes.dataLim.minposy
    percents = [50, 60, 70, 80, 90, 100] if least >= 50 else [1, 2, 5, 10, 20, 30, 50, 70, 100]
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis, ticks in ((axes.xaxis, [1, 2, 3, 5, 10, 20, 50, 100]), (axes.yaxis, percents)):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_locator(NullLocator())
    axes.set_ylim(max([1, *(tick for tick in percents[:-1] if tick <= least)]), 102)


def line_names(groups: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    """What the lines of groups of runs are called: as short as tells them apart."""
    names: list[str] = []
    for keys in (("experiment",), ("experiment", "strategies"), ("experiment", "settings"), ("experiment", "strategies", "fingerprint")):
        firsts = [dict(group[0]) | {"strategies": f"({strategies_in_words(group[0])})"} for group in groups]
        names = [" ".join(str(first.get(key) or "") for key in keys).strip() for first in firsts]
        if len(set(names)) == len(names):
            break
    return names


def write_living_plot(path: Path, summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Draw `living_figure` of the runs; sentences about what was written and which lines are left out. ConfigurationError if all are."""
    told = [group for group in grouped(summaries) if all(run.get("retention") for run in group)]
    if not told:
        raise ConfigurationError(
            "--plot: no run here tells its accuracy by lag; a .csv written before there was a column for it does not, and a run "
            "that learns nothing before its last Learn has none. Name run directories."
        )
    atomic_write(path, png(living_figure(dict(zip(line_names(told), told, strict=True)))))
    others = dict.fromkeys(group[0]["experiment"] for group in grouped(summaries) if group not in told)
    left_out = [f"left out of {path}, without accuracy by lag in a record: {', '.join(others)}."] if others else []
    return [*left_out, f"written: {path}"]


# --- files ---


def check_png(path: Path) -> None:
    """Raise ConfigurationError if a picture's file would be named as something else."""
    if path.suffix != ".png":
        raise ConfigurationError(f"--plot writes PNG files, so its name must end with .png, got {path}.")


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def write_plots(directory: RunDirectory, summary: Mapping[str, Any]) -> list[Path]:
    """The plots of a run, of its audit too where there is one, and report.html, which holds them; returns what was written."""
    from cl_framework.unlearning.audit_pictures import relearning_picture
    from cl_framework.unlearning.audit_report import audits_in

    pictures = {"accuracy_matrix": png(matrix_figure(summary)), "accuracy_by_event": png(curves_figure(summary))}
    if audit := next(iter(audits_in(directory.path)), None):
        pictures["relearning"] = png(relearning_picture(audit))
    paths = []
    for name, data in pictures.items():
        path = directory.plots / f"{name}.png"
        atomic_write(path, data)
        paths.append(path)
    page = directory.path / "report.html"
    atomic_write(page, _page(summary, pictures))
    return [*paths, page]


def _page(summary: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    matrix, events = summary["accuracy_matrix"], summary["stream"].split()
    who = ", ".join(summary["strategies"]) or "fine-tuning"
    title = html.escape(f"{summary['experiment']} ({who}), seed {summary['seed']}")
    head = "".join(f"<th>task {task}</th>" for task in range(len(matrix[0])))
    body = "".join(
        f"<tr><th>{html.escape(event)}</th>" + "".join(f"<td>{number(value)}</td>" for value in row) + "</tr>"
        for event, row in zip(events, matrix, strict=True)
    )
    images = "".join(
        f'<p><img alt="{name}" src="data:image/png;base64,{base64.b64encode(data).decode()}"></p>' for name, data in pictures.items()
    )
    style = "body{font-family:sans-serif;margin:2em}td,th{padding:.2em .6em;text-align:right}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{style}</style></head><body>'
        f"<h1>{title}</h1><p>{html.escape(figures_line(summary))}</p>"
        f"<table><tr><th>after</th>{head}</tr>{body}</table>{images}</body></html>\n"
    )
