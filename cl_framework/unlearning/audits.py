"""What `clu audit` does with several runs: audits those that were not yet, shows tables, writes what is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_framework.collected import runs_in
from cl_framework.errors import ConfigurationError
from cl_framework.plots import check_png, png
from cl_framework.records import Row, RunDirectory, atomic_write
from cl_framework.stream import Stream
from cl_framework.summary import rebuild_summary
from cl_framework.tables import TerminalTable, markdown, replace_block
from cl_framework.unlearning.audit import FULL, audit, check_counts, finished
from cl_framework.unlearning.audit_pictures import relearning_picture, tradeoff_picture
from cl_framework.unlearning.audit_report import (
    COST_WORDS,
    NAMES,
    comparison,
    costs,
    read_audit,
    read_csv,
    rows_of,
    to_csv,
    verdicts_of,
    why_invalid,
)
from cl_framework.unlearning.deletion import DeletionLog, check_complete, file_digest, sealed_audits
from cl_framework.unlearning.fast import FAST
from cl_framework.unlearning.orders import distinct_orders
from cl_framework.unlearning.report_of_answers import ANSWER_WORDS, probabilities

VERDICT_WORDS = " · ".join(NAMES.values()) + (
    ". Means over requests; P passed, F failed, ? inconclusive, invalid or not run; T1 with the mean of the requests' 95 % intervals "
    "in brackets, each of n questions."
)
TABLES = {"verdicts": (comparison, VERDICT_WORDS), "costs": (costs, COST_WORDS), "answers": (probabilities, ANSWER_WORDS)}


@dataclass(frozen=True)
class Wanted:
    """How runs are to be audited; see `audit`."""

    tier: str
    seeds: int | None = None  # None: as many as an audit that stands has, or the default
    orders: int | None = None  # likewise
    again: bool = False  # no audit stands, and nothing is taken that was kept before
    keep_learned: bool = False


def audits(
    words: Sequence[str],
    wanted: Wanted,
    out: Path | None,
    into: str | None,
    plot: Path | None,
    table: str,
    tell: Callable[[str], None],
) -> Iterator[Any]:
    """What to show, piece by piece, as it is there: each run's verdicts, then the table of all, then sentences about files.

    table: what the table of all says, one of `TABLES`.
    """
    tier = wanted.tier
    check_counts(wanted.seeds, wanted.orders)
    paths, overrides = places(words)
    if out is not None and out.suffix != ".csv":
        raise ConfigurationError(f"--out {out}: the name must end in .csv.")
    if plot is not None:
        check_png(plot)
    rows: list[Row] = []
    made: set[Path] | None = set() if wanted.again else None  # runs that share oracles share what is trained anew, too
    for path in paths:
        if path.suffix == ".csv":
            rows += read_csv(path)
            continue
        check_complete(RunDirectory(path))
        result = fast_result(path) if tier == FAST else _audited(path, wanted, made, overrides, tell)
        rows += rows_of(result)
        yield f"{path}, {'from its own records' if tier == FAST else 'oracles of seeds ' + ', '.join(map(str, result['oracle_seeds']))}"
        yield TerminalTable(*verdicts_of(result))
        yield from why_invalid(result)
        if tier != FAST:
            picture = RunDirectory(path).plots / "relearning.png"
            atomic_write(picture, png(relearning_picture(result)))
            yield f"{path / 'audit' / tier}.json holds it; written: {picture}"
    of_all, words_below = TABLES[table]
    header, lines = of_all(rows)
    if table != "verdicts" or len(paths) > 1 or paths[0].suffix == ".csv":
        yield TerminalTable(header, lines)
        yield words_below
    if out is not None:
        atomic_write(out, to_csv(rows))
        yield f"written: {out}"
    if into is not None:
        file, _, block = into.partition("#")
        replace_block(Path(file), block, markdown(header, lines))
        yield f"written: the block {block!r} of {file}"
    if plot is not None:
        atomic_write(plot, png(tradeoff_picture(rows)))
        yield f"written: {plot}"


def places(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Run directories and files, and overrides, told apart by "=" in a word that is no path."""
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    paths = [Path(word) for word in words if word not in overrides]
    if not paths:
        raise ConfigurationError("clu audit needs a run directory, such as runs/digits_unlearn/0123abcd-s0.")
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise ConfigurationError(f"{missing[0]} does not exist. Name run directories, or .csv files that `clu audit --out` made.")
    found = [run for path in paths for run in ([path] if path.suffix == ".csv" else runs_in(path))]
    if not found:
        raise ConfigurationError(f"there is no run in {paths[0]}. Name run directories, or a folder that holds some.")
    return found, overrides


def _audited(
    path: Path, wanted: Wanted, made: set[Path] | None, overrides: Sequence[str], tell: Callable[[str], None]
) -> Mapping[str, Any]:
    """The audit that stands, if it is of what is asked for; else one made anew, which keeps what it had of what is not asked for.

    made: as `audit` takes it; where it is given, no audit stands.
    """
    tier, seeds, orders = wanted.tier, wanted.seeds, wanted.orders
    standing = None if made is not None else _standing(path, tier)
    had: dict[str, Any] = {}
    if standing is not None:
        differs = _differs(standing, seeds, orders)
        if not differs:
            if wanted.keep_learned:
                tell(f"{path}: its audit stands, so nothing is kept of it. Make it anew with --again to keep what was learned.")
            return standing
        tell(f"{path}: its audit of tier {tier} has {differs}; it is made anew.")
        most = max((len(request["orders"]) for request in standing["requests"] if "orders" in request), default=0)
        had = {"seeds": len(standing["oracle_seeds"]), **({"orders": most} if most > 1 else {})}
    counts = {name: value for name, value in (("seeds", seeds), ("orders", orders)) if value is not None}
    return audit(path, tier, overrides=overrides, made=made, keep_learned=wanted.keep_learned, tell=tell, **(had | counts))


def _differs(standing: Mapping[str, Any], seeds: int | None, orders: int | None) -> str:
    """What an audit has, and what was asked for instead; "" if it is that, or nothing was asked for."""
    oracles = len(standing["oracle_seeds"])
    if seeds is not None and seeds != oracles:
        return f"oracles of {oracles} seed{'s' * (oracles != 1)}, and --seeds {seeds} was asked for"
    stream = Stream.parse(standing["stream"])
    if orders is None or standing["tier"] != FULL:
        return ""
    for request in standing["requests"]:
        there = len(distinct_orders(stream, request["event_index"], orders, standing["seed"]))  # no more than the events have
        if there != len(request["orders"]):
            had = len(request["orders"])
            return f"{had} order{'s' * (had != 1)} of the events before {request['event']}, and with --orders {orders} it is {there}"
    return ""


def _standing(path: Path, tier: str) -> Mapping[str, Any] | None:
    """The audit of this tier that a run has already, as its deletion record has sealed it."""
    file = path / "audit" / f"{tier}.json"
    if not file.exists():
        return None
    sealed = sealed_audits(DeletionLog(path / "deletion").entries())
    whole = sealed.get(f"audit/{file.name}") == file_digest(file)
    return read_audit(file) if whole else None


def fast_result(path: Path) -> dict[str, Any]:
    """The run's own summary in the form of an audit."""
    directory, _ = finished(path, ())
    summary = rebuild_summary(directory.path)
    identity = {key: summary[key] for key in ("experiment", "fingerprint", "benchmark", "scenario", "stream", "strategies", "seed")}
    requests = [{**one, "strategy": "", "unlearned": None} for one in summary["unlearning"]]
    return {"tier": FAST, "oracle_seeds": [], **identity, "requests": requests}
