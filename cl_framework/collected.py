"""Figures of many runs: found in folders and .csv files, grouped by their settings, compared over seeds."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_framework.errors import ConfigurationError, FrameworkError
from cl_framework.records import RunDirectory
from cl_framework.settings import name_settings
from cl_framework.summary import read_config, summary_of
from cl_framework.tables import spread

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
    "train_seconds": "train s",  # of Learn events
    "answer_seconds": "answer s",  # of Unlearn events
    "audit_seconds": "audit s",  # what the figures and the deletion record of unlearning take beside it
    "steps": "steps",  # of all events
    "samples_new": "new samples",  # of Learn events
    "samples_replayed": "replayed",  # likewise: of earlier tasks, shown by a plan or drawn
    "answer_samples": "answer samples",  # that answers to requests were shown, drew or read
    "tokens_new": "new tokens",  # of rows that are packed full of them
    "tokens_replayed": "replayed tokens",
}
_UNSHOWN = ("eval_seconds", "optimizer_bytes", "peak_rss_mib")  # columns of a .csv that tables leave out
CURVES = ("retention", "steps_to_criterion")  # columns of a .csv that hold a list: by lag, by Learn event
_EARLIER = {"learning_accuracy_slope": "facilitation"}  # what a column is called in older files
_COUNTS = (
    "steps",
    "samples_new",
    "samples_replayed",
    "answer_samples",
    "tokens_new",
    "tokens_replayed",
    "optimizer_bytes",
)  # whole numbers
_IDENTITY = ("experiment", "settings", "fingerprint", "benchmark", "scenario", "stream", "strategies", "seed")


@dataclass(frozen=True)
class Collected:
    """Runs found under some paths: the finished ones' summaries, and those left out with the reason.

    Each summary has `settings`, such as "optimizer.lr=0.3": in what it differs from others of the same experiment and strategies.
    """

    summaries: list[dict[str, Any]]
    left_out: list[str]
    damaged: bool = False  # whether a run is left out because its records or its deletion record are not whole
    ended_early: bool = False  # whether one is left out because it is not finished


def collect(paths: Iterable[str | Path]) -> Collected:
    """Find the runs in and under `paths`, and their figures from their rows; what does not count is named, never silently left out.

    A path is a run directory, a folder that holds some, or a file that `to_csv` made. A run that several paths hold counts once.
    """
    summaries: list[dict[str, Any]] = []
    configs: list[dict[str, Any]] = []
    ended_early = False
    left_out: list[str] = []
    damaged = False
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
            ended_early = True
            continue
        try:
            add(summary_of(directory), read_config(directory), shown)
        except FrameworkError as error:
            left_out.append(str(error).rstrip("."))
            damaged |= not isinstance(error, ConfigurationError)
    name_settings(summaries, configs)
    return Collected(summaries, left_out, damaged, ended_early)


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
    columns = [*_IDENTITY, *FIGURES, *_UNSHOWN, *CURVES]
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
                for key in (*FIGURES, *_UNSHOWN, *CURVES):
                    kind: Callable[[str], Any] = int if key in _COUNTS else list_of_numbers if key in CURVES else float
                    text = row.get(key) or row.get(_EARLIER.get(key, ""))
                    run[key] = kind(text) if text else None  # files written before there was a column have none
                run |= {"seed": int(row["seed"]), "strategies": row["strategies"].split()}
                run["settings"] = row.get("settings", "")
                runs.append({key: run[key] for key in (*_IDENTITY, *FIGURES, *_UNSHOWN, *CURVES)})
    except (OSError, KeyError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise ConfigurationError(f"{path} holds no records of runs. Write some with `clu report RUN_DIR… --out FILE.csv`.") from error
    return runs


def list_of_numbers(text: str) -> list[float | None]:
    """A list in a cell, as JSON; null where there is nothing to say. ValueError if it is something else."""
    values = json.loads(text)
    if not isinstance(values, list) or not all(value is None or type(value) in (int, float) for value in values):
        raise ValueError(f"{text!r} is no list of numbers")
    return values
