"""Accuracy on the held-out split of tasks, and in language modelling the loss. Changes nothing: weights, statistics, mode and random
streams stay as they were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cl_framework.calls import evaluation_mode, run_model
from cl_framework.criterion import asked, place_losses, right
from cl_framework.inputs import each
from cl_framework.learner import Learner
from cl_framework.loading import read_ahead
from cl_framework.rng import global_randomness_kept
from cl_framework.strategy import Rows
from cl_framework.stream import TaskId


@dataclass(frozen=True)
class Accuracy:
    """Correct answers on one task under one scenario."""

    task: TaskId
    scenario: str
    correct: int
    count: int  # answers asked: one a sample; of texts one a token, or one a row whose answer counts as a whole
    split: str = "test"  # or the part of it that holds some classes
    chance: float = 0.0  # percent of right answers of one who picks among the candidates; of texts at one place
    loss: float | None = None  # mean over the places that ask, in nats; in language modelling alone

    @property
    def percent(self) -> float:
        return 100.0 * self.correct / self.count


@dataclass(frozen=True)
class Part:
    """The test samples of a task, or those of some of its classes."""

    task: TaskId
    split: str
    classes: Tensor | None  # (C,) bool; None: all
    count: int  # answers asked


def evenly(count: int, most: int | None) -> Tensor:
    """Places among `count`: all, or `most` of them from first to last, as evenly as whole numbers lie."""
    if most is None or count <= most:
        return torch.arange(count)
    return torch.linspace(0, count - 1, most).round().long().unique()


def parts_of(learner: Learner, tasks: Sequence[TaskId], most: int | None = None) -> list[Part]:
    """Each task as a whole; and where the stream unlearns classes of it, these and what is left, of each request and of all so far."""
    parts = []
    for task in tasks:
        targets = _targets(learner, task, most)
        parts.append(Part(task, "test", None, int(asked(targets, learner.benchmark.whole_rows).sum())))
        requests = [event.classes for event in learner.stream.unlearns if event.task == task and event.classes]
        so_far = [gone[task] for gone in learner.stream.classes_gone if task in gone]
        for classes in dict.fromkeys([*requests, *so_far]):
            mask = torch.zeros(learner.benchmark.num_classes, dtype=torch.bool)
            mask[list(classes)] = True
            for sign, chosen in (("=", mask), ("!=", ~mask)):
                count = int(chosen[targets].sum())
                if count:
                    parts.append(Part(task, f"test:class{sign}{','.join(map(str, classes))}", chosen.to(learner.device), count))
    return parts


def _targets(learner: Learner, task: TaskId, most: int | None) -> Tensor:
    """Of the test samples on which a task is evaluated; on the host."""
    targets = learner.benchmark.test[task].targets
    return targets[evenly(len(targets), most)]


def evaluate(learner: Learner, tasks: Sequence[TaskId], live: Sequence[TaskId], most: int | None = None) -> list[Accuracy]:
    """One pass over the test data of `tasks`, under every scenario the benchmark and the run allow; see `parts_of`.

    most: of each task at most so many test samples, evenly chosen; all by default.
    Class-incremental candidates for task t are the classes of `live` tasks and of t; task-incremental ones those of t alone.
    """
    scenarios, parts = reported_scenarios(learner), parts_of(learner, tasks, most)
    masks = {task: [candidates(learner, scenario, task, live) for scenario in scenarios] for task in tasks}
    chances = {task: [100.0 / int(mask.sum()) for mask in own] for task, own in masks.items()}
    # Where all classes are candidates there is nothing to mask: of a language model's logits it would make a copy.
    excluded = {task: [None if bool(mask.all()) else ~mask.to(learner.device) for mask in own] for task, own in masks.items()}
    counts = torch.zeros(len(parts), len(scenarios), dtype=torch.int64, device=learner.device)
    losses = torch.zeros(learner.benchmark.num_tasks, dtype=torch.float64, device=learner.device)
    models_language = learner.benchmark.objective == "language_modelling"
    predict = learner.stack.predictor
    full_precision = torch.autocast(learner.device.type, enabled=False)  # within a step of a mixed-precision run, too
    with torch.no_grad(), full_precision, evaluation_mode(learner.model), global_randomness_kept(learner.device):
        for task in tasks:
            mine = [(place, part.classes) for place, part in enumerate(parts) if part.task == task]
            for rows in held_out_batches(learner, task, evenly(len(learner.benchmark.test[task]), most)):
                features, scores = run_model(learner.model, rows)
                if predict is not None:
                    scores = predict(features, scores, rows)
                if models_language:
                    losses[task] += place_losses(scores, rows.targets).sum()
                for column, mask in enumerate(excluded[task]):
                    chosen = scores if mask is None else scores.masked_fill(mask, float("-inf"))
                    hits = right(chosen, rows.targets, learner.benchmark.whole_rows)
                    for place, classes in mine:
                        counts[place, column] += (hits if classes is None else hits & classes[rows.targets]).sum()
    table, sums = counts.tolist(), losses.tolist()  # the only waits for the device

    def found(place: int, part: Part, column: int) -> Accuracy:
        loss = sums[part.task] / int(asked(_targets(learner, part.task, most)).sum()) if models_language else None
        return Accuracy(part.task, scenarios[column], table[place][column], part.count, part.split, chances[part.task][column], loss)

    return [found(place, part, column) for place, part in enumerate(parts) for column in range(len(scenarios))]


def reported_scenarios(learner: Learner) -> tuple[str, ...]:
    """The scenarios whose figures one run gives, its own first: class- and task-incremental together, domain-incremental alone.

    A task-conditioned model is told the task of every test sample, so it has no class-incremental answer.
    """
    own = learner.run.scenario
    told = getattr(learner.model, "task_conditioned", False)
    others = {"class_il": ("task_il",), "task_il": () if told else ("class_il",)}.get(own, ())
    return (own, *(name for name in others if name in learner.benchmark.scenarios))


def candidates(learner: Learner, scenario: str, task: TaskId, live: Sequence[TaskId]) -> Tensor:
    """(C,) bool: the classes among which an answer for `task` is chosen."""
    benchmark = learner.benchmark
    mask = torch.zeros(benchmark.num_classes, dtype=torch.bool)
    for one in [task] if scenario == "task_il" else [*live, task]:
        mask[list(benchmark.classes[one])] = True
    return mask


def held_out_batches(learner: Learner, task: TaskId, places: Tensor) -> Iterator[Rows]:
    """The test samples of a task at some places (N,), in batches."""
    size, source = learner.run.evaluation_batch_size, learner.benchmark.test[task]
    readable, batches = learner.stack.reads_tasks, places.split(size)
    for rows, items in zip(batches, read_ahead(source, batches, learner.run.data.workers), strict=True):
        moved = each(lambda part: part.to(learner.device), items)
        targets = source.targets[rows].to(learner.device)
        # Test samples have no training id: -1 is nobody's.
        ids = torch.full((len(rows),), -1, device=learner.device)
        inputs = learner.benchmark.transform(moved, None)
        tasks = torch.full((len(rows),), task)
        yield Rows(moved, targets, ids, tasks.to(learner.device), inputs, tasks_readable=readable, host_tasks=tasks)
