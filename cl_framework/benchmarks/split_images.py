"""What the benchmarks of natural images share: one data set split by class, a stratified limit, a report of what was done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cl_framework.benchmarks.base import Benchmark, BenchmarkContext, Transform
from cl_framework.benchmarks.sources import DatasetSource, TensorSource, divide_classes, split_by_class
from cl_framework.checks import check_range
from cl_framework.rng import RandomStream


@dataclass(frozen=True)
class Split:
    """How a data set is divided into tasks."""

    tasks: int | None
    classes_per_task: int | None
    class_order: tuple[int, ...] | None
    train_limit: int | None


def check_limit(limit: int | None) -> None:
    if limit is not None:
        check_range("train_limit", limit, low=1)


def stratified(targets: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """Rows of `limit` samples, ascending: of each class its share, rounded by largest remainders, ties to smaller labels."""
    if limit >= len(targets):
        return torch.arange(len(targets))
    labels, counts = targets.unique(return_counts=True)
    quotas = counts * limit // len(targets)
    remainders = counts * limit % len(targets)
    most = remainders.argsort(descending=True, stable=True)[: limit - int(quotas.sum())]
    quotas[most] += 1
    order = torch.randperm(len(targets), generator=generator)
    shuffled = targets[order]
    chosen = [order[(shuffled == label).nonzero().flatten()[:quota]] for label, quota in zip(labels, quotas.tolist(), strict=True)]
    return torch.cat(chosen).sort().values


def split_images(
    name: str,
    train: TensorSource | DatasetSource,
    test: TensorSource | DatasetSource,
    class_names: Sequence[str],
    split: Split,
    context: BenchmarkContext,
    transform: Transform,
    input_shape: tuple[int, ...],
    notes: dict[str, str],
) -> Benchmark:
    """A benchmark of one data set by class; with a limit, of so many training images in all."""
    classes = divide_classes(len(class_names), split.tasks, split.classes_per_task, split.class_order)
    if split.train_limit is not None:
        generator = RandomStream("train_limit", name, context.seed).generator()
        train = train.select(stratified(train.targets, split.train_limit, generator))
        notes = {**notes, "train_limit": f"{len(train):,} training images in all, stratified, seed {context.seed}"}
    return Benchmark(
        name=name,
        num_classes=len(class_names),
        classes=tuple(classes),
        train=split_by_class(train, classes),
        test=split_by_class(test, classes),
        transform=transform,
        input_shape=input_shape,
        scenarios=("class_il", "task_il"),
        notes={"classes": " | ".join(", ".join(class_names[label] for label in held) for held in classes), **notes},
    )
