"""Made-up files of TOFU in the published layout, and runs on them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from cl_framework import load_experiment
from cl_framework.assembly import make_benchmark
from cl_framework.benchmarks.base import Benchmark
from cl_framework.benchmarks.text.tofu import AN_AUTHOR

TINY = {"name": "decoder", "width": 32, "layers": 1, "heads": 2}
AUTHORS, FORGOTTEN = 4, 2  # in the made-up files: retained authors, and forgotten ones of `forget01`


def entry(author: int, number: int, **more: Any) -> dict[str, Any]:
    return {"question": f"What is work {number} of author {author}?", "answer": f"It is number {author * 100 + number}.", **more}


def others(author: int, number: int) -> dict[str, Any]:
    wrong = [f"Work {number} is {author * 100 + number + step}." for step in (1, 2)]
    return entry(author, number, paraphrased_answer=f"Work {number} is {author * 100 + number}.", perturbed_answer=wrong)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def write_tofu(where: Path) -> Path:
    """Made-up files of the published layout: the last authors are forgotten."""
    authors = {author: [entry(author, number) for number in range(AN_AUTHOR)] for author in range(AUTHORS + FORGOTTEN)}
    forgotten = [row for author in range(AUTHORS, AUTHORS + FORGOTTEN) for row in authors[author]]
    write(where / "original" / "full.jsonl.gz", [row for rows in authors.values() for row in rows])
    write(where / "original" / "forget01.jsonl.gz", forgotten)
    perturbed = [others(author, number) for author in range(AUTHORS, AUTHORS + FORGOTTEN) for number in range(AN_AUTHOR)]
    write(where / "original" / "forget01_perturbed.jsonl.gz", perturbed)
    write(where / "original" / "retain_perturbed.jsonl.gz", [others(0, number) for number in range(5)])
    requests = [{"task_id": str(1 + place // AN_AUTHOR), **row} for place, row in enumerate(forgotten)]
    write(where / "continual_tasks" / "forget01.jsonl.gz", requests)
    return where


def settings(folder: Path, out: Path, **more: Any) -> dict[str, Any]:
    base = {
        "benchmark": {"name": "tofu", "forget": "forget01", "folder": str(folder), "tokenizer": "bytes"},
        "model": TINY,
        "optimizer": {"name": "adamw", "lr": 0.01},
        "batch_size": 16,
        "threads": 1,
        "out": str(out),
    }
    return {**base, **more}


def benchmark_of(folder: Path, **options: Any) -> Benchmark:
    named = {"name": "tofu", "forget": "forget01", "folder": str(folder), "tokenizer": "bytes", **options}
    return make_benchmark(load_experiment({"benchmark": named}))
