"""Cost of an optimizer step: ours beside a bare PyTorch loop and Avalanche's Replay, one process after another in one run.

All sides do experience replay with a full memory of 500 samples on the MLP 784-100-100-10, on one thread, on the same made-up images in
memory. The bare loop does exactly our work, the same visits, memory rows and writes, so its loss curve must be ours. Machines are
shared, and what else runs on one only ever adds time: sides are interleaved and repeated, and the fastest process of each is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cl_framework.errors import FrameworkError

CAPACITY = 500
SAMPLES = 60_000  # of the measured event: MNIST's size
WARM_UP_STEPS = 200  # of the event before, which fills the memory
QUICK_STEPS = 300
DEFAULT_BATCHES = [10, 32, 128]
RATE = 0.05
SEED = 0
LOSS_TOLERANCE = 1e-4
FEWER = 0.03  # share of samples that Avalanche may train on less: each of its passes over the memory ends in a smaller batch
TARGETS = {10: (1.15, 0.75), 32: (1.15, 0.5), 128: (1.15, 0.5)}  # batch -> most times the bare loop, most times Avalanche


def main(argv: Sequence[str] | None = None) -> int:
    """What `clu bench` does. Exit code 1 if two sides that must do the same work did not."""
    options = _parser().parse_args(argv)
    if options.quick:
        options.steps, options.repeats = QUICK_STEPS, 1
    if options.side:
        print(json.dumps(_SIDES[options.side](options)))
        return 0
    if options.strategies is not None:
        from cl_framework.bench_strategies import table

        batches = options.batch if options.batch != DEFAULT_BATCHES else DEFAULT_BATCHES[1:]
        table(options.strategies, batches, options.steps, options.repeats, options.json)
        return 0
    if options.text:
        from cl_framework.bench_text import compare

        return compare(options)
    if options.memory:
        return _bench_memory(options)
    if options.evaluation:
        return _bench_evaluation(options)
    return _bench_step(options)


def _parser() -> argparse.ArgumentParser:
    def count(text: str) -> int:
        if not text.isdigit() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
        return int(text)

    parser = argparse.ArgumentParser(prog="clu bench", description="Cost per optimizer step, in one run, as ratios.")
    parser.add_argument("--batch", type=count, nargs="+", default=DEFAULT_BATCHES, help="stream rows a step; as many come from the memory")
    parser.add_argument("--steps", type=count, help="measured steps (default: one pass over 60,000 samples)")
    parser.add_argument("--repeats", type=count, default=5, help="processes of each side; the fastest counts")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps, one process of each side")
    parser.add_argument("--capacity", type=count, default=CAPACITY, help="samples in memory")
    parser.add_argument("--without-avalanche", action="store_true", help="leave Avalanche out")
    parser.add_argument("--strategies", nargs="*", metavar="NAME", help="instead: cost a step of these strategies, by default of all")
    parser.add_argument("--text", action="store_true", help="instead: tokens a second in language modelling")
    parser.add_argument("--memory", action="store_true", help="instead: cost a step for memories of 1e3 to 1e6 samples")
    parser.add_argument("--evaluation", action="store_true", help="instead: time of evaluating 1 to 20 tasks")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--side", choices=tuple(_SIDES), help=argparse.SUPPRESS)
    return parser


# --- the parent: children, table ---


def _bench_step(options: argparse.Namespace) -> int:
    sides = ["ours", "bare"] + ([] if options.without_avalanche else ["avalanche"])
    results: list[dict[str, Any]] = []
    same = True
    for batch in options.batch:
        steps = options.steps or SAMPLES // batch
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for _ in range(options.repeats):
            for side in sides:
                runs[side].append(child(side, batch, steps, options.capacity))
        row: dict[str, Any] = {"batch": batch, "steps": steps}  # what is counted as samples went through the model, replayed or new
        for side in sides:
            row[f"{side}_us_of_each"] = [1e6 * run["seconds"] / run["steps"] for run in runs[side]]
            row[f"{side}_us"] = min(row[f"{side}_us_of_each"])
            row[f"{side}_samples"] = runs[side][0]["samples"]
        pairs = zip(runs["ours"][0]["losses"], runs["bare"][0]["losses"], strict=True)
        row["loss_difference"] = max(abs(ours - bare) for ours, bare in pairs)
        same &= row["loss_difference"] <= LOSS_TOLERANCE and row["ours_samples"] == row["bare_samples"]
        same &= abs(row.get("avalanche_samples", row["ours_samples"]) / row["ours_samples"] - 1) <= FEWER
        results.append(row)
    header = [
        "batch",
        *(f"{side} µs a step" for side in sides),
        *(f"ours / {side}" for side in sides[1:]),
        "loss curves differ by",
        "samples",
    ]
    rows = []
    for row in results:
        bounds = dict(zip(("bare", "avalanche"), TARGETS.get(row["batch"], (None, None)), strict=True))
        ratios = [_ratio(row["ours_us"] / row[f"{side}_us"], bounds[side]) for side in sides[1:]]
        times = [f"{row[f'{side}_us']:.0f}" for side in sides]
        rows.append([str(row["batch"]), *times, *ratios, f"{row['loss_difference']:.1e}", str(row["ours_samples"])])
    finish(header, rows, results, options)
    if not same:
        print("clu: the sides did not do the same work: the ratios mean nothing.", file=sys.stderr)
    return 0 if same else 1


def _ratio(value: float, bound: float | None) -> str:
    return f"{value:.2f}" if bound is None else f"{value:.2f} (target {bound:g})"


def _bench_memory(options: argparse.Namespace) -> int:
    sizes = [10**power for power in range(3, 7)]
    batch = options.batch[0]
    steps = options.steps or SAMPLES // batch
    runs: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(options.repeats):
        for size in sizes:
            run = child("full_memory", batch, steps, size)
            runs[size].append(1e6 * run["seconds"] / run["steps"])
    results = [{"capacity": size, "us": min(runs[size]), "ratio": min(runs[size]) / min(runs[sizes[0]])} for size in sizes]
    rows = [[f"{row['capacity']:,}", f"{row['us']:.0f}", f"{row['ratio']:.2f}"] for row in results]
    finish(["samples in memory", f"µs a step, batch {batch}", "ratio to the smallest"], rows, results, options)
    return 0


def _bench_evaluation(options: argparse.Namespace) -> int:
    results = [child("evaluation", tasks, 1, 1) for tasks in (1, 5, 10, 20)]
    rows = [[str(row["tasks"]), f"{1e3 * row['seconds']:.1f}", f"{1e6 * row['seconds'] / row['samples']:.2f}"] for row in results]
    finish(["tasks of 2,000 samples", "ms", "µs a sample"], rows, results, options)
    return 0


def child(side: str, batch: int, steps: int, capacity: int) -> dict[str, Any]:
    """Run one side in a process of its own, on one thread."""
    words = ["--side", side, "--batch", str(batch), "--steps", str(steps), "--capacity", str(capacity)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-m", "cl_framework.bench", *words], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise FrameworkError(f"the side {side!r} of the benchmark failed: {said[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def finish(header: Sequence[str], rows: Sequence[Sequence[str]], results: Sequence[Any], options: argparse.Namespace) -> None:
    from rich.console import Console

    from cl_framework.records import atomic_write, environment
    from cl_framework.tables import terminal_table

    Console(width=160).print(terminal_table(header, rows))
    if options.json is not None:
        record = {"results": results, "repeats": options.repeats, "environment": environment("cpu", 1, False)}
        atomic_write(options.json, json.dumps(record, indent=2) + "\n")


# --- the sides: each in a process of its own ---


def _data(batch: int, steps: int) -> tuple[Any, Any, list[int]]:
    """Made-up images (N, 784) uint8 with labels that can be learned, and the number of samples of the two events."""
    import torch

    torch.set_num_threads(1)
    counts = [WARM_UP_STEPS * batch, steps * batch]
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randint(0, 256, (sum(counts), 784), dtype=torch.uint8, generator=generator)
    return images, (images[:, :10].int().argmax(1)).to(torch.int64), counts


def _learner(batch: int, steps: int, capacity: int) -> Any:
    """Our learner on two domain-incremental tasks, with experience replay."""
    from cl_framework.assembly import assemble
    from cl_framework.benchmarks.base import Benchmark, Scale
    from cl_framework.benchmarks.sources import TensorSource
    from cl_framework.config import load_experiment

    images, labels, counts = _data(batch, steps)
    sources = [TensorSource(part, target) for part, target in zip(images.split(counts), labels.split(counts), strict=True)]
    classes = (tuple(range(10)),) * 2
    benchmark = Benchmark("bench", 10, classes, sources, sources, Scale(), (784,), ("domain_il",))
    settings = {
        "benchmark": {"name": "synthetic"},  # the schema wants a name; the tensors above take its place
        "optimizer": {"lr": RATE},
        "batch_size": batch,
        "seed": SEED,
        "strategies": {"er": {"capacity": capacity}},
        "device": "cpu",
    }
    return assemble(load_experiment(settings), benchmark)


def fit(learner: Any, index: int) -> dict[str, Any]:
    """Run one event as the runner does and measure it: from the plan to the end of the fit, the start of Lightning included."""
    from cl_framework.cost import Cost
    from cl_framework.host import Host

    losses: list[float] = []
    host = Host(learner, lambda evaluation, batch: losses.append(float(evaluation.loss)), lambda: False)
    position = learner.position
    event = learner.stream.events[index]
    position.event, position.event_index, position.phase, position.step = event, index, None, 0
    steps = position.stream_step
    started = time.perf_counter()
    learner.new_streams()
    learner.stack.begin()  # none of the strategies measured here asks for phases of its own
    phase = position.phase = learner.learn_phase(event)
    learner.new_streams()
    learner.begin_phase(phase)
    learner.cost = Cost()
    host.fit_phase(phase, 0)
    seconds = time.perf_counter() - started
    moments = [value for state in learner.optimizer.state.values() for value in state.values() if hasattr(value, "element_size")]
    sizes = {"trained": sum(part.numel() for part in learner.parameters_in_play), "moments": sum(part.nbytes for part in moments)}
    learner.end_phase(phase)
    return {"seconds": seconds, "steps": position.stream_step - steps, "samples": learner.cost.forward_rows, "losses": losses, **sizes}


def ours(options: argparse.Namespace) -> dict[str, Any]:
    """The framework: learner, Lightning host, ER."""
    learner = _learner(options.batch[0], options.steps, options.capacity)
    fit(learner, 0)
    return fit(learner, 1)


def full_memory(options: argparse.Namespace) -> dict[str, Any]:
    """The framework with a memory of any size that is full from the start."""
    import torch

    batch, capacity = options.batch[0], options.capacity
    learner = _learner(batch, options.steps, capacity)
    memory = learner.stack.members[0].strategy.memory
    numbers = torch.arange(capacity)
    columns = {
        "items": torch.randint(0, 256, (capacity, 784), dtype=torch.uint8),
        "targets": numbers % 10,
        "ids": numbers,
        "tasks": torch.zeros_like(numbers),
    }
    state = memory.state_dict()
    memory.load_state_dict({**state, "columns": columns, "slots": numbers, "count": capacity, "seen": capacity})
    fit(learner, 0)
    return fit(learner, 1)


def bare(options: argparse.Namespace) -> dict[str, Any]:
    """A plain PyTorch loop that does the same: visits, memory rows and slots from the same random numbers, float tensors in memory."""
    import torch
    from torch import nn

    from cl_framework.models.mlp import MLP
    from cl_framework.plan import Plan
    from cl_framework.rng import BLOCK, RandomStream, seeded
    from cl_framework.slots import floyd, reservoir_slots

    batch, capacity = options.batch[0], options.capacity
    images, labels, counts = _data(batch, options.steps)
    images = images.float().div_(255)
    with seeded(SEED, "model"):
        model = MLP((784,), 10)
    memory, memory_labels = torch.zeros(capacity, 784), torch.zeros(capacity, dtype=torch.int64)
    losses: list[float] = []
    seconds = 0.0
    seen = filled = trained = 0
    for task, count in enumerate(counts):
        pixels, targets = images[sum(counts[:task]) :][:count], labels[sum(counts[:task]) :][:count]
        trained = 0
        started = time.perf_counter()
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        order = Plan.over(torch.arange(count), batch, 1, RandomStream(SEED, "Learn", task, 0, "", "plan").generator()).ids
        draws, inserts = (RandomStream(SEED, "Learn", task, 0, "learn", "er", purpose) for purpose in ("sample", "insert"))
        slots = torch.empty(0)
        for step in range(count // batch):
            row = step % BLOCK
            if row == 0:
                visits = seen + torch.arange(BLOCK) * batch
                slots = reservoir_slots(inserts.block(step, batch), visits, capacity)
                accepted = (slots >= 0).any(1).tolist()
                picks = floyd(draws.block(step, batch), (visits.clamp(max=capacity)).clamp(min=batch))
            chosen = order[step * batch : (step + 1) * batch]
            inputs, wanted = pixels.index_select(0, chosen), targets.index_select(0, chosen)
            stream_inputs, stream_wanted = inputs, wanted
            if filled:
                pick = picks[row]
                inputs = torch.cat([inputs, memory.index_select(0, pick)])
                wanted = torch.cat([wanted, memory_labels.index_select(0, pick)])
            trained += len(wanted)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), wanted)
            loss.backward()
            optimizer.step()
            seen += batch
            if accepted[row]:
                rows = (slots[row] >= 0).nonzero().flatten()
                places = slots[row][rows]
                memory.index_copy_(0, places, stream_inputs.index_select(0, rows))
                memory_labels.index_copy_(0, places, stream_wanted.index_select(0, rows))
                filled = min(capacity, seen)
            if task == 1 and (row == BLOCK - 1 or step == count // batch - 1):
                losses.append(loss.item())
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "steps": count // batch, "samples": trained, "losses": losses}


def avalanche(options: argparse.Namespace) -> dict[str, Any]:
    """Avalanche's Replay with its loggers and metrics off."""
    import torch
    from avalanche.benchmarks import tensors_benchmark
    from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
    from avalanche.training.supervised import Replay

    from cl_framework.models.mlp import MLP

    class Counting(SupervisedPlugin):
        trained = 0

        def after_forward(self, strategy: Any, *arguments: Any, **more: Any) -> None:
            self.trained += len(strategy.mb_y)

    batch = options.batch[0]
    images, labels, counts = _data(batch, options.steps)
    pairs = list(zip(images.float().div_(255).split(counts), labels.split(counts), strict=True))
    stream = tensors_benchmark(train_tensors=pairs, test_tensors=[(part[:10], target[:10]) for part, target in pairs], task_labels=[0, 0])
    model = MLP((784,), 10)
    strategy = Replay(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=RATE),
        criterion=torch.nn.CrossEntropyLoss(),
        mem_size=options.capacity,
        train_mb_size=batch,
        train_epochs=1,
        evaluator=EvaluationPlugin(loggers=[]),
        plugins=[counting := Counting()],
    )
    first, second = stream.train_stream
    strategy.train(first)
    steps_before = strategy.clock.train_iterations
    counting.trained = 0
    started = time.perf_counter()
    strategy.train(second)
    seconds = time.perf_counter() - started
    steps = strategy.clock.train_iterations - steps_before
    return {"seconds": seconds, "steps": steps, "samples": counting.trained, "losses": []}


def evaluation(options: argparse.Namespace) -> dict[str, Any]:
    """Evaluating a number of tasks in one pass."""
    import torch

    from cl_framework.assembly import assemble
    from cl_framework.benchmarks.base import Benchmark, Scale
    from cl_framework.benchmarks.sources import TensorSource
    from cl_framework.config import load_experiment
    from cl_framework.evaluation import evaluate

    tasks = options.batch[0]
    images, labels, _ = _data(100, 20)
    sources = [TensorSource(images[:2000], labels[:2000]) for _ in range(tasks)]
    benchmark = Benchmark("bench", 10, (tuple(range(10)),) * tasks, sources, sources, Scale(), (784,), ("domain_il",))
    learner = assemble(load_experiment({"benchmark": {"name": "synthetic"}, "device": "cpu"}), benchmark)
    torch.set_num_threads(1)
    evaluate(learner, range(tasks), range(tasks))
    started = time.perf_counter()
    evaluate(learner, range(tasks), range(tasks))
    return {"seconds": time.perf_counter() - started, "tasks": tasks, "samples": 2000 * tasks}


def text(options: argparse.Namespace) -> dict[str, Any]:
    from cl_framework.bench_text import ours

    return ours(options)


def half_text(options: argparse.Namespace) -> dict[str, Any]:
    from cl_framework.bench_text import half

    return half(options)


def bare_text(options: argparse.Namespace) -> dict[str, Any]:
    from cl_framework.bench_text import bare

    return bare(options)


_SIDES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "ours": ours,
    "bare": bare,
    "avalanche": avalanche,
    "full_memory": full_memory,
    "evaluation": evaluation,
    "text": text,
    "half_text": half_text,
    "bare_text": bare_text,
}


if __name__ == "__main__":
    sys.exit(main())
