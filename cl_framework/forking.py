"""Processes forked from one that has imported what runs need, which takes longer than many of them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any


def forked(target: Callable[..., object], arguments: Sequence[Any], log: Path, jobs: int = 1) -> ForkServerProcess:
    """`target(*arguments)` in a process that has imported everything already and is otherwise as if this one had started it.

    What it says is appended to `log`. One of `jobs` side by side.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["cl_framework.host", "cl_framework.plots"])  # with Lightning and matplotlib
    surroundings = (dict(os.environ), multiprocessing.get_start_method())
    process = server.Process(target=_run, args=(target, tuple(arguments), log.absolute(), surroundings, jobs))
    process.start()
    return process


def _run(
    target: Callable[..., object],
    arguments: tuple[Any, ...],
    log: Path,
    surroundings: tuple[dict[str, str], str],
    jobs: int,
) -> None:
    """In the child: what it is forked from may have been started in other surroundings, by an earlier sweep of the same process."""
    import torch

    os.setsid()  # a Ctrl-C reaches the sweep alone, which passes it on once
    with log.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    environment, start_method = surroundings
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(start_method, force=True)  # of its readers: it would be the child's own, which imports anew
    if jobs > 1:
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    target(*arguments)
