"""`clu bench --strategies`: what each strategy costs a step, beside what its forward and backward passes cost in a bare loop.

Every strategy runs in a process of its own, forked from one that has imported what it needs, on one thread: an event to fill memories and
take snapshots, then a measured one. Each of its chunks of steps is followed at once by as many of a plain PyTorch loop with as many
passes over as many rows, augmented alike; the median of the ratios of these pairs is what the framework and the method's own bookkeeping
add. What slows a machine slows both halves of a pair. The first, in which the fit starts (some 35 ms), does not count, and phases
before and after an event (a Fisher pass, a classifier's training) are reported apart. All times are the processor's, not the clock's.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from cl_framework.errors import FrameworkError
from cl_framework.forking import forked

SAMPLES = 60_000  # of the measured event, unless told otherwise
RATE = 0.05  # of learning
TARGET = 1.15  # most times the cost of its passes that a strategy may take, at batches of 32 and more
WARM_UP_STEPS = 100
PAIRS = 6  # at least, where there are as many steps; the first does not count
CAPACITY = 500
FINE_TUNING = "fine-tuning"
HALF_BATCH = 128
WIDE = (1000, 1000)  # hidden units of the model on which half fine-tuning is set beside full
OPTIONS: dict[str, dict[str, Any]] = {"power_law": {"source": "buffer"}}  # beside the defaults


def table(names: Sequence[str], model: str, batches: Sequence[int], steps: int | None, repeats: int, json_path: Path | None) -> None:
    """Measure on a registered model, print, and write the results to `json_path` if there is one. Without names: every strategy there is.

    Raises ConfigurationError if there is no such strategy or model.
    """
    from cl_framework import registry

    known = [entry.name for entry in registry.strategies.entries() if entry.status == "ok"]
    for name in names:
        registry.strategies.get(name)
    registry.models.get(model)
    wanted = [FINE_TUNING, *(names or known)]
    results = [_measured(name, model, batch, steps or SAMPLES // batch, repeats) for batch in batches for name in wanted]
    halves = [_child("half_saving", share, steps or SAMPLES // HALF_BATCH) for share in (1.0, 0.5)]
    _finish(results, halves, repeats, json_path)


def strategies_table(results: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what strategies cost, from the results that `--json` keeps."""
    header = [
        "model",
        "batch",
        "strategy",
        "µs a step",
        "in steps of fine-tuning",
        "forward",
        "rows",
        "backward",
        "× its passes",
        "phases, ms an event",
    ]
    units = {(row["model"], row["batch"]): row["passes_us"] for row in results if row["strategy"] == FINE_TUNING}
    return header, [_shown(row, units[row["model"], row["batch"]]) for row in results]


def _shown(row: Mapping[str, Any], unit: float) -> list[str]:
    if not row["steps"]:
        return [row["model"], str(row["batch"]), row["strategy"], "no steps", "", "", "", "", "", f"{row['phases_ms']:.0f}"]
    ratio = row["ratio"]
    target = f" (target {TARGET:g})" if row["batch"] >= 32 else ""
    return [
        row["model"],
        str(row["batch"]),
        row["strategy"],
        f"{row['us']:.0f}",
        f"{row['us'] / unit:.2f}",
        f"{row['forward']:.2f}",
        f"{row['rows']:.0f}",
        f"{row['backward']:.2f}",
        "no passes" if ratio is None else f"{ratio:.2f}{target}",
        f"{row['phases_ms']:.0f}",
    ]


def _measured(name: str, model: str, batch: int, steps: int, repeats: int) -> dict[str, Any]:
    print(f"measuring {name}, batches of {batch}", file=sys.stderr, flush=True)
    runs = [_child("strategy", batch, steps, name, model) for _ in range(repeats)]
    pairs = [pair for run in runs for pair in run.pop("pairs")]
    return runs[0] | _medians(pairs) | {"phases_ms": min(run["phases_ms"] for run in runs), "pairs": len(pairs)}


def _medians(pairs: Sequence[tuple[float, float]]) -> dict[str, float | None]:
    """Of pairs (seconds a step, seconds of its passes in a bare loop): the medians of both and of their ratio."""
    if not pairs:
        return {"us": 0.0, "passes_us": 0.0, "ratio": None}
    own, bare = (1e6 * median(column) for column in zip(*pairs, strict=True))
    return {"us": own, "passes_us": bare, "ratio": median(one / other for one, other in pairs) if bare else None}


def _child(what: str, amount: float, steps: int, name: str = "", model: str = "mlp") -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    words = [what, "--amount", str(amount), "--steps", str(steps), "--name", name, "--model", model]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        process = forked(main, (words,), log)
        try:
            process.join()
        finally:  # an interrupt reaches this process alone
            process.terminate()
        said = log.read_text().strip().splitlines() or [f"exit code {process.exitcode}"]
    if process.exitcode:
        raise FrameworkError(f"the measurement of {name or what!r} failed: {said[-1]}")
    return json.loads(said[-1])


def _finish(results: Sequence[dict[str, Any]], halves: Sequence[dict[str, Any]], repeats: int, json_path: Path | None) -> None:
    from cl_framework.records import atomic_write, environment
    from cl_framework.tables import TerminalTable, table_console

    console = table_console()
    console.print(TerminalTable(*strategies_table(results)))
    whole, half = halves
    columns = ["share that learns", "µs a step", "of full", "optimizer state MiB", "gradients MiB"]
    shown = [
        [
            f"{row['share']:.2f}",
            f"{row['us']:.0f}",
            f"{row['us'] / whole['us']:.2f}",
            f"{row['state_mib']:.2f}",
            f"{row['gradient_mib']:.2f}",
        ]
        for row in (whole, half)
    ]
    console.print(f"half fine-tuning with Adam, an MLP with {WIDE[0]} and {WIDE[1]} hidden units, batches of {HALF_BATCH}")
    console.print(TerminalTable(columns, shown))
    if json_path is not None:
        record = {"results": list(results), "half": list(halves), "repeats": repeats, "environment": environment("cpu", 1, False)}
        atomic_write(json_path, json.dumps(record, indent=2) + "\n")


# --- one measurement ---


def _learner(name: str, options: dict[str, Any], batch: int, steps: int, **settings: Any) -> Any:
    """A learner on two tasks of made-up images of 28x28 whose labels can be learned."""
    import torch

    from cl_framework import registry
    from cl_framework.assembly import assemble
    from cl_framework.augment import digit_views
    from cl_framework.benchmarks.base import Benchmark, Scale
    from cl_framework.benchmarks.sources import TensorSource
    from cl_framework.config import load_experiment
    from cl_framework.loading import STEPS_PER_CHUNK

    torch.set_num_threads(1)
    counts = [min(WARM_UP_STEPS, steps) * batch, steps * batch]
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (sum(counts), 1, 28, 28), dtype=torch.uint8, generator=generator)
    labels = images.flatten(1)[:, :5].int().argmax(1)
    labels = torch.cat([labels[: counts[0]], labels[counts[0] :] + 5])
    sources = [TensorSource(part, target) for part, target in zip(images.split(counts), labels.split(counts), strict=True)]
    classes = (tuple(range(5)), tuple(range(5, 10)))
    benchmark = Benchmark("bench", 10, classes, sources, sources, Scale(strengthen=digit_views), (1, 28, 28), ("class_il", "task_il"))
    strategies: dict[str, Any] = {}
    scenario = "class_il"
    if name != FINE_TUNING:
        kind = registry.strategies.get(name)
        scenario = next(allowed for allowed in kind.traits.scenarios if allowed in benchmark.scenarios)
        known = set(getattr(kind.Config, "__dataclass_fields__", {}))
        strategies[name] = {**({"capacity": CAPACITY} if "capacity" in known else {}), **OPTIONS.get(name, {}), **options}
    experiment = {
        "benchmark": {"name": "synthetic"},  # the schema wants a name; the tensors above take its place
        "scenario": scenario,
        "stream": "L0 L1",
        "optimizer": {"lr": RATE},
        "batch_size": batch,
        "evaluate_every": max(1, min(STEPS_PER_CHUNK, steps // PAIRS)),  # nothing is evaluated here: chunks end there
        "strategies": strategies,
        "device": "cpu",
        **settings,
    }
    return assemble(load_experiment(experiment), benchmark)


Look = Callable[[Any, Any], None]


def _run(learner: Any, phases: Sequence[Any], after_chunk: Look, at_end: Callable[[], None]) -> float:
    """Run phases as the runner does; returns seconds of the processor, from the plan to the end of the fit. `at_end` of each looks on."""
    from cl_framework.host import Host

    host = Host(learner, after_chunk, lambda: False)
    position = learner.position
    started = time.process_time()
    for phase in phases:
        position.phase, position.step = phase, 0
        learner.new_streams()
        phase = position.phase = learner.plan_phase(phase)
        learner.begin_phase(phase)
        host.fit_phase(phase, 0)
        at_end()
        learner.end_phase(phase)
        position.phase, position.step = None, 0
        learner.new_streams()
    return time.process_time() - started


def _event(
    learner: Any, index: int, after_chunk: Look = lambda evaluation, batch: None, at_end: Callable[[], None] = lambda: None
) -> tuple[float, float]:
    """Run one Learn, with looks at its own phase. Seconds of that phase, and of the phases around it."""
    from cl_framework.cost import Cost

    position = learner.position
    event = learner.stream.events[index]
    position.event, position.event_index, position.phase, position.step = event, index, None, 0
    learner.new_streams()

    def nothing(*seen: Any) -> None:
        pass

    around = _run(learner, learner.stack.begin(), nothing, nothing)
    learner.cost = Cost()
    own = _run(learner, [learner.learn_phase(event)], after_chunk, at_end)
    return own, around + _run(learner, learner.stack.end(), nothing, nothing)


class _Pairs:
    """Looks at each chunk of a phase: sets its steps beside as many of a bare loop."""

    def __init__(self, learner: Any) -> None:
        from cl_framework.cost import Cost

        self.learner = learner
        self.bare = _BareLoop(learner)
        self.found: list[tuple[float, float]] = []  # seconds a step: its own, those of the bare loop
        self.cost = Cost()  # of all chunks so far
        self.steps = 0
        self._mark = time.process_time()

    def __call__(self, evaluation: Any, batch: Any) -> None:
        seconds = time.process_time() - self._mark
        learner = self.learner
        steps, cost = learner.position.step - self.steps, learner.cost.since(self.cost)
        self.found.append((seconds / steps, self.bare.seconds(cost, steps) / steps if cost.forward_passes else 0.0))
        self.steps, self.cost = learner.position.step, replace(learner.cost)
        self._mark = time.process_time()

    @property
    def settled(self) -> list[tuple[float, float]]:
        """Without the first, in which the fit starts and memory is touched first, if there are others."""
        return self.found[1:] or self.found


def strategy(options: argparse.Namespace) -> dict[str, Any]:
    """A strategy's steps, each chunk beside a bare loop with the same passes."""
    batch = int(options.amount)
    learner = _learner(options.name, {}, batch, options.steps, model={"name": options.model})
    _event(learner, 0)
    pairs = _Pairs(learner)
    _, phases = _event(learner, 1, pairs)
    steps, cost = pairs.steps, pairs.cost
    row: dict[str, Any] = {"strategy": options.name, "model": options.model, "batch": batch, "steps": steps, "phases_ms": 1e3 * phases}
    passes = {"forward": cost.forward_passes, "rows": cost.forward_rows, "backward": cost.backward_passes}
    return row | {name: count / max(1, steps) for name, count in passes.items()} | {"pairs": pairs.settled}


class _BareLoop:
    """Passes over random rows, gradients and plain SGD, on a copy of the learner's model as it is now."""

    def __init__(self, learner: Any) -> None:
        import torch

        self.model = deepcopy(learner.model).train()
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.told = getattr(self.model, "task_conditioned", False)
        self.transform = learner.benchmark.transform
        self.position = learner.position
        source = learner.benchmark.train[-1]  # of the measured event: rows are as far apart in memory as those of its steps
        self.items, self.labels = source.read(torch.arange(len(source))), source.targets
        self.generator = torch.Generator()

    def seconds(self, cost: Any, steps: int) -> float:
        """Of so many steps with the passes that were counted, of equal size each."""
        strong = getattr(self.position.phase.plan, "strong", None) is not None
        started = time.process_time()
        for _ in range(steps):
            self._step(cost, steps, strong)
        return time.process_time() - started

    def _step(self, cost: Any, steps: int, strong: bool) -> None:
        import torch
        from torch.nn.functional import cross_entropy

        looks, look_rows = cost.forward_passes - cost.graph_passes, cost.forward_rows - cost.graph_rows
        backward = max(1, round(cost.backward_passes / steps)) if cost.backward_passes else 0
        graphs = max(backward, round(cost.graph_passes / steps))
        for turn in range(backward):
            losses = []
            for _ in range(graphs // backward + (turn < graphs % backward)):
                inputs, targets = self._read(round(cost.graph_rows / max(1, cost.graph_passes)), strong)
                losses.append(cross_entropy(self.model(*inputs), targets))
            total = torch.stack(losses).sum() if len(losses) > 1 else losses[0]
            gradients = torch.autograd.grad(total, self.parameters, allow_unused=True)
            if turn == backward - 1:
                reached = [(p, g) for p, g in zip(self.parameters, gradients, strict=True) if g is not None]
                with torch.no_grad():
                    torch._foreach_add_([p for p, _ in reached], [g for _, g in reached], alpha=-RATE)
        with torch.no_grad():
            for _ in range(round(looks / steps)):
                self.model(*self._read(round(look_rows / looks), strong)[0])

    def _read(self, rows: int, strong: bool) -> tuple[Any, Any]:
        """Inputs and labels of some rows: read, scaled, and where the measured steps do so, strongly augmented."""
        import torch

        places = torch.randint(0, len(self.items), (rows,))
        items = self.items.index_select(0, places)
        images = self.transform.strong(items, self.generator) if strong else self.transform(items, None)
        return (images, torch.ones(rows, dtype=torch.int64)) if self.told else (images,), self.labels.index_select(0, places)


def half_saving(options: argparse.Namespace) -> dict[str, Any]:
    """Time a step, optimizer state and gradients when a share of a wide MLP's matrices learns, with Adam."""
    settings = {"model": {"name": "mlp", "hidden": list(WIDE)}, "optimizer": {"name": "adam", "lr": 0.001}}
    learner = _learner("half", {"share": options.amount}, HALF_BATCH, options.steps, **settings)
    seen: dict[str, Any] = {}

    def note() -> None:
        state = [value for values in learner.optimizer.state.values() for value in values.values()]
        seen["state_mib"] = sum(value.numel() * value.element_size() for value in state) / 2**20
        seen["gradient_mib"] = sum(p.numel() * p.element_size() for p in learner.parameters_in_play) / 2**20

    _event(learner, 0)
    before = learner.position.stream_step
    seconds, _ = _event(learner, 1, at_end=note)
    return {"share": options.amount, "us": 1e6 * seconds / (learner.position.stream_step - before), **seen}


def main(argv: Sequence[str]) -> None:
    """One measurement, printed as JSON: what the parent's processes run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("strategy", "half_saving"))
    parser.add_argument("--amount", type=float, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--name", default="")
    parser.add_argument("--model", default="mlp")
    options = parser.parse_args(argv)
    print(json.dumps({"strategy": strategy, "half_saving": half_saving}[options.what](options)))
