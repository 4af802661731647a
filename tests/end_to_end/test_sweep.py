"""Sweeps: every cell once, what is done is skipped, what was interrupted is resumed, a failure stops nobody else."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from cl_framework import ConfigurationError, sweep
from cl_framework.cli import main
from cl_framework.forking import forked
from cl_framework.sweep import Cell, cells, expand, run_cells

EXPERIMENT = """
benchmark: {name: synthetic, tasks: 2, train_per_class: 20}
batch_size: 20
threads: 1
"""


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "trial.yaml"
    path.write_text(EXPERIMENT)
    return path


def test_values_of_a_grid() -> None:
    assert expand("seed=0..3") == ["seed=0", "seed=1", "seed=2", "seed=3"]
    assert expand("optimizer.lr=0.1,0.2") == ["optimizer.lr=0.1", "optimizer.lr=0.2"]
    assert expand("model.hidden=[5,6],[7]") == ["model.hidden=[5,6]", "model.hidden=[7]"]
    assert expand("strategies.er={capacity: 5, policy: ring}") == ["strategies.er={capacity: 5, policy: ring}"]
    assert expand("stream=L0 U0:class=1,2") == ["stream=L0 U0:class=1,2"]
    assert expand("without=U1:class=3,4") == ["without=U1:class=3,4"]
    assert expand('data.root="a,b",c') == ['data.root="a,b"', "data.root=c"]
    assert expand("~strategies.er") == ["~strategies.er"]
    with pytest.raises(ConfigurationError, match="runs backwards"):
        expand("seed=3..1")


def test_every_combination_is_a_cell(experiment: Path) -> None:
    grid = cells([experiment], ["seed=0..1", "batch_size=10,20"])
    assert len({cell.directory.path for cell in grid}) == len(grid) == 4


def test_what_is_resumed_keeps_its_overrides_and_again_starts_anew(experiment: Path) -> None:
    words = ["seed=1", "threads=2", "out=runs"]
    (cell,) = cells([experiment], words)
    assert cell.command() == ["run", str(experiment), *words]
    cell.directory.write_start("", "", {})
    assert cell.resumed and cell.command() == ["resume", str(cell.directory.path), "seed=1", "threads=2"]
    (anew,) = cells([experiment], [*words, "again=true"])
    assert not anew.resumed and anew.command() == ["run", str(experiment), *words, "again=true"]
    cell.directory.mark_done()
    assert cell.done and not anew.done


def tell() -> None:
    print(multiprocessing.get_start_method(), os.environ.get("CL_TOLD"), Path.cwd())


@pytest.mark.slow
def test_a_forked_process_is_in_all_else_as_if_it_had_been_started_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, method = tmp_path / "log.txt", multiprocessing.get_start_method()
    for told in ("one", "another"):  # the second is forked from the process that the first one started
        folder = tmp_path / told
        folder.mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.setenv("CL_TOLD", told)
        forked(tell, (), log).join()
    assert log.read_text().splitlines() == [f"{method} {told} {tmp_path / told}" for told in ("one", "another")]
    assert method != "forkserver"  # which is what a process made by one takes for its own otherwise


@pytest.mark.slow
@pytest.mark.longest
def test_a_sweep_skips_resumes_and_reports(experiment: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", str(experiment), "seed=0..1", "strategies.er.capacity=5,10"]
    assert main([*words, "--jobs", "2"]) == 0
    first = capfd.readouterr()
    assert first.err.count("done: ") == 4
    assert first.out.count("0, 1") == 2
    runs = sorted(Path("runs/trial").glob("*/records.jsonl"))
    before = [path.read_bytes() for path in runs]
    (runs[0].parent / "DONE").unlink()
    runs[0].write_bytes(before[0] + b'{"half": ')
    (runs[1].parent / "DONE").unlink()
    (runs[1].parent / "FAILED").write_text("a trial")
    assert main(words) == 0
    again = capfd.readouterr().err
    assert (again.count("done before: "), again.count("resuming: ")) == (2, 2)
    assert [path.read_bytes() for path in runs] == before


@pytest.mark.slow
def test_a_signal_while_a_cell_is_being_started_reaches_it(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = sweep._start

    def signalled(cell: Cell, jobs: int) -> ForkServerProcess:
        os.kill(os.getpid(), signal.SIGTERM)
        return start(cell, jobs)

    grid = cells([experiment], ["seed=0..1", "epochs=100000"])  # hours, if nobody is told
    monkeypatch.setattr(sweep, "_start", signalled)
    assert run_cells(grid, 1) == grid
    assert [cell.directory.status for cell in grid] in (["absent", "absent"], ["unfinished", "absent"])


@pytest.mark.slow
def test_a_failing_cell_stops_nobody_else(experiment: Path, capfd: pytest.CaptureFixture[str]) -> None:
    grid = cells([experiment], ["seed=0..1"])
    broken = grid[0].directory
    broken.write_start("benchmark: {name: gone}\n", "", {})
    failed = run_cells(grid, 1)
    assert [cell.directory for cell in failed] == [broken]
    assert grid[1].directory.status == "done"
    assert "not done (exit code 2)" in capfd.readouterr().err
    assert "there is no benchmark named 'gone'" in grid[0].log.read_text()
