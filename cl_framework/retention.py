"""How tasks are kept and how the next ones are learned: accuracy by lag, steps to a criterion by task. Pure functions on records.

Percent and Learn events throughout. What was not measured, or never reached, is None, and so is what would be made of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from cl_framework.metrics import Matrix
from cl_framework.stream import Learn, Stream, TaskId, Unlearn

CRITERION = 80.0  # percent of a learning curve at which a task counts as learned


def living_figures(events: Sequence[Mapping[str, Any]], matrix: Matrix, stream: Stream) -> dict[str, Any]:
    """What a summary says of how tasks are kept and learned; None for what older records do not tell, and for all of a run that learns
    at its end alone: the accuracies before that are an untrained model's."""
    curve = retention_curve(matrix, stream)
    told = all("learning_curve" in row for row in events)
    learned = learning_accuracy(events) if told else None
    speed = learning_speed(events, CRITERION) if told else None
    figures = {
        "retention": curve,
        "retention_slope": retention_slope(curve),
        "learning_accuracy": learned,
        "learning_accuracy_slope": change_by_event(learned) if learned else None,
        "steps_to_criterion": speed,
        "facilitation_in_steps": change_by_event(speed) if speed else None,
    }
    return dict.fromkeys(figures) | {"learns_at_the_end": True} if learns_at_the_end(events) else figures


def learns_at_the_end(events: Sequence[Mapping[str, Any]]) -> bool:
    """Whether no Learn event but the last has taken a step, as where all tasks are learned together there."""
    learns = [row for row in events if row["kind"] == "learn"]
    return len(learns) > 1 and learns[-1]["steps"] > 0 and not any(row["steps"] for row in learns[:-1])


def retention_curve(matrix: Matrix, stream: Stream) -> list[float | None]:
    """Mean accuracy by lag: how many Learn events ago a task was last learned, from 0; over all tasks that have lived so long.

    matrix[n][t] is the accuracy on task t after event n. A task counts while it is live.
    """
    learned: dict[TaskId, int] = {}  # the number of its last Learn event
    number, found = 0, dict[int, list[float | None]]()
    for event, live, row in zip(stream, stream.live_after, matrix, strict=True):
        if not isinstance(event, Learn):
            continue
        number += 1
        learned[event.task] = number
        for task in live:
            found.setdefault(number - learned[task], []).append(row[task])
    return [_mean(found[lag]) for lag in sorted(found)]


def retention_slope(curve: Sequence[float | None]) -> float | None:
    """Log-log slope of a retention curve from lag 1 on: the exponent if accuracy falls as a power of the lag. None as `retention_fit`."""
    fit = retention_fit(curve)
    return None if fit is None else fit[1]


def retention_fit(curve: Sequence[float | None]) -> tuple[float, float] | None:
    """Accuracy at lag 1 and exponent of the power of the lag that lies nearest to a retention curve, by logarithms, from lag 1 on.

    None for fewer than two lags, or where an accuracy is 0 or missing.
    """
    later = curve[1:]
    known = [value for value in later if value]
    if len(known) < max(2, len(later)):
        return None
    lags, accuracies = [math.log(lag) for lag in range(1, len(known) + 1)], [math.log(value) for value in known]
    exponent = slope(lags, accuracies)
    return math.exp(mean(accuracies) - exponent * mean(lags)), exponent


@dataclass(frozen=True)
class Retained:
    """What a Learn event taught in nats, and how much of it was left later; after Chang et al. 2024 (arXiv 2406.11813)."""

    event_index: int
    task: TaskId
    effectivity: float  # loss before the event, less the least loss seen in it, > 0
    points: list[tuple[int, float | None]]  # steps since that least loss, and the share of the gain that is left: 1 all, 0 none
    decay: float | None  # a of share = b - a log10(steps): what is lost a decade of steps; None for fewer than two points, or a missing one


def retained_shares(losses: Sequence[tuple[int, TaskId, int, float | None]], stream: Stream) -> list[Retained]:
    """Of every Learn event that lowered its task's loss: how the gain is kept, until the task is learned again or unlearned.

    losses: (event index, task, stream step, loss) of all looks, within events and after them, in order; index -1 before the first.
    A loss that is no number (None) leaves no share that could be told.
    """
    found = []
    for index, event in enumerate(stream):
        if not isinstance(event, Learn):
            continue
        end = next((later for later in range(index + 1, len(stream)) if stream.events[later].task == event.task), len(stream))
        mine = [look for look in losses if look[1] == event.task]
        before = [loss for number, _, _, loss in mine if number == index - 1 and loss is not None]
        during = [(step, loss) for number, _, step, loss in mine if number == index and loss is not None]
        if not before or not during:
            continue
        best_step, best = min(during, key=lambda look: (look[1], -look[0]))
        gain = before[-1] - best
        if gain <= 0:
            continue
        later = [(step, loss) for number, _, step, loss in mine if index <= number < end and step > best_step]
        points = [(step - best_step, None if loss is None else (before[-1] - loss) / gain) for step, loss in later]
        shares = [share for _, share in points if share is not None]
        falls = len({step for step, _ in points}) > 1 and len(shares) == len(points)
        decay = -slope([math.log10(step) for step, _ in points], shares) if falls else None
        found.append(Retained(index, event.task, gain, points, decay))
    return found


def kept_figures(losses: Sequence[tuple[int, TaskId, int, float | None]], stream: Stream) -> dict[str, Any]:
    """What a summary says of it: every Learn event's, and the mean share left at the end; nothing without losses.

    The mean is of what is left before a task is learned again, or at the end, of all Learn events but the last one and those whose task
    was unlearned since. It goes by losses after events alone, so that runs are alike however often they look, and is above 1 where later
    events lower an earlier loss.
    """
    found = [one for one in retained_shares(losses, stream) if one.points]
    if not found:
        return {}
    after_events = list({(index, task): (index, task, step, loss) for index, task, step, loss in losses}.values())
    left = [one.points[-1][1] for one in retained_shares(after_events, stream) if one.points and _is_to_be_kept(one, stream)]
    shares = {"retained_shares": [asdict(one) for one in found]}
    return {"retained_share": _mean(left), **shares} if left else shares


def _is_to_be_kept(taught: Retained, stream: Stream) -> bool:
    later = stream.events[taught.event_index + 1 :]
    unlearned = (isinstance(event, Unlearn) and event.granularity == "task" and event.task == taught.task for event in later)
    return any(isinstance(event, Learn) for event in later) and not any(unlearned)


def steps_to_criterion(curve: Sequence[Sequence[float]], criterion: float, window: int = 3) -> int | None:
    """Steps of a learning curve (steps, accuracy, rows) until the accuracy of `window` points together reaches `criterion` percent.

    The first points count as far as they go. None if it is never reached.
    """
    for end in range(1, len(curve) + 1):
        part = curve[max(0, end - window) : end]
        if sum(accuracy * rows for _, accuracy, rows in part) >= criterion * sum(rows for *_, rows in part):
            return int(part[-1][0])
    return None


def learning_speed(events: Sequence[Mapping[str, Any]], criterion: float, window: int = 3) -> list[int | None]:
    """Steps to the criterion of every Learn event, from the rows of events.jsonl."""
    return [steps_to_criterion(row["learning_curve"], criterion, window) for row in events if row["kind"] == "learn"]


def learning_accuracy(events: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Accuracy over the whole learning curve of every Learn event, by rows: with one epoch, the first-epoch accuracy."""
    curves = [row["learning_curve"] for row in events if row["kind"] == "learn"]
    sizes = [sum(rows for *_, rows in curve) for curve in curves]
    correct = [sum(accuracy * rows for _, accuracy, rows in curve) for curve in curves]
    return [total / size if size else None for total, size in zip(correct, sizes, strict=True)]


def change_by_event(by_event: Sequence[float | None]) -> float | None:
    """Change of a figure from one Learn event to the next: the slope of its least-squares line.

    Of `learning_speed` it is forward facilitation, negative where later tasks are learned in fewer steps. None if a value is missing.
    """
    known = [value for value in by_event if value is not None]
    if len(known) < max(2, len(by_event)):
        return None
    return slope([float(number) for number in range(len(known))], known)


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of the least-squares line. At least two different xs."""
    mean_x, mean_y = mean(xs), mean(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if len(known) == len(values) else None
