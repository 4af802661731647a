"""`clu bench --strategies`: what each strategy costs a step, beside what its forward and backward passes cost in a bare loop.

Every strategy runs in a process of its own, forked from one that has imported what it needs, on one thread: an event to fill memories and
take snapshots, then a measured one, then a plain PyTorch loop with as many passes over as many rows. The ratio of the two is what the
framework and the method's own bookkeeping add. Phases before and after an event (a Fisher pass, a classifier's training) are reported
apart. All times are the processor's, not the clock's: machines are shared, and one thread that computes without a pause is alone with its
processor then.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cl_framework.errors import FrameworkError
from cl_framework.forking import forked

SAMPLES = 60_000  # of the measured event, unless told otherwise: the start of a fit, some 35 ms, is spread over its steps
TARGET = 1.15  # most times the cost of its passes that a strategy may take, at batches of 32 and more
WARM_UP_STEPS = 100
CAPACITY = 500
FINE_TUNING = "fine-tuning"
HALF_BATCH = 128
WIDE = (1000, 1000)  # hidden units of the model on which half fine-tuning is set beside full
SLACK: dict[str, dict[str, Any]] = {"view_batch": {"weight": 1.0}, "power_law": {"source": "buffer"}}  # options beside the defaults


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
    results = [_fastest(name, model, batch, steps or SAMPLES // batch, repeats) for batch in batches for name in wanted]
    halves = [_child("half_saving", share, steps or SAMPLES // HALF_BATCH) for share in (1.0, 0.5)]
    _finish(results, halves, repeats, json_path)


def strategies_table(results: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what strategies cost, from the results that `--json` keeps."""
    header = [
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
    units = {row["batch"]: row["passes_us"] for row in results if row["strategy"] == FINE_TUNING}
    return header, [_shown(row, units[row["batch"]]) for row in results]


def _shown(row: Mapping[str, Any], unit: float) -> list[str]:
    if not row["steps"]:
        return [str(row["batch"]), row["strategy"], "no steps", "", "", "", "", "", f"{row['phases_ms']:.0f}"]
    ratio = row["us"] / row["passes_us"] if row["passes_us"] else None
    target = f" (target {TARGET:g})" if row["batch"] >= 32 else ""
    return [
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


def _fastest(name: str, model: str, batch: int, steps: int, repeats: int) -> dict[str, Any]:
    print(f"measuring {name}, batches of {batch}", file=sys.stderr, flush=True)
    runs = [_child("strategy", batch, steps, name, model) for _ in range(repeats)]
    return runs[0] | {key: min(run[key] for run in runs) for key in ("us", "passes_us", "phases_ms")}


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
    from cl_framework.tables import table_console, terminal_table

    console = table_console()
    console.print(terminal_table(*strategies_table(results)))
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
    console.print(terminal_table(columns, shown))
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
        strategies[name] = {**({"capacity": CAPACITY} if "capacity" in known else {}), **SLACK.get(name, {}), **options}
    experiment = {
        "benchmark": {"name": "synthetic"},  # the schema wants a name; the tensors above take its place
        "scenario": scenario,
        "stream": "L0 L1",
        "optimizer": {"lr": 0.05},
        "batch_size": batch,
        "strategies": strategies,
        "device": "cpu",
        **settings,
    }
    return assemble(load_experiment(experiment), benchmark)


def _nothing(learner: Any) -> None:
    pass


def _run(learner: Any, phases: Sequence[Any], at_end: Callable[[Any], None] = _nothing) -> float:
    """Run phases as the runner does; returns seconds of the processor, from the plan to the end of the fit. `at_end` of each looks on."""
    from cl_framework.host import Host

    host = Host(learner, lambda evaluation, batch: None, lambda: False)
    position = learner.position
    started = time.process_time()
    for phase in phases:
        position.phase, position.step = phase, 0
        learner.new_streams()
        phase = position.phase = learner.plan_phase(phase)
        learner.begin_phase(phase)
        host.fit_phase(phase, 0)
        at_end(learner)
        learner.end_phase(phase)
        position.phase, position.step = None, 0
        learner.new_streams()
    return time.process_time() - started


def _event(learner: Any, index: int, at_end: Callable[[Any], None] = _nothing) -> tuple[float, float, int, Any]:
    """Run one Learn: seconds of its own phase, of the phases around it, its steps, and what its own phase cost."""
    from cl_framework.cost import Cost

    position = learner.position
    event = learner.stream.events[index]
    position.event, position.event_index, position.phase, position.step = event, index, None, 0
    learner.new_streams()
    around = _run(learner, learner.stack.begin())
    before, learner.cost = position.stream_step, Cost()
    own = _run(learner, [learner.learn_phase(event)], at_end)
    cost, steps = replace(learner.cost), position.stream_step - before  # a copy: the phases that follow count on
    return own, around + _run(learner, learner.stack.end()), steps, cost


def strategy(options: argparse.Namespace) -> dict[str, Any]:
    """A strategy's step, and a bare loop with the same passes."""
    batch = int(options.amount)
    learner = _learner(options.name, {}, batch, options.steps, model={"name": options.model})
    _event(learner, 0)
    seconds, phases, steps, cost = _event(learner, 1)
    row: dict[str, Any] = {"strategy": options.name, "model": options.model, "batch": batch, "steps": steps}
    row |= {"phases_ms": 1e3 * phases, "us": 0.0, "passes_us": 0.0}
    if not steps:
        return row
    row |= {"us": 1e6 * seconds / steps, "forward": cost.forward_passes / steps, "backward": cost.backward_passes / steps}
    row["rows"] = cost.forward_rows / steps
    row["passes_us"] = 1e6 * _bare(learner.model, cost, steps, options.steps)
    return row


def _bare(model: Any, cost: Any, steps: int, measured: int) -> float:
    """Seconds a step of a plain loop: the passes that were counted, of equal size each, the gradient steps, and plain SGD."""
    import torch
    from torch.nn.functional import cross_entropy

    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    looks, look_rows = cost.forward_passes - cost.graph_passes, cost.forward_rows - cost.graph_rows
    backward = max(1, round(cost.backward_passes / steps)) if cost.backward_passes else 0
    graphs = max(backward, round(cost.graph_passes / steps))
    images = torch.rand(4096, 1, 28, 28)
    labels = torch.randint(0, 10, (4096,))
    conditioned = getattr(model, "task_conditioned", False)

    def read(rows: int) -> tuple[Any, Any]:
        places = torch.randint(0, 4096, (rows,))
        inputs = (images.index_select(0, places),)
        return (*inputs, torch.ones(rows, dtype=torch.int64)) if conditioned else inputs, labels.index_select(0, places)

    def step() -> None:
        for turn in range(backward):
            mine = graphs // backward + (turn < graphs % backward)
            losses = []
            for _ in range(mine):
                inputs, targets = read(round(cost.graph_rows / max(1, cost.graph_passes)))
                losses.append(cross_entropy(model(*inputs), targets))
            total = torch.stack(losses).sum() if len(losses) > 1 else losses[0]
            gradients = torch.autograd.grad(total, parameters, allow_unused=True)
            if turn == backward - 1:
                reached = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
                with torch.no_grad():
                    torch._foreach_add_([p for p, _ in reached], [g for _, g in reached], alpha=-0.05)
        with torch.no_grad():
            for _ in range(round(looks / steps)):
                model(*read(round(look_rows / looks))[0])

    if not cost.forward_passes:
        return 0.0
    for _ in range(min(20, measured)):
        step()
    started = time.process_time()
    for _ in range(measured):
        step()
    return (time.process_time() - started) / measured


def half_saving(options: argparse.Namespace) -> dict[str, Any]:
    """Time a step, optimizer state and gradients when a share of a wide MLP's matrices learns, with Adam."""
    settings = {"model": {"name": "mlp", "hidden": list(WIDE)}, "optimizer": {"name": "adam", "lr": 0.001}}
    learner = _learner("half", {"share": options.amount}, HALF_BATCH, options.steps, **settings)
    seen: dict[str, Any] = {}

    def note(learner: Any) -> None:
        state = [value for values in learner.optimizer.state.values() for value in values.values()]
        seen["state_mib"] = sum(value.numel() * value.element_size() for value in state) / 2**20
        seen["gradient_mib"] = sum(p.numel() * p.element_size() for p in learner.parameters_in_play) / 2**20

    _event(learner, 0)
    seconds, _, steps, _ = _event(learner, 1, note)
    return {"share": options.amount, "us": 1e6 * seconds / steps, **seen}


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
