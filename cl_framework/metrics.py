"""From records to the accuracy matrix and the figures of continual learning, as pure functions. Percent throughout.

a[n][t] is the accuracy on the held-out split of task t after event n; None where it was not measured. The definitions are those of
Chaudhry et al. (2018) and Lopez-Paz & Ranzato (2017), generalised to streams that repeat and unlearn tasks: a task counts while it is
live, from the event at which it was first learned since it was last unknown; one of which requests for classes have left none is not
live. A mean of which a part was not measured is None, never
the mean of the rest.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from cl_framework.errors import FrameworkError
from cl_framework.stream import Learn, Stream, TaskId

Matrix = list[list[float | None]]
BASELINE = -1  # event_index of the untrained model's rows
PROBES = ("rankme", "alpha_req")  # of `representation`, which is not imported to name them


def metric_matrix(rows: Sequence[Mapping[str, Any]], scenario: str, metric: str, num_events: int, num_tasks: int) -> Matrix:
    """A figure of each task's whole test split after each event, whatever is measured there."""
    matrix: Matrix = [[None] * num_tasks for _ in range(num_events)]
    for row in _whole(rows, scenario, metric):
        if row["event_index"] != BASELINE:
            matrix[row["event_index"]][row["eval_task"]] = row["value"]
    return matrix


def accuracy_matrix(
    rows: Sequence[Mapping[str, Any]], scenario: str, num_events: int, num_tasks: int, gone: Sequence[Mapping[TaskId, Sequence[int]]] = ()
) -> Matrix:
    """a[n][t] of one scenario: a row an event, a column a task.

    `gone` names for each event the classes of a task that were unlearned: they are no part of what is measured there.
    """
    matrix = metric_matrix(rows, scenario, "accuracy", num_events, num_tasks)
    left = {(row["event_index"], row["eval_task"], row["split"]): row["value"] for row in _parts(rows, scenario, "test:class!=")}
    for index, classes in enumerate(gone):
        for task, labels in classes.items():
            key = (index, task, split_without(labels))
            if key in left:
                matrix[index][task] = left[key]
    return matrix


def split_without(classes: Sequence[int]) -> str:
    """The split of the records with what is left of a task without some classes, ascending; all of it without any."""
    return f"test:class!={','.join(map(str, classes))}" if classes else "test"


def is_left(task: TaskId, classes: Sequence[int], splits: Container[tuple[TaskId, str]]) -> bool:
    """Whether a task has other classes than these, by the tasks and splits in the records: they hold no empty one."""
    rest = split_without(classes)
    return (task, rest) in splits or (task, rest.replace("!=", "=")) not in splits


def stream_of(events: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]) -> Stream:
    """The stream of a run by the rows of its events, which knows from the records of which tasks no class is left."""
    splits = {(row["eval_task"], row["split"]) for row in records}
    stream = Stream.parse(" ".join(row["event"] for row in events), None)
    return stream.knowing(lambda task, classes: is_left(task, classes, splits))


def matrices(rows: Sequence[Mapping[str, Any]], scenario: str, stream: Stream, num_tasks: int) -> tuple[Matrix, Matrix]:
    """Accuracy after each event of a stream on the classes that are live then; and on those that are live at its end, for what was lost."""
    gone = stream.classes_gone
    count = len(stream)
    then = accuracy_matrix(rows, scenario, count, num_tasks, gone)
    return then, accuracy_matrix(rows, scenario, count, num_tasks, [gone[-1]] * count)


def baseline(rows: Sequence[Mapping[str, Any]], scenario: str, num_tasks: int) -> list[float | None]:
    """Accuracy of the untrained model on each task."""
    values: list[float | None] = [None] * num_tasks
    for row in _whole(rows, scenario):
        if row["event_index"] == BASELINE:
            values[row["eval_task"]] = row["value"]
    return values


def _whole(rows: Sequence[Mapping[str, Any]], scenario: str, metric: str = "accuracy") -> list[Mapping[str, Any]]:
    """Of the whole test split."""
    return [row for row in rows if (row["metric"], row["scenario"], row["split"]) == (metric, scenario, "test")]


def _parts(rows: Sequence[Mapping[str, Any]], scenario: str, start: str) -> list[Mapping[str, Any]]:
    """Accuracies of the parts of the test split whose name begins with `start`."""
    return [row for row in rows if (row["metric"], row["scenario"]) == ("accuracy", scenario) and row["split"].startswith(start)]


def within(metric: str) -> str:
    """The name of a metric in rows that were measured between two steps of an event."""
    return f"{metric}_within"


def perplexity(loss: float | None) -> float | None:
    """exp of a loss in nats; infinite where no float holds it."""
    try:
        return None if loss is None else math.exp(loss)
    except OverflowError:
        return math.inf


def looks_at_losses(rows: Sequence[Mapping[str, Any]], scenario: str) -> list[tuple[int, TaskId, int, float | None]]:
    """Event index, task, stream step and loss of every look within and after events, in order; None where it is no number."""
    looks = [*_whole(rows, scenario, within("loss")), *_whole(rows, scenario, "loss")]
    found = [(row["event_index"], row["eval_task"], row["stream_step"], row["value"]) for row in looks]
    return sorted(found, key=lambda look: look[:3])


@dataclass(frozen=True)
class StabilityGap:
    """How an earlier task fared while another one was learned: percent, or nats where the loss was measured."""

    event_index: int
    task: TaskId
    depth: float | None  # how far it fell below what it was before the event, >= 0; None: a loss was no number
    recovery: int | None  # stream steps from the event's start until it was back there for the first time after the fall; None: never
    area: float | None  # mean deficit over the looks taken, which are `evaluate_every` steps apart; times the event's steps it is the area


def stability_gaps(rows: Sequence[Mapping[str, Any]], scenario: str, stream: Stream, num_tasks: int, metric: str) -> list[StabilityGap]:
    """The gaps of all tasks live before each Learn in which looks were taken (`evaluate_every`), its end included; after Guo et al. 2024.

    `metric` is "accuracy", or "loss", of which less is better.
    """
    sign = -1.0 if metric == "loss" else 1.0
    after = {(row["event_index"], row["eval_task"]): row for row in _whole(rows, scenario, metric)}
    looks: dict[tuple[int, TaskId], list[Mapping[str, Any]]] = {}
    for row in _whole(rows, scenario, within(metric)):
        looks.setdefault((row["event_index"], row["eval_task"]), []).append(row)
    gaps = []
    for (index, task), taken in looks.items():
        if index == 0 or task not in stream.live_after[index - 1] or task == stream.events[index].task:
            continue
        before = after[index - 1, task]
        curve = [*taken, after[index, task]]
        if any(row["value"] is None for row in (before, *curve)):
            gaps.append(StabilityGap(index, task, None, None, None))
            continue
        fallen = [sign * (before["value"] - row["value"]) for row in curve]
        lowest = max(range(len(fallen)), key=fallen.__getitem__)
        back = next((row["stream_step"] for row, fall in zip(curve[lowest:], fallen[lowest:], strict=True) if fall <= 0), None)
        deficits = [max(0.0, fall) for fall in fallen]
        recovery = None if back is None else back - before["stream_step"]
        gaps.append(StabilityGap(index, task, max(deficits), 0 if max(deficits) == 0 else recovery, mean(deficits)))
    return gaps


def average_accuracy(row: Sequence[float | None], live: Sequence[TaskId]) -> float | None:
    """Mean over live tasks of one row of the matrix; None if nothing is live."""
    return _mean([row[task] for task in live])


def average_anytime_accuracy(matrix: Matrix, stream: Stream) -> float | None:
    """Mean over events of the average accuracy so far; events after which no task is live have none and do not count."""
    return _mean([average_accuracy(row, live) for row, live in zip(matrix, stream.live_after, strict=True) if live])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known and len(known) == len(values) else None


def learned_at(stream: Stream) -> dict[TaskId, int]:
    """For each task live at the end: the event at which it was first learned since it was last unknown."""
    at: dict[TaskId, int] = {}
    for index, event in enumerate(stream):
        if isinstance(event, Learn):
            at.setdefault(event.task, index)
        elif event.granularity == "task":
            at.pop(event.task, None)
    return {task: first for task, first in at.items() if task not in stream.emptied}


def forgetting(matrix: Matrix, stream: Stream) -> float | None:
    """Mean over live tasks of max_n a[n][t] - a[last][t], n from when t was learned.

    The task of a last event that learns cannot have been forgotten and is left out, as is usual; None if no task is left.
    """
    drops: list[float | None] = []
    for task, first in _earlier(stream).items():
        values = [row[task] for row in matrix[first:]]
        known = [value for value in values if value is not None]
        drops.append(max(known) - known[-1] if len(known) == len(values) else None)
    return _mean(drops)


def bwt(matrix: Matrix, stream: Stream) -> float | None:
    """Backward transfer: mean over live tasks of a[last][t] - a[after learning t][t]; a task learned at the last event is left out."""
    return _mean([_gain(matrix[first][task], matrix[-1][task]) for task, first in _earlier(stream).items()])


def _earlier(stream: Stream) -> dict[TaskId, int]:
    """`learned_at` without the task of the last event, if that learns."""
    last = stream.events[-1]
    return {task: first for task, first in learned_at(stream).items() if not (isinstance(last, Learn) and task == last.task)}


def _gain(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def fwt(matrix: Matrix, untrained: Sequence[float | None], stream: Stream) -> float | None:
    """Forward transfer: mean over tasks of a[just before t is first learned][t] - the untrained model's; the first event is left out."""
    first_learned: dict[TaskId, int] = {}
    for index, event in enumerate(stream):
        if isinstance(event, Learn):
            first_learned.setdefault(event.task, index)
    return _mean([_gain(untrained[task], matrix[index - 1][task]) for task, index in first_learned.items() if index > 0])


def wilson_interval(successes: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a proportion, in [0, 1]; 95 % by default. n >= 1; fractions, where answers are not independent."""
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


def confidence_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of the mean of independent values, such as a figure over seeds; None for fewer than two."""
    from scipy.stats import t as student

    centre, deviation, count = mean_and_deviation(values)
    if deviation is None:
        return None
    half = float(student.ppf((1 + level) / 2, count - 1)) * deviation / math.sqrt(count)
    return centre - half, centre + half


def summarise(config: Mapping[str, Any], events: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of a run, from its configuration and rows alone. Not rounded; null where there is nothing to say.

    `num_tasks` counts the columns of the matrix: the tasks the stream names, and those before them. Raises FrameworkError if the
    records do not end with the last event.
    """
    last = max((row["event_index"] for row in records), default=None)
    if not events or last != len(events) - 1:
        raise FrameworkError(
            f"the records end with event {last}, but {len(events)} events are done. "
            "Finish the run with `clu resume`; if it was finished, rows are lost: start it anew with again=true."
        )
    tasks = 1 + max(row["eval_task"] for row in records)
    stream = stream_of(events, records)
    scenario = run_scenario(config, records)
    matrix, at_the_end = matrices(records, scenario, stream, tasks)
    live = stream.live_after[-1]
    summary: dict[str, Any] = {
        "experiment": config["experiment"],
        "seed": config["seed"],
        "benchmark": config["benchmark"]["name"],
        "stream": str(stream),
        "events": [str(event) for event in stream],
        "num_tasks": tasks,
        "scenario": scenario,
        "strategies": list(config["strategies"]),
        "average_accuracy": average_accuracy(matrix[-1], live),
        "average_anytime_accuracy": average_anytime_accuracy(matrix, stream),
        "forgetting": forgetting(at_the_end, stream),
        "bwt": bwt(at_the_end, stream),
        "fwt": fwt(matrix, baseline(records, scenario, tasks), stream),
        "accuracy_matrix": matrix,
    }
    summary |= loss_figures(records, scenario, stream, tasks) | probe_figures(records, scenario, stream, tasks)
    gaps = stability_gaps(records, scenario, stream, tasks, "loss" if _whole(records, scenario, "loss") else "accuracy")
    if gaps:
        summary |= {"stability_gap": _mean([gap.depth for gap in gaps]), "stability_gaps": [asdict(gap) for gap in gaps]}
    if scenario == "class_il" and _whole(records, "task_il"):
        by_task, _ = matrices(records, "task_il", stream, tasks)
        summary["average_accuracy_task_il"] = average_accuracy(by_task[-1], live)
        summary["accuracy_matrix_task_il"] = by_task
    elif scenario == "task_il":
        summary["average_accuracy_task_il"] = summary["average_accuracy"]
    share = trained_share(events)
    if share is not None and share < 1:
        summary["trained_share"] = share
    return summary | {
        "train_seconds": sum(row["train_seconds"] for row in events if row["kind"] == "learn"),
        "eval_seconds": sum(row["eval_seconds"] for row in events),
        "steps": sum(row["steps"] for row in events),
        "samples": sum(row["samples"] for row in events),
        "samples_new": _total(_learned(events), "samples_new"),
        "samples_replayed": _total(_learned(events), "samples_past", "samples_drawn"),
        **answer_figures(events),
        **token_figures(events),
        "forward_passes": _total(events, "forward_passes"),
        "backward_passes": _total(events, "backward_passes"),
        "stored_bytes": max((row.get("stored_bytes") for row in events), key=lambda size: size or 0),
        "optimizer_bytes": max((phase["optimizer_bytes"] for phase in _phases(events)), default=None),
        "peak_rss_mib": max(row["peak_rss_mib"] for row in events),
    }


def loss_figures(rows: Sequence[Mapping[str, Any]], scenario: str, stream: Stream, num_tasks: int) -> dict[str, Any]:
    """What a summary says of losses, in nats an answer; nothing where records hold none, as beside language modelling.

    Of the live tasks the newest is the one that was learned last, and the old ones are the rest.
    """
    if not _whole(rows, scenario, "loss"):
        return {}
    losses = metric_matrix(rows, scenario, "loss", len(stream), num_tasks)
    live = stream.live_after[-1]
    newest = [event.task for event in stream if isinstance(event, Learn) and event.task in live][-1:]
    return {
        "average_loss": average_accuracy(losses[-1], live),
        "loss_of_old_tasks": average_accuracy(losses[-1], [task for task in live if task not in newest]),
        "loss_of_newest_task": average_accuracy(losses[-1], newest),
        "loss_rise": forgetting([[None if value is None else -value for value in row] for row in losses], stream),
        "loss_matrix": losses,
    }


def probe_figures(rows: Sequence[Mapping[str, Any]], scenario: str, stream: Stream, num_tasks: int) -> dict[str, Any]:
    """Of each probe that records hold: the mean over the tasks live at the end, and its matrix; nothing without probes."""
    figures: dict[str, Any] = {}
    for probe in PROBES:
        if _whole(rows, scenario, probe):
            matrix = metric_matrix(rows, scenario, probe, len(stream), num_tasks)
            figures |= {probe: average_accuracy(matrix[-1], stream.live_after[-1]), f"{probe}_matrix": matrix}
    return figures


def token_figures(events: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """New and replayed tokens, where rows are packed full of them (`tokens_a_row`); nothing where records do not say so."""
    length, learns = events[-1].get("tokens_a_row"), _learned(events)
    totals = {"tokens_new": _total(learns, "samples_new"), "tokens_replayed": _total(learns, "samples_past", "samples_drawn")}
    return {name: length * rows for name, rows in totals.items() if length is not None and rows is not None}


def answer_figures(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the answers to all requests took: seconds in their steps and outside of them, and samples shown, drawn or read; nothing without
    requests."""
    answers = [row for row in events if row["kind"] == "unlearn"]
    samples = _total(answers, "samples_forgotten", "samples_retained")
    return {"answer_seconds": _total(answers, "answer_seconds"), "answer_samples": samples} if answers else {}


def trained_share(events: Sequence[Mapping[str, Any]]) -> float | None:
    """The share of the parameters in play while Learn events learned, in [0, 1], over their steps; None where records do not tell it."""
    learned = [phase for phase in _phases(_learned(events)) if phase["name"] == "learn"]
    steps = sum(phase["steps"] for phase in learned)
    return sum(phase["trained_share"] * phase["steps"] for phase in learned) / steps if steps else None


def _phases(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The phases of events that tell what they trained; older records do not."""
    return [phase for row in events for phase in row.get("phases", ()) if "optimizer_bytes" in phase]


def _learned(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of Learn events: what an answer to an Unlearn reads is neither new nor replayed."""
    return [row for row in events if row["kind"] == "learn"]


def _total(events: Sequence[Mapping[str, Any]], *columns: str) -> float | None:
    """The sum of some columns over events; None where records do not have them all."""
    values = [row.get(column) for row in events for column in columns]
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def run_scenario(config: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    """The run's own scenario: the configured one, or the first that its records report."""
    return config["scenario"] or records[0]["scenario"]
