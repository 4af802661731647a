"""Tables for the terminal and for Markdown files, and the numbers in them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cl_framework.errors import ConfigurationError
from cl_framework.metrics import mean_and_deviation
from cl_framework.records import atomic_write

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table


_WIDE = 400  # columns where there is no terminal: more than any table of ours has


def table_console() -> Console:
    """Where tables are printed: as wide as the terminal; into a file or a pipe no cell is broken."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _WIDE)


class TerminalTable:
    """A table for the terminal. Where that is narrower, and figures one below another take less room, it lies on its side: a line a
    figure, a column a run. Where that is too wide as well, cells are broken over several lines; nothing is cut off."""

    def __init__(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self._header, self._rows = header, rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        unbounded = options.update(width=_WIDE)
        upright, on_its_side = self._upright(), self._on_its_side()
        width, other = (console.measure(table, options=unbounded).maximum for table in (upright, on_its_side))
        yield on_its_side if options.max_width < width > other else upright

    def _upright(self) -> Table:
        names = ("settings", "seeds")
        columns = [(title, "left" if place < 3 or title in names else "right") for place, title in enumerate(self._header)]
        return _table(columns, self._rows)

    def _on_its_side(self) -> Table:
        (corner, *names), *lines = zip(self._header, *self._rows, strict=True)
        return _table([(corner, "left"), *((name, "right") for name in names)], lines)


def _table(columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]]) -> Table:
    from rich.table import Table

    table = Table(padding=(0, 0))
    for title, justify in columns:
        table.add_column(title, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*row)
    return table


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None, places: int = 2) -> str:
    """A count, a figure with some decimal places (from a billion on by its power of ten), or a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return str(value)
    return f"{value:.{places}f}" if abs(value) < 1e9 else f"{value:.{places}e}"


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, or the one value; a count that is the same everywhere stands alone."""
    if not values:
        return "–"
    if len(set(values)) == 1 and isinstance(values[0], int):
        return number(values[0])
    mean, deviation, _ = mean_and_deviation(values)
    return number(mean) if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


# --- blocks of a Markdown file ---


def replace_block(path: Path, name: str, text: str) -> None:
    """Put `text` between the lines `<!-- table: NAME -->` and `<!-- end -->` of a Markdown file."""
    start, end = f"<!-- table: {name} -->", "<!-- end -->"
    try:
        whole = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise ConfigurationError(f"{path} cannot be read: {why}. It must hold a block '{start}' … '{end}'.") from error
    if start not in whole or end not in whole.partition(start)[2]:
        raise ConfigurationError(f"{path} has no block between '{start}' and '{end}'.")
    before, _, rest = whole.partition(start)
    after = rest.partition(end)[2]
    atomic_write(path, f"{before}{start}\n{text.strip()}\n{end}{after}")
