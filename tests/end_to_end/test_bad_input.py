"""Bad input at the command line: exit code, one or two sentences, no traceback, nothing half-written."""

from __future__ import annotations

from pathlib import Path

import pytest

from cl_framework.cli import main

EXPERIMENT = """
benchmark: {name: synthetic, tasks: 2}
batch_size: 20
threads: 1
"""

REFUSED = [
    (["sed=1"], "clu: sed: unknown option. Did you mean 'seed'?"),
    (["seed=one"], "clu: seed must be a whole number, got 'one'."),
    (["batch_size=0"], "clu: batch_size must be >= 1 and <= 1e+09, got 0."),
    (["strategies.er.capacity=-3"], "clu: strategies.er.capacity must be >= 0, got -3."),
    (["strategies.er.policy=fifo"], "clu: strategies.er.policy must be one of reservoir, ring, balanced, got 'fifo'."),
    (["~strategies.er"], "clu: ~strategies.er: there is nothing to remove."),
    (["stream=L0 X1"], "clu: stream: cannot read event 'X1'. Write events like"),
    (["stream=L0-9"], "names task 2, but the benchmark has tasks 0 to 1."),
    (["stream=L0 U1"], "unlearns task 1, which is not known then. Learn it before: add L1, if the benchmark has that task."),
    (
        ["strategies.rewind={}", "stream=L0 U0:ids=nowhere.txt"],
        "U0:ids=nowhere.txt needs the file nowhere.txt, which cannot be read (No such file or directory). Name a text file of sample ids "
        "that is there; a relative path begins where clu is run.",
    ),
    (["stream=L0 U0"], "clu: stream: event U0 unlearns at task level, but no strategy of this stack can do that"),
    (
        ["scenario=domain_il", "benchmark.name=split_digits", "~benchmark.tasks"],
        "clu: scenario=domain_il does not fit benchmark 'split_digits'",
    ),
    (["benchmark.name=split_mnist", "data.root=nowhere"], "clu: MNIST is not in nowhere/MNIST/raw. Set data.download=true to fetch it"),
    (["benchmark.name=image_folder", "~benchmark.tasks"], "clu: benchmark.path is missing: name the folder of images"),
    (["strategies.joint={}", "blurry=0.2"], "clu: strategies.joint must know when a task ends, which a blurry stream does not tell."),
    (
        ["strategies.er.policy=balanced", "strategies.er.capacity=2", "benchmark.tasks=2"],
        "clu: strategies.er.capacity: 2 samples cannot hold one of each of the stream's 4 classes, as policy=balanced does. "
        "Set capacity to at least 4, or policy=reservoir.",
    ),
    (["device=cuda"], "clu: device=cuda, but torch finds no CUDA device here."),
    (["model.hidden=[0]"], "clu: model.hidden must be >= 1, got 0."),
    (["stream=L0-99999999999"], "clu: stream: 'L0-99999999999' names task 99999999999; a stream has tasks 0 to 9999."),
    (["experiment=.."], "clu: experiment must be the name of one folder, got '..'. Set out=DIR for where it lies."),
    (
        ["expected.average_accuracy=5"],
        "clu: expected.average_accuracy must be {value: …, deviation: …, source: …}, or a list of those, got 5.",
    ),
]

REFUSED_WITHOUT_DATA = [
    (
        ["strategies.icarl={}", "strategies.er_ace={}"],
        "clu: at most one strategy of a stack replaces the task term, but strategies.icarl and strategies.er_ace do; remove all but one.",
    ),
    (
        ["strategies.lora={}", "strategies.hypernetwork={}", "scenario=task_il"],
        "clu: at most one strategy of a stack changes the model's structure, but strategies.lora and strategies.hypernetwork do; "
        "remove all but one.",
    ),
    (
        ["strategies.er.minibatch=99999999999999999999"],
        "clu: strategies.er.minibatch must be a number of 64 bits, got 99999999999999999999.",
    ),
    (
        ["strategies.icarl={}", "strategies.analytic={}"],
        "clu: at most one strategy of a stack answers predictions, but strategies.icarl and strategies.analytic do; remove all but one.",
    ),
    (
        ["strategies.hypernetwork={}", "scenario=class_il"],
        "clu: strategies.hypernetwork does not work with scenario=class_il; it allows: task_il. Set scenario=task_il.",
    ),
    (
        ["strategies.ewc={}", "blurry=0.2"],
        "clu: strategies.ewc must know when a task ends, which a blurry stream does not tell. Set blurry=0 or remove it.",
    ),
    (
        ["strategies.finetune_retain={}", "stream=L0 L1 U0"],
        "clu: stream: to answer U0, strategies.finetune_retain needs samples of what is retained, but no strategy of this stack keeps any.",
    ),
    (
        ["strategies.ewc={}", "strategies.joint={}"],
        "clu: strategies.joint.plan: ewc keeps what each task has taught, but joint training learns nothing before the last one.",
    ),
    (
        ["strategies.gdumb={}", "strategies.half={}"],
        "clu: strategies.gdumb.step: a fresh model is trained on the memory alone, so what half does in steps (mask) would have no effect. "
        "Remove half.",
    ),
]


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CL_DATA", raising=False)
    path = tmp_path / "trial.yaml"
    path.write_text(EXPERIMENT)
    return path


def clu(*words: str) -> int:
    return main([str(word) for word in words])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize(("overrides", "text"), REFUSED, ids=lambda value: value[0] if isinstance(value, list) else None)
@pytest.mark.parametrize("command", ["run", "show"])
def test_bad_configurations(experiment: Path, capsys: pytest.CaptureFixture[str], command: str, overrides: list[str], text: str) -> None:
    if "device=cuda" in overrides and command == "run":
        import torch

        assert not torch.cuda.is_available()
    code = clu(command, experiment, *overrides)
    if command == "show" and "data.root=nowhere" in overrides:
        assert code == 0  # `show` says that the data is missing, and shows the rest
        assert "# schedule\nnot known: MNIST is not in nowhere" in capsys.readouterr().out
        return
    assert code == 2
    message = said(capsys)
    assert text in message
    assert message.count("\n") == 1
    assert sorted(path.name for path in experiment.parent.iterdir()) == ["trial.yaml"]


@pytest.mark.parametrize(("overrides", "text"), REFUSED_WITHOUT_DATA, ids=lambda value: value[0] if isinstance(value, list) else None)
@pytest.mark.parametrize("command", ["run", "show"])
def test_what_cannot_work_together_is_refused_where_the_data_are_missing(
    experiment: Path, capsys: pytest.CaptureFixture[str], command: str, overrides: list[str], text: str
) -> None:
    assert clu(command, experiment, "benchmark.name=split_mnist", "data.root=nowhere", *overrides) == 2
    message = said(capsys)
    assert text in message and message.count("\n") == 1
    assert sorted(path.name for path in experiment.parent.iterdir()) == ["trial.yaml"]


def test_files_that_cannot_be_read(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert clu("run", "nowhere.yaml") == 2
    assert "clu: there is no experiment file nowhere.yaml. `clu list experiments` shows what there is." in said(capsys)
    experiment.write_text("a: [1\n")
    assert clu("run", experiment) == 2
    assert "trial.yaml is no valid YAML at line" in said(capsys)
    assert clu("resume", "nowhere") == 2
    assert "clu: nowhere is no run directory (it has no config.yaml). Start a run with `clu run`." in said(capsys)
    assert clu("report", "nowhere") == 2
    assert "clu: nowhere does not exist." in said(capsys)


def test_rows_of_audits_and_of_runs_are_told_apart(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("audits.csv").write_text("experiment,name,value,verdict\nx,M1,0,PASS\n" * 3)
    Path("runs.csv").write_text("experiment,average_accuracy\nx,90\n" * 3)
    before = sorted(experiment.parent.iterdir())
    assert clu("report", "audits.csv", "--out", "table.csv") == 2
    place = Path("audits.csv").resolve()
    assert said(capsys) == f"clu: {place} is a file of audits: use `clu audit {place}`.\n"
    assert clu("audit", "runs.csv", "--out", "table.csv") == 2
    assert said(capsys) == "clu: runs.csv is a file of runs: use `clu report runs.csv`.\n"
    assert sorted(experiment.parent.iterdir()) == before


def test_requests_to_unlearn_are_checked_before_anything_runs(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stream in ("L0 U0:class=1", "L0 U0:ids=ids.txt", "L0 U0:fraction=0.1@seed7"):
        assert clu("run", experiment, f"stream={stream}") == 2
        assert "but no strategy of this stack can do that" in said(capsys)


def only_run(out: Path) -> Path:
    (config,) = out.rglob("config.yaml")
    return config.parent


def test_ids_that_are_no_text_seeds_that_are_no_numbers_and_a_folder_without_experiments(
    experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("ids.bin").write_bytes(b"\xff\xfe\x00")
    assert clu("run", experiment, "strategies.rewind={}", "stream=L0 U0:ids=ids.bin") == 2
    assert "the file ids.bin of U0:ids=ids.bin is no text; it must hold sample ids" in said(capsys)
    assert clu("reproduce", "--seeds", "a") == 2
    assert "clu: --seeds a: write whole numbers, such as 0..2 or 0,3." in said(capsys)
    assert clu("list", "experiments") == 2
    assert "clu: there is no folder experiments here." in said(capsys)


def test_running_twice(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert clu("run", experiment) == 0
    path = only_run(experiment.parent / "runs")
    capsys.readouterr()
    assert clu("run", experiment) == 0  # finished: printed again
    captured = capsys.readouterr()
    assert "average accuracy" in captured.out
    assert "running" not in captured.err
    assert f"finished before, nothing was run: {path.relative_to(Path.cwd())}; again=true starts it anew" in captured.out
    (path / "DONE").unlink()
    before = (path / "records.jsonl").read_bytes()
    assert clu("run", experiment) == 2
    expected = (
        f"holds an unfinished run. Continue it with `clu resume {path.relative_to(experiment.parent)}` or start anew with again=true."
    )
    assert expected in said(capsys)
    assert (path / "records.jsonl").read_bytes() == before
    assert clu("run", experiment, "again=true") == 0
    assert (path / "records.jsonl").read_bytes() == before


def test_resuming_under_another_configuration_names_the_key(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert clu("run", experiment) == 0
    path = only_run(experiment.parent / "runs")
    (path / "DONE").unlink()
    capsys.readouterr()
    before = (path / "config.yaml").read_bytes()
    assert clu("resume", path, "optimizer.lr=0.5") == 2
    assert "was started under another configuration: optimizer.lr is 0.5, was 0.1. Undo that, or start a new run." in said(capsys)
    assert clu("resume", path, "seed=4") == 2
    assert "seed is 4, was 0" in said(capsys)
    assert (path / "config.yaml").read_bytes() == before
    assert clu("resume", path) == 0


def test_a_renamed_run_without_checkpoints_is_told_from_one_of_other_settings(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert clu("run", experiment) == 0
    path = only_run(experiment.parent / "runs")
    (path / "DONE").unlink()
    for checkpoint in (path / "ckpt").glob("*.pt"):
        checkpoint.write_bytes(b"")
    renamed = path.rename(path.with_name("kept"))
    capsys.readouterr()
    assert clu("resume", renamed) == 2
    assert "is damaged" not in (told := said(capsys)), "nothing is repeated from its beginning there"
    assert f"has no checkpoint to compare with, and its configuration belongs in a folder named {path.name}: it was renamed" in told
    assert clu("resume", renamed.rename(path)) == 0


def test_a_place_that_cannot_be_written(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (experiment.parent / "taken").write_text("a file, not a folder")
    assert clu("run", experiment, "out=taken") == 1
    message = said(capsys)
    assert "cannot be written" in message
    assert "nothing written before is lost" in message
    assert clu("sweep", experiment, "out=taken") == 1
    assert "taken/trial cannot be written: Not a directory. Mend that or choose another folder" in said(capsys)
    assert clu("resume", "a" * 5000) == 1
    assert "…: File name too long. Name another path." in said(capsys)
    (experiment.parent / "table.md").write_bytes(b"\xff")
    (experiment.parent / "empty.csv").write_text("")
    assert clu("report", "empty.csv", "--into", "table.md#t") == 2
    assert "no finished run to report: empty.csv holds no record." in said(capsys)


def test_sweeps_are_checked_before_the_first_cell_runs(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert clu("sweep", experiment, "seed=0..1", "optimizer.lr=0.1,zero") == 2
    assert "optimizer.lr must be a number, got 'zero'" in said(capsys)
    assert clu("sweep", experiment, "seed=3..1") == 2
    assert "the range in 'seed=3..1' runs backwards" in said(capsys)
    assert clu("sweep", experiment, "seed=0..99999999") == 2
    assert "'seed=0..99999999' has 100000000 values; a sweep runs at most 100000 cells" in said(capsys)
    assert clu("sweep", experiment, "seed=0..999", "batch_size=1,2", "epochs=1..99") == 2
    assert "the grid has 198000 cells; a sweep runs at most 100000" in said(capsys)
    assert clu("sweep", experiment, "threads=1,2") == 2
    assert "two cells are the same run" in said(capsys)
    assert clu("sweep", "seed=1") == 2
    assert "clu sweep needs an experiment file" in said(capsys)
    assert not (experiment.parent / "runs").exists()


@pytest.mark.parametrize("overrides", [["model.hidden=[1000000000000]"], ["batch_size=1000000000", "strategies.er.minibatch=100000000000"]])
def test_what_does_not_fit_into_memory_ends_in_a_sentence(
    experiment: Path, capsys: pytest.CaptureFixture[str], overrides: list[str]
) -> None:
    assert clu("run", experiment, *overrides) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("clu: memory ran out (tried to allocate ")
    assert message.endswith("Make the batch, the memory of a strategy or the model smaller.")


def test_another_runtime_error_is_not_taken_for_one_of_memory(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object, **more: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr("cl_framework.runner.run", fails)
    with pytest.raises(RuntimeError, match="something else"):
        clu("run", experiment)


def test_words_may_follow_options(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert clu("sweep", experiment, "--jobs", "1", "seed=3..1") == 2
    assert "the range in 'seed=3..1' runs backwards" in said(capsys)
    assert clu("show", experiment, "--plot", "schedule.gif", "sed=1") == 2
    assert "sed: unknown option" in said(capsys)
    for words in (["--job", "1", "--seed=1"], ["--jobs", "1", "-x"]):
        with pytest.raises(SystemExit):
            clu("sweep", experiment, *words)
        assert "unrecognized arguments" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        clu("verify", "here", "there")
    assert "unrecognized arguments: there" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        clu("verify", "here", experiment.parent)
    assert f"one folder at a time: leave out {experiment.parent}\n" in capsys.readouterr().err


def test_new_strategies_with_bad_names(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("My-Strategy", "class", "1st"):
        assert clu("new", "strategy", name) == 2
        assert "is no strategy name: use lower-case letters" in said(capsys)
    assert clu("new", "strategy", "er") == 2
    assert "there is a strategy named 'er' already" in said(capsys)
    (experiment.parent / "clu-mine").mkdir()
    assert clu("new", "strategy", "mine") == 2
    assert "clu-mine exists already" in said(capsys)
    assert not any((experiment.parent / "clu-mine").iterdir())


def test_a_resume_stays_where_it_is(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert clu("run", experiment) == 0
    path = only_run(experiment.parent / "runs")
    (path / "DONE").unlink()
    capsys.readouterr()
    assert clu("resume", path, "out=elsewhere") == 2
    assert "out=elsewhere: a run is resumed where it is. Leave that out, or start a new run with `clu run`." in said(capsys)
    assert clu("resume", "seed=2") == 2
    assert "the run directory is missing before seed=2. Write clu resume RUN_DIR [key=value …]." in said(capsys)
    assert clu("resume", path, path.parent) == 2
    assert f"one folder at a time: leave out {path.parent}." in said(capsys)
    assert not (experiment.parent / "elsewhere").exists()
    assert clu("resume", path) == 0
