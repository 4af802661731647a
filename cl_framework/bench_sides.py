"""The sides of `clu bench`, each run in a process of its own: the framework, a bare PyTorch loop, Avalanche's Replay."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from cl_framework import bench_text

WARM_UP_STEPS = 200  # of the event before, which fills the memory
VISITS = 20  # to each place of a full memory before it is measured: the share of steps that write is then much the same for all sizes
RATE = 0.05
SEED = 0


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
    from cl_framework.cost import Cost, peak_rss_mib
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
    trained = sum(part.numel() for part in learner.parameters_in_play)
    sizes = {"trained": trained, "moments": sum(part.nbytes for part in moments), "peak_rss_mib": peak_rss_mib()}
    learner.end_phase(phase)
    return {"seconds": seconds, "steps": position.stream_step - steps, "samples": learner.cost.forward_rows, "losses": losses, **sizes}


def ours(options: argparse.Namespace) -> dict[str, Any]:
    """The framework: learner, Lightning host, ER."""
    learner = _learner(options.batch, options.steps, options.capacity)
    fit(learner, 0)
    return fit(learner, 1)


def full_memory(options: argparse.Namespace) -> dict[str, Any]:
    """The framework with a memory of any size that is full, and long since full, from the start."""
    import torch

    batch, capacity = options.batch, options.capacity
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
    memory.load_state_dict({**state, "columns": columns, "slots": numbers, "count": capacity, "seen": VISITS * capacity})
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

    batch, capacity = options.batch, options.capacity
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

    batch = options.batch
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

    tasks = options.batch
    images, labels, _ = _data(100, 20)
    sources = [TensorSource(images[:2000], labels[:2000]) for _ in range(tasks)]
    benchmark = Benchmark("bench", 10, (tuple(range(10)),) * tasks, sources, sources, Scale(), (784,), ("domain_il",))
    learner = assemble(load_experiment({"benchmark": {"name": "synthetic"}, "device": "cpu"}), benchmark)
    torch.set_num_threads(1)
    evaluate(learner, range(tasks), range(tasks))
    started = time.perf_counter()
    evaluate(learner, range(tasks), range(tasks))
    return {"seconds": time.perf_counter() - started, "tasks": tasks, "samples": 2000 * tasks}


SIDES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "ours": ours,
    "bare": bare,
    "avalanche": avalanche,
    "full_memory": full_memory,
    "evaluation": evaluation,
    "text": bench_text.ours,
    "half_text": bench_text.half,
    "bare_text": bench_text.bare,
}


def main(argv: Sequence[str] | None = None) -> int:
    """One side, measured once and printed as JSON: what the processes of `clu bench` run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=tuple(SIDES))
    for number in ("batch", "steps", "capacity"):
        parser.add_argument(f"--{number}", type=int, required=True)
    options = parser.parse_args(argv)
    print(json.dumps(SIDES[options.side](options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
