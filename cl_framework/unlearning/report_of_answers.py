"""The table of answers of `clu audit --answers`: how probable the right ones were before a request, are after it, and are to the oracle;
what models say by themselves; and what a text of no task costs them.
"""

from __future__ import annotations

from collections.abc import Sequence

from cl_framework.errors import ConfigurationError
from cl_framework.metrics import mean_and_deviation
from cl_framework.records import Row
from cl_framework.unlearning.audit_report import UNLEARNED

_OWN = ("before", "own", "oracle")  # details before the request, after it, and of the oracle
_KEPT = ("before_retained", "retained", "oracle_retained")
_SETS = {  # column: the figure, and its details
    "forgotten": ("T2", _OWN),
    "retained": ("T2", _KEPT),
    "real authors": ("T2", ("before_real_authors", "real_authors", "oracle_real_authors")),
    "world facts": ("T2", ("before_world_facts", "world_facts", "oracle_world_facts")),
    "paraphrased": ("T6", _OWN),
    "ROUGE-L, forgotten": ("T5", _OWN),
    "ROUGE-L, retained": ("T5", _KEPT),
    "general text": ("T7", _OWN),
}
_FIGURES = {figure for figure, _ in _SETS.values()}
ANSWER_WORDS = (
    "Probability of the right answers before the request → after it (oracle), means over runs ± standard deviation. forgotten: what was "
    "unlearned (T2); retained: utility on the other tasks; n: how many questions these two are of; real authors and world facts, which no "
    "task teaches: as a share of all answers offered, as TOFU's code has it; paraphrased: what was unlearned, asked in other words (T6). "
    "ROUGE-L: which share of the right answer's words a model says by itself, in their order (T5). general text: nats a token of a text of "
    "no task (T7). Columns that not all of a request's runs have are left out."
)


def probabilities(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Many runs: a row an experiment, stack, granularity and request, in the order of the stream. Columns of nothing are left out.

    Raises ConfigurationError where no request was about questions.
    """
    groups: dict[tuple[str, str, str, int, str], list[Row]] = {}
    for row in rows:
        if row["name"] in _FIGURES and row["model"] == UNLEARNED:
            stack = ", ".join(row["strategies"])
            groups.setdefault((row["experiment"], row["granularity"], stack, row["event_index"], row["event"]), []).append(row)
    groups = {key: mine for key, mine in groups.items() if any(row["name"] == "T2" for row in mine)}
    if not groups:
        about = "questions whose answer counts as a whole (arithmetic, rwku, tofu)"
        raise ConfigurationError(f"no request of these runs was about {about}: leave --answers out.")
    table = {key: {title: _cell(mine, title) for title in _SETS} for key, mine in groups.items()}
    titles = [title for title in _SETS if any(cells[title] for cells in table.values())]
    lines = []
    for key, rows_of_all in sorted(groups.items()):
        experiment, granularity, stack, _, request = key
        mine = [row for row in rows_of_all if row["name"] == "T2"]  # one of each run
        cells = (table[key][title] or "–" for title in titles)
        seeds = sorted({row["seed"] for row in mine})
        lines.append([experiment, granularity, stack, request, *cells, _asked(mine), str(len(mine)), ", ".join(map(str, seeds))])
    return ["experiment", "unlearns", "strategies", "request", *titles, "n", "runs", "seeds"], lines


def _cell(rows: Sequence[Row], title: str) -> str:
    """Of a column; empty where a request has no value in one of its runs: a mean of a part is none."""
    figure, names = _SETS[title]
    mine = [row["details"] for row in rows if row["name"] == figure]
    runs = sum(row["name"] == "T2" for row in rows)
    if len(mine) < runs or not all(name in details for details in mine for name in names):
        return ""
    before, after, oracle = (_spread([details[name] for details in mine]) for name in names)
    return f"{before} → {after} ({oracle})"


def _spread(values: Sequence[float]) -> str:
    average, deviation, _ = mean_and_deviation(values)
    return f"{average:.3f}" if deviation is None else f"{average:.3f} ± {deviation:.3f}"


def _asked(rows: Sequence[Row]) -> str:
    """How many questions are forgotten and retained; – where that is not on record, or differs."""
    counts = {tuple(row["details"].get(name) for name in ("n", "n_retained")) for row in rows}
    forgotten, retained = counts.pop()
    return "–" if counts or None in (forgotten, retained) else f"{forgotten:.0f}, {retained:.0f}"
