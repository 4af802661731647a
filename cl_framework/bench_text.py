"""Tokens a second in language modelling: ours beside a bare PyTorch loop over the same model and the same batches.

And half fine-tuning beside full: its time a step, what it trains, the memory that the optimizer's moments take, and the most that the
process takes in all.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

SEED = 0
LENGTH = 64  # tokens a row
VOCABULARY = 2000
WIDTH, LAYERS = 128, 4  # 1.3 million parameters
RATE = 1e-3
DEFAULT_BATCHES = [8, 32]
DEFAULT_STEPS = 200
WARM_UP_STEPS = 5
SIDES = ("bare_text", "text", "half_text")  # forth and back: what is compared runs next to each other, and neither always first
SIZES = ("trained", "moments", "peak_rss_mib")  # of half fine-tuning, beside full
TARGET = 0.95  # of the bare loop's speed, at least


def compare(options: argparse.Namespace) -> int:
    """Both sides in turn for each batch size, as a table. Exit code 1 if they did not do the same work."""
    from cl_framework.bench import LOSS_TOLERANCE, child, finish, tell

    results: list[dict[str, Any]] = []
    for batch in options.batch or DEFAULT_BATCHES:
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for repeat in range(options.repeats):
            for side in SIDES if repeat % 2 == 0 else reversed(SIDES):
                tell(side, f"batches of {batch}", repeat, options)
                runs[side].append(child(side, batch, options.steps or DEFAULT_STEPS, 1))
        each = {side: [LENGTH * run["samples"] / run["seconds"] for run in found] for side, found in runs.items()}
        speeds = {side: max(found) for side, found in each.items()}
        pairs = zip(runs["text"][0]["losses"], runs["bare_text"][0]["losses"], strict=True)
        difference = max(abs(ours - bare) for ours, bare in pairs)
        full, part = runs["text"][0], runs["half_text"][0]
        shares = {"time": speeds["text"] / speeds["half_text"], "time_by_rounds": by_rounds(each["text"], each["half_text"])}
        results.append(
            {
                "batch": batch,
                **speeds,
                "each": each,
                "ratio": speeds["text"] / speeds["bare_text"],
                "ratio_by_rounds": by_rounds(each["text"], each["bare_text"]),
                "loss_difference": difference,
                "half": shares | {name: part[name] / full[name] for name in SIZES},
            }
        )
    rows = [
        [
            str(row["batch"]),
            *(f"{row[side]:,.0f}" for side in ("text", "bare_text")),
            f"{row['ratio']:.3f} (target {TARGET:g})",
            rounds_in_words(row["ratio_by_rounds"]),
            f"{row['loss_difference']:.1e}",
            f"{row['half']['time']:.2f}",
            rounds_in_words(row["half"]["time_by_rounds"]),
            *(f"{row['half'][name]:.2f}" for name in SIZES),
        ]
        for row in results
    ]
    header = [f"rows of {LENGTH}", "ours, tokens/s", "bare, tokens/s", "ours / bare", "by rounds", "loss curves differ by"]
    finish([*header, "half / full: time", "by rounds", "trained", "optimizer's memory", "peak memory"], rows, results, options)
    same = all(row["loss_difference"] <= LOSS_TOLERANCE for row in results)
    if not same:
        print("clu: the sides did not do the same work: the ratios mean nothing.", file=sys.stderr)
    return 0 if same else 1


def by_rounds(speeds: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """The mean ratio of two sides' processes, each with the one of the same round, and Student's interval; None for one process a side.

    Of logarithms, so that noise in one side weighs as much as in the other. Where a machine is shared, the fastest of each side may have
    run at different hours; those of a round did not.
    """
    from cl_framework.metrics import confidence_interval

    ratios = [math.log(speed / other) for speed, other in zip(speeds, others, strict=True)]
    interval = confidence_interval(ratios)
    return {"mean": math.exp(mean(ratios)), "interval": interval and [math.exp(end) for end in interval]}


def rounds_in_words(found: Mapping[str, Any]) -> str:
    """What `by_rounds` says, to two decimals: the mean, and its interval in brackets."""
    interval = found["interval"]
    return f"{found['mean']:.2f}" + ("" if interval is None else " ({:.2f} to {:.2f})".format(*interval))


def _benchmark(batch: int, steps: int) -> Any:
    """Two texts of made-up tokens that can be learned a little: each token is more likely to be followed by its double."""
    import torch

    from cl_framework.benchmarks.base import Benchmark
    from cl_framework.benchmarks.sources import TensorSource
    from cl_framework.benchmarks.text.tokens import TokenInputs

    generator = torch.Generator().manual_seed(SEED)
    sources = []
    for count in (WARM_UP_STEPS * batch, steps * batch):
        tokens = torch.randint(2, VOCABULARY, (count, LENGTH + 1), generator=generator)
        for place in range(1, LENGTH + 1):
            doubled = (2 * tokens[:, place - 1]) % VOCABULARY
            tokens[:, place] = torch.where(torch.rand(count, generator=generator) < 0.5, doubled, tokens[:, place])
        sources.append(TensorSource(tokens[:, :-1].int(), tokens[:, 1:]))
    return Benchmark(
        "bench",
        VOCABULARY,
        (tuple(range(VOCABULARY)),) * 2,
        sources,
        sources,
        TokenInputs(padding=None),
        (LENGTH,),
        ("domain_il",),
        modality="text",
        vocabulary=VOCABULARY,
        objective="language_modelling",
    )


def _learner(batch: int, steps: int, strategies: dict[str, Any] | None = None) -> Any:
    import torch

    from cl_framework.assembly import assemble
    from cl_framework.config import load_experiment

    torch.set_num_threads(1)
    settings = {
        "benchmark": {"name": "synthetic"},  # the schema wants a name; the tokens above take its place
        "model": {"name": "decoder", "width": WIDTH, "layers": LAYERS},
        "optimizer": {"name": "adamw", "lr": RATE},
        "batch_size": batch,
        "seed": SEED,
        "device": "cpu",
        "strategies": strategies or {},
    }
    return assemble(load_experiment(settings), _benchmark(batch, steps))


def ours(options: argparse.Namespace) -> dict[str, Any]:
    """The framework: learner and Lightning host, no strategies."""
    from cl_framework.bench_sides import fit

    learner = _learner(options.batch, options.steps)
    fit(learner, 0)
    return fit(learner, 1)


def half(options: argparse.Namespace) -> dict[str, Any]:
    """The same with half fine-tuning by category, as published for transformers."""
    from cl_framework.bench_sides import fit

    learner = _learner(options.batch, options.steps, {"half": {"granularity": "category"}})
    fit(learner, 0)
    return fit(learner, 1)


def bare(options: argparse.Namespace) -> dict[str, Any]:
    """A plain loop over the same rows in the same order."""
    import torch
    from torch.nn import functional

    from cl_framework.plan import Plan
    from cl_framework.rng import BLOCK, RandomStream

    batch = options.batch
    learner = _learner(batch, options.steps)
    model, losses, seconds = learner.model, [], 0.0
    model.train()
    for task, source in enumerate(learner.benchmark.train):
        started = time.perf_counter()
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
        order = Plan.over(torch.arange(len(source)), batch, 1, RandomStream(SEED, "Learn", task, 0, "", "plan").generator()).ids
        for step, chosen in enumerate(order.split(batch)):
            tokens, targets = source.items.index_select(0, chosen).long(), source.targets.index_select(0, chosen)
            logits = model({"input_ids": tokens, "attention_mask": torch.ones_like(tokens, dtype=torch.bool)})
            loss = functional.cross_entropy(logits.transpose(1, 2).reshape(-1, VOCABULARY), targets.reshape(-1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if task == 1 and (step % BLOCK == BLOCK - 1 or step == options.steps - 1):  # as often as the framework tells a loss
                losses.append(loss.detach())
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "steps": options.steps, "samples": len(source), "losses": [float(loss) for loss in losses]}
