"""Which model reads a benchmark: what is said where another one is named."""

from __future__ import annotations

from cl_framework.benchmarks.base import Benchmark


def suited_model(benchmark: Benchmark) -> str:
    """The name of a plain model that reads the benchmark's inputs and answers what it asks."""
    if benchmark.vocabulary is None:
        return "mlp"
    return "decoder" if benchmark.objective == "language_modelling" else "encoder"
