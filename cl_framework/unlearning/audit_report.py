"""Audits as tables and pictures: one run in the terminal, many runs by strategy, committed rows as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from cl_framework.errors import ConfigurationError
from cl_framework.metrics import mean_and_deviation
from cl_framework.records import Row, read_json
from cl_framework.unlearning.fast import FAIL, INVALID, NOT_RUN, PASS
from cl_framework.unlearning.verdicts import WORD

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

NAMES = {
    "M1": "M1 forget gap",
    "M2": "M2 spill",
    "M3": "M3 relapse",
    "M4": "M4 relearning",
    "M5": "M5 membership",
    "M6": "M6 retrain KL",
    "M7": "M7 order",
    "M8": "M8 rounding",
    "M9": "M9 probe",
    "M10": "M10 geometry",
    "M11": "M11 artefacts",
    "M12": "M12 cost",
    "T1": "T1 truth ratio",
    "T2": "T2 probability",
    "T3": "T3 extraction",
    "T4": "T4 exact memory",
}
_WORDS = {True: "yes", False: "not shown", None: NOT_RUN}
UNLEARNED, ORACLE, NEVER_SEEN = "unlearned", "oracle of another seed", "a task never seen"  # which model a row is about
_CONTROLS = (ORACLE, NEVER_SEEN)
_GRANULARITIES = ("task", "class", "sample")  # in the order of tables
_IDENTITY = ("experiment", "fingerprint", "benchmark", "scenario", "stream", "strategies", "seed")
_REQUEST = ("event_index", "event", "granularity", "strategy")
_FIGURE = ("name", "value", "verdict", "bound", "worst")
COLUMNS = (*_IDENTITY, *_REQUEST, "model", "unlearned", *_FIGURE, "details")


# --- rows: one figure of one request of one run ---


def rows_of(audit: Mapping[str, Any]) -> list[Row]:
    """An audit's figures, and those of the controls in its place; details, to five digits, of the former alone."""
    rows = []
    for request in audit["requests"]:
        for model, key in ((UNLEARNED, "figures"), (ORACLE, "oracle_figures"), (NEVER_SEEN, "never_seen_figures")):
            for figure in request.get(key, ()):
                row = {key: audit[key] for key in _IDENTITY} | {key: request[key] for key in _REQUEST}
                details = {name: float(f"{value:.5g}") for name, value in figure["details"].items()} if model == UNLEARNED else {}
                row |= {"model": model, "unlearned": request["unlearned"] if model == UNLEARNED else None, "details": details}
                rows.append(row | {key: figure[key] for key in _FIGURE})
    return rows


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV; `read_csv` gives them back."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        written = {key: "" if row[key] is None else row[key] for key in COLUMNS}
        writer.writerow(written | {"strategies": " ".join(row["strategies"]), "details": json.dumps(row["details"])})
    return buffer.getvalue()


def read_csv(path: Path) -> list[Row]:
    """The rows of a file that `to_csv` made. ConfigurationError names the file if it is another one."""
    rows = []
    try:
        with path.open(newline="") as file:
            for text in csv.DictReader(file):
                row: Row = {key: text[key] for key in COLUMNS}
                row |= {key: float(text[key]) if text[key] else None for key in ("value", "bound", "worst")}
                row |= {"seed": int(text["seed"]), "event_index": int(text["event_index"])}
                row["unlearned"] = {"True": True, "False": False}.get(text["unlearned"])
                row |= {"strategies": text["strategies"].split(), "details": json.loads(text["details"])}
                rows.append(row)
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise ConfigurationError(f"{path} holds no rows of audits. Write some with `clu audit RUN_DIR… --out FILE.csv`.") from error
    return rows


def audits_in(path: Path) -> Iterable[Mapping[str, Any]]:
    """The results that a run directory holds, the fullest tier first."""
    for tier in ("full", "standard"):
        file = path / "audit" / f"{tier}.json"
        if file.exists():
            yield read_json(file)


# --- tables ---


def verdicts_of(audit: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """One run: a row a figure, a column a request."""
    requests = audit["requests"]
    header = ["figure", *(f"{request['event']} (event {request['event_index']})" for request in requests)]
    rows = []
    asked = any(one["name"].startswith("T") for request in requests for one in request["figures"])
    for name, title in NAMES.items():
        if name.startswith("T") and not asked:
            continue
        cells = [_cell(next((one for one in request["figures"] if one["name"] == name), None)) for request in requests]
        rows.append([title, *cells])
    return header, [*rows, ['"unlearned"', *(_WORDS[request["unlearned"]] for request in requests)]]


def _cell(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return NOT_RUN
    return figure["verdict"] if figure["value"] is None else f"{figure['value']:.3g} {figure['verdict']}"


def comparison(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Many runs: a row a stack and granularity; each figure as mean over requests (but those that are void), and how many passed (P),
    failed (F), and told nothing (?: inconclusive, invalid or not run).

    The last rows of a granularity are controls in the place of the unlearned model, from all runs together: an oracle of another seed,
    and a task that was never seen.
    """
    names = [name for name in NAMES if any(row["name"] == name and row["value"] is not None for row in rows)]
    header = ["unlearns", "strategies", *names, '"unlearned"', "requests", "orders", "seeds"]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        who = ", ".join(row["strategies"]) if row["model"] == UNLEARNED else row["model"]
        groups.setdefault((row["granularity"], who), []).append(row)
    order = sorted(groups, key=lambda key: (_GRANULARITIES.index(key[0]), _CONTROLS.index(key[1]) if key[1] in _CONTROLS else -1, key[1]))
    return header, [[*key, *_group(groups[key], names)] for key in order]


def _group(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    cells = []
    for name in names:
        mine = [row for row in rows if row["name"] == name]
        values = [row["value"] for row in mine if row["value"] is not None and row["verdict"] != INVALID]
        passed, failed = (sum(row["verdict"] == verdict for row in mine) for verdict in (PASS, FAIL))
        counts = {"P": passed, "F": failed, "?": len(mine) - passed - failed}
        told = " ".join(f"{count}{letter}" for letter, count in counts.items() if count)
        shown = f"{mean(values):.2f} ({told})" if values else f"({told})"
        cells.append(shown if any(row["value"] is not None for row in mine) else "–")
    requests: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in rows:
        request = (row["experiment"], row["fingerprint"], row["seed"], row["event_index"])
        requests.setdefault(request, {})[row["name"]] = row["verdict"]
    orders, seeds = {row["stream"] for row in rows}, sorted({row["seed"] for row in rows})
    wanted = [name for name in WORD if rows[0]["model"] == UNLEARNED or name != "M11"]  # an oracle has nothing to let go of
    measured = [verdicts for verdicts in requests.values() if set(wanted) <= verdicts.keys()]
    said = f"{sum(all(verdicts[name] == PASS for name in wanted) for verdicts in measured)}/{len(measured)}" if measured else NOT_RUN
    return [*cells, said, str(len(requests)), str(len(orders)), ", ".join(map(str, seeds))]


# --- what an answer costs: M12 in full ---


def _share(part: str, whole: str) -> Callable[[Mapping[str, float]], float | None]:
    """One detail of M12 over another; None where either is not on record, or nothing was trained to compare with."""
    return lambda details: details[part] / details[whole] if part in details and details.get(whole) else None


_COSTS: Mapping[str, tuple[Callable[[Mapping[str, float]], float | None], str]] = {  # column: its value of one request, and its format
    "seconds": (lambda details: details.get("seconds"), ".2f"),
    "forgotten samples": (lambda details: details.get("samples_forget"), ".0f"),
    "retained samples": (lambda details: details["samples"] - details["samples_forget"], ".0f"),
    "seconds ÷ suffix": (_share("seconds", "oracle_seconds"), ".3f"),
    "samples ÷ suffix": (_share("samples", "oracle_samples"), ".3f"),
    "seconds ÷ whole": (_share("seconds", "whole_seconds"), ".3f"),
    "samples ÷ whole": (_share("samples", "whole_samples"), ".3f"),
    "peak MiB": (lambda details: details.get("peak_rss_mib"), ".0f"),
}
COST_WORDS = (
    "Means over requests. seconds: of training steps, as samples are those of steps; suffix: training again, without the data, from where "
    "they came in; whole: the whole stream up to the request without the data; peak MiB: of the run's process up to the request."
)


def costs(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Many runs: what the answer to a request costs, beside training again; a row a stack and granularity. Columns of which nothing is
    on record are left out."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["name"] == "M12" and row["model"] == UNLEARNED:
            groups.setdefault((row["granularity"], ", ".join(row["strategies"])), []).append(row)
    table = {key: {title: _mean_cost(mine, title) for title in _COSTS} for key, mine in groups.items()}
    titles = [title for title in _COSTS if any(cells[title] is not None for cells in table.values())]
    lines = []
    for key in sorted(groups, key=lambda key: (_GRANULARITIES.index(key[0]), key[1])):
        means = [table[key][title] for title in titles]
        cells = ["–" if value is None else format(value, _COSTS[title][1]) for title, value in zip(titles, means, strict=True)]
        seeds = sorted({row["seed"] for row in groups[key]})
        lines.append([*key, *cells, str(len(groups[key])), ", ".join(map(str, seeds))])
    return ["unlearns", "strategies", *titles, "requests", "seeds"], lines


def _mean_cost(rows: Sequence[Row], title: str) -> float | None:
    """Of a column; None where a request has no value."""
    values = [_COSTS[title][0](row["details"]) for row in rows]
    known = [value for value in values if value is not None]
    return mean(known) if len(known) == len(values) else None


# --- pictures ---


def relearning_picture(audit: Mapping[str, Any]) -> Picture:
    """Of each request, above: relearning of the unlearned model, the oracle, the model before, a task never seen; below: accuracy in the
    events after the request, beside the oracle's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture

    requests, events = audit["requests"], audit["stream"].split()
    figure = Picture(figsize=(3.2 * len(requests), 5), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(2, len(requests), squeeze=False, sharey=True)
    styles = {"unlearned": "-", "oracle": "--", "before": ":", "never_seen": "-."}
    for above, below, request in zip(*rows, requests, strict=True):
        for who, style in styles.items():
            if request["relearning"][who]:
                above.plot(request["relearning"]["steps"], request["relearning"][who], style, label=who.replace("_", " "))
        above.set_title(request["event"], fontsize=9)
        above.set_xlabel("steps of relearning")
        for who, values in request["later"].items():
            below.plot(range(len(values)), values, styles[who], marker="o", markersize=3, label=who)
        first = request["event_index"]
        below.set_xticks(range(len(request["later"]["unlearned"])), events[first : first + len(request["later"]["unlearned"])], fontsize=7)
        below.set_xlabel("after event")
    for row in rows:
        row[0].set_ylabel("accuracy, percent")
        row[0].legend(fontsize=7)
    return figure


def tradeoff_picture(rows: Sequence[Row]) -> Picture:
    """What is kept against what is gone, a point a stack; the oracle's stands at (0, 0)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture

    figure = Picture(figsize=(5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for who in sorted({tuple(row["strategies"]) for row in rows}):
        mine = [row for row in rows if tuple(row["strategies"]) == who and row["model"] == UNLEARNED]
        gaps = [abs(row["value"]) for row in mine if row["name"] == "M1" and row["value"] is not None]
        spills = [row["value"] for row in mine if row["name"] == "M2" and row["value"] is not None]
        if gaps and spills:
            (x, dx, _), (y, dy, _) = mean_and_deviation(gaps), mean_and_deviation(spills)
            axes.errorbar(x, y, xerr=dx, yerr=dy, fmt="o", capsize=2, label=", ".join(who))
    axes.plot(0, 0, "k*", markersize=12, label="oracle")
    axes.set_xlabel("distance from the oracle on what was unlearned, points (M1)")
    axes.set_ylabel("points lost on what is retained (M2)")
    axes.legend(fontsize=7)
    return figure
