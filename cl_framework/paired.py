"""Differences between two experiments, paired over the seeds that both ran: what two means and deviations cannot tell apart, this may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cl_framework.errors import ConfigurationError, nearest
from cl_framework.metrics import confidence_interval, mean_and_deviation

HEADER = ("experiment", "minus", "average accuracy", "95 % interval", "seeds")


def differences(summaries: Sequence[Mapping[str, Any]], pairs: Sequence[tuple[str, str]]) -> list[list[str]]:
    """A row under `HEADER` for each pair of experiments (one, other): one's average accuracy less other's, in points, seed by seed.

    The interval is Student's over seeds; one seed has none. Raises ConfigurationError for an experiment that is not there, that has
    several runs of a seed (other settings), or that shares no seed with the other.
    """
    return [_row(summaries, one, other) for one, other in pairs]


def _row(summaries: Sequence[Mapping[str, Any]], one: str, other: str) -> list[str]:
    mine, theirs = _by_seed(summaries, one), _by_seed(summaries, other)
    seeds = sorted(mine.keys() & theirs.keys())
    if not seeds:
        raise ConfigurationError(f"--difference {one} {other}: they share no seed. Run both with the same seeds.")
    apart = [mine[seed] - theirs[seed] for seed in seeds]
    interval = confidence_interval(apart)
    shown = "–" if interval is None else f"{interval[0]:+.2f} to {interval[1]:+.2f}"
    return [one, other, f"{mean_and_deviation(apart)[0]:+.2f}", shown, ", ".join(map(str, seeds))]


def _by_seed(summaries: Sequence[Mapping[str, Any]], name: str) -> dict[int, float]:
    runs = [summary for summary in summaries if summary["experiment"] == name]
    if not runs:
        known = sorted({summary["experiment"] for summary in summaries})
        raise ConfigurationError(f"--difference: there is no run of {name!r}. {nearest(name, known)}")
    values = {summary["seed"]: summary["average_accuracy"] for summary in runs}
    if len(values) < len(runs):
        raise ConfigurationError(f"--difference: {name!r} was run under several settings. Name the run directories of one of them.")
    return values
