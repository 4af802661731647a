"""Path dependence, figure M7: the same request after other orders of the events before it.

What an unlearner that follows gradients leaves behind depends on the path that led to the request; what retraining leaves depends on it no
more than learning does (Yu et al. 2025, "On the Impossibility of Retrain Equivalence in Machine Unlearning"). So the models unlearned
after several orders are set beside those that never saw the data after the same orders: they may lie no farther apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from torch import Tensor

from cl_framework.benchmarks.base import Benchmark
from cl_framework.config import Experiment
from cl_framework.digests import digest_of
from cl_framework.learner import Learner
from cl_framework.rng import RandomStream
from cl_framework.stream import Event, Stream, Unlearn
from cl_framework.unlearning.fast import FAIL, INVALID, NOT_RUN, PASS, Figure
from cl_framework.unlearning.measure import Measured, Question, measure
from cl_framework.unlearning.oracle import Oracles, live_again
from cl_framework.unlearning.verdicts import LEAST, Models, as_json, forget_gap, leakage, relearning_gap, retrain_gap, void

_TRIES = 20  # draws for each order wanted: small streams have few
_RANGE = 2 * LEAST["M1"]  # points between two orders, each of which may lie that far from its own oracle, above or below


@dataclass(frozen=True)
class Route:
    """What one order has led to."""

    stream: Stream
    figures: Mapping[str, float | None]  # M1, M4, M6, M9
    before: Tensor  # (N, K) probabilities on what was unlearned, just before
    after: Tensor
    oracle: Tensor
    void: str = ""  # why nothing can be said of the request after this order, where that is so
    state: str = ""  # digest of the oracle's state


def add_path_dependence(
    result: dict[str, Any], experiment: Experiment, benchmark: Benchmark, orders: int, oracles: Path, tell: Callable[[str], None]
) -> None:
    """Write M7 into each request of an audit's result, with what each order gave; `orders` >= 2 of them, the run's own first."""
    stream = Stream.parse(result["stream"], benchmark.num_tasks)
    for request in result["requests"]:
        paths = []
        for one in distinct_orders(stream, request["event_index"], orders, experiment.run.seed):
            tell(f"{request['event']} after {one}")
            paths.append(in_order(experiment, benchmark, one, oracles))
        request["orders"] = [{"stream": str(path.stream), **path.figures, "oracle_state": path.state} for path in paths]
        request["figures"] += as_json([path_dependence(paths)])
        request["figures"].sort(key=lambda figure: (figure["name"][0], int(figure["name"][1:])))


def distinct_orders(stream: Stream, index: int, count: int, seed: int) -> list[Stream]:
    """Up to `count` orders of the events before the one at `index`, this one included: the run's own, and others at random."""
    found = {str(own := Stream(stream.events[: index + 1], stream.num_tasks)): own}
    for number in range(_TRIES * count):
        if len(found) == count:
            break
        drawn = shuffled(stream, index, number, seed)
        found.setdefault(str(drawn), drawn)
    return list(found.values())


def shuffled(stream: Stream, index: int, number: int, seed: int) -> Stream:
    """The events up to the one at `index`, those before it in a random order, in which events of one task keep theirs."""
    chains: dict[int, list[Event]] = {}
    for event in stream.events[:index]:
        chains.setdefault(event.task, []).append(event)
    events: list[Event] = []
    for value in RandomStream(seed, "audit", "order", index).uniform(number, max(1, index)).tolist()[:index]:
        left = [task for task, chain in chains.items() for _ in chain]  # a task is drawn as often as it has events: all orders alike
        events.append(chains[left[int(value * len(left))]].pop(0))
    return Stream((*events, stream.events[index]), stream.num_tasks)


def in_order(experiment: Experiment, benchmark: Benchmark, stream: Stream, folder: Path) -> Route:
    """The last event of a stream, beside its own oracle."""
    shown = replace(experiment, run=replace(experiment.run, stream=str(stream)))
    last = len(stream) - 1
    event = stream.events[last]
    assert isinstance(event, Unlearn)
    oracles = Oracles(shown, benchmark, experiment.run.seed, folder)
    question = Question.of(oracles.learner, event, last, stream)
    seen: dict[int, Measured] = {}

    def look(index: int, learner: Learner) -> None:
        if index >= last - 1:
            seen[index] = measure(learner, question)

    live_again(shown, benchmark, {}, look)
    oracles.after(last)
    state = digest_of(oracles.learner.state_dict())
    models = Models(seen[last], seen[last - 1], measure(oracles.learner, question))
    figures = as_json([forget_gap(question, models), relearning_gap(models), retrain_gap(models), leakage(models, question)])
    before, after, oracle = (one.pool.exp() for one in (models.before, models.unlearned, models.oracle))
    return Route(stream, {figure["name"]: figure["value"] for figure in figures}, before, after, oracle, void(question, models), state)


def pairwise_distances(answers: Sequence[Tensor]) -> list[float]:
    """For each pair of models the mean squared distance of their answers (N, K) to the same N inputs; of probabilities, 0 to 2."""
    return [float((one - other).square().sum(1).mean()) for one, other in combinations(answers, 2)]


def mean_pairwise_distance(answers: Sequence[Tensor]) -> float:
    """The mean over pairs of models; 0 for a single one."""
    return mean(pairwise_distances(answers) or [0.0])


def path_dependence(paths: Sequence[Route]) -> Figure:
    """M7: how far models unlearned after other orders lie apart, at most as far as two that never saw the data; and the range of M1.

    Where the request is void after some order, it does not pass: FAIL if what it left differs, else INVALID.
    """
    details = {"orders": float(len(paths)), **spreads(paths)}
    if len(paths) < 2:
        return Figure("M7", None, NOT_RUN, "the events before the request have no other order", details=details)
    details |= {
        f"distance_{name}": mean_pairwise_distance([getattr(path, name) for path in paths]) for name in ("before", "after", "oracle")
    }
    apart, spread = details["distance_after"], details["M1_range"]
    floor = max(pairwise_distances([path.oracle for path in paths]))
    bound = max(LEAST["M7"], floor)
    nothing = next((f"after {path.stream}: {path.void}" for path in paths if path.void), "")
    dependent = apart > bound or spread > _RANGE
    if nothing and not dependent:
        return Figure("M7", apart, INVALID, nothing, bound=bound, details=details)
    why = (
        f"mean squared distance between answers after {len(paths)} orders, at most {bound:.3g} "
        f"(two models that never saw the data: {floor:.3g}); M1 differs by {spread:.3g} points, at most {_RANGE:g}"
    )
    return Figure("M7", apart, FAIL if dependent else PASS, why, bound=bound, details=details)


def spreads(paths: Sequence[Route]) -> dict[str, float]:
    """Range and standard deviation over the orders of each figure that two of them or more have."""
    found: dict[str, float] = {}
    for name in ("M1", "M4", "M6", "M9"):
        values = [value for path in paths if (value := path.figures[name]) is not None]
        if len(values) > 1:
            found |= {f"{name}_range": max(values) - min(values), f"{name}_std": stdev(values)}
    return found
