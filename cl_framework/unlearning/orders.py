"""Path dependence, figure M7: the same request after other orders of the events before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import stdev
from typing import Any

from cl_framework.benchmarks.base import Benchmark
from cl_framework.config import Experiment
from cl_framework.rng import RandomStream
from cl_framework.stream import Event, Stream
from cl_framework.unlearning.fast import FAIL, PASS, Figure
from cl_framework.unlearning.measure import Measured, Question, measure
from cl_framework.unlearning.oracle import Oracles, live_again
from cl_framework.unlearning.verdicts import LEAST, Models, forget_gap, leakage, relearning_gap, retrain_gap

ORDERS = 3  # the run's own among them


def add_path_dependence(
    result: dict[str, Any], experiment: Experiment, benchmark: Benchmark, asked: Sequence[Question], tell: Callable[[str], None]
) -> None:
    """Write M7 into each request of an audit's result, and what each order gave."""
    for question, request in zip(asked, result["requests"], strict=True):
        own = {figure["name"]: figure["value"] for figure in request["figures"]}
        table = [{"stream": result["stream"], **{name: own.get(name) for name in ("M1", "M4", "M6", "M9")}}]
        for number in range(1, ORDERS):
            stream = shuffled(Stream.parse(result["stream"], benchmark.num_tasks), question.index, number, experiment.run.seed)
            tell(f"{question.event} after another order: {stream}")
            table.append({"stream": str(stream), **in_order(experiment, benchmark, stream)})
        request["orders"] = table
        request["figures"].append(asdict(path_dependence(table)))
        request["figures"].sort(key=lambda figure: int(figure["name"][1:]))


def shuffled(stream: Stream, index: int, number: int, seed: int) -> Stream:
    """The events up to the one at `index`, those before it in another order; events of one task keep theirs.

    Drawn anew for each `number`; where there is one task alone there is one order only, and it comes back.
    """
    chains: dict[int, list[Event]] = {}
    for event in stream.events[:index]:
        chains.setdefault(event.task, []).append(event)
    drawn = RandomStream(seed, "audit", "order", index).uniform(number, max(1, index)).tolist()
    events: list[Event] = []
    for value in drawn[:index]:
        left = [task for task, chain in chains.items() for _ in chain]  # a task is drawn as often as it has events: all orders alike
        events.append(chains[left[int(value * len(left))]].pop(0))
    return Stream((*events, stream.events[index]), stream.num_tasks)


def in_order(experiment: Experiment, benchmark: Benchmark, stream: Stream) -> Mapping[str, float | None]:
    """M1, M4, M6 and M9 of the last event of a stream, beside its own oracle."""
    shown = replace(experiment, run=replace(experiment.run, stream=str(stream)))
    last = len(stream) - 1
    oracles = Oracles(shown, benchmark, experiment.run.seed, Path(experiment.run.out) / "oracles")
    event = stream.events[last]
    question = Question.of(oracles.learner, event, last, stream.learned_after[last])  # type: ignore[arg-type]
    seen: dict[int, Measured] = {}

    def look(index: int, learner: Any) -> None:
        if index >= last - 1:
            seen[index] = measure(learner, question)

    live_again(shown, benchmark, {}, look)
    oracles.after(last)
    models = Models(seen[last], seen[last - 1], measure(oracles.learner, question))
    figures = (forget_gap(question, models), relearning_gap(models), retrain_gap(models), leakage(models))
    return {figure.name: figure.value for figure in figures}


def path_dependence(table: Sequence[Mapping[str, Any]]) -> Figure:
    """M7: how far M1 moves with the order, largest less smallest; the standard deviations of all figures beside it."""
    details: dict[str, float] = {}
    for name in ("M1", "M4", "M6", "M9"):
        values = [row[name] for row in table if row[name] is not None]
        if len(values) > 1:
            details |= {f"{name}_range": max(values) - min(values), f"{name}_std": stdev(values)}
    bound = 2 * LEAST["M1"]
    spread = details["M1_range"]
    verdict = PASS if spread <= bound else FAIL
    return Figure("M7", spread, verdict, f"points of M1 between orders ({len(table)}), at most {bound:g}", bound=bound, details=details)
