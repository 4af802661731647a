"""Reports from records: summaries, tables in the terminal and in Markdown, figures over seeds."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cl_framework.errors import ConfigurationError, FrameworkError
from cl_framework.metrics import PROBES, looks_at_losses, summarise
from cl_framework.paired import differences
from cl_framework.records import RunDirectory, atomic_write
from cl_framework.retention import CRITERION, kept_figures, living_figures
from cl_framework.settings import name_settings
from cl_framework.stream import Stream
from cl_framework.tables import markdown, number, replace_block, spread, terminal_table
from cl_framework.unlearning.deletion import DeletionLog, check_complete
from cl_framework.unlearning.fast import audit_seconds, unlearning_entries

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
    "average_loss": "loss",  # nats an answer, in language modelling alone
    "loss_of_old_tasks": "loss, old tasks",
    "loss_of_newest_task": "loss, newest task",
    "loss_rise": "loss rise",  # forgetting in nats
    "retained_share": "kept",  # of what each Learn took off its text's loss, at the end
    "stability_gap": "gap",  # mean fall of earlier tasks while another is learned, where `evaluate_every` looks
    "retention_slope": "retention slope",  # log-log, of accuracy by lag
    "facilitation_in_steps": "facilitation, steps",  # steps to the criterion more (negative: fewer), from one Learn to the next
    "learning_accuracy_slope": "learning-accuracy slope",  # points of it more, from one Learn to the next
    "trained_share": "trained",  # share of the parameters that learned, where others rested
    "rankme": "RankMe",  # of features, where `probes` looks at them
    "alpha_req": "alpha-ReQ",
    "train_seconds": "train s",
    "audit_seconds": "audit s",  # what the figures and the deletion record of unlearning take beside it
    "steps": "steps",
    "samples_new": "new samples",
    "samples_replayed": "replayed",
    "tokens_new": "new tokens",  # of rows that are packed full of them
    "tokens_replayed": "replayed tokens",
}
CURVES = ("retention", "steps_to_criterion")  # columns of a .csv that hold a list: by lag, by Learn event
_EARLIER = {"learning_accuracy_slope": "facilitation"}  # what a column is called in older files
_COUNTS = ("steps", "samples_new", "samples_replayed", "tokens_new", "tokens_replayed")  # whole numbers
_IDENTITY = ("experiment", "settings", "fingerprint", "benchmark", "scenario", "stream", "strategies", "seed")


def read_config(directory: RunDirectory) -> dict[str, Any]:
    """The resolved configuration of a run, as it stands. FrameworkError if it cannot be read or is damaged."""
    remedy = "Restore it, or start the run anew with again=true."
    try:
        config = yaml.safe_load(directory.config.read_text())
    except OSError as error:
        raise FrameworkError(f"{directory.config} cannot be read: {error.strerror}. {remedy}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise FrameworkError(f"{directory.config} is damaged: it is no valid YAML. {remedy}") from error
    if not isinstance(config, dict):
        raise FrameworkError(f"{directory.config} is damaged: it holds no configuration. {remedy}")
    return config


def summary_of(directory: RunDirectory) -> dict[str, Any]:
    """The figures of a run made from its configuration and rows; nothing is written. FrameworkError names a damaged file.

    BrokenChain, which is one, if the deletion record does not hold what was unlearned.
    """
    config, events, records = read_config(directory), directory.events(whole=True), directory.records()
    check_complete(directory)
    try:
        figures = summarise(config, events, records)
        stream = Stream.parse(figures["stream"], None)
        figures |= living_figures(events, figures["accuracy_matrix"], stream)
        figures |= kept_figures(looks_at_losses(records, figures["scenario"]), stream)
        if stream.unlearns:
            done = DeletionLog(directory.path / "deletion").done()
            figures["unlearning"] = unlearning_entries(records, events, done, figures["scenario"])
            figures["audit_seconds"] = audit_seconds(events, done)
    except FrameworkError as error:
        raise FrameworkError(f"{directory.path}: {error}") from error
    return {"fingerprint": directory.path.resolve().name.partition("-s")[0], **figures}


def rebuild_summary(path: Path) -> dict[str, Any]:
    """Make summary.json again from the configuration and the rows of a run, and return it."""
    directory = RunDirectory(path)
    summary = summary_of(directory)
    atomic_write(directory.summary, text_of_summary(summary))
    return summary


def text_of_summary(summary: Mapping[str, Any]) -> str:
    """What summary.json holds."""
    return json.dumps(summary, indent=2) + "\n"


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
        matrices["perplexity"] = perplexities(summary)
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


def table_of_run(summary: Mapping[str, Any]) -> RenderableType:
    """What a run tells, and its figures, for the terminal."""
    from rich.console import Group

    (first, header, rows), *others = tables_of_run(summary)
    title = f"{summary['experiment']} ({strategies_in_words(summary)}), seed {summary['seed']}: {first}, {summary['scenario']}"
    return Group(titled(title, header, rows), *(titled(*parts) for parts in others), figures_line(summary))


def perplexities(summary: Mapping[str, Any]) -> list[list[float | None]]:
    """exp of the loss matrix: the perplexity of each task's held-out text after each event."""
    return [[None if value is None else math.exp(value) for value in row] for row in summary["loss_matrix"]]


def markdown_of_run(summary: Mapping[str, Any]) -> str:
    """The same in Markdown."""
    tables = [f"{title[0].upper()}{title[1:]}:\n\n{markdown(header, rows)}" for title, header, rows in tables_of_run(summary)]
    title = f"{summary['experiment']} ({strategies_in_words(summary)}), seed {summary['seed']}"
    return "\n\n".join([f"### {title}", *tables, figures_line(summary)]) + "\n"


# --- many runs ---


@dataclass(frozen=True)
class Collected:
    """Runs found under some paths: the finished ones' summaries, and those left out with the reason.

    Each summary has `settings`, such as "optimizer.lr=0.3": in what it differs from others of the same experiment and strategies.
    """

    summaries: list[dict[str, Any]]
    left_out: list[str]


def collect(paths: Iterable[str | Path]) -> Collected:
    """Find the runs in and under `paths`, and their figures from their rows; what does not count is named, never silently left out.

    A path is a run directory, a folder that holds some, or a file that `to_csv` made. A run that several paths hold counts once.
    """
    summaries: list[dict[str, Any]] = []
    configs: list[dict[str, Any]] = []
    left_out: list[str] = []
    origins: dict[tuple[str, str, int], str] = {}

    def add(summary: dict[str, Any], config: dict[str, Any], origin: str) -> None:
        identity = (summary["experiment"], summary["fingerprint"], summary["seed"])
        if identity in origins:
            left_out.append(f"{origin} repeats seed {summary['seed']} of {origins[identity]}")
            return
        origins[identity] = origin
        summaries.append(summary)
        configs.append(config)

    for run in dict.fromkeys(place.resolve() for place in _places(paths)):
        shown = _shown(run)
        if run.suffix == ".csv":
            rows = read_csv(run)
            for summary in rows:
                add(summary, {}, shown)
            left_out += [] if rows else [f"{shown} holds no record"]
            continue
        directory = RunDirectory(run)
        if directory.status != "done":
            left_out.append(f"{shown} is {directory.status}")
            continue
        try:
            add(summary_of(directory), read_config(directory), shown)
        except FrameworkError as error:
            left_out.append(str(error).rstrip("."))
    name_settings(summaries, configs)
    return Collected(summaries, left_out)


def _places(paths: Iterable[str | Path]) -> Iterator[Path]:
    for path in map(Path, paths):
        if not path.exists():
            raise ConfigurationError(f"{path} does not exist. Name run directories, or a folder that holds some.")
        found = [path] if path.suffix == ".csv" else list(runs_in(path))
        if not found:
            raise ConfigurationError(f"there is no run in {path}. Name run directories, or a folder that holds some.")
        yield from found


def runs_in(path: Path) -> Iterator[Path]:
    """The run directories in and under a folder, in order. What lies inside a run is its own (loggers keep a config.yaml too)."""
    for folder, below, files in os.walk(path):
        if "config.yaml" in files:
            below.clear()
            yield Path(folder)
        below.sort()


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def grouped(summaries: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Runs that differ in their seed alone, by experiment and fingerprint."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for summary in summaries:
        groups.setdefault((summary["experiment"], summary["fingerprint"]), []).append(summary)
    return [sorted(group, key=lambda summary: summary["seed"]) for group in groups.values()]


def comparison(summaries: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: one row a configuration, mean ± standard deviation over its seeds.

    Where rows would look alike, a column says in what their settings differ.
    """
    shown = [key for key in FIGURES if any(summary.get(key) is not None for summary in summaries)]
    groups = grouped(summaries)
    titles = [(group[0]["experiment"], group[0]["benchmark"], strategies_in_words(group[0])) for group in groups]
    with_settings = len(set(titles)) < len(groups)
    header = ["experiment", "benchmark", "strategies", *(["settings"] * with_settings), *(FIGURES[key] for key in shown), "seeds"]
    rows = []
    for title, group in zip(titles, groups, strict=True):
        values = [[summary[key] for summary in group if summary.get(key) is not None] for key in shown]
        settings = [group[0].get("settings") or group[0]["fingerprint"]] * with_settings
        seeds = ", ".join(str(summary["seed"]) for summary in group)
        rows.append([*title, *settings, *(spread(part) for part in values), seeds])
    return header, rows


def strategies_in_words(summary: Mapping[str, Any]) -> str:
    """The slots of a run, or what it is without any."""
    return ", ".join(summary["strategies"]) or "fine-tuning"


def to_csv(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Figures of runs as CSV, one row a run, without rounding; `read_csv` gives them back."""
    buffer = io.StringIO()
    columns = [*_IDENTITY, *FIGURES, "eval_seconds", *CURVES]
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    for summary in summaries:
        curves = {key: json.dumps(summary[key]) for key in CURVES if summary.get(key) is not None}
        writer.writerow({key: summary.get(key) for key in columns} | curves | {"strategies": " ".join(summary["strategies"])})
    return buffer.getvalue()


def read_csv(path: Path) -> list[dict[str, Any]]:
    """The runs of a file that `to_csv` made. ConfigurationError names the file if it is another one."""
    runs = []
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            if "verdict" in (reader.fieldnames or ()):
                raise ConfigurationError(f"{path} is a file of audits: use `clu audit {path}`.")
            for row in reader:
                run: dict[str, Any] = dict(row)
                for key in (*FIGURES, "eval_seconds", *CURVES):
                    kind: Callable[[str], Any] = int if key in _COUNTS else list_of_numbers if key in CURVES else float
                    text = row.get(key) or row.get(_EARLIER.get(key, ""))
                    run[key] = kind(text) if text else None  # files written before there was a column have none
                run |= {"seed": int(row["seed"]), "strategies": row["strategies"].split()}
                run["settings"] = row.get("settings", "")
                runs.append({key: run[key] for key in (*_IDENTITY, *FIGURES, "eval_seconds", *CURVES)})
    except (OSError, KeyError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise ConfigurationError(f"{path} holds no records of runs. Write some with `clu report RUN_DIR… --out FILE.csv`.") from error
    return runs


def list_of_numbers(text: str) -> list[float | None]:
    """A list in a cell, as JSON; null where there is nothing to say. ValueError if it is something else."""
    values = json.loads(text)
    if not isinstance(values, list) or not all(value is None or type(value) in (int, float) for value in values):
        raise ValueError(f"{text!r} is no list of numbers")
    return values


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
        raise ConfigurationError("no finished run to report: " + "; ".join(found.left_out) + ".")
    notes = [f"left out: {reason}." for reason in found.left_out]
    alone = found.summaries[0] if len(found.summaries) == 1 and "accuracy_matrix" in found.summaries[0] else None
    if pairs:
        alone = None
    header, rows = differences(found.summaries, pairs, figures, FIGURES) if pairs else comparison(found.summaries)
    shown = terminal_table(header, rows) if alone is None else table_of_run(alone)
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
    from cl_framework.unlearning.audit_report import audits_in, comparison, rows_of, tradeoff_picture, verdicts_of

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
    table = verdicts_of(*runs.values()) if len(runs) == 1 else comparison(rows)
    return ["audited beside oracles:", terminal_table(*table)]
