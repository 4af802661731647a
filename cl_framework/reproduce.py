"""Published settings: run the cells of experiments/papers over seeds, and set our figures beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_framework.collected import collect, to_csv
from cl_framework.config import load_experiment
from cl_framework.errors import ConfigurationError, nearest
from cl_framework.metrics import mean_and_deviation
from cl_framework.records import atomic_write
from cl_framework.sweep import cells, expand, run_cells
from cl_framework.tables import markdown, replace_block

PAPERS = Path("experiments/papers")
POINTS = 2.5  # how far a mean may be from the published one, unless two published standard deviations are more


@dataclass(frozen=True)
class Published:
    """A published figure and where it stands."""

    figure: str
    value: float | None  # None: the settings are reconstructed, no figure is claimed for them
    deviation: float | None
    source: str

    @property
    def tolerance(self) -> float:
        return max(POINTS, 2 * (self.deviation or 0.0))


def published(path: Path) -> list[Published]:
    """The `expected` block of a cell: of each figure one entry, or a list where several runs of the same settings are in print."""
    expected: Mapping[str, Any] = load_experiment(path).run.expected
    parts = [(name, part) for name, given in expected.items() for part in (given if isinstance(given, list) else [given])]
    return [Published(name, part.get("value"), part.get("deviation"), part["source"]) for name, part in parts]


def find_cells(names: Sequence[str]) -> list[Path]:
    """The cells named, or all."""
    known = {path.stem: path for path in sorted(PAPERS.glob("*.yaml"))}
    if not known:
        raise ConfigurationError(f"there are no cells in {PAPERS}. Run this from the root of the repository.")
    for name in names:
        if Path(name).stem not in known:
            raise ConfigurationError(f"there is no cell {name!r} in {PAPERS}. {nearest(name, known)}")
    return [known[Path(name).stem] for name in names] or list(known.values())


def row(cell: Path, expected: Published, values: Mapping[int, float], seeds: Sequence[int]) -> list[str]:
    """One line of the table: what the paper says, what we measured over which seeds, and whether that is within tolerance."""
    theirs = "none" if expected.value is None else f"{expected.value:.2f}"
    if expected.deviation is not None:
        theirs += f" ± {expected.deviation:.2f}"
    if not values:
        return [cell.stem, expected.figure, theirs, "not run", "", "", expected.source]
    mean, deviation, count = mean_and_deviation(list(values.values()))
    ours = f"{mean:.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")
    within = "" if expected.value is None else ("yes" if abs(mean - expected.value) <= expected.tolerance else "no")
    measured = f"{count} of {len(seeds)}" if count < len(seeds) else ", ".join(map(str, sorted(values)))
    return [cell.stem, expected.figure, theirs, ours, measured, within, expected.source]


HEADER = ("cell", "figure", "published", "ours", "seeds", "within", "source")


def reproduce(names: Sequence[str], seeds: str, overrides: Sequence[str], jobs: int, table: Path | None, record: Path | None) -> int:
    """What `clu reproduce` does. Exit code 1 if a run failed; a figure outside its tolerance is reported, not an error."""

    from cl_framework.tables import TerminalTable, table_console

    try:
        wanted = [int(part.partition("=")[2]) for piece in seeds.split(",") for part in expand(f"seed={piece}")]
    except ValueError as error:
        raise ConfigurationError(f"--seeds {seeds}: write whole numbers, such as 0..2 or 0,3.") from error
    paths = find_cells(names)
    grid = [cell for path in paths for seed in wanted for cell in cells([path], [f"seed={seed}", *overrides])]
    failed = run_cells(grid, jobs)
    done = [cell.directory.path for cell in grid if cell.directory.status == "done"]
    summaries = collect(done).summaries if done else []
    rows = []
    for path in paths:
        mine = [summary for summary in summaries if summary["experiment"] == path.stem]
        for expected in published(path):
            rows.append(row(path, expected, {run["seed"]: run[expected.figure] for run in mine}, wanted))
    table_console().print(TerminalTable(HEADER, rows))
    if record is not None:
        atomic_write(record, to_csv(summaries))
    if table is not None:
        replace_block(table, "papers", markdown(HEADER, rows))
    return 1 if failed else 0


def table_from_record(record: Path, seeds: Sequence[int], names: Sequence[str] = ()) -> str:
    """The Markdown table that a committed record of runs gives for some cells, by default all: how a README's is checked against it."""
    summaries = collect([record]).summaries
    rows = [
        row(path, expected, {run["seed"]: run[expected.figure] for run in summaries if run["experiment"] == path.stem}, seeds)
        for path in find_cells(names)
        for expected in published(path)
    ]
    return markdown(HEADER, rows)
