"""What stands of audits: files that are not whole are named, and an audit is made anew where something else is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deletion_runs import finished

from cl_framework.cli import main
from cl_framework.unlearning import audit_report, audits
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


def all_void(whole: dict[str, Any]) -> dict[str, Any]:
    for figure in whole["requests"][0]["figures"]:
        figure["verdict"] = "INVALID"
    return whole


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
        (lambda whole: without("why", "requests", "figures")(all_void(whole)), "it lacks 'why'"),
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


def test_an_audit_that_was_edited_is_not_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / "audit" / "standard.json"
    kept = file.read_text()
    try:
        file.write_text(kept.replace('"PASS"', '"FAIL"', 1))
        assert file.read_text() != kept and main(["report", str(run)]) == 1
    finally:
        file.write_text(kept)
    assert f"clu: {file} was changed after it was written. Make it again with `clu audit {run}" in capsys.readouterr().err


def test_an_audit_that_stands_is_no_way_around_edited_rows(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = run / "records.jsonl", tmp_path / "rows.csv"
    kept = file.read_text()
    try:
        file.write_text(kept.replace('"value": ', '"value": 1', 1))
        assert main(["audit", str(run), "--out", str(out)]) == 1
    finally:
        file.write_text(kept)
    assert "records.jsonl was changed" in capsys.readouterr().err and not out.exists()
    assert main(["audit", str(run), "--out", str(out)]) == 0 and out.exists()


def test_an_unknown_granularity_is_named_with_its_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.csv"
    lines = audit_report.to_csv(audit_report.rows_of(audit_report.read_audit(run / "audit" / "standard.json"))).splitlines()
    file.write_text("\n".join([*lines[:3], lines[3].replace(",task,", ",tusk,"), *lines[4:]]))
    assert main(["audit", str(file)]) == 2
    text = f"{file}, line 4: granularity must be one of task, class, sample, got 'tusk'. Correct it, or write the file again"
    assert text in capsys.readouterr().err
    file.write_text("\n".join(lines))
    assert main(["audit", str(file)]) == 0


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Audited in tier full beside one oracle a request, over two of its six orders."""
    path = finished(tmp_path_factory.mktemp("orders"), stream="L0 L1 L2 U0")
    audit(path, "full", seeds=1, orders=2)
    return path


@pytest.mark.parametrize(
    ("words", "asked", "said"),
    [
        ("", None, ""),
        ("--seeds 1", None, ""),
        ("--orders 9", None, ""),  # a matter of tier full
        ("--seeds 2", {"seeds": 2}, "standard has oracles of 1 seed, and --seeds 2 was asked for; it is made anew."),
        ("--again", {}, ""),
        ("--again --keep-learned", {}, ""),
        ("--again --seeds 2", {"seeds": 2}, ""),
        ("--tier full", None, ""),
        ("--tier full --orders 2 --seeds 1", None, ""),
        ("--tier full --seeds 2", {"seeds": 2, "orders": 2}, "full has oracles of 1 seed, and --seeds 2 was asked for; it is made anew."),
        (
            "--tier full --orders 3",
            {"seeds": 1, "orders": 3},
            "full has 2 orders of the events before U0, and with --orders 3 it is 3; it is made anew.",
        ),
    ],
)
def test_an_audit_is_made_anew_where_something_else_is_asked_for(
    words: str,
    asked: dict[str, int] | None,
    said: str,
    run: Path,
    orders: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, calls = orders if "full" in words else run, []

    def noted(
        path: Path, tier: str, *, overrides: Any, made: set[Path] | None, keep_learned: bool, tell: Any, **more: int
    ) -> dict[str, Any]:
        assert made == (set() if "--again" in words else None)  # and so whether kept oracles are taken
        assert keep_learned is ("--keep-learned" in words)
        calls.append(more)
        return audit_report.read_audit(path / "audit" / f"{tier}.json")

    monkeypatch.setattr(audits, "audit", noted)
    assert main(["audit", str(path), *words.split()]) == 0
    assert calls == ([] if asked is None else [asked])
    assert capsys.readouterr().err == (f"{path}: its audit of tier {said}\n" if said else "")


def test_where_an_audit_stands_nothing_can_be_kept(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(run), "--keep-learned"]) == 0
    told = f"{run}: its audit stands, so nothing is kept of it. Make it anew with --again to keep what was learned.\n"
    assert capsys.readouterr().err == told


def test_events_that_have_no_more_orders_are_not_audited_for_them_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = finished(tmp_path, stream="L0 L1 U0")
    audit(path, "full", seeds=1, orders=3)
    for words, anew in (("--orders 9", False), ("--seeds 2", True), ("--seeds 2", False)):
        assert main(["audit", str(path), "--tier", "full", *words.split()]) == 0
        shown = capsys.readouterr()
        assert ("made anew" in shown.err) is ("living through" in shown.err) is anew
        assert f"oracles of seeds {'0, 1' if 'seeds' in words else '0'}" in shown.out


@pytest.mark.parametrize("words", ["--seeds 0", "--seeds -1"])
def test_an_impossible_number_of_seeds_is_refused_where_an_audit_stands(words: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(run), *words.split()]) == 2
    assert capsys.readouterr().err == f"clu: --seeds must be 1 or more, got {words.split()[1]}.\n"
