"""Reports from records: summaries, tables in the terminal and in Markdown, figures over seeds."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cl_framework.errors import ConfigurationError
from cl_framework.metrics import mean_and_deviation, summarise
from cl_framework.records import RunDirectory, atomic_write, read_json

if TYPE_CHECKING:
    from rich.console import RenderableType

# column -> title; those that no run of a table has are left out
FIGURES = {
    "average_accuracy": "average accuracy",
    "average_accuracy_task_il": "task-IL",
    "average_anytime_accuracy": "anytime",
    "forgetting": "forgetting",
    "bwt": "BWT",
    "fwt": "FWT",
    "train_seconds": "train s",
    "steps": "steps",
}
_IDENTITY = ("experiment", "fingerprint", "benchmark", "scenario", "stream", "strategies", "seed")


def read_config(directory: RunDirectory) -> dict[str, Any]:
    return yaml.safe_load(directory.config.read_text())


def rebuild_summary(path: Path) -> dict[str, Any]:
    """Make summary.json again from the configuration and the rows of a run, and return it."""
    directory = RunDirectory(path)
    summary = summarise(read_config(directory), directory.events(), directory.records())
    summary = {"fingerprint": directory.path.name.partition("-s")[0], **summary}
    atomic_write(directory.summary, json.dumps(summary, indent=2) + "\n")
    return summary


# --- one run ---


def matrix_table(matrix: Sequence[Sequence[float | None]], events: Sequence[str], title: str) -> RenderableType:
    """The accuracy matrix for the terminal: a row an event, a column a task."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("after")
    for task in range(len(matrix[0])):
        table.add_column(f"task {task}", justify="right")
    for event, row in zip(events, matrix, strict=True):
        table.add_row(event, *(number(value) for value in row))
    return table


def figures_line(summary: Mapping[str, Any]) -> str:
    """The figures of a run in a line."""
    parts = [f"{title} {number(summary[key])}" for key, title in FIGURES.items() if summary.get(key) is not None]
    return " · ".join(parts)


def table_of_run(summary: Mapping[str, Any]) -> RenderableType:
    """Accuracy matrix and figures of a run, for the terminal."""
    from rich.console import Group

    who = ", ".join(summary["strategies"]) or "fine-tuning"
    title = f"{summary['experiment']} ({who}), seed {summary['seed']}: accuracy in percent, {summary['scenario']}"
    return Group(matrix_table(summary["accuracy_matrix"], summary["stream"].split(), title), figures_line(summary))


def markdown_of_run(summary: Mapping[str, Any]) -> str:
    """The same in Markdown."""
    matrix, events = summary["accuracy_matrix"], summary["stream"].split()
    header = ["after", *(f"task {task}" for task in range(len(matrix[0])))]
    rows = [[event, *(number(value) for value in row)] for event, row in zip(events, matrix, strict=True)]
    who = ", ".join(summary["strategies"]) or "fine-tuning"
    return f"### {summary['experiment']} ({who}), seed {summary['seed']}\n\n{markdown(header, rows)}\n\n{figures_line(summary)}\n"


# --- many runs ---


@dataclass(frozen=True)
class Collected:
    """Runs found under some paths: the finished ones' summaries, and those left out with the reason."""

    summaries: list[dict[str, Any]]
    left_out: list[str]


def collect(paths: Iterable[str | Path]) -> Collected:
    """Find the runs in and under `paths`; what is not finished is named, never silently left out."""
    summaries, left_out = [], []
    for path in map(Path, paths):
        if not path.exists():
            raise ConfigurationError(f"{path} does not exist. Name run directories, or a folder that holds some.")
        if path.suffix == ".csv":
            summaries.extend(read_csv(path))
            continue
        found = [path] if (path / "config.yaml").exists() else sorted(config.parent for config in path.rglob("config.yaml"))
        if not found:
            raise ConfigurationError(f"there is no run in {path}.")
        for run in found:
            directory = RunDirectory(run)
            if directory.status == "done":
                summaries.append(rebuild_summary(run) if not directory.summary.exists() else read_json(directory.summary))
            else:
                left_out.append(f"{run} is {directory.status}")
    return Collected(summaries, left_out)


def grouped(summaries: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Runs that differ in their seed alone, by experiment and fingerprint."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for summary in summaries:
        groups.setdefault((summary["experiment"], summary["fingerprint"]), []).append(summary)
    return [sorted(group, key=lambda summary: summary["seed"]) for group in groups.values()]


def comparison(summaries: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: one row a configuration, mean ± standard deviation over its seeds."""
    shown = [key for key in FIGURES if any(summary.get(key) is not None for summary in summaries)]
    header = ["experiment", "benchmark", "strategies", *(FIGURES[key] for key in shown), "seeds"]
    rows = []
    for group in grouped(summaries):
        first = group[0]
        values = [[summary[key] for summary in group if summary.get(key) is not None] for key in shown]
        who = ", ".join(first["strategies"]) or "fine-tuning"
        seeds = ", ".join(str(summary["seed"]) for summary in group)
        rows.append([first["experiment"], first["benchmark"], who, *(spread(part) for part in values), seeds])
    return header, rows


def terminal_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> RenderableType:
    from rich.table import Table

    table = Table()
    for position, title in enumerate(header):
        table.add_column(title, justify="left" if position < 3 or title == "seeds" else "right")
    for row in rows:
        table.add_row(*row)
    return table


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, or the one value."""
    if not values:
        return "–"
    mean, deviation, _ = mean_and_deviation(values)
    return number(mean) if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


# --- committed records: one row a run ---


def to_csv(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Figures of runs as CSV, one row a run, without rounding; `read_csv` gives them back."""
    buffer = io.StringIO()
    columns = [*_IDENTITY, *FIGURES, "eval_seconds"]
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for summary in summaries:
        writer.writerow({**summary, "strategies": " ".join(summary["strategies"])})
    return buffer.getvalue()


def read_csv(path: Path) -> list[dict[str, Any]]:
    """The runs of a file that `to_csv` made."""
    runs = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            run: dict[str, Any] = dict(row)
            for key in (*FIGURES, "eval_seconds"):
                run[key] = float(row[key]) if row[key] else None
            run |= {"seed": int(row["seed"]), "steps": int(float(row["steps"])), "strategies": row["strategies"].split()}
            runs.append(run)
    return runs


# --- what `clu report` does ---


def report(paths: Sequence[str | Path], out: Path | None = None) -> tuple[RenderableType, list[str]]:
    """What to show, and sentences about what was written or left out. `out` ends in .md or .csv."""
    from rich.console import Group

    found = collect(paths)
    notes = [f"left out: {reason}." for reason in found.left_out]
    if not found.summaries:
        raise ConfigurationError("no finished run to report: " + "; ".join(found.left_out) + ".")
    header, rows = comparison(found.summaries)
    shown: list[RenderableType] = [table_of_run(summary) for summary in found.summaries if "accuracy_matrix" in summary]
    if len(found.summaries) > 1:
        shown = [terminal_table(header, rows)]
    if out is not None:
        if out.suffix not in (".md", ".csv"):
            raise ConfigurationError(f"--out {out}: the name must end in .md or .csv.")
        text = to_csv(found.summaries) if out.suffix == ".csv" else markdown(header, rows) + "\n"
        if out.suffix == ".md" and len(found.summaries) == 1 and "accuracy_matrix" in found.summaries[0]:
            text = markdown_of_run(found.summaries[0])
        atomic_write(out, text)
        notes.append(f"written: {out}")
    if len(paths) == 1 and (Path(paths[0]) / "config.yaml").exists():
        from cl_framework.plots import write_plots

        notes.extend(f"written: {path}" for path in write_plots(RunDirectory(Path(paths[0])), found.summaries[0]))
    return Group(*shown), notes


def replace_block(path: Path, name: str, text: str) -> None:
    """Put `text` between the lines `<!-- table: NAME -->` and `<!-- end -->` of a Markdown file."""
    start, end = f"<!-- table: {name} -->", "<!-- end -->"
    whole = path.read_text()
    if start not in whole or end not in whole.partition(start)[2]:
        raise ConfigurationError(f"{path} has no block between '{start}' and '{end}'.")
    before, _, rest = whole.partition(start)
    after = rest.partition(end)[2]
    atomic_write(path, f"{before}{start}\n{text.strip()}\n{end}{after}")
