"""What `clu run` and `clu resume` put around a run: signals, listeners, and the closing words."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from cl_framework.config import Experiment
from cl_framework.listeners import Listener
from cl_framework.loggers.console import ConsoleListener
from cl_framework.runner import RunResult
from cl_framework.signals import stop_on_signals


@contextmanager
def listening(experiment: Experiment) -> Iterator[tuple[Sequence[Listener], Callable[[int], bool]]]:
    """The listeners that a configuration asks for, and the question whether a signal asked for a stop."""
    listeners: list[Listener] = [ConsoleListener()]
    if experiment.run.logger == "wandb":
        from cl_framework.loggers.wandb import WandbListener

        listeners.append(WandbListener(experiment.run.wandb))
    with stop_on_signals(lambda text: print(text, file=sys.stderr)) as stop_requested:
        yield listeners, stop_requested


def finish(result: RunResult) -> int:
    """Print how a run ended; returns the exit code."""

    from cl_framework.plots import write_plots
    from cl_framework.records import RunDirectory
    from cl_framework.report import table_of_run
    from cl_framework.tables import table_console

    console = table_console()
    if result.status == "stopped" or result.summary is None:
        console.print(f"stopped at a checkpoint; continue with: clu resume {result.path}", soft_wrap=True)
        return 1
    console.print(table_of_run(result.summary))
    write_plots(RunDirectory(result.path), result.summary)
    if result.earlier:
        console.print(f"finished before, nothing was run: {result.path}; again=true starts it anew", soft_wrap=True)
    else:
        console.print(f"written: {result.path}", soft_wrap=True)
    return 0
