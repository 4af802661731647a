"""Seconds-long runs for tests: experiments on the synthetic benchmark, what they leave behind, and how two of them differ."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_framework.assembly import make_benchmark
from cl_framework.benchmarks.base import Benchmark, Source
from cl_framework.checkpoint import CheckpointStore
from cl_framework.config import Experiment, Slot, load_experiment
from cl_framework.inputs import Inputs
from cl_framework.records import RunDirectory
from cl_framework.runner import resume, run

PLAIN = {"name": "mlp", "hidden": [16]}
ROUGH = {"name": "mlp", "hidden": [16], "dropout": 0.2, "batch_norm": True}  # shows calls that leave a trace
STEPS_A_TASK = 5  # the last one with fewer rows


def experiment_of(
    strategies: Mapping[str, Mapping[str, Any]], folder: Path, *, stream: str = "L0 L1", overrides: Sequence[str] = (), **settings: Any
) -> Experiment:
    """Slots and their options on the synthetic benchmark: three tasks of two classes, `STEPS_A_TASK` steps a task and epoch.

    `settings` replace keys of the run, `overrides` are those of the command line. Runs go to `folder`. They run on the device that
    the environment variable CL_TEST_DEVICE names, else on the CPU.
    """
    base: dict[str, Any] = {
        "experiment": "contract",
        "stream": stream,
        "benchmark": {"name": "synthetic", "tasks": 3, "classes_per_task": 2, "train_per_class": 18, "test_per_class": 20, "seed": 0},
        "model": PLAIN,
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.5, "weight_decay": 0.001},
        "batch_size": 8,
        "strategies": dict(strategies),
        "out": str(folder),
        "device": os.environ.get("CL_TEST_DEVICE", "cpu"),
        "threads": 1,
        "checkpoint": {"every_seconds": 1e9},
    }
    return load_experiment({**base, **settings}, overrides)


def beside(experiment: Experiment, *, before: Sequence[Slot] = (), after: Sequence[Slot] = ()) -> Experiment:
    """The experiment with further strategies, outside (`before`) or inside (`after`) its own."""
    slots = (*before, *experiment.strategies, *after)
    written = {slot.slot: experiment.run.strategies.get(slot.slot, {"use": slot.name}) for slot in slots}
    return replace(experiment, run=replace(experiment.run, strategies=written), strategies=slots)


def in_place_of(experiment: Experiment, strategy_class: type) -> Experiment:
    """The experiment with another class in its first slot, under the same options."""
    first, *others = experiment.strategies
    return replace(experiment, strategies=(replace(first, strategy_class=strategy_class), *others))


@dataclass(frozen=True)
class Outcome:
    """What a finished run left behind."""

    path: Path
    learner: dict[str, Any]  # its last checkpoint's: model, optimizer memory, strategies by slot
    records: list[tuple[int, int, str, float | None]]  # event index, task, scenario, percent
    summary: dict[str, Any]

    @property
    def weights(self) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = self.learner["model"]
        return weights

    @property
    def bytes_of_records(self) -> bytes:
        return (self.path / "records.jsonl").read_bytes()


def outcome_of(path: Path) -> Outcome:
    """Read what the finished run at `path` left."""
    directory = RunDirectory(path)
    warnings: list[str] = []
    state = CheckpointStore(directory.checkpoints).load_latest(warnings.append)
    assert state is not None and not warnings, f"no whole checkpoint in {path}: {warnings}"
    rows = [(row["event_index"], row["eval_task"], row["scenario"], row["value"]) for row in directory.records()]
    summary = json.loads((path / "summary.json").read_text())
    return Outcome(path, state["learner"], rows, summary)


def finish(experiment: Experiment, benchmark: Benchmark | None = None) -> Outcome:
    """Run an experiment to its end."""
    result = run(experiment, benchmark=benchmark)
    assert result.status == "done", f"the run in {result.path} is {result.status}"
    return outcome_of(result.path)


def finish_in_pieces(experiment: Experiment, stops: Callable[[int], bool], benchmark: Benchmark) -> tuple[Outcome, int]:
    """Run to the end, stopping before each stream step that `stops` names, with a resume after every stop. Counts the stops."""
    seen: set[int] = set()

    def stop_requested(stream_step: int) -> bool:
        if stream_step in seen or not stops(stream_step):
            return False
        seen.add(stream_step)
        return True

    result = run(experiment, benchmark=benchmark, stop_requested=stop_requested)
    while result.status == "stopped":
        result = resume(result.path, benchmark=benchmark, stop_requested=stop_requested)
    return outcome_of(result.path), len(seen)


def first_difference(one: Any, other: Any, where: str = "state", rounding: float = 0.0) -> str | None:
    """Where two nested states differ first, or None if they are equal: bit for bit, or to a relative difference of `rounding`."""
    if type(one) is not type(other):
        return f"{where}: {type(one).__name__} against {type(other).__name__}"
    if isinstance(one, Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape and _close(one, other, rounding)
        return None if same else f"{where}: tensors of shapes {tuple(one.shape)} and {tuple(other.shape)} differ"
    if isinstance(one, Mapping):
        if one.keys() != other.keys():
            return f"{where}: keys {sorted(map(str, one))} against {sorted(map(str, other))}"
        pairs = [(one[key], other[key], f"{where}.{key}") for key in one]
    elif isinstance(one, list | tuple):
        if len(one) != len(other):
            return f"{where}: {len(one)} entries against {len(other)}"
        pairs = [(a, b, f"{where}[{index}]") for index, (a, b) in enumerate(zip(one, other, strict=True))]
    else:
        return None if one == other else f"{where}: {one!r} against {other!r}"
    return next((found for a, b, place in pairs if (found := first_difference(a, b, place, rounding))), None)


def _close(one: Tensor, other: Tensor, rounding: float) -> bool:
    if not rounding or not one.is_floating_point():
        return torch.equal(one.view(-1), other.view(-1))
    return float((one - other).norm()) <= rounding * float(other.norm())


def assert_equal_outcomes(one: Outcome, other: Outcome, what: str, *, slot: str | None = None) -> None:
    """Weights, the state of `slot` (all slots if None) and the recorded figures are equal bit for bit."""

    def state(outcome: Outcome) -> dict[str, Any]:
        strategies = outcome.learner["strategies"]
        return {"model": outcome.weights, "strategies": strategies if slot is None else {slot: strategies.get(slot)}}

    difference = first_difference(state(one), state(other)) or first_difference(one.records, other.records, "records")
    assert difference is None, f"{what}: {difference}"


def assert_different_weights(one: Outcome, other: Outcome, what: str) -> None:
    """The negative control of an equality: if these weights were equal, the comparison would show nothing."""
    assert first_difference(one.weights, other.weights) is not None, f"{what}: the weights are equal, so that this check shows nothing"


class ThroughWorkers:
    """A source as if it did not fit in memory, so that data-loader workers read it."""

    in_memory = False

    def __init__(self, source: Source) -> None:
        self.source = source
        self.targets = source.targets

    def __len__(self) -> int:
        return len(self.source)

    def read(self, rows: Tensor) -> Inputs:
        return self.source.read(rows)


class Jitter:
    """Scales as the synthetic benchmark does, and adds noise to what is trained on: an augmentation."""

    random = True

    def __call__(self, items: Inputs, generator: torch.Generator | None) -> Inputs:
        assert isinstance(items, Tensor)
        inputs = items.float() / 255
        if generator is None:
            return inputs
        noise = torch.randn(inputs.shape, generator=generator).to(inputs.device, non_blocking=True)
        return inputs + 0.1 * noise


def augmented(experiment: Experiment, *, through_workers: bool = False) -> Benchmark:
    """The experiment's benchmark with an augmentation, read by workers if asked to."""
    benchmark = make_benchmark(experiment)
    train = [ThroughWorkers(source) for source in benchmark.train] if through_workers else benchmark.train
    return replace(benchmark, train=train, transform=Jitter())
