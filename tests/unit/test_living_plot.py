"""Accuracy by lag and steps to the criterion by task: in tables, in committed records, in the picture."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy
import pytest
from matplotlib.axes import Axes

from cl_framework import ConfigurationError, load_experiment, run
from cl_framework.cli import main
from cl_framework.collected import collect, comparison, to_csv
from cl_framework.plots import line_names, living_figure, over_seeds, png
from cl_framework.report import markdown_of_run, report
from cl_framework.retention import change_by_event, retention_slope
from cl_framework.summary import rebuild_summary

BASE: dict[str, Any] = {"experiment": "trial", "benchmark": {"name": "synthetic", "tasks": 3}, "batch_size": 20, "epochs": 4}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        for words in ([], ["strategies.er={capacity: 20}"]):
            run(load_experiment(BASE, [f"out={out}", f"seed={seed}", *words]))
    return out


def told(retention: list[float | None] | None, steps: list[int | None] | None) -> dict[str, Any]:
    """What a summary says of a run that went so."""
    change = change_by_event(steps) if steps else None
    return {"retention": retention, "steps_to_criterion": steps, "facilitation_in_steps": change}


def lines_of(axes: Axes) -> dict[str, list[float]]:
    """What is drawn, by label; the fits, which have none, by the label of their line and a star."""
    found: dict[str, list[float]] = {}
    for line in axes.lines:
        label = str(line.get_label())
        found[f"{list(found)[-1]}*" if label.startswith("_") else label] = numpy.asarray(line.get_ydata(), float).tolist()
    return found


def seen(left: list[float], right: list[float]) -> bool:
    return left == pytest.approx(right, nan_ok=True)


# --- the picture ---


def test_a_place_is_the_mean_of_the_seeds_and_a_gap_where_one_has_nothing() -> None:
    means, deviations = over_seeds([[80.0, 60.0, None], [90.0, 70.0, 5.0], [70.0, 20.0, 5.0]])
    assert means[:2] == [mean([80, 90, 70]), mean([60, 70, 20])] and math.isnan(means[2])
    assert deviations[:2] == pytest.approx([stdev([80, 90, 70]), stdev([60, 70, 20])])
    assert over_seeds([[80.0, None]])[0][0] == 80 and over_seeds([[80.0, 60.0]])[1] == [0, 0]


@pytest.mark.parametrize("exponents", [(-0.5, -0.5), (-0.2, -0.8)])
def test_curves_that_are_powers_lie_on_their_fit(exponents: tuple[float, float]) -> None:
    curves = [[99.0, *(80 * lag**exponent for lag in range(1, 9))] for exponent in exponents]
    above, below = living_figure({"er": [told(list(curve), None) for curve in curves]}).axes
    (label, curve), (_, fit) = lines_of(above).items()
    assert label == f"er: -0.50 ± {stdev(exponents):.2f}"
    assert mean(slope for curve in curves if (slope := retention_slope(curve)) is not None) == pytest.approx(-0.5)
    assert seen(curve, [mean(values) for values in zip(curves[0][1:], curves[1][1:], strict=True)])
    assert seen(fit, [80 * lag**-0.5 for lag in range(1, 9)])
    assert seen(curve, fit) == (exponents[0] == exponents[1])  # the control: a mean of powers is no power
    assert (above.get_xscale(), above.get_yscale()) == ("log", "log")
    assert not below.lines and [text.get_text() for text in below.texts] == ["not in these records"]


def test_another_slope_is_another_picture() -> None:
    pictures = {png(living_figure({"er": [told([99, *(80 * lag**-slope for lag in (1, 2, 3))], [4, 3, 2])]})) for slope in (0.5, 0.5, 0.6)}
    pictures.add(png(living_figure({"er": [told([99, *(80 * lag**-0.5 for lag in (1, 2, 3))], [4, 3, 3])]})))
    assert len(pictures) == 3


def test_steps_by_task_and_their_change() -> None:
    groups = {"er": [told([9.0, 9, 9], [40, 30, 20]), told([9.0, 9, 9], [60, 30, 30])], "one": [told([9.0, 9, 9], [10, 20, 30])]}
    above, below = living_figure(groups).axes
    drawn = lines_of(below)
    assert list(drawn) == ["er: -12.50 ± 3.54", "one: 10.00"]
    assert list(drawn.values()) == [[50, 30, 25], [10, 20, 30]]
    assert (len(above.collections), len(below.collections)) == (1, 1), "a band is of several seeds alone"
    band = below.collections[0].get_paths()[0].vertices
    assert numpy.asarray(band)[:, 1].max() == pytest.approx(50 + stdev([40, 60]))


def test_where_a_seed_missed_the_criterion_no_mean_of_the_others_is_drawn() -> None:
    _, below = living_figure({"er": [told([9, 9, 9], [40, None, 20]), told([9, 9, 9], [60, 30, None])]}).axes
    assert list(lines_of(below)) == ["er: missed 2 of 6"]
    assert seen(lines_of(below)["er: missed 2 of 6"], [50, math.nan, math.nan])
    _, below = living_figure({"er": [told([9, 9, 9], [None, None, None])]}).axes
    assert list(lines_of(below)) == ["er: missed 3 of 3"]


def test_an_accuracy_of_0_has_no_logarithm_and_no_fit() -> None:
    above, _ = living_figure({"er": [told([90, 50, 0.0], None)], "si": [told([90, 50, 40], None)]}).axes
    assert [label for label in lines_of(above) if not label.endswith("*")] == ["er: no fit", "si: -0.32"]
    assert len(above.lines) == 3


def test_lines_are_called_as_shortly_as_tells_them_apart() -> None:
    def group(experiment: str, strategies: list[str], settings: str, fingerprint: str) -> list[dict[str, Any]]:
        return [{"experiment": experiment, "strategies": strategies, "settings": settings, "fingerprint": fingerprint}]

    assert line_names([group("a", ["er"], "", "1"), group("b", ["er"], "", "2")]) == ["a", "b"]
    assert line_names([group("a", ["er"], "", "1"), group("a", [], "", "2")]) == ["a (er)", "a (fine-tuning)"]
    assert line_names([group("a", ["er"], "lr=1", "1"), group("a", ["er"], "lr=2", "2")]) == ["a lr=1", "a lr=2"]
    assert line_names([group("a", ["er"], "", "1"), group("a", ["er"], "", "2")]) == ["a (er) 1", "a (er) 2"]


# --- records ---


def test_committed_records_draw_the_same_picture(runs: Path, tmp_path: Path) -> None:
    one, other, changed = (tmp_path / f"{name}.png" for name in ("one", "other", "changed"))
    _, notes = report([runs], tmp_path / "records.csv", plot=one)
    assert notes == [f"written: {tmp_path / 'records.csv'}", f"written: {one}"]
    report([tmp_path / "records.csv"], plot=other)
    assert one.read_bytes() == other.read_bytes()
    summaries = collect([runs]).summaries
    assert all(len(summary["retention"]) == len(summary["steps_to_criterion"]) == 3 for summary in summaries)
    (tmp_path / "records.csv").write_text(to_csv([{**summary, "retention": [99.0, 50.0, 25.0]} for summary in summaries]))
    report([tmp_path / "records.csv"], plot=changed)
    assert changed.read_bytes() != one.read_bytes()


def test_all_of_it_is_in_the_rows_of_a_run(runs: Path, tmp_path: Path) -> None:
    path = next(config.parent for config in sorted(runs.rglob("config.yaml")))
    summary = rebuild_summary(path)
    (tmp_path / "records.csv").write_text(to_csv([summary]))
    (read,) = collect([tmp_path / "records.csv"]).summaries
    for key in ("retention", "steps_to_criterion", "facilitation_in_steps", "learning_accuracy_slope"):
        assert read[key] == summary[key]
    assert all(value is None or type(value) is int for value in read["steps_to_criterion"])


def older(summaries: list[dict[str, Any]], path: Path) -> Path:
    """The records as files had them before there were lists, of another experiment."""
    rows = list(csv.DictReader(io.StringIO(to_csv([{**summary, "experiment": "old"} for summary in summaries]))))
    new = ("retention", "steps_to_criterion", "facilitation_in_steps")
    names = {key: "facilitation" if key == "learning_accuracy_slope" else key for key in rows[0] if key not in new}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(names.values()), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: row[key] for key, name in names.items()} for row in rows)
    return path


def test_older_records_are_read_and_show_a_dash(runs: Path, tmp_path: Path) -> None:
    new = [{**summary, "facilitation_in_steps": -2.0} for summary in collect([runs]).summaries]
    old = collect([older(new, tmp_path / "older.csv")]).summaries
    assert [summary["learning_accuracy_slope"] for summary in old] == [summary["learning_accuracy_slope"] for summary in new]
    assert all(summary[key] is None for summary in old for key in ("retention", "steps_to_criterion", "facilitation_in_steps"))
    assert "facilitation, steps" not in comparison(old)[0] and "learning-accuracy slope" in comparison(old)[0]
    header, rows = comparison([*old, *new])
    assert [row[header.index("facilitation, steps")] for row in rows] == ["–", "–", "-2.00 ± 0.00", "-2.00 ± 0.00"]
    columns = to_csv(old).partition("\n")[0].split(",")
    assert "learning_accuracy_slope" in columns and "facilitation" not in columns


def test_what_cannot_be_drawn_is_named(runs: Path, tmp_path: Path) -> None:
    picture, records = tmp_path / "a.png", tmp_path / "records.csv"
    path = older(collect([runs]).summaries, tmp_path / "older.csv")
    with pytest.raises(ConfigurationError, match=r"no run here tells its accuracy by lag; a .csv written before .* Name run directories"):
        report([path], plot=picture)
    assert not picture.exists()
    _, notes = report([path, runs], plot=picture)
    assert notes == [f"left out of {picture}, without accuracy by lag in a record: old.", f"written: {picture}"]
    good = to_csv([{**summary, "retention": [9.0, 8.0]} for summary in collect([runs]).summaries])
    for wrong in ("[9.0", "9.0", '[""x""]', "[true]", "{}"):
        records.write_text(good.replace('"[9.0, 8.0]"', f'"{wrong}"'))
        assert records.read_text() != good
        with pytest.raises(ConfigurationError, match=r"records.csv holds no records of runs"):
            collect([records])


def test_the_command_line_draws(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(runs), "--plot", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert main(["report", str(runs), "--plot", str(tmp_path / "a.pdf")]) == 2
    assert f"--plot writes PNG files, so its name must end with .png, got {tmp_path / 'a.pdf'}." in capsys.readouterr().err


# --- tables of one run ---


def test_the_tables_of_a_run_have_lags_and_steps() -> None:
    summary = {"experiment": "x", "seed": 0, "strategies": [], "stream": "L0 U0 L1", "accuracy_matrix": [[90.0, 1.0]] * 3}
    text = markdown_of_run({**summary, **told([90.0, 12.345], [7, None])})
    assert "| lag | 0 | 1 |\n| --- | --- | --- |\n| accuracy | 90.00 | 12.35 |" in text
    assert "| event | L0 | L1 |\n| --- | --- | --- |\n| steps to 80 percent | 7 | – |" in text
    without = markdown_of_run({**summary, **told(None, None)})
    assert "lag" not in without and "steps to" not in without and "| U0 | 90.00 | 1.00 |" in without
