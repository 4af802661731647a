"""The figures of unlearning that a run's own records give, without an oracle: tier *fast*. Pure functions; accuracies in percent.

M1 forget gap to chance, M2 spill, M3 relapse, M8 what comes back when weights are rounded, M11 artefacts, M12 cost. What cannot be said
without an oracle, or was not measured, is NOT RUN. Accuracies count what records count: of texts tokens, of questions whose answer counts
as a whole (`Benchmark.whole_rows`) whole answers, whose chance is set to that of one token.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from statistics import mean
from typing import Any

from cl_framework.metrics import is_left, split_without, stream_of, wilson_interval
from cl_framework.stream import Learn, Stream, TaskId, Unlearn

FAST = "fast"
PASS, FAIL, INCONCLUSIVE, INVALID, NOT_RUN = "PASS", "FAIL", "INCONCLUSIVE", "INVALID", "NOT RUN"
ABOVE_CHANCE = 2.0  # points: the most that an unlearned task may lie above chance where there is no oracle
KNOWN = 10.0  # points above chance that a task must have had to count as known
SPILL = 0.3  # points: the most that retained tasks may lose on average
RELAPSE = 0.5  # points: the most that may come back
ROUNDED = 2.0  # points: the most that may come back when weights are rounded
COLLAPSE = 10.0  # points of retained accuracy whose loss makes a rounded model one that knows nothing
ROUNDED_METRIC = "accuracy_"  # before the name of a rounding, int8 or int4: an accuracy with rounded weights


@dataclass(frozen=True)
class Figure:
    """A figure of EVALUATION's table with its verdict. `value` is None where it is NOT RUN."""

    name: str  # M1 to M12, E1, T1 to T7
    value: float | None
    verdict: str
    why: str  # the rule or the reason, in words
    interval: tuple[float, float] | None = None  # 95 %
    worst: float | None = None
    bound: float | None = None
    details: Mapping[str, float] = field(default_factory=dict)


def split_of(event: Unlearn) -> str:
    """The split of the records on which a request is measured: the whole test split of its task, or that of the classes named."""
    return f"test:class={','.join(map(str, event.classes))}" if event.classes else "test"


def retained_after(stream: Stream, index: int, splits: Container[tuple[TaskId, str]]) -> list[tuple[TaskId, str]]:
    """What is retained after the event at `index`: tasks, each with the split that holds its classes which are not gone by then.

    splits: tasks and splits in the records. A task of which no class is left is not retained; the rest of one asked for in part is.
    """
    gone = stream.classes_gone[index]
    mine = [(task, gone.get(task, ())) for task in stream.learned_after[index]]
    return [(task, split_without(classes)) for task, classes in mine if is_left(task, classes, splits)]


@dataclass(frozen=True)
class Recorded:
    """The accuracies of a run in its own scenario: by event, task and split."""

    rows: Mapping[tuple[int, TaskId, str, str], Mapping[str, Any]]

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]], scenario: str) -> Recorded:
        mine = [row for row in records if row["scenario"] == scenario]
        return cls({(row["event_index"], row["eval_task"], row["split"], row["metric"]): row for row in mine})

    @cached_property
    def splits(self) -> set[tuple[TaskId, str]]:
        return {(task, split) for _, task, split, _ in self.rows}

    def value(self, index: int, task: TaskId, split: str = "test", metric: str = "accuracy") -> float | None:
        row = self.rows.get((index, task, split, metric))
        return None if row is None else row["value"]

    def rounded(self, index: int, task: TaskId, split: str) -> dict[str, float]:
        """Accuracies with rounded weights, by the name of the rounding."""
        mine = [key for key in self.rows if key[:3] == (index, task, split) and key[3].startswith(f"{ROUNDED_METRIC}int")]
        return {key[3].removeprefix(ROUNDED_METRIC): self.rows[key]["value"] for key in mine}

    def count(self, index: int, task: TaskId, split: str = "test", metric: str = "accuracy") -> int:
        return int(self.rows[index, task, split, metric]["n"])


def unlearning_entries(
    records: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]], done: Mapping[int, Mapping[str, Any]], scenario: str
) -> list[dict[str, Any]]:
    """One entry an Unlearn: the event, its pre-condition, and figures with verdicts, as JSON can hold them.

    events: rows of events.jsonl; done: what the deletion record says of each event that it reports as done.
    """
    recorded = Recorded.of(records, scenario)
    stream = stream_of(events, records)
    entries = []
    for index, event in enumerate(stream):
        if isinstance(event, Unlearn):
            lost = any(row["value"] is None for row in records if (row["event_index"], row["metric"]) == (index, "loss"))
            found = [
                *figures_of(recorded, stream, index, events[index].get("finite", True) and not lost),
                artefacts(done.get(index)),
                efficiency(events[index]),
            ]
            entry = {"event_index": index, "event": str(event), "task": event.task, "granularity": event.granularity}
            entries.append({**entry, "figures": [asdict(figure) for figure in found]})
    return entries


def figures_of(recorded: Recorded, stream: Stream, index: int, finite: bool = True) -> list[Figure]:
    """M1 to M3 and M8 of the Unlearn at `index`; finite: whether the model's weights and losses are numbers after it."""
    event = stream.events[index]
    assert isinstance(event, Unlearn)
    made = [forget_gap(recorded, event, index), relapse(recorded, stream, index), rounding(recorded, stream, index)]
    reason = destroyed(finite, *_known_of_the_rest(recorded, stream, index))
    first, *others = [replace(one, verdict=INVALID, why=reason) if reason and one.verdict != NOT_RUN else one for one in made]
    return [first, spill(recorded, stream, index), *others]


def destroyed(finite: bool, retained: float | None, chances: Sequence[float]) -> str:
    """Why a model is no answer to any request; "" if it may be one.

    finite: whether its answers are numbers; retained: its mean accuracy on what is retained, None where nothing is, or chance is not known;
    chances: those of the parts of which that is the mean.
    """
    if not finite:
        return "the model has diverged: its answers are not numbers"
    if retained is not None and retained < mean(chances) + KNOWN:
        return f"the model does not know what it retains: {retained:.1f} where chance is {mean(chances):.1f}"
    return ""


def _known_of_the_rest(recorded: Recorded, stream: Stream, index: int) -> tuple[float | None, list[float]]:
    """What `destroyed` asks of a run's records; older ones do not tell the chance of what is retained."""
    parts = retained_after(stream, index, recorded.splits)
    accuracies, chances = ([recorded.value(index, task, split, metric) for task, split in parts] for metric in ("accuracy", "chance"))
    known, chance = ([value for value in values if value is not None] for values in (accuracies, chances))
    return (mean(known), chance) if parts and len(known) == len(chance) == len(parts) else (None, [])


def forget_gap(recorded: Recorded, event: Unlearn, index: int) -> Figure:
    """M1: accuracy on what was unlearned, less chance; the interval takes the answers that are counted for independent."""
    split = split_of(event)
    chance = recorded.value(index, event.task, split, "chance")
    before = recorded.value(index - 1, event.task, split)
    after = recorded.value(index, event.task, split)
    if event.granularity == "sample":
        return Figure("M1", None, NOT_RUN, "samples are compared with an oracle, not with chance")
    if chance is None or before is None or after is None:
        return Figure("M1", None, NOT_RUN, "accuracies before and after were not recorded")
    count = recorded.count(index, event.task, split)
    error = 100 * (before / 100 * (1 - before / 100) / count) ** 0.5
    low, high = wilson_interval(round(after / 100 * count), count)
    gap, interval = after - chance, (100 * low - chance, 100 * high - chance)
    if before < chance + max(KNOWN, 3 * error):
        return Figure("M1", gap, INVALID, f"it was not known just before: {before:.1f} where chance is {chance:.1f}", interval)
    verdict = PASS if gap <= ABOVE_CHANCE else FAIL
    return Figure("M1", gap, verdict, f"points above chance, at most {ABOVE_CHANCE:g}", interval, bound=ABOVE_CHANCE)


def spill(recorded: Recorded, stream: Stream, index: int) -> Figure:
    """M2: what retained tasks lost in the event: mean and worst of max(0, before - after)."""
    losses = []
    for task, split in retained_after(stream, index, recorded.splits):
        before, after = recorded.value(index - 1, task, split), recorded.value(index, task, split)
        if before is None or after is None:
            return Figure("M2", None, NOT_RUN, f"accuracies on task {task} were not recorded")
        losses.append(max(0.0, before - after))
    if not losses:
        return Figure("M2", None, NOT_RUN, "nothing is retained")
    if mean(losses) <= SPILL and (reason := destroyed(True, *_known_of_the_rest(recorded, stream, index))):
        return Figure("M2", mean(losses), INVALID, reason, worst=max(losses))  # it was lost before: there is nothing left to lose
    verdict = PASS if mean(losses) <= SPILL else FAIL
    return Figure("M2", mean(losses), verdict, f"points lost on average, at most {SPILL:g}", worst=max(losses), bound=SPILL)


def relapse(recorded: Recorded, stream: Stream, index: int) -> Figure:
    """M3 without an oracle: the most that came back in later events, before the task was learned again."""
    event = stream.events[index]
    assert isinstance(event, Unlearn)
    split, came_back = split_of(event), []
    after = recorded.value(index, event.task, split)
    for later in range(index + 1, len(stream)):
        one = stream.events[later]
        if isinstance(one, Learn) and one.task == event.task:
            break
        value = recorded.value(later, event.task, split)
        if value is None or after is None:
            return Figure("M3", None, NOT_RUN, "accuracies after later events were not recorded")
        came_back.append(value - after)
    if event.granularity == "sample":
        return Figure("M3", None, NOT_RUN, "samples are compared with an oracle")
    if not came_back:
        return Figure("M3", None, NOT_RUN, "no event followed, or the next one learned it again")
    worst = max(0.0, *came_back)
    if worst <= RELAPSE:
        return Figure("M3", worst, PASS, f"points that came back, at most {RELAPSE:g}", bound=RELAPSE)
    # Transfer from later tasks raises a task that was never seen as well: only an oracle can tell the two apart.
    return Figure(
        "M3", worst, INCONCLUSIVE, f"more than {RELAPSE:g} points came back; an oracle tells relapse from transfer", bound=RELAPSE
    )


def rounding(recorded: Recorded, stream: Stream, index: int) -> Figure:
    """M8 without an oracle: the most that comes back when weights are rounded to int8 or int4."""
    event = stream.events[index]
    assert isinstance(event, Unlearn)
    if event.granularity == "sample":
        return Figure("M8", None, NOT_RUN, "samples are compared with an oracle")
    split, usable = split_of(event), {}
    now = recorded.value(index, event.task, split)
    found = recorded.rounded(index, event.task, split)
    if now is None or not found:
        return Figure("M8", None, NOT_RUN, "accuracies with rounded weights were not recorded")
    for name, rounded in found.items():
        if not _collapsed(recorded, stream, index, name):
            usable[name] = rounded - now
    if not usable:
        return Figure("M8", None, INVALID, "what is retained is lost as well when weights are rounded")
    worst = max(usable.values())
    verdict = PASS if worst <= ROUNDED else FAIL
    details = {**usable, **_retained_tried(recorded, stream.learned_after[index], event, index, next(iter(found)))}
    return Figure("M8", worst, verdict, f"points that come back, at most {ROUNDED:g}", bound=ROUNDED, details=details)


def _retained_tried(recorded: Recorded, live: Sequence[TaskId], event: Unlearn, index: int, name: str) -> dict[str, float]:
    """On how many test samples a task, at most, retained tasks were tried with rounded weights, where that was not on all."""
    retained = [task for task in live if task != event.task and (index, task, "test", "accuracy") in recorded.rows]
    tried = {task: recorded.count(index, task, metric=f"{ROUNDED_METRIC}{name}") for task in retained}
    fewer = any(count < recorded.count(index, task) for task, count in tried.items())
    return {"retained_samples": max(tried.values())} if fewer else {}


def _collapsed(recorded: Recorded, stream: Stream, index: int, name: str) -> bool:
    """Whether the other tasks that are retained are lost when weights are rounded."""
    losses = []
    for task, split in retained_after(stream, index, recorded.splits):
        if task != stream.events[index].task:
            now, rounded = (recorded.value(index, task, split, metric) for metric in ("accuracy", f"{ROUNDED_METRIC}{name}"))
            if now is not None and rounded is not None:
                losses.append(now - rounded)
    return bool(losses) and mean(losses) > COLLAPSE


def artefacts(done: Mapping[str, Any] | None) -> Figure:
    """M11: artefacts that still hold the data, from an entry of the deletion record; `clu verify` searches again."""
    if done is None:
        return Figure("M11", None, NOT_RUN, "the deletion record does not hold this request")
    found, searched = len(done["contains"]), done["canaries"]["searched"]
    if not searched and not found:
        return Figure("M11", None, NOT_RUN, "the samples have no unmistakable bytes to search for")
    why = f"places that hold a sample, of {searched} searched for, or what was made of one; none may"
    return Figure("M11", float(found), PASS if found == 0 else FAIL, why, bound=0.0)


def audit_seconds(events: Sequence[Mapping[str, Any]], done: Mapping[int, Mapping[str, Any]]) -> float | None:
    """What these figures and the deletion record have taken of a run; None where it was not recorded. Arguments as of the entries."""
    seconds = [row.get("audit_seconds") for row in events] + [entry.get("seconds") for entry in done.values()]
    known = [value for value in seconds if value is not None]
    return sum(known) if len(known) == len(seconds) else None


def efficiency(row: Mapping[str, Any]) -> Figure:
    """M12 without an oracle: the samples of the request. Its seconds are in the event's row: a figure must not differ from run to run."""
    return Figure("M12", None, NOT_RUN, "without an oracle there is no cost to compare with", details=samples_of_answer(row))


def samples_of_answer(row: Mapping[str, Any]) -> dict[str, int]:
    """How often an answer has met samples, and those to be forgotten; of rows from before reads outside of steps were counted, in steps."""
    if "samples_forgotten" in row:
        forgotten = row["samples_forgotten"]
        return {"samples": forgotten + row["samples_retained"], "samples_forget": forgotten}
    return {"samples": row["samples"] + (row.get("samples_drawn") or 0), "samples_forget": row.get("samples_new") or 0}
