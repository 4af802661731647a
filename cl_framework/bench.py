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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_framework.errors import ConfigurationError, FrameworkError

SIDES = ("ours", "bare", "avalanche")
CAPACITY = 500
SAMPLES = 60_000  # of the measured event: MNIST's size
QUICK_STEPS = 300
DEFAULT_BATCHES = [10, 32, 128]
TEXT_HELP = (
    "instead: tokens a second in language modelling; at 8,000 tokens a second, --quick takes a minute with --batch 8 and five with both "
    "default batches (of 8 and 32), on two quiet cores; beside other work several times that"
)
LOSS_TOLERANCE = 1e-4
FEWER = 0.03  # share of samples that Avalanche may train on less: each of its passes over the memory ends in a smaller batch
TARGETS = {10: (1.15, 0.75), 32: (1.15, 0.5), 128: (1.15, 0.5)}  # batch -> most times the bare loop, most times Avalanche


def main(argv: Sequence[str] | None = None) -> int:
    """What `clu bench` does. Exit code 1 if two sides that must do the same work did not."""
    options = _parser().parse_args(argv)
    if options.quick:
        options.steps, options.repeats = QUICK_STEPS, 1
    if options.model is not None and options.strategies is None:
        raise ConfigurationError("--model says what --strategies trains: add --strategies, or leave --model out.")
    if options.strategies is not None:
        from cl_framework.bench_strategies import table

        batches = options.batch or DEFAULT_BATCHES[1:]
        table(options.strategies, options.model or "mlp", batches, options.steps, options.repeats, options.json)
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
    parser.add_argument("--batch", type=count, nargs="+", help="stream rows a step; as many come from the memory")
    parser.add_argument("--steps", type=count, help="measured steps (default: one pass over 60,000 samples)")
    parser.add_argument("--repeats", type=count, default=5, help="processes of each side; the fastest counts")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps, one process of each side")
    parser.add_argument("--capacity", type=count, default=CAPACITY, help="samples in memory")
    parser.add_argument("--without-avalanche", action="store_true", help="leave Avalanche out")
    parser.add_argument("--strategies", nargs="*", metavar="NAME", help="instead: cost a step of these strategies, by default of all")
    parser.add_argument("--model", metavar="NAME", help="with --strategies: the model they train (default: mlp)")
    parser.add_argument("--text", action="store_true", help=TEXT_HELP)
    parser.add_argument("--memory", action="store_true", help="instead: cost a step for memories of 1e3 to 1e6 samples")
    parser.add_argument("--evaluation", action="store_true", help="instead: time of evaluating 1 to 20 tasks")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    return parser


def _bench_step(options: argparse.Namespace) -> int:
    sides = SIDES[:2] if options.without_avalanche else SIDES
    results: list[dict[str, Any]] = []
    same = True
    for batch in options.batch or DEFAULT_BATCHES:
        steps = options.steps or SAMPLES // batch
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for repeat in range(options.repeats):
            for side in sides:
                tell(side, f"batches of {batch}", repeat, options)
                runs[side].append(child(side, batch, steps, options.capacity))
        row: dict[str, Any] = {"batch": batch, "steps": steps}
        for side in sides:
            row[f"{side}_us_of_each"] = [1e6 * run["seconds"] / run["steps"] for run in runs[side]]
            row[f"{side}_us"] = min(row[f"{side}_us_of_each"])
            row[f"{side}_samples"] = runs[side][0]["samples"]
        pairs = zip(runs["ours"][0]["losses"], runs["bare"][0]["losses"], strict=True)
        row["loss_difference"] = max(abs(ours - bare) for ours, bare in pairs)
        same &= row["loss_difference"] <= LOSS_TOLERANCE and row["ours_samples"] == row["bare_samples"]
        same &= abs(row.get("avalanche_samples", row["ours_samples"]) / row["ours_samples"] - 1) <= FEWER
        results.append(row)
    finish(*step_table(results), results, options)
    if not same:
        print("clu: the sides did not do the same work: the ratios mean nothing.", file=sys.stderr)
    return 0 if same else 1


def step_table(results: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the sides' times and ratios, from the results that `--json` keeps."""
    sides = [side for side in SIDES if f"{side}_us" in results[0]]
    header = [
        "batch",
        *(f"{side} µs a step" for side in sides),
        *(f"ours / {side}" for side in sides[1:]),
        "loss curves differ by",
        "samples",
    ]
    rows = []
    for row in results:
        bounds = dict(zip(SIDES[1:], TARGETS.get(row["batch"], (None, None)), strict=True))
        ratios = [_ratio(row["ours_us"] / row[f"{side}_us"], bounds[side]) for side in sides[1:]]
        times = [f"{row[f'{side}_us']:.0f}" for side in sides]
        rows.append([str(row["batch"]), *times, *ratios, f"{row['loss_difference']:.1e}", str(row["ours_samples"])])
    return header, rows


def _ratio(value: float, bound: float | None) -> str:
    return f"{value:.2f}" if bound is None else f"{value:.2f} (target {bound:g})"


def _bench_memory(options: argparse.Namespace) -> int:
    sizes = [10**power for power in range(3, 7)]
    batch = (options.batch or DEFAULT_BATCHES)[0]
    steps = options.steps or SAMPLES // batch
    runs: dict[int, list[float]] = {size: [] for size in sizes}
    for repeat in range(options.repeats):
        for size in sizes:
            tell("a full memory", f"{size:,} samples", repeat, options)
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


def tell(side: str, of_what: str, repeat: int, options: argparse.Namespace) -> None:
    """Say on stderr what is measured now, before its process begins: the whole takes minutes. `repeat` counts from 0."""
    print(f"measuring {side}, {of_what}, {repeat + 1} of {options.repeats}", file=sys.stderr, flush=True)


def child(side: str, batch: int, steps: int, capacity: int) -> dict[str, Any]:
    """Run one side in a process of its own, on one thread."""
    words = [side, "--batch", str(batch), "--steps", str(steps), "--capacity", str(capacity)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-m", "cl_framework.bench_sides", *words], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise FrameworkError(f"the side {side!r} of the benchmark failed: {said[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def finish(header: Sequence[str], rows: Sequence[Sequence[str]], results: Sequence[Any], options: argparse.Namespace) -> None:
    from cl_framework.records import atomic_write, environment
    from cl_framework.tables import TerminalTable, table_console

    if options.json is not None:
        record = {"results": results, "repeats": options.repeats, "environment": environment("cpu", 1, False)}
        atomic_write(options.json, json.dumps(record, indent=2) + "\n")
    table_console().print(TerminalTable(header, rows))
