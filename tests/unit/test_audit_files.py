"""Files of audits that are not whole, or not readable, are named with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deletion_runs import finished

from cl_framework.cli import main
from cl_framework.unlearning import audit_report
from cl_framework.unlearning.audit import audit

Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Audited in tier standard beside one oracle a request."""
    path = finished(tmp_path_factory.mktemp("audited"), stream="L0 L1 U0")
    audit(path, seeds=1)
    return path


def without(key: str, *way: str) -> Edit:
    """An audit that lacks a key of itself, or of what lies in it on this way; of lists the first entry."""

    def edit(whole: dict[str, Any]) -> Any:
        place: Any = whole
        for step in way:
            place = place[step][0] if isinstance(place[step], list) else place[step]
        del place[key]
        return whole

    return edit


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (lambda whole: {}, "it lacks 'requests'"),
        (lambda whole: [whole], "it is damaged"),
        (lambda whole: {**whole, "requests": ["U0"]}, "it is damaged"),
        (lambda whole: {**whole, "requests": [{}]}, "it lacks 'event'"),
        (without("stream"), "it lacks 'stream'"),
        (without("figures", "requests"), "it lacks 'figures'"),
        (without("verdict", "requests", "figures"), "it lacks 'verdict'"),
        (without("details", "requests", "before_figures"), "it lacks 'details'"),
        (without("never_seen", "requests", "relearning"), "it lacks 'never_seen'"),
        (without("oracle", "requests", "later"), "it lacks 'oracle'"),
    ],
)
def test_an_audit_that_is_not_whole_is_named_with_the_remedy(edit: Edit, why: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / "audit" / "standard.json"
    kept = file.read_text()
    try:
        file.write_text(json.dumps(edit(json.loads(kept))))
        assert main(["report", str(run)]) == 1
    finally:
        file.write_text(kept)
    again = f"Make it again with `clu audit {run} --tier standard --again`, or remove it."
    assert f"clu: {file} holds no whole audit: {why}. {again}" in capsys.readouterr().err
    assert main(["report", str(run)]) == 0 and "audited beside oracles:" in capsys.readouterr().out


def test_an_audit_that_was_cut_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / "audit" / "standard.json"
    kept = file.read_text()
    try:
        file.write_text(kept[: len(kept) // 2])
        assert main(["report", str(run)]) == 1
    finally:
        file.write_text(kept)
    assert f"clu: {file} holds no whole audit: it is damaged." in capsys.readouterr().err


def test_an_unknown_granularity_is_named_with_its_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.csv"
    lines = audit_report.to_csv(audit_report.rows_of(audit_report.read_audit(run / "audit" / "standard.json"))).splitlines()
    file.write_text("\n".join([*lines[:3], lines[3].replace(",task,", ",tusk,"), *lines[4:]]))
    assert main(["audit", str(file)]) == 2
    text = f"{file}, line 4: granularity must be one of task, class, sample, got 'tusk'. Correct it, or write the file again"
    assert text in capsys.readouterr().err
    file.write_text("\n".join(lines))
    assert main(["audit", str(file)]) == 0
