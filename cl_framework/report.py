"""Reports from records: summaries, tables in the terminal and in Markdown, figures over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_framework.collected import CURVES, FIGURES, collect, comparison, runs_in, strategies_in_words, to_csv
from cl_framework.errors import ConfigurationError, FrameworkError
from cl_framework.metrics import PROBES, perplexity
from cl_framework.paired import differences
from cl_framework.records import RunDirectory, atomic_write
from cl_framework.retention import CRITERION
from cl_framework.summary import rebuild_summary
from cl_framework.tables import TerminalTable, markdown, number, replace_block

if TYPE_CHECKING:
    from rich.console import RenderableType


# --- one run ---


def titled(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> RenderableType:
    """A table for the terminal under a line of its own: a table's own title is broken to the table's width."""
    from rich.console import Group
    from rich.table import Table

    table = Table()
    for position, name in enumerate(header):
        table.add_column(name, justify="right" if position else "left")
    for row in rows:
        table.add_row(*row)
    return Group(title, table)


def tables_of_run(summary: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header, rows of what a run tells: accuracy, perplexity, probes by event and task; accuracy by lag, steps by Learn event."""
    events, matrices = summary["stream"].split(), {"accuracy in percent": summary["accuracy_matrix"]}
    if "loss_matrix" in summary:
        matrices["perplexity"] = [[perplexity(loss) for loss in row] for row in summary["loss_matrix"]]
    matrices |= {FIGURES[probe]: summary[f"{probe}_matrix"] for probe in PROBES if f"{probe}_matrix" in summary}
    tables = []
    for title, matrix in matrices.items():
        header = ["after", *(f"task {task}" for task in range(len(matrix[0])))]
        tables.append((title, header, [[event, *map(number, row)] for event, row in zip(events, matrix, strict=True)]))
    kept, speed = (summary.get(key) or [] for key in CURVES)
    if len(kept) > 1:
        lags = ["lag", *map(str, range(len(kept)))]
        tables.append(("by Learn events since a task was learned", lags, [["accuracy", *map(number, kept)]]))
    if len(speed) > 1:
        learns = [event for event in events if event.startswith("L")]
        steps = [f"steps to {CRITERION:.0f} percent", *map(number, speed)]
        tables.append(("while it was learned, on its training rows", ["event", *learns], [steps]))
    return tables


def figures_line(summary: Mapping[str, Any]) -> str:
    """The figures of a run in a line."""
    parts = [f"{title} {number(summary[key])}" for key, title in FIGURES.items() if summary.get(key) is not None]
    return " · ".join(parts)


def left_out_of(summary: Mapping[str, Any]) -> list[str]:
    """A sentence about the tables that a run does not have, though others do."""
    told = f"Nothing was learned before the last Learn event: accuracy by lag and steps to {CRITERION:.0f} percent are left out."
    return [told] if summary.get("learns_at_the_end") else []


def table_of_run(summary: Mapping[str, Any]) -> RenderableType:
    """What a run tells, and its figures, for the terminal."""
    from rich.console import Group

    (first, header, rows), *others = tables_of_run(summary)
    title = f"{summary['experiment']} ({strategies_in_words(summary)}), seed {summary['seed']}: {first}, {summary['scenario']}"
    below = (*left_out_of(summary), figures_line(summary))
    return Group(titled(title, header, rows), *(titled(*parts) for parts in others), *below)


def markdown_of_run(summary: Mapping[str, Any]) -> str:
    """The same in Markdown."""
    tables = [f"{title[0].upper()}{title[1:]}:\n\n{markdown(header, rows)}" for title, header, rows in tables_of_run(summary)]
    title = f"{summary['experiment']} ({strategies_in_words(summary)}), seed {summary['seed']}"
    return "\n\n".join([f"### {title}", *tables, *left_out_of(summary), figures_line(summary)]) + "\n"


# --- what `clu report` does ---


def report(
    paths: Sequence[str | Path],
    out: Path | None = None,
    into: str | None = None,
    pairs: Sequence[tuple[str, str]] = (),
    plot: Path | None = None,
    figures: Sequence[str] = ("average_accuracy",),
) -> tuple[RenderableType, list[str]]:
    """What to show, and sentences about what was written or left out. `out` ends in .md or .csv; `into` is FILE.md#BLOCK; `plot` is a
    .png for accuracy by lag and steps to the criterion by task, beside which FILE_tradeoff.png is written of runs that were audited.

    With `pairs` of experiments the table is that of their differences in `figures`, while a .csv holds the runs all the same. For a
    single run directory summary.json, the plots and report.html are written into it.
    """
    from rich.console import Group

    if out is not None and out.suffix not in (".md", ".csv"):
        raise ConfigurationError(f"--out {out}: the name must end in .md or .csv.")
    if plot is not None:
        from cl_framework.plots import check_png, write_living_plot

        check_png(plot)
    found = collect(paths)
    if not found.summaries:
        failure = FrameworkError if found.damaged else ConfigurationError
        remedy = " Finish one with clu resume RUN_DIR, or start it anew." if found.ended_early else ""
        raise failure("no finished run to report: " + "; ".join(found.left_out) + f".{remedy}")
    notes = [f"left out: {reason}." for reason in found.left_out]
    alone = found.summaries[0] if len(found.summaries) == 1 and "accuracy_matrix" in found.summaries[0] else None
    if pairs:
        alone = None
    header, rows = differences(found.summaries, pairs, figures, FIGURES) if pairs else comparison(found.summaries)
    shown = TerminalTable(header, rows) if alone is None else table_of_run(alone)
    if out is not None:
        if out.suffix == ".csv":
            text = to_csv(found.summaries)
        else:
            text = markdown(header, rows) + "\n" if alone is None else markdown_of_run(alone)
        atomic_write(out, text)
        notes.append(f"written: {out}")
    if into is not None:
        file, _, block = into.partition("#")
        replace_block(Path(file), block, markdown(header, rows))
        notes.append(f"written: the block {block!r} of {file}")
    if plot is not None:
        notes += write_living_plot(plot, found.summaries)
    if alone is not None and len(paths) == 1 and (Path(paths[0]) / "config.yaml").exists():
        from cl_framework.plots import write_plots

        directory = RunDirectory(Path(paths[0]))
        written = [directory.summary, *write_plots(directory, rebuild_summary(directory.path))]
        notes.extend(f"written: {path}" for path in written)
    return Group(shown, *audits_below(paths, plot, notes)), notes


def audits_below(paths: Sequence[str | Path], plot: Path | None, notes: list[str]) -> list[RenderableType]:
    """The verdicts of the runs that `clu audit` has measured, and beside `plot` their trade-off; nothing where there are none."""
    from cl_framework.unlearning.audit_pictures import tradeoff_picture
    from cl_framework.unlearning.audit_report import audits_in, comparison, rows_of, verdicts_of, why_invalid

    folders = [Path(path) for path in paths if Path(path).suffix != ".csv"]
    runs = {run.resolve(): found[0] for folder in folders for run in runs_in(folder) if (found := list(audits_in(run)))}
    if not runs:
        return []
    rows = [row for result in runs.values() for row in rows_of(result)]
    if plot is not None:
        from cl_framework.plots import png

        picture = plot.with_stem(f"{plot.stem}_tradeoff")
        atomic_write(picture, png(tradeoff_picture(rows)))
        notes.append(f"written: {picture}")
    if len(runs) > 1:
        return ["audited beside oracles:", TerminalTable(*comparison(rows))]
    (alone,) = runs.values()
    return ["audited beside oracles:", TerminalTable(*verdicts_of(alone)), *why_invalid(alone)]
