"""Grids of runs: one cell after another or side by side; what is done is skipped, what was interrupted is resumed.

Every cell is a process of its own, forked from one that has imported what all of them need, which would take each longer than a small run.
"""

from __future__ import annotations

import itertools
import math
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from cl_framework.config import NOT_RESUMED, load_experiment
from cl_framework.errors import ConfigurationError
from cl_framework.forking import forked
from cl_framework.records import RunDirectory, cannot_write

_MOST_CELLS = 100_000  # years of runs: a range that long is a slip of the hand


@dataclass(frozen=True)
class Cell:
    """One run of a grid."""

    experiment: Path
    overrides: tuple[str, ...]
    directory: RunDirectory
    again: bool  # start anew whatever is there

    @property
    def done(self) -> bool:
        return self.directory.status == "done" and not self.again

    @property
    def resumed(self) -> bool:
        return self.directory.status in ("unfinished", "failed") and not self.again

    @property
    def name(self) -> str:
        return " ".join([str(self.experiment), *self.overrides])

    @property
    def log(self) -> Path:
        return self.directory.path.with_name(self.directory.path.name + ".log")

    def command(self) -> list[str]:
        """The words after `clu` that start the run, or resume it if there is something to resume."""
        if self.resumed:
            kept = [override for override in self.overrides if override.partition("=")[0] not in NOT_RESUMED]
            return ["resume", str(self.directory.path), *kept]
        return ["run", str(self.experiment), *self.overrides]


def expand(override: str) -> list[str]:
    """`seed=0..4` and `a.b=1,2,3` as one override a value; commas within brackets or quotes do not count."""
    key, equals, value = override.partition("=")
    if not equals:
        return [override]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", value)
    if span:
        first, last = int(span[1]), int(span[2])
        if last < first:
            raise ConfigurationError(f"the range in {override!r} runs backwards.")
        if last - first >= _MOST_CELLS:
            raise ConfigurationError(f"{override!r} has {last - first + 1} values; a sweep runs at most {_MOST_CELLS} cells.")
        return [f"{key}={number}" for number in range(first, last + 1)]
    if key in ("stream", "without"):  # their values hold commas
        return [override]
    return [f"{key}={part}" for part in _split_commas(value)]


def _split_commas(value: str) -> list[str]:
    parts, depth, start, quote = [], 0, 0, ""
    for position, letter in enumerate(value):
        if letter in "\"'" and quote in ("", letter):
            quote = "" if quote else letter
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth == 0 and not quote:
            parts.append(value[start:position])
            start = position + 1
    return [*parts, value[start:]]


def cells(experiments: Sequence[Path], overrides: Sequence[str]) -> list[Cell]:
    """Every combination of the values, checked before the first one runs. Refuses two cells that are the same run."""
    grid = [expand(override) for override in overrides]
    count = len(experiments) * math.prod(map(len, grid))
    if count > _MOST_CELLS:
        raise ConfigurationError(f"the grid has {count} cells; a sweep runs at most {_MOST_CELLS}. Split it.")
    found = []
    for experiment in experiments:
        for combination in itertools.product(*grid):
            checked = load_experiment(experiment, combination)
            run = checked.run
            directory = RunDirectory.create(run.out, run.experiment, checked.fingerprint, run.seed)
            found.append(Cell(experiment, combination, directory, run.again))
    seen: dict[Path, Cell] = {}
    for cell in found:
        if cell.directory.path in seen:
            raise ConfigurationError(f"two cells are the same run: {seen[cell.directory.path].name!r} and {cell.name!r}.")
        seen[cell.directory.path] = cell
    return found


def run_cells(grid: Sequence[Cell], jobs: int) -> list[Cell]:
    """Run a grid with `jobs` processes; returns the cells that failed. SIGINT and SIGTERM reach the runs, which write checkpoints."""
    if jobs < 1:
        raise ConfigurationError(f"--jobs must be >= 1, got {jobs}.")
    waiting = [cell for cell in grid if not cell.done]
    for cell in waiting:  # all of them before the first starts
        try:
            cell.log.parent.mkdir(parents=True, exist_ok=True)
            cell.log.touch()
        except OSError as error:
            raise cannot_write(cell.log.parent, error) from error
    for cell in grid:
        if cell not in waiting:
            _say(f"done before: {cell.directory.path}")
    running: dict[ForkServerProcess, tuple[Cell, float]] = {}
    failed: list[Cell] = []
    passed_on = 0
    with _noting_signals() as stopping:
        while (waiting and not stopping) or running:
            while waiting and len(running) < jobs and not stopping:
                cell = waiting.pop(0)
                running[_start(cell, jobs)] = (cell, time.monotonic())
            for _ in stopping[passed_on:]:
                passed_on += 1
                for process in running:
                    process.terminate()
            time.sleep(0.05)
            for process in [process for process in running if process.exitcode is not None]:
                cell, started = running.pop(process)
                seconds = time.monotonic() - started
                if process.exitcode == 0:
                    _say(f"done: {cell.directory.path} ({seconds:.0f} s)")
                else:
                    failed.append(cell)
                    _say(f"not done (exit code {process.exitcode}): {cell.name}; {cell.log} ends with: {_last_line(cell.log)}")
        if stopping:
            failed.extend(waiting)
    return failed


def _start(cell: Cell, jobs: int) -> ForkServerProcess:
    verb = "resuming" if cell.resumed else "running"
    _say(f"{verb}: {cell.name}")
    return forked(clu, (cell.command(),), cell.log, jobs)


def clu(words: Sequence[str]) -> None:
    """`clu WORDS`, as a process does it."""
    from cl_framework.cli import main

    sys.exit(main(list(words)))


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing")


@contextmanager
def _noting_signals() -> Iterator[list[int]]:
    """The signals that came meanwhile: passed on by whoever waits, since a process that is being started is not there yet to be told."""
    noted: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: noted.append(number)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def sweep(experiments: Sequence[Path], overrides: Sequence[str], jobs: int) -> int:
    """What `clu sweep` does: run the grid, then print the table over seeds. Exit code 1 if a cell is not done."""

    from cl_framework.collected import collect, comparison
    from cl_framework.tables import TerminalTable, table_console

    grid = cells(experiments, overrides)
    failed = run_cells(grid, jobs)
    done = [cell.directory.path for cell in grid if cell.directory.status == "done"]
    if done:
        table_console().print(TerminalTable(*comparison(collect(done).summaries)))
    for cell in failed:
        _say(f"not done: {cell.name}" + (f"; see {cell.log}" if cell.log.exists() else ""))
    return 1 if failed else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
