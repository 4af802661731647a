"""Audits as tables and pictures: one run in the terminal, many runs by strategy, committed rows as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from cl_framework.errors import ConfigurationError, FrameworkError
from cl_framework.records import Row
from cl_framework.unlearning.deletion import DeletionLog, file_digest, sealed_audits
from cl_framework.unlearning.fast import FAIL, INVALID, NOT_RUN, PASS
from cl_framework.unlearning.verdicts import WORD, may_say_unlearned

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
    "E1": "E1 exactness",
    "T1": "T1 truth ratio",
    "T2": "T2 probability",
    "T3": "T3 extraction",
    "T4": "T4 exact memory",
    "T5": "T5 ROUGE-L",
    "T6": "T6 paraphrased",
    "T7": "T7 general text",
}
_WORDS = {True: "yes", False: "not shown", None: NOT_RUN}
UNLEARNED, BEFORE, ORACLE, NEVER_SEEN = "unlearned", "before the request", "oracle of another seed", "a task never seen"  # a row's model
_FIGURES_OF = {UNLEARNED: "figures", BEFORE: "before_figures", ORACLE: "oracle_figures", NEVER_SEEN: "never_seen_figures"}
_CONTROLS = (BEFORE, ORACLE, NEVER_SEEN)
GRANULARITIES = ("task", "class", "sample")  # in the order of tables and pictures
CURVES = {UNLEARNED: "-", "oracle": "--", "before": ":", "never_seen": "-."}  # whose relearning is drawn, and how
SAME = 1e-12  # nats: a model that lies no farther from the oracle is the oracle, but for rounding
_IDENTITY = ("experiment", "fingerprint", "benchmark", "scenario", "stream", "strategies", "seed")
_REQUEST = ("event_index", "event", "granularity", "strategy")
_FIGURE = ("name", "value", "verdict", "bound", "worst")
_INTERVAL = ("low", "high", "n")  # of 95 %, and the number of questions it is of; older files do not have them
COLUMNS = (*_IDENTITY, *_REQUEST, "model", "unlearned", *_FIGURE, *_INTERVAL, "details")


# --- rows: one figure of one request of one run ---


def rows_of(audit: Mapping[str, Any]) -> list[Row]:
    """An audit's figures, and those of the controls in its place; details, to five digits, of the former alone."""
    rows = []
    for request in audit["requests"]:
        for model, key in _FIGURES_OF.items():
            for figure in request.get(key, ()):
                row = {key: audit[key] for key in _IDENTITY} | {key: request[key] for key in _REQUEST}
                details = {name: float(f"{value:.5g}") for name, value in figure["details"].items()} if model == UNLEARNED else {}
                row |= {"model": model, "unlearned": request["unlearned"] if model == UNLEARNED else None, "details": details}
                rows.append(row | {key: figure[key] for key in _FIGURE} | _interval(figure))
    return rows


def _interval(figure: Mapping[str, Any]) -> Row:
    low, high = figure["interval"] or (None, None)
    return {"low": low, "high": high, "n": figure["details"].get("n")}


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
    """The rows of a file that `to_csv` made. ConfigurationError names another file, and the line of an unknown granularity."""
    rows = []
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            if "average_accuracy" in (reader.fieldnames or ()):
                raise ConfigurationError(f"{path} is a file of runs: use `clu report {path}`.")
            for text in reader:
                row: Row = {key: text[key] for key in COLUMNS if key not in _INTERVAL}
                row |= {key: float(text[key]) if text.get(key) else None for key in ("value", "bound", "worst", *_INTERVAL)}
                row |= {"seed": int(text["seed"]), "event_index": int(text["event_index"])}
                if row["granularity"] not in GRANULARITIES:
                    raise ConfigurationError(
                        f"{path}, line {reader.line_num}: granularity must be one of {', '.join(GRANULARITIES)}, "
                        f"got {row['granularity']!r}. Correct it, or write the file again with `clu audit RUN_DIR… --out FILE.csv`."
                    )
                row["unlearned"] = {"True": True, "False": False}.get(text["unlearned"])
                row |= {"strategies": text["strategies"].split(), "details": json.loads(text["details"])}
                rows.append(row)
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise ConfigurationError(f"{path} holds no rows of audits. Write some with `clu audit RUN_DIR… --out FILE.csv`.") from error
    return rows


def audits_in(path: Path) -> Iterable[Mapping[str, Any]]:
    """The results that a run directory holds, the fullest tier first. FrameworkError where one is not as the deletion record has it."""
    sealed = sealed_audits(DeletionLog(path / "deletion").entries())
    for tier in ("full", "standard"):
        file = path / "audit" / f"{tier}.json"
        if not file.exists():
            continue
        audit = read_audit(file)
        if sealed.get(f"audit/{file.name}") != file_digest(file):
            again = f"clu audit {path} --tier {tier} --again"
            raise FrameworkError(f"{file} was changed after it was written. Make it again with `{again}`, or remove it.")
        yield audit


def read_audit(file: Path) -> dict[str, Any]:
    """The audit that `clu audit` wrote there. FrameworkError names the file if it lacks what tables and pictures show."""
    try:
        audit: dict[str, Any] = json.loads(file.read_bytes())
        _shown(audit)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else "it is damaged"
        again = f"clu audit {file.parent.parent} --tier {file.stem} --again"
        raise FrameworkError(f"{file} holds no whole audit: {why}. Make it again with `{again}`, or remove it.") from error
    return audit


def _shown(audit: Mapping[str, Any]) -> tuple[object, ...]:
    """All that is read of an audit."""
    tables = verdicts_of(audit), why_invalid(audit), rows_of(audit)
    return *tables, audit["stream"].split(), [curves_of(request) for request in audit["requests"]]


def curves_of(request: Mapping[str, Any]) -> tuple[list[int], dict[str, list[float]], dict[str, list[float]]]:
    """Steps of relearning, the accuracies of each model after them, and those in later events."""
    relearning = {who: list(request["relearning"][who]) for who in CURVES}
    return list(request["relearning"]["steps"]), relearning, {who: list(request["later"][who]) for who in (UNLEARNED, "oracle")}


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


def why_invalid(audit: Mapping[str, Any]) -> list[str]:
    """A line for each reason why figures of one run are INVALID, with the requests and figures that it voids."""
    voided: dict[str, list[str]] = {}
    for request in audit["requests"]:
        names: dict[str, list[str]] = {}
        for figure in request["figures"]:
            if figure["verdict"] == INVALID:
                names.setdefault(figure["why"], []).append(figure["name"])
        for why, mine in names.items():
            voided.setdefault(why, []).append(f"{request['event']} (event {request['event_index']}) {', '.join(mine)}")
    return [f"{INVALID}, {'; '.join(where)}: {why}" for why, where in voided.items()]


def _cell(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return NOT_RUN
    if figure["value"] is None:
        return figure["verdict"]
    return f"{figure['value']:.3g}{_spread([_interval(figure)], '.3g')} {figure['verdict']}"


def _spread(rows: Sequence[Mapping[str, Any]], precision: str) -> str:
    """ " [low to high], n N," of a figure that is of N questions: means of the requests' own intervals; nothing where one has none."""
    if not rows or any(row[key] is None for row in rows for key in _INTERVAL):
        return ""
    low, high = (format(mean(row[key] for row in rows), precision) for key in ("low", "high"))
    counts = [int(row["n"]) for row in rows]
    number = f"{counts[0]}" if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
    return f" [{low} to {high}], n {number},"


def comparison(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Many runs: a row a stack and granularity; each figure as mean over requests (but those that are void), and how many passed (P),
    failed (F), and told nothing (?: inconclusive, invalid or not run); NOT RUN where none was, – where it is not asked of a control. T1
    with the mean of the requests' intervals and n of one request.

    The last rows of a granularity are controls in the place of the unlearned model, from all runs together: the model
    before the request, an oracle of another seed, and a task that was never seen.
    """
    names = [name for name in NAMES if any(row["name"] == name for row in rows)]
    header = ["unlearns", "strategies", *names, '"unlearned"', "requests", "orders", "seeds"]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        who = ", ".join(row["strategies"]) if row["model"] == UNLEARNED else row["model"]
        groups.setdefault((row["granularity"], who), []).append(row)
    order = sorted(groups, key=lambda key: (GRANULARITIES.index(key[0]), _CONTROLS.index(key[1]) if key[1] in _CONTROLS else -1, key[1]))
    return header, [[*key, *_group(groups[key], names)] for key in order]


def _group(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    cells = []
    for name in names:
        mine = [row for row in rows if row["name"] == name]
        telling = _telling(rows, name)
        passed, failed = (sum(row["verdict"] == verdict for row in mine) for verdict in (PASS, FAIL))
        counts = {"P": passed, "F": failed, "?": len(mine) - passed - failed}
        told = " ".join(f"{count}{letter}" for letter, count in counts.items() if count)
        value = f"{mean(row['value'] for row in telling):.2f}{_spread(telling, '.2f')} " if telling else ""
        shown = f"{value}({told})"
        cells.append(shown if any(row["verdict"] != NOT_RUN for row in mine) else NOT_RUN if mine else "–")
    requests = [{name: row["verdict"] for name, row in figures.items()} for figures in by_request(rows)]
    orders, seeds = {row["stream"] for row in rows}, sorted({row["seed"] for row in rows})
    wanted = [name for name in WORD if rows[0]["model"] == UNLEARNED or name != "M11"]  # an oracle has nothing to let go of
    measured = [verdicts for verdicts in requests if set(wanted) <= verdicts.keys()]
    said = f"{sum(may_say_unlearned(verdicts, wanted) for verdicts in measured)}/{len(measured)}" if measured else NOT_RUN
    return [*cells, said, str(len(requests)), str(len(orders)), ", ".join(map(str, seeds))]


def told_by(rows: Sequence[Row], name: str) -> list[float]:
    """The values of a figure, but those that are void."""
    return [row["value"] for row in _telling(rows, name)]


def _telling(rows: Sequence[Row], name: str) -> list[Row]:
    return [row for row in rows if row["name"] == name and row["value"] is not None and row["verdict"] != INVALID]


def by_request(rows: Sequence[Row]) -> list[dict[str, Row]]:
    """The figures of each request by their name; the rows are about one model."""
    requests: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        requests.setdefault((row["experiment"], row["fingerprint"], row["seed"], row["event_index"]), {})[row["name"]] = row
    return list(requests.values())


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
    "Means over requests. seconds: of the whole answer, and samples: shown, drawn from memories or read by strategies (of runs from "
    "before that was counted: of training steps alone); suffix: training again, without the data, from where "
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
    for key in sorted(groups, key=lambda key: (GRANULARITIES.index(key[0]), key[1])):
        means = [table[key][title] for title in titles]
        cells = ["–" if value is None else _above_nothing(value, _COSTS[title][1]) for title, value in zip(titles, means, strict=True)]
        seeds = sorted({row["seed"] for row in groups[key]})
        lines.append([*key, *cells, str(len(groups[key])), ", ".join(map(str, seeds))])
    return ["unlearns", "strategies", *titles, "requests", "seeds"], lines


def _above_nothing(value: float, precision: str) -> str:
    """A value >= 0 as a cell: with one digit where it is more than nothing, and would be shown as nothing."""
    text = format(value, precision)
    return format(value, ".1g") if value and not float(text) else text


def _mean_cost(rows: Sequence[Row], title: str) -> float | None:
    """Of a column; None where a request has no value."""
    values = [_COSTS[title][0](row["details"]) for row in rows]
    known = [value for value in values if value is not None]
    return mean(known) if len(known) == len(values) else None
