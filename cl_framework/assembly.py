"""From a configuration to a learner: what can be refused is refused before any data is read, the rest before anything is written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cl_framework.allocation import keep_freed_memory
from cl_framework.benchmarks.base import Benchmark, BenchmarkContext, scaled_of, strong_of
from cl_framework.benchmarks.sources import held_on
from cl_framework.calls import has_features, run_model
from cl_framework.config import Experiment, GivenOptions, Named
from cl_framework.errors import ConfigurationError, FrameworkError
from cl_framework.learner import Learner
from cl_framework.rng import global_randomness_kept, seeded
from cl_framework.schema import RunConfig
from cl_framework.stack import Stack
from cl_framework.strategy import Setting
from cl_framework.stream import Learn, Stream, Unlearn, parse_requests


def make_stack(experiment: Experiment) -> Stack:
    """The strategies of an experiment in slot order, checked as far as its configuration alone tells."""
    stack = Stack((slot.slot, slot.strategy_class(slot.options)) for slot in experiment.strategies)
    stream = Stream.parse(experiment.run.stream)
    stack.check(setting_of(experiment.run, stack, stream), stream)
    return stack


def setting_of(run: RunConfig, stack: Stack, stream: Stream) -> Setting:
    """What is known of a run before its benchmark is there."""
    learns = sum(isinstance(event, Learn) for event in stream)
    return Setting(run.scenario, run.batch_size, run.epochs, run.blurry, learns, stack.traits, seams=stack.seams, stream=stream)


def classes_shown(benchmark: Benchmark, stream: Stream, blurry: float) -> int:
    """How many classes a stream shows; blurred tasks hold samples of all."""
    tasks = range(benchmark.num_tasks) if blurry else stream.tasks
    return len({label for task in tasks for label in benchmark.classes[task]})


def make_benchmark(experiment: Experiment) -> Benchmark:
    """Build the benchmark that the experiment names; reads its data."""
    run = experiment.run
    context = BenchmarkContext(
        root=data_root(run), download=run.data.download, seed=run.seed, scenario=run.scenario, in_memory=run.data.in_memory
    )
    return experiment.benchmark.builder(experiment.benchmark.options, context)


def given(benchmark: Benchmark) -> Named:
    """A benchmark that is an object, as a configuration knows it: by its name and the digest of its samples."""
    if not isinstance(benchmark, Benchmark):
        raise ConfigurationError(
            f"benchmark= takes a Benchmark, such as that of from_datasets(train, test); got {type(benchmark).__name__}."
        )
    return Named(benchmark.name, GivenOptions(benchmark.digest), None)


def data_root(run: RunConfig) -> Path:
    """Where data sets lie: `data.root`, else the environment variable CL_DATA, else `data`."""
    return Path(run.data.root or os.environ.get("CL_DATA") or "data").expanduser()


def assemble(experiment: Experiment, benchmark: Benchmark | None = None, *, dealt_by: int | None = None) -> Learner:
    """A learner at the start of its stream. Raises ConfigurationError for whatever cannot be done as asked.

    dealt_by: the seed by which a blurry stream deals samples to tasks; the run's by default.
    """
    keep_freed_memory()
    stack = make_stack(experiment)
    device = choose_device(experiment.run.device)
    benchmark = benchmark or make_benchmark(experiment)
    run = replace(experiment.run, scenario=choose_scenario(experiment.run.scenario, benchmark))
    stream = Stream.parse(run.stream, benchmark.num_tasks)
    if not len(stream):
        raise ConfigurationError(f"the stream is empty: benchmark {benchmark.name!r} has no tasks.")
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        benchmark = on_device(benchmark, device, free // 2)
    with seeded(run.seed, "model"):
        model = experiment.model.builder(experiment.model.options, benchmark)
        known = replace(
            setting_of(run, stack, stream),
            benchmark=benchmark.name,
            benchmark_scenarios=benchmark.scenarios,
            modality=benchmark.modality,
            objective=benchmark.objective,
            num_classes=benchmark.num_classes,
            classes_shown=classes_shown(benchmark, stream, run.blurry),
            num_tasks=benchmark.num_tasks,
            input_shape=benchmark.input_shape,
            model=model,
            augmented=benchmark.transform.random,
            strongly=strong_of(benchmark.transform) is not None,
            scaled=scaled_of(benchmark.transform) is not None,
        )
        stack.check(known, stream)
        learner = Learner(run, benchmark, model, stack, stream, device, dealt_by=dealt_by)
        stack.check_built(replace(known, model=learner.model))
    if run.probes and not has_features(learner.model):
        raise ConfigurationError(
            f"probes look at features, but model {experiment.model.name!r} has no `features` and `head`. Set probes=[], or another model."
        )
    _check_gradients(learner.model)
    _check_requests(learner)
    _check_single_rows(learner)
    return learner


def _check_gradients(model: nn.Module) -> None:
    """Refuse what gives sparse gradients: importances, projections and fused optimizers take dense ones."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            raise ConfigurationError(
                f"the model's {name} gives sparse gradients, which strategies and optimizers here cannot use. Build it with sparse=False."
            )


def _check_single_rows(learner: Learner) -> None:
    """Refuse a step on one sample where a layer needs two, as far as the batch size alone decides it; see `run_model` for other steps."""
    size, stack = learner.run.batch_size, learner.stack
    if stack.transforms_plan() or any(traits.inner_calls == "never" for traits in stack.traits.values()):
        return
    joined = any("draw" in member.seams for member in stack.members)  # drawn rows may join a single one, but not in the first step
    learns = [event for event in learner.stream if isinstance(event, Learn)]
    single = [event for event in learns if size == 1 or (not joined and len(learner.planned_ids(event.task)) % size == 1)]
    if not single:
        return
    model, rows = deepcopy(learner.model).train(), learner.read(learner.planned_ids(single[0].task)[:1])
    try:
        with torch.no_grad(), global_randomness_kept(learner.device):
            run_model(model, rows)
    except FrameworkError as error:
        raise ConfigurationError(f"batch_size={size}: in {single[0]} {error}") from error


def _check_requests(learner: Learner) -> None:
    """Refuse requests for samples that do not exist, or that are all gone by then, and a Learn of a task of which none are left."""
    gone = learner.deleted
    for index, event in enumerate(learner.stream):
        if isinstance(event, Learn):
            planned = learner.planned_ids(event.task)
            if len(planned) and bool(torch.isin(planned, gone).all()):
                raise _nothing_left(learner, event, index)
        else:
            ids = learner.forgotten(event).ids
            if len(ids) and bool(torch.isin(ids, gone).all()):
                raise ConfigurationError(
                    f"stream: all samples that {event} (event {index}) names are unlearned already by then. Remove that event."
                )
            if event.granularity != "task":
                gone = torch.cat([gone, ids]).unique()


def check_without(learner: Learner) -> None:
    """Refuse a run that is to be without samples that its stream never learns. Streams that are made of a run's, as oracles', may be."""
    learned = {event.task for event in learner.stream if isinstance(event, Learn)}
    for request in parse_requests(learner.run.without):
        if request.task not in learned:
            raise ConfigurationError(f"without: {request} does nothing: the stream never learns task {request.task}. Leave it out.")


def _nothing_left(learner: Learner, event: Learn, index: int) -> ConfigurationError:
    requests = (*parse_requests(learner.run.without), *learner.stream.events[:index])
    took = [str(one) for one in requests if isinstance(one, Unlearn) and one.task == event.task and one.granularity != "task"]
    return ConfigurationError(
        f"stream: {event} (event {index}) has no sample left to learn: {', '.join(took)} took all of task {event.task}, and classes and "
        f"samples that were unlearned stay out. Remove that event, or ask for U{event.task} alone: a whole task can be learned again."
    )


def on_device(benchmark: Benchmark, device: torch.device, room: int) -> Benchmark:
    """The benchmark with the data that is in memory held on `device`, if that takes at most `room` bytes."""
    count = len(benchmark.train)
    sources = held_on([*benchmark.train, *benchmark.test], device, room)
    return replace(benchmark, train=sources[:count], test=sources[count:])


def choose_scenario(asked: str, benchmark: Benchmark) -> str:
    """The scenario of a run: the one asked for, if the benchmark allows it, else the benchmark's first."""
    if not asked:
        return benchmark.scenarios[0]
    if asked not in benchmark.scenarios:
        allowed = ", ".join(benchmark.scenarios)
        raise ConfigurationError(f"scenario={asked} does not fit benchmark {benchmark.name!r}, which allows: {allowed}.")
    return asked


def choose_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device=cuda, but torch finds no CUDA device here. Use device=cpu or device=auto.")
    return torch.device(name, 0) if name == "cuda" else torch.device(name)


@contextmanager
def torch_as_configured(experiment: Experiment) -> Iterator[None]:
    """Threads and determinism as the run wants them; afterwards as the caller had them.

    On an accelerator algorithms that give the same bits each time are used wherever torch has them, so that a resume is exact there
    too; `deterministic=true` refuses, there and on a CPU, what has none.
    """
    run = experiment.run
    accelerated = choose_device(run.device).type == "cuda"
    filler: Any = torch.utils.deterministic
    threads, filling = torch.get_num_threads(), filler.fill_uninitialized_memory
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(run.threads or threads)
    if accelerated:  # without it products of matrices are not among them; it stays, since cuBLAS reads it once
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(run.deterministic or accelerated, warn_only=accelerated and not run.deterministic)
    filler.fill_uninitialized_memory = False  # nothing here reads memory that it did not write
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        filler.fill_uninitialized_memory = filling
