"""Plots of a run as PNG, and a page that holds them: matplotlib without a screen and without its global state."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_framework.records import RunDirectory, atomic_write
from cl_framework.report import figures_line
from cl_framework.tables import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def matrix_figure(summary: Mapping[str, Any]) -> Figure:
    """Heat map of the accuracy matrix: a row an event, a column a task."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    matrix, events = summary["accuracy_matrix"], summary["stream"].split()
    values = [[float("nan") if value is None else value for value in row] for row in matrix]
    figure = Figure(figsize=(1.5 + 0.6 * len(matrix[0]), 1.5 + 0.45 * len(matrix)), layout="constrained")
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
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for task in range(len(matrix[0])):
        values = [float("nan") if row[task] is None else row[task] for row in matrix]
        (line,) = axes.plot(range(len(events)), values, linewidth=1.2, label=f"task {task}")
        for index, event in enumerate(events):
            if event[1:].partition(":")[0].rstrip("!") == str(task):
                axes.plot(index, values[index], "o" if event.startswith("L") else "X", color=line.get_color())
    axes.set_xticks(range(len(events)), events)
    axes.set_ylim(-2, 102)
    axes.set_xlabel("after event")
    axes.set_ylabel("accuracy, percent")
    if len(matrix[0]) <= 12:
        axes.legend(fontsize=7, ncols=2)
    return figure


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def write_plots(directory: RunDirectory, summary: Mapping[str, Any]) -> list[Path]:
    """The plots of a run and report.html, which holds them; returns what was written."""
    pictures = {"accuracy_matrix": png(matrix_figure(summary)), "accuracy_by_event": png(curves_figure(summary))}
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
