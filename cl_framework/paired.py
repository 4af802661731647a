"""Differences between two experiments, paired over the seeds that both ran: what two means and deviations cannot tell apart, this may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cl_framework.errors import ConfigurationError, nearest
from cl_framework.metrics import confidence_interval, mean_and_deviation

Table = tuple[list[str], list[list[str]]]  # header and rows

_NATS = ("average_loss", "loss_of_old_tasks", "loss_of_newest_task", "loss_rise")  # seeds differ in their third place


def differences(
    summaries: Sequence[Mapping[str, Any]], pairs: Sequence[tuple[str, str]], figures: Sequence[str], titles: Mapping[str, str]
) -> Table:
    """A row for each pair (one, other): of each figure one's less other's, seed by seed, in the figure's unit; `titles` of all figures.

    One and other are experiments, or an experiment and its settings as a report names them: "topics_er strategies.er.capacity=300".
    The interval is Student's over seeds; one seed has none. Raises ConfigurationError for an experiment that is not there, that has
    several runs of a seed (other settings), that shares no seed with the other, or whose runs do not have the figure.
    """
    for figure in figures:
        if figure not in titles:
            raise ConfigurationError(f"--figure: there is no figure {figure!r}. {nearest(figure, list(titles))}")
    header = ["experiment", "minus", *(cell for figure in figures for cell in (titles[figure], "95 % interval")), "seeds"]
    return header, [_row(summaries, one, other, figures) for one, other in pairs]


def _row(summaries: Sequence[Mapping[str, Any]], one: str, other: str, figures: Sequence[str]) -> list[str]:
    mine, theirs = _by_seed(summaries, one), _by_seed(summaries, other)
    seeds = sorted(mine.keys() & theirs.keys())
    if not seeds:
        raise ConfigurationError(f"--difference {one} {other}: they share no seed. Run both with the same seeds.")
    cells = [one, other]
    for figure in figures:
        apart = [_value(mine[seed], figure) - _value(theirs[seed], figure) for seed in seeds]
        cells += _mean_and_interval(apart, decimals=3 if figure in _NATS else 2)
    return [*cells, ", ".join(map(str, seeds))]


def _mean_and_interval(apart: Sequence[float], decimals: int) -> list[str]:
    interval = confidence_interval(apart)
    return [
        f"{mean_and_deviation(apart)[0]:+.{decimals}f}",
        "–" if interval is None else " to ".join(f"{end:+.{decimals}f}" for end in interval),
    ]


def _value(summary: Mapping[str, Any], figure: str) -> float:
    value: float | None = summary.get(figure)
    if value is None:
        raise ConfigurationError(
            f"--figure: seed {summary['seed']} of {summary['experiment']!r} has no {figure}. Name a figure that its report shows."
        )
    return value


def _by_seed(summaries: Sequence[Mapping[str, Any]], name: str) -> dict[int, Mapping[str, Any]]:
    runs = [summary for summary in summaries if name in _names(summary)]
    if not runs:
        known = {one for summary in summaries for one in _names(summary)}
        raise ConfigurationError(f"--difference: there is no run of {name!r}. {nearest(name, known)}")
    by_seed = {summary["seed"]: summary for summary in runs}
    if len(by_seed) < len(runs):
        *_, longest = _names(runs[0])
        remedy = f"Name one of them, such as {longest!r}" if longest != name else "Name the run directories of one of them"
        raise ConfigurationError(f"--difference: {name!r} was run under several settings. {remedy}.")
    return by_seed


def _names(summary: Mapping[str, Any]) -> list[str]:
    """The experiment of a run, and with its settings, if they are told."""
    experiment, settings = summary["experiment"], summary.get("settings")
    return [experiment, f"{experiment} {settings}"] if settings else [experiment]
