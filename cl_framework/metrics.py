"""From records to the accuracy matrix and the figures of continual learning, as pure functions. Percent throughout.

a[n][t] is the accuracy on the held-out split of task t after event n; None where it was not measured. The definitions are those of
Chaudhry et al. (2018) and Lopez-Paz & Ranzato (2017), generalised to streams that repeat and unlearn tasks: a task counts from the
event at which it was (last) learned, and while it is live.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from cl_framework.stream import Learn, Stream, TaskId

Matrix = list[list[float | None]]
BASELINE = -1  # event_index of the untrained model's rows


def accuracy_matrix(rows: Sequence[Mapping[str, Any]], scenario: str, num_events: int, num_tasks: int) -> Matrix:
    """a[n][t] of one scenario: a row an event, a column a task."""
    matrix: Matrix = [[None] * num_tasks for _ in range(num_events)]
    for row in _accuracies(rows, scenario):
        if row["event_index"] != BASELINE:
            matrix[row["event_index"]][row["eval_task"]] = row["value"]
    return matrix


def baseline(rows: Sequence[Mapping[str, Any]], scenario: str, num_tasks: int) -> list[float | None]:
    """Accuracy of the untrained model on each task."""
    values: list[float | None] = [None] * num_tasks
    for row in _accuracies(rows, scenario):
        if row["event_index"] == BASELINE:
            values[row["eval_task"]] = row["value"]
    return values


def _accuracies(rows: Sequence[Mapping[str, Any]], scenario: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["metric"] == "accuracy" and row["scenario"] == scenario and row["split"] == "test"]


def average_accuracy(row: Sequence[float | None], live: Sequence[TaskId]) -> float | None:
    """Mean over live tasks of one row of the matrix; None if nothing is live."""
    values = [value for task in live if (value := row[task]) is not None]
    return mean(values) if values else None


def average_anytime_accuracy(matrix: Matrix, stream: Stream) -> float | None:
    """Mean over events of the average accuracy so far."""
    values = [average_accuracy(row, live) for row, live in zip(matrix, stream.learned_after, strict=True)]
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def learned_at(stream: Stream) -> dict[TaskId, int]:
    """For each task live at the end: the event at which it was first learned since it was last unknown."""
    at: dict[TaskId, int] = {}
    for index, event in enumerate(stream):
        if isinstance(event, Learn):
            at.setdefault(event.task, index)
        elif event.granularity == "task":
            at.pop(event.task, None)
    return at


def forgetting(matrix: Matrix, stream: Stream) -> float | None:
    """Mean over live tasks of max_n a[n][t] - a[last][t], n from when t was learned.

    A task learned at the last event cannot have been forgotten and is left out, as is usual; None if no task is left.
    """
    drops = []
    for task, first in _earlier(stream).items():
        values = [value for row in matrix[first:] if (value := row[task]) is not None]
        if values and matrix[-1][task] is not None:
            drops.append(max(values) - values[-1])
    return mean(drops) if drops else None


def bwt(matrix: Matrix, stream: Stream) -> float | None:
    """Backward transfer: mean over live tasks of a[last][t] - a[after learning t][t]; the task learned last is left out."""
    changes = [
        last - then
        for task, first in _earlier(stream).items()
        if (last := matrix[-1][task]) is not None and (then := matrix[first][task]) is not None
    ]
    return mean(changes) if changes else None


def _earlier(stream: Stream) -> dict[TaskId, int]:
    return {task: first for task, first in learned_at(stream).items() if first < len(stream) - 1}


def fwt(matrix: Matrix, untrained: Sequence[float | None], stream: Stream) -> float | None:
    """Forward transfer: mean over tasks of a[just before t is first learned][t] - the untrained model's; the first event is left out."""
    gains = []
    seen: set[TaskId] = set()
    for index, event in enumerate(stream):
        if not isinstance(event, Learn) or event.task in seen:
            continue
        seen.add(event.task)
        if index == 0:
            continue
        before, start = matrix[index - 1][event.task], untrained[event.task]
        if before is not None and start is not None:
            gains.append(before - start)
    return mean(gains) if gains else None


def wilson_interval(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a proportion, in [0, 1]; 95 % by default. n >= 1."""
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"successes must lie between 0 and n >= 1, got {successes} of {n}")
    share = successes / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None, int]:
    """Mean, sample standard deviation (None for one value) and number of values."""
    return mean(values), (stdev(values) if len(values) > 1 else None), len(values)


def summarise(config: Mapping[str, Any], events: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of a run, from its configuration and rows alone. Not rounded; null where there is nothing to say."""
    tasks = 1 + max(row["eval_task"] for row in records)
    stream = Stream.parse(" ".join(row["event"] for row in events), None)
    scenario = run_scenario(config, records)
    matrix = accuracy_matrix(records, scenario, len(stream), tasks)
    live = stream.learned_after[-1]
    summary: dict[str, Any] = {
        "experiment": config["experiment"],
        "seed": config["seed"],
        "benchmark": config["benchmark"]["name"],
        "stream": str(stream),
        "scenario": scenario,
        "strategies": list(config["strategies"]),
        "average_accuracy": average_accuracy(matrix[-1], live),
        "average_anytime_accuracy": average_anytime_accuracy(matrix, stream),
        "forgetting": forgetting(matrix, stream),
        "bwt": bwt(matrix, stream),
        "fwt": fwt(matrix, baseline(records, scenario, tasks), stream),
        "accuracy_matrix": matrix,
    }
    if scenario == "class_il" and _accuracies(records, "task_il"):
        by_task = accuracy_matrix(records, "task_il", len(stream), tasks)
        summary["average_accuracy_task_il"] = average_accuracy(by_task[-1], live)
        summary["accuracy_matrix_task_il"] = by_task
    elif scenario == "task_il":
        summary["average_accuracy_task_il"] = summary["average_accuracy"]
    return summary | {
        "train_seconds": sum(row["train_seconds"] for row in events if row["kind"] == "learn"),
        "eval_seconds": sum(row["eval_seconds"] for row in events),
        "steps": sum(row["steps"] for row in events),
        "samples": sum(row["samples"] for row in events),
        "peak_rss_mib": max(row["peak_rss_mib"] for row in events),
    }


def run_scenario(config: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    """The run's own scenario: the configured one, or the first that its records report."""
    return config["scenario"] or records[0]["scenario"]
