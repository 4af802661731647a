"""Reports: tables over seeds, records that can be committed, blocks of a README, plots."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from cl_framework import ConfigurationError, FrameworkError, config, load_experiment, run
from cl_framework.cli import main
from cl_framework.collected import collect, comparison, read_csv, runs_in, to_csv
from cl_framework.listeners import Listener, RunInfo
from cl_framework.metrics import perplexity
from cl_framework.plots import curves_figure, matrix_figure, png, write_plots
from cl_framework.records import RunDirectory
from cl_framework.report import markdown_of_run, report
from cl_framework.settings import OUTSIDE_SETTINGS, name_settings
from cl_framework.summary import rebuild_summary
from cl_framework.tables import TerminalTable, markdown, number, replace_block, spread

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


def test_a_report_of_a_run_rebuilds_what_is_derived_from_its_records(runs: Path) -> None:
    path = first_run(runs)
    report([path])
    derived = [path / "summary.json", path / "report.html", *(path / "plots").iterdir()]
    written = {file: file.read_bytes() for file in derived}
    for file in derived:
        file.unlink()
    report([runs])
    assert not any(file.exists() for file in derived)  # of several runs nothing is rewritten
    report([path])
    assert {file: file.read_bytes() for file in derived} == written and len(written) == 4


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
    with pytest.raises(ConfigurationError, match=r"no finished run to report: .* is unfinished\. Finish one with clu resume RUN_DIR"):
        report([tmp_path])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="there is no run in"):
        report([tmp_path / "empty"])


def test_figures_come_from_the_rows_whatever_a_summary_says(runs: Path, tmp_path: Path) -> None:
    path = tmp_path / first_run(runs).name
    shutil.copytree(first_run(runs), path)
    summary = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps({**summary, "average_accuracy": 100.0}))
    assert collect([path]).summaries[0]["average_accuracy"] == summary["average_accuracy"] != 100.0
    lines = (path / "records.jsonl").read_text().splitlines()
    changed = [json.dumps({**json.loads(line), "value": 1.0}) + "\n" for line in lines]
    (path / "records.jsonl").write_text("".join(changed))
    (path / "DONE").write_text("")  # as earlier versions left it: what the rows were at the end is not known
    assert collect([path]).summaries[0]["average_accuracy"] == 1.0


def test_a_finished_run_whose_rows_were_edited_is_refused_in_a_sentence(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / first_run(runs).name
    shutil.copytree(first_run(runs), path)
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(path)]) == 0
    capsys.readouterr()
    file = path / "records.jsonl"
    whole = file.read_text()
    row, rest = whole.split("\n", 1)
    file.write_text(json.dumps({**json.loads(row), "value": 999.0}) + "\n" + rest)
    assert main(["report", str(path)]) == 1
    remedy = "Restore it as it was, or start the run anew with again=true."
    assert capsys.readouterr().err == f"clu: no finished run to report: {file} was changed after the end of the run. {remedy}\n"
    file.write_text(whole)
    assert main(["report", str(path)]) == 0


class Editing(Listener):
    """Doubles the first value of the records once the second event begins."""

    path: Path | None = None

    def on_start(self, info: RunInfo) -> None:
        self.path = info.directory.path

    def on_event_start(self, index: int) -> None:
        if index == 1:
            assert self.path is not None
            file = self.path / "records.jsonl"
            row, rest = file.read_text().split("\n", 1)
            file.write_text(json.dumps({**json.loads(row), "value": 7.5}) + "\n" + rest)


def test_rows_that_are_edited_while_a_run_goes_on_end_it_as_failed(tmp_path: Path) -> None:
    """Its summary would be made of them."""
    with pytest.raises(FrameworkError, match=r"records.jsonl was changed while the run went on\. Start it anew with again=true\.$"):
        run(load_experiment(BASE, [f"out={tmp_path}"]), listeners=[Editing()])
    (config_file,) = tmp_path.rglob("config.yaml")
    directory = RunDirectory(config_file.parent)
    assert directory.status == "failed" and not directory.summary.exists()
    assert run(load_experiment(BASE, [f"out={tmp_path}", "again=true"])).status == "done"


def test_a_damaged_mark_of_a_finished_run_is_named(runs: Path, tmp_path: Path) -> None:
    path = tmp_path / first_run(runs).name
    shutil.copytree(first_run(runs), path)
    rebuild_summary(path)
    for content in ('{"digests": []}', "{}", '{"digests": {"records.jsonl": "0"}}'):
        (path / "DONE").write_text(content)
        with pytest.raises(FrameworkError, match=r"DONE is damaged: it holds no digests of the rows\. Restore it as it was, or start"):
            rebuild_summary(path)


def test_a_run_counts_once(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once = comparison(collect([runs]).summaries)
    twice = collect([runs, first_run(runs), runs / "trial"])
    assert comparison(twice.summaries) == once
    assert twice.left_out == []
    copy = tmp_path / "copy" / first_run(runs).name
    shutil.copytree(first_run(runs), copy)
    monkeypatch.chdir(tmp_path)
    with_copy = collect([runs, Path("copy")])
    assert comparison(with_copy.summaries) == once
    assert with_copy.left_out == [f"copy/{copy.name} repeats seed {copy.name[-1]} of {first_run(runs)}"]


def test_what_a_logger_keeps_in_a_run_is_no_run(runs: Path, tmp_path: Path) -> None:
    path = tmp_path / first_run(runs).name
    shutil.copytree(first_run(runs), path)
    files = path / "wandb" / "offline-run" / "files"
    files.mkdir(parents=True)
    (files / "config.yaml").write_text("lr: {value: 1}\n")
    found = collect([tmp_path])
    assert len(found.summaries) == 1
    assert found.left_out == []
    shutil.move(files.parent, tmp_path / "elsewhere")  # outside a run it is named
    assert collect([tmp_path]).left_out == [f"{tmp_path}/elsewhere/files is unfinished"]


def test_a_damaged_run_is_named_and_hides_no_other(runs: Path, tmp_path: Path) -> None:
    path = tmp_path / first_run(runs).name
    shutil.copytree(first_run(runs), path)
    whole = (path / "events.jsonl").read_text().splitlines(keepends=True)
    others = [config.parent for config in sorted(runs.rglob("config.yaml"))[1:]]
    for name, text, reason in (
        ("records.jsonl", "{\n", r"records.jsonl is damaged in line 1"),
        ("events.jsonl", whole[0], r"events.jsonl was changed after the end of the run"),
        ("config.yaml", "a: [", r"config.yaml is damaged: it is no valid YAML. Restore it, or start the run anew with again=true\.$"),
        ("config.yaml", "", r"config.yaml is damaged: it holds no configuration"),
    ):
        before = (path / name).read_text()
        (path / name).write_text(text)
        found = collect([path, *others])
        assert len(found.summaries) == 3
        assert len(found.left_out) == 1
        assert str(path) in found.left_out[0]
        with pytest.raises(FrameworkError, match=reason):
            rebuild_summary(path)
        (path / name).write_text(before)
    assert collect([path, *others]).left_out == []
    (path / "DONE").write_text("")  # as earlier versions left it
    (path / "events.jsonl").write_text(whole[0])
    with pytest.raises(FrameworkError, match="the records end with event 1, but 1 events are done"):
        rebuild_summary(path)


def test_settings_tell_rows_apart_that_would_look_alike(runs: Path, tmp_path: Path) -> None:
    for capacity in (20, 30):
        run(
            load_experiment(
                BASE, [f"out={tmp_path}", "strategies.er={}", f"strategies.er.capacity={capacity}", f"threads={capacity // 20}"]
            )
        )
    found = collect([tmp_path])
    header, rows = comparison(found.summaries)
    assert header[3] == "settings"
    assert sorted(row[3] for row in rows) == ["strategies.er.capacity=20", "strategies.er.capacity=30"]
    path = tmp_path / "records.csv"
    path.write_text(to_csv(found.summaries))
    assert comparison(collect([path]).summaries) == (header, rows)
    # A run beside records of others is named by the options that they are named by, also where it has no equal to differ from.
    kept = [summary for summary in found.summaries if summary["settings"].endswith("20")]
    path.write_text(to_csv(kept))
    (other,) = (summary["fingerprint"] for summary in found.summaries if summary not in kept)
    beside = next(place for place in runs_in(tmp_path) if other in place.name)
    assert comparison(collect([path, beside]).summaries) == (header, rows)
    assert [summary["settings"] for summary in collect([beside]).summaries] == [""]
    unnamed = [{**summary, "settings": ""} for summary in found.summaries]  # as in files written before there were settings
    assert {row[3] for row in comparison(unnamed)[1]} == {summary["fingerprint"] for summary in unnamed}
    assert "settings" not in comparison(collect([runs]).summaries)[0]


@pytest.mark.parametrize(("width", "on_its_side"), [(75, True), (100, True), (160, True), (400, False)])
def test_a_table_of_few_runs_lies_on_its_side_where_the_terminal_is_narrow(width: int, on_its_side: bool) -> None:
    row, other = [*CELLS], ["digits_other", *CELLS[1:]]
    shown = in_terminal([row, other], width)
    expected = [list(cells) for cells in zip(TITLES, row, other, strict=True)]
    assert shown == (expected if on_its_side else [TITLES, row, other])


@pytest.mark.parametrize("width", [100, 160])
def test_a_table_in_the_terminal_is_never_cut_off(width: int) -> None:
    lines = in_terminal([CELLS] * 12, width)  # too many for their columns to stand side by side: cells are broken
    assert len(lines) > 13
    assert ["".join(parts).replace(" ", "") for parts in zip(*lines, strict=True)] == [
        (title + 12 * cell).replace(" ", "") for title, cell in zip(TITLES, CELLS, strict=True)
    ]
    assert in_terminal([], width) == ([[title] for title in TITLES] if width == 100 else [TITLES])


TITLES = ["experiment", "benchmark", "strategies", "settings", *["average forgetting"] * 5, "seeds"]
CELLS = ["digits_experiment", "split_digits", "fine-tuning", "strategies.er.capacity=20", *["-31.40 ± 14.79"] * 5, "0, 1, 2, 3, 4"]


def in_terminal(rows: list[list[str]], width: int) -> list[list[str]]:
    """The cells of a table of TITLES, line by line as a terminal of that width shows them."""
    from rich.console import Console

    console = Console(width=width)
    with console.capture() as capture:
        console.print(TerminalTable(TITLES, rows))
    text = capture.get()
    assert max(map(len, text.splitlines())) <= width
    return [[cell.strip() for cell in line[1:-1].replace("┃", "│").split("│")] for line in text.splitlines() if line[0] in "│┃"]


def test_mean_and_deviation_in_words() -> None:
    assert spread([1.0, 3.0]) == "2.00 ± 1.41"
    assert spread([1.0]) == "1.00"
    assert spread([695, 695]) == "695" and spread([695, 696]) == "695.50 ± 0.71" and spread([695.0, 695.0]) == "695.00 ± 0.00"
    assert spread([695]) == "695"
    assert spread([]) == "–"


def test_runs_from_before_an_option_are_those_with_its_value_of_then() -> None:
    def named(*fingerprints: str) -> list[str]:
        options = [{}, {"form": "cosine"}, {}, {"form": "rsqrt"}]
        shares = [0.25, 0.25, 0.5, 0.25]
        summaries = [{"experiment": "shift", "strategies": ["rate"], "fingerprint": one} for one in fingerprints]
        configs = [{"strategies": {"rate": {**more, "share": share}}} for more, share in zip(options, shares, strict=True)]
        name_settings(summaries, configs)
        return [summary["settings"] for summary in summaries]

    share, form = "strategies.rate.share", "strategies.rate.form"
    assert named("a", "a", "b", "c") == [
        *[f"{share}=0.25 {form}=cosine"] * 2,
        f"{share}=0.5 {form}=cosine",
        f"{share}=0.25 {form}=rsqrt",
    ]
    assert named("a", "d", "b", "c")[0] == f"{share}=0.25", "nothing tells what it was then"


def test_settings_are_what_the_fingerprint_reads() -> None:
    assert set(config._OUTSIDE) == OUTSIDE_SETTINGS


def test_a_file_that_holds_no_records_is_named(runs: Path, tmp_path: Path) -> None:
    good = to_csv(collect([runs]).summaries)
    path = tmp_path / "records.csv"
    for text in ("a,b\n1,2\n", good.replace(",er,", ",er,x", 1), good + "trial\n"):
        path.write_text(text)
        with pytest.raises(ConfigurationError, match=r"records.csv holds no records of runs. Write some with `clu report RUN_DIR"):
            collect([path])
    path.write_text(good)
    assert len(collect([path]).summaries) == 4


def test_committed_records_give_the_same_table(runs: Path, tmp_path: Path) -> None:
    summaries = collect([runs]).summaries
    path = tmp_path / "records.csv"
    path.write_text(to_csv(summaries))
    assert comparison(read_csv(path)) == comparison(summaries)
    changed = [{**summary, "average_accuracy": 1.0} for summary in summaries]
    assert comparison(read_csv(path)) != comparison(changed)


def test_committed_records_hold_memory_that_tables_leave_out(runs: Path, tmp_path: Path) -> None:
    """What the optimizer held and the process took, in bytes and MiB."""
    summaries = collect([runs]).summaries
    path = tmp_path / "records.csv"
    path.write_text(to_csv(summaries))
    for column in ("optimizer_bytes", "peak_rss_mib"):
        told = [summary[column] for summary in summaries]
        assert [row[column] for row in read_csv(path)] == told and all(value is not None for value in told)
    header, _ = comparison(summaries)
    assert not [title for title in header if "MiB" in title or "bytes" in title]


def test_report_writes_what_it_says(runs: Path, tmp_path: Path) -> None:
    table, notes = tmp_path / "table.md", report([runs], tmp_path / "table.md")[1]
    assert notes == [f"written: {table}"]
    assert table.read_text().startswith("| experiment | benchmark | strategies |")
    _, notes = report([first_run(runs)])
    written = [Path(note.removeprefix("written: ")).name for note in notes]
    assert written == ["summary.json", "accuracy_matrix.png", "accuracy_by_event.png", "report.html"]
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


def test_plots_have_room_for_long_events(recwarn: pytest.WarningsRecorder) -> None:
    summary = {"stream": "L0 U0:fraction=0.00000001@seed12345", "accuracy_matrix": [[50.0], [40.0]]}
    for figure in (matrix_figure(summary), curves_figure(summary)):
        png(figure)
    assert not [one for one in recwarn if "constrained_layout" in str(one.message)]


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
    with pytest.raises(ConfigurationError, match=r"nowhere.md cannot be read: No such file or directory. It must hold a block"):
        replace_block(tmp_path / "nowhere.md", "one", "x")


def test_a_number_in_a_table_is_no_longer_than_a_cell() -> None:
    assert [number(value) for value in (None, 7, 1.005e8, 0.125)] == ["–", "7", "100500000.00", "0.12"]
    assert [number(value) for value in (1e304, math.inf, -2.5e12)] == ["1.00e+304", "inf", "-2.50e+12"]
    assert number(18.44, places=1) == "18.4"


def test_the_perplexity_of_a_loss_that_no_float_can_raise_is_infinite() -> None:
    assert perplexity(709.0) == math.exp(709.0) < math.inf
    assert perplexity(710.0) == perplexity(126_239.0) == math.inf
    assert perplexity(None) is None
