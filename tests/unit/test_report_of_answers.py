"""Figures T1 to T7 in tables and files: the interval and n of the truth ratio's statistic, and the table of probabilities."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from cl_framework.cli import main
from cl_framework.errors import ConfigurationError
from cl_framework.unlearning.audit_report import COLUMNS, comparison, read_csv, rows_of, to_csv, verdicts_of, why_invalid
from cl_framework.unlearning.audit_report import ORACLE as ANOTHER
from cl_framework.unlearning.report_of_answers import probabilities

OWN = {"own": 0.25, "retained": 0.5, "world_facts": 0.375}
ORACLE = {"oracle": 0.125, "oracle_retained": 0.75, "oracle_world_facts": 0.5}
BEFORE = {"before": 1.0, "before_retained": 0.875, "before_world_facts": 0.25}


def figure(name: str, value: float, interval: tuple[float, float] | None, **details: float) -> dict[str, Any]:
    told = {"name": name, "value": value, "verdict": "FAIL", "why": "", "interval": interval, "worst": None, "bound": 0.125}
    return {**told, "details": details}


def audit_of(*requests: list[dict[str, Any]], seed: int = 0) -> dict[str, Any]:
    identity = {"experiment": "tofu_npo", "fingerprint": "0123abcd", "benchmark": "tofu", "scenario": "domain_il", "stream": "L0-2 U1 U2"}
    named = {"granularity": "task", "strategy": "npo", "unlearned": False}
    entries = [{"event_index": 3 + place, "event": f"U{1 + place}", **named, "figures": one} for place, one in enumerate(requests)]
    return {**identity, "strategies": ["joint", "npo"], "seed": seed, "requests": entries}


def request_of(value: float, low: float, high: float, n: float, **more: float) -> list[dict[str, Any]]:
    gap = figure("M1", value, (low, high))  # an interval of no number of questions: not shown
    return [
        gap,
        figure("T1", value, (low, high), n=n),
        figure("T2", value, None, n=40.0, n_retained=80.0, **OWN, **ORACLE, **BEFORE, **more),
    ]


AUDIT = audit_of(request_of(0.5, 0.25, 0.75, 40.0), request_of(0.25, 0.125, 0.5, 40.0))


def cells(rows: list[dict[str, Any]]) -> dict[str, str]:
    header, (line,) = comparison(rows)
    return dict(zip(header, line, strict=True))


def test_the_interval_and_n_are_columns_and_read_back(tmp_path: Path) -> None:
    rows, path = rows_of(AUDIT), tmp_path / "a.csv"
    path.write_text(to_csv(rows))
    assert read_csv(path) == rows
    assert [(row["low"], row["high"], row["n"]) for row in rows if row["name"] == "T1"] == [(0.25, 0.75, 40.0), (0.125, 0.5, 40.0)]
    assert [(row["low"], row["high"], row["n"]) for row in rows if row["name"] == "T2"] == [(None, None, 40.0)] * 2
    (column,) = [place for place, name in enumerate(COLUMNS) if name == "low"]
    changed = [row if row["name"] != "T1" else {**row, "low": 0.0} for row in rows]
    path.write_text(to_csv(changed))
    assert read_csv(path) == changed != rows and "low" in path.read_text().splitlines()[0].split(",")[column]


def test_files_from_before_there_were_intervals_read_back_without_them(tmp_path: Path) -> None:
    rows, path = rows_of(AUDIT), tmp_path / "a.csv"
    path.write_text(to_csv(rows))
    older = [{key: text for key, text in row.items() if key not in ("low", "high", "n")} for row in csv.DictReader(path.open())]
    with path.open("w") as file:
        writer = csv.DictWriter(file, list(older[0]))
        writer.writeheader()
        writer.writerows(older)
    assert read_csv(path) == [{**row, "low": None, "high": None, "n": None} for row in rows]
    assert cells(read_csv(path))["T1"] == "0.38 (2F)"
    with path.open("w") as file:
        writer = csv.DictWriter(file, [key for key in older[0] if key != "bound"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(older)
    with pytest.raises(ConfigurationError, match="holds no rows of audits"):
        read_csv(path)


def test_tables_show_the_interval_and_n_of_the_truth_ratio_and_of_no_other_figure() -> None:
    found = cells(rows_of(AUDIT))
    assert (found["T1"], found["M1"], found["T2"]) == ("0.38 [0.19 to 0.62], n 40, (2F)", "0.38 (2F)", "0.38 (2F)")
    header, lines = verdicts_of(AUDIT)
    shown = {line[0]: line[1:] for line in lines}
    assert shown["T1 truth ratio"] == ["0.5 [0.25 to 0.75], n 40, FAIL", "0.25 [0.125 to 0.5], n 40, FAIL"]
    assert shown["T2 probability"] == ["0.5 FAIL", "0.25 FAIL"] == shown["M1 forget gap"] and header[1] == "U1 (event 3)"
    uneven = audit_of(request_of(0.5, 0.25, 0.75, 40.0), request_of(0.5, 0.25, 0.75, 20.0))
    assert cells(rows_of(uneven))["T1"] == "0.50 [0.25 to 0.75], n 20 to 40, (2F)"
    void = rows_of(AUDIT)
    void[1] = {**void[1], "verdict": "INVALID"}
    assert void[1]["name"] == "T1" and cells(void)["T1"] == "0.25 [0.12 to 0.50], n 40, (1F 1?)"


def test_each_reason_why_figures_are_void_is_told_once() -> None:
    def void(name: str, why: str) -> dict[str, Any]:
        return {**figure(name, 0.5, None), "verdict": "INVALID", "why": why}

    unknown, lost = "it was not known just before: 9.0 where chance is 10.0", "what is retained is lost as well"
    requests = ([void("M1", unknown), figure("M2", 0.5, None), void("M3", unknown)], [void("M1", unknown), void("M8", lost)])
    assert why_invalid(audit_of(*requests)) == [
        f"INVALID, U1 (event 3) M1, M3; U2 (event 4) M1: {unknown}",
        f"INVALID, U2 (event 4) M8: {lost}",
    ]
    assert why_invalid(AUDIT) == []


def test_the_table_of_answers_has_before_after_and_oracle_by_set() -> None:
    header, lines = probabilities(rows_of(AUDIT) + rows_of(audit_of(request_of(0.5, 0.25, 0.75, 40.0), seed=1)))
    assert header == ["experiment", "unlearns", "strategies", "request", "forgotten", "retained", "world facts", "n", "runs", "seeds"]
    told = ["1.000 → 0.250 (0.125)", "0.875 → 0.500 (0.750)", "0.250 → 0.375 (0.500)"]
    both = [cell.replace(" →", " ± 0.000 →").replace(" (", " ± 0.000 (").replace(")", " ± 0.000)") for cell in told]
    kind = ["tofu_npo", "task", "joint, npo"]
    assert lines == [[*kind, "U1", *both, "40, 80", "2", "0, 1"], [*kind, "U2", *told, "40, 80", "1", "0"]]
    elsewhere = [{**row, "experiment": "tofu_continual_npo"} for row in rows_of(AUDIT)]
    assert [line[0] for line in probabilities([*rows_of(AUDIT), *elsewhere])[1]] == ["tofu_continual_npo"] * 2 + ["tofu_npo"] * 2
    controls = [{**row, "model": ANOTHER, "details": {}} for row in rows_of(AUDIT)]
    assert probabilities([*rows_of(AUDIT), *controls]) == probabilities(rows_of(AUDIT)), "controls hold no probabilities of their own"
    older = rows_of(audit_of([figure("T2", 0.5, None, own=0.75, oracle=0.625, before=0.5)]))
    assert probabilities(older)[0] == ["experiment", "unlearns", "strategies", "request", "forgotten", "n", "runs", "seeds"]
    assert probabilities(older)[1][0][5] == "–", "not on record"
    assert probabilities([*rows_of(AUDIT), *older])[1][0][4] == "0.750 ± 0.354 → 0.500 ± 0.354 (0.375 ± 0.354)"
    assert [line[5] for line in probabilities([*rows_of(AUDIT), *older])[1]] == ["–", told[1]], "a mean of a part is none"
    first = rows_of(audit_of(request_of(0.5, 0.25, 0.75, 40.0)))
    assert probabilities(first)[0][5] == "retained" and probabilities([*first, *older])[0][5] == "n"


def test_what_is_said_and_what_a_text_of_no_task_costs_are_columns() -> None:
    def request(**of_general: float) -> list[dict[str, Any]]:
        said = figure("T5", 0.125, None, n=40.0, **OWN, **ORACLE, **BEFORE)
        again = figure("T6", 0.25, None, n=40.0, own=0.25, oracle=0.0, before=0.5)
        return [*request_of(0.5, 0.25, 0.75, 40.0), said, again, figure("T7", 0.5, None, **of_general)]

    whole = rows_of(audit_of(request(own=4.0, oracle=3.5, before=3.0)))
    header, (line,) = probabilities(whole)
    shown = dict(zip(header, line, strict=True))
    assert header[7:11] == ["paraphrased", "ROUGE-L, forgotten", "ROUGE-L, retained", "general text"]
    assert shown["paraphrased"] == "0.500 → 0.250 (0.000)" and shown["general text"] == "3.000 → 4.000 (3.500)"
    assert shown["ROUGE-L, forgotten"] == shown["forgotten"] and shown["ROUGE-L, retained"] == "0.875 → 0.500 (0.750)"
    older = rows_of(audit_of(request_of(0.5, 0.25, 0.75, 40.0), seed=1))
    assert not {"paraphrased", "ROUGE-L, forgotten", "general text"} & set(probabilities([*whole, *older])[0])
    assert "general text" not in probabilities(rows_of(audit_of(request())))[0], "NOT RUN has no details"


def test_the_command_shows_the_table_of_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, page = tmp_path / "a.csv", tmp_path / "page.md"
    path.write_text(to_csv(rows_of(AUDIT)))
    page.write_text("<!-- table: told -->\n<!-- end -->\n")
    assert main(["audit", str(path), "--answers", "--into", f"{page}#told"]) == 0
    assert "1.000 → 0.250 (0.125)" in capsys.readouterr().out and "| forgotten | retained | world facts |" in page.read_text()
    assert main(["audit", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "→" not in shown and "intervals in brackets, each of n questions." in shown and "0.38 [0.19 to 0.62], n 40, (2F)" in shown
    written = page.read_text()
    path.write_text(to_csv([row for row in rows_of(AUDIT) if row["name"] == "M1"]))
    assert main(["audit", str(path), "--answers", "--into", f"{page}#told", "--out", str(tmp_path / "b.csv")]) == 2
    assert (
        "no request of these runs was about questions whose answer counts as a whole (arithmetic, rwku, tofu): leave --answers out."
        in capsys.readouterr().err
    )
    assert page.read_text() == written and not (tmp_path / "b.csv").exists()
    with pytest.raises(SystemExit) as stopped:
        main(["audit", str(path), "--answers", "--costs"])
    assert stopped.value.code == 2 and "not allowed with argument" in capsys.readouterr().err
