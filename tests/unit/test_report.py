"""Reports: tables over seeds, records that can be committed, blocks of a README, plots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cl_framework import ConfigurationError, load_experiment, run
from cl_framework.plots import curves_figure, matrix_figure, png, write_plots
from cl_framework.records import RunDirectory
from cl_framework.report import collect, comparison, markdown, markdown_of_run, read_csv, rebuild_summary, replace_block, report, to_csv

BASE: dict[str, Any] = {"experiment": "trial", "benchmark": {"name": "synthetic", "tasks": 2}, "batch_size": 20}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        for words in ([], ["strategies.er={capacity: 20}"]):
            run(load_experiment(BASE, [f"out={out}", f"seed={seed}", *words]))
    return out


def first_run(runs: Path) -> Path:
    return sorted(runs.rglob("config.yaml"))[0].parent


def test_a_summary_can_be_rebuilt_from_the_rows_alone(runs: Path) -> None:
    path = first_run(runs)
    written = json.loads((path / "summary.json").read_text())
    (path / "summary.json").unlink()
    assert rebuild_summary(path) == written
    assert json.loads((path / "summary.json").read_text()) == written


def test_runs_are_grouped_over_seeds(runs: Path) -> None:
    header, rows = comparison(collect([runs]).summaries)
    assert header[:3] == ["experiment", "benchmark", "strategies"]
    assert sorted(row[2] for row in rows) == ["er", "fine-tuning"]
    assert all(row[-1] == "0, 1" and "±" in row[3] for row in rows)
    values = [summary["average_accuracy"] for summary in collect([runs]).summaries if summary["strategies"]]
    shown = next(row[3] for row in rows if row[2] == "er")
    assert shown.startswith(f"{sum(values) / 2:.2f} ± ")


def test_what_is_not_finished_is_named(runs: Path, tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path, "trial", "0123456789", 0)
    directory.write_start(load_experiment(BASE).to_yaml(), "", {})
    found = collect([tmp_path, first_run(runs)])
    assert len(found.summaries) == 1
    assert found.left_out == [f"{directory.path} is unfinished"]
    with pytest.raises(ConfigurationError, match=r"no finished run to report: .* is unfinished"):
        report([tmp_path])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="there is no run in"):
        report([tmp_path / "empty"])


def test_committed_records_give_the_same_table(runs: Path, tmp_path: Path) -> None:
    summaries = collect([runs]).summaries
    path = tmp_path / "records.csv"
    path.write_text(to_csv(summaries))
    assert comparison(read_csv(path)) == comparison(summaries)
    changed = [{**summary, "average_accuracy": 1.0} for summary in summaries]
    assert comparison(read_csv(path)) != comparison(changed)


def test_report_writes_what_it_says(runs: Path, tmp_path: Path) -> None:
    table, notes = tmp_path / "table.md", report([runs], tmp_path / "table.md")[1]
    assert notes == [f"written: {table}"]
    assert table.read_text().startswith("| experiment | benchmark | strategies |")
    _, notes = report([first_run(runs)])
    assert [Path(note.removeprefix("written: ")).name for note in notes] == ["accuracy_matrix.png", "accuracy_by_event.png", "report.html"]
    with pytest.raises(ConfigurationError, match=r"the name must end in .md or .csv"):
        report([runs], tmp_path / "table.txt")
    with pytest.raises(ConfigurationError, match="does not exist"):
        report([tmp_path / "nowhere"])


def test_plots_show_the_matrix(runs: Path) -> None:
    path = first_run(runs)
    summary = rebuild_summary(path)
    figure = matrix_figure(summary)
    assert figure.axes[0].images[0].get_array().tolist() == summary["accuracy_matrix"]
    assert png(figure)[:8] == b"\x89PNG\r\n\x1a\n"
    lines = [line.get_ydata() for line in curves_figure(summary).axes[0].lines if len(line.get_xdata()) > 1]
    assert [list(line) for line in lines] == [list(column) for column in zip(*summary["accuracy_matrix"], strict=True)]
    written = write_plots(RunDirectory(path), summary)
    assert "data:image/png;base64," in written[-1].read_text()


def test_markdown() -> None:
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    summary = {"experiment": "x", "seed": 0, "strategies": [], "stream": "L0", "accuracy_matrix": [[None]], "average_accuracy": 12.345}
    assert "| L0 | – |" in markdown_of_run(summary)
    assert "average accuracy 12.3" in markdown_of_run(summary)


def test_a_block_of_a_readme_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("a\n<!-- table: one -->\nold\n<!-- end -->\nb\n<!-- table: two -->\nkept\n<!-- end -->\n")
    replace_block(path, "one", "new\n")
    assert path.read_text() == "a\n<!-- table: one -->\nnew\n<!-- end -->\nb\n<!-- table: two -->\nkept\n<!-- end -->\n"
    with pytest.raises(ConfigurationError, match="has no block between '<!-- table: three -->'"):
        replace_block(path, "three", "x")
