"""Resume after real kills, of real processes, at random moments: the same weights, records and figures, bit for bit."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cl_framework import ConfigurationError, FrameworkError, Traits, registry, resume, run
from cl_framework.checkpoint import CheckpointStore, write_state
from cl_framework.cli import main
from cl_framework.config import Experiment
from cl_framework.listeners import Listener, Progress
from cl_framework.records import RunDirectory
from cl_framework.signals import stop_on_signals
from cl_framework.testing.laboratory import assert_different_weights, assert_equal_outcomes, experiment_of, finish, outcome_of

NAMES = sorted(entry.name for entry in registry.strategies.entries() if entry.origin.startswith("cl-framework"))


def borrowing(name: str) -> dict[str, dict[str, Any]]:
    """A strategy, with a memory beside it if it borrows one."""
    return {name: {}, "er": {}} if "memory" in registry.strategies.get(name).traits.unlearning_reads else {name: {}}


STACKS: dict[str, dict[str, dict[str, Any]]] = {
    "finetune": {},
    **{name: borrowing(name) for name in NAMES},
    "gdumb": {"gdumb": {"epochs": 7}},  # by default 63 after each of the four events
    "two of a kind and an upper bound": {"cumulative": {}, "er": {"capacity": 20}, "second": {"use": "derpp", "capacity": 10}},
}
KILLS = 3
SETTINGS: dict[str, Any] = {
    "stream": "L0 L1 L2 L0",
    "epochs": 6,
    "checkpoint": {"every_seconds": 0.0},  # after every chunk of steps
    "optimizer": {"name": "adam", "lr": 0.01, "reset": "never"},
    "model": {"name": "mlp", "hidden": [16], "dropout": 0.2, "batch_norm": True},
}
_fork = multiprocessing.get_context("fork")


def go_on(experiment: Experiment, path: Path, *listeners: Listener) -> None:
    """What a child does: start the run, or continue it."""
    torch.set_num_threads(1)
    with stop_on_signals(lambda text: None) as stop:
        begun = RunDirectory(path).status != "absent"
        result = (
            resume(path, listeners=listeners, stop_requested=stop) if begun else run(experiment, listeners=listeners, stop_requested=stop)
        )
    os._exit(0 if result.status == "done" else 3)


def in_a_child(work: Callable[..., None], *arguments: Any) -> multiprocessing.process.BaseProcess:
    child = _fork.Process(target=work, args=arguments)
    child.start()
    return child


def settings_of(stack: str) -> dict[str, Any]:
    """The settings of a stack's runs, in the first scenario that its strategy allows; one that unlearns tasks does."""
    traits = registry.strategies.get(stack).traits if stack in NAMES else Traits()
    stream = "L0 L1 L2 U1 L1" if "task" in traits.unlearns else SETTINGS["stream"]
    return {**SETTINGS, "scenario": traits.scenarios[0], "stream": stream}


def path_of(experiment: Experiment) -> Path:
    chosen = experiment.run
    return RunDirectory.create(chosen.out, chosen.experiment, experiment.fingerprint, chosen.seed).path


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a first run imports would make it longer than the children, which are timed by it."""
    finish(experiment_of({"hypernetwork": {}}, tmp_path_factory.mktemp("warm"), scenario="task_il"))


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("stack", STACKS)
def test_killed_at_random_moments_a_run_ends_as_if_nothing_had_happened(stack: str, tmp_path: Path) -> None:
    started, settings = time.monotonic(), settings_of(stack)
    whole = finish(experiment_of(STACKS[stack], tmp_path / "whole", **settings))
    duration = time.monotonic() - started
    experiment = experiment_of(STACKS[stack], tmp_path / "killed", **settings)
    path = path_of(experiment)
    moments = random.Random(stack)
    killed = 0
    for attempt in range(40):
        child = in_a_child(go_on, experiment, path)
        if killed < KILLS:
            # Later attempts wait longer, so that kills fall at the start, in the middle and at the end.
            child.join(moments.uniform(0.02, 0.25 + 0.1 * attempt) * duration)
            if child.is_alive():
                assert child.pid is not None
                os.kill(child.pid, signal.SIGKILL)
                child.join()
                assert child.exitcode == -signal.SIGKILL
                killed += 1
                continue
        child.join()
        assert child.exitcode == 0
        break
    assert killed >= 1
    survived = outcome_of(path)
    assert_equal_outcomes(whole, survived, "after kills")
    assert survived.bytes_of_records == whole.bytes_of_records
    times = {"train_seconds", "answer_seconds", "eval_seconds", "audit_seconds", "peak_rss_mib"}
    assert {key: value for key, value in survived.summary.items() if key not in times} == {
        key: value for key, value in whole.summary.items() if key not in times
    }
    other = finish(experiment_of(STACKS[stack], tmp_path / "other", seed=1, **settings))
    assert_different_weights(whole, other, "another seed")


def test_every_registered_strategy_was_killed() -> None:
    assert set(NAMES) >= {"er", "der", "derpp", "joint", "cumulative"}
    assert set(NAMES) < set(STACKS)


class SignalsItsProcess(Listener):
    """Sends a signal while the second event trains, however fast the machine is."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def on_progress(self, progress: Progress) -> None:
        if progress.position.event_index == 1:
            os.kill(os.getpid(), self.number)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_first(number: signal.Signals, tmp_path: Path) -> None:
    settings = {**SETTINGS, "epochs": 60, "checkpoint": {"every_seconds": 1e9}}
    experiment = experiment_of({"er": {}}, tmp_path, **settings)
    path = path_of(experiment)
    child = in_a_child(go_on, experiment, path, SignalsItsProcess(number))
    child.join()
    assert child.exitcode == 3
    (checkpoint,) = CheckpointStore(path / "ckpt").paths()[-1:]
    state = torch.load(checkpoint, weights_only=True)
    assert state["inside"] is not None
    assert state["inside"]["tally"]["steps"] > 0
    child = in_a_child(go_on, experiment, path)
    child.join()
    assert child.exitcode == 0
    whole = finish(experiment_of({"er": {}}, tmp_path / "whole", **settings))
    assert_equal_outcomes(whole, outcome_of(path), f"after {number.name}")


class Heard(Listener):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def on_warning(self, text: str) -> None:
        self.warnings.append(text)


def stopped(tmp_path: Path) -> Path:
    """A run that stopped in its second event, with two checkpoints."""
    experiment = experiment_of({"er": {}}, tmp_path / "stopped", **{**SETTINGS, "epochs": 1})
    result = run(experiment, stop_requested=lambda step: step == 7)
    assert result.status == "stopped"
    assert len(list((result.path / "ckpt").iterdir())) == 2
    return result.path


@pytest.mark.parametrize("harm", ["flip a bit", "cut the end", "empty"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(harm: str, count: int, tmp_path: Path) -> None:
    path = stopped(tmp_path)
    newest_first = sorted((path / "ckpt").iterdir(), reverse=True)
    for checkpoint in newest_first[:count]:
        data = bytearray(checkpoint.read_bytes())
        data[len(data) // 2] ^= 1
        checkpoint.write_bytes({"flip a bit": bytes(data), "cut the end": bytes(data[:-100]), "empty": b""}[harm])
    heard = Heard()
    result = resume(path, listeners=[heard])
    assert len(heard.warnings) == count
    for checkpoint, text in zip(newest_first, heard.warnings, strict=False):
        assert str(checkpoint) in text
        assert "is damaged" in text
    assert heard.warnings[-1].endswith("the one before is used." if count == 1 else "the run is repeated from its beginning.")
    whole = finish(experiment_of({"er": {}}, tmp_path / "whole", **{**SETTINGS, "epochs": 1}))
    assert_equal_outcomes(whole, outcome_of(result.path), harm)


def test_rows_that_a_checkpoint_counts_on_and_are_gone(tmp_path: Path) -> None:
    path = stopped(tmp_path)
    (path / "records.jsonl").write_text("")
    with pytest.raises(FrameworkError, match=r"records.jsonl has 0 bytes, but the checkpoint counts on \d+: rows are lost"):
        resume(path)


def first_number_becomes(path: Path, key: str, longer: bool) -> tuple[bytes, bytes]:
    """The first row of a file with another number under `key`, as many characters or more; the file before and after."""
    before = path.read_bytes()
    line, rest = before.split(b"\n", 1)
    found = re.search(rf'"{key}": ([0-9.]+)'.encode(), line)
    assert found is not None
    number = found[1] + b"0" * 9 if longer else found[1][:-1] + (b"9" if found[1][-1:] != b"9" else b"8")
    after = line[: found.start(1)] + number + line[found.end(1) :] + b"\n" + rest
    path.write_bytes(after)
    return before, after


@pytest.mark.parametrize("longer", [False, True])
@pytest.mark.parametrize(("name", "key"), [("records.jsonl", "value"), ("events.jsonl", "train_seconds")])
def test_a_resume_refuses_rows_that_were_edited_since_the_checkpoint(
    name: str, key: str, longer: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stopped(tmp_path)
    before, after = first_number_becomes(path / name, key, longer)
    assert before != after and (len(before) == len(after)) is not longer
    files = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert main(["resume", str(path)]) == 1
    remedy = "Restore it as it was, or start the run anew with again=true."
    assert capsys.readouterr().err == f"clu: {path / name} was changed in what came before the checkpoint. {remedy}\n"
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == files, "nothing was trained, nothing cut"
    (path / name).write_bytes(before)
    assert main(["resume", str(path)]) == 0
    whole = finish(experiment_of({"er": {}}, tmp_path / "whole", **{**SETTINGS, "epochs": 1}))
    assert_equal_outcomes(whole, outcome_of(path), "after the rows were restored")


@pytest.mark.parametrize("name", ["records.jsonl", "events.jsonl"])
def test_a_row_that_was_being_written_when_the_run_was_killed_is_written_anew(name: str, tmp_path: Path) -> None:
    path = stopped(tmp_path)
    file = path / name
    half = file.read_bytes().split(b"\n", 1)[0][:40]
    file.write_bytes(file.read_bytes() + half)
    resume(path)
    whole = finish(experiment_of({"er": {}}, tmp_path / "whole", **{**SETTINGS, "epochs": 1}))
    assert_equal_outcomes(whole, outcome_of(path), f"after half a row in {name}")
    assert len(RunDirectory(path).events()) == 4


def test_a_checkpoint_that_notes_lengths_alone_is_resumed(tmp_path: Path) -> None:
    """As earlier versions wrote them."""
    path = stopped(tmp_path)
    for checkpoint in CheckpointStore(path / "ckpt").paths():
        state = torch.load(checkpoint, weights_only=True)
        del state["digests"]
        checkpoint.unlink()
        write_state(path / "ckpt", checkpoint.stem.rpartition("-")[0], state)
    resume(path)
    whole = finish(experiment_of({"er": {}}, tmp_path / "whole", **{**SETTINGS, "epochs": 1}))
    assert_equal_outcomes(whole, outcome_of(path), "without digests")
    (newest,) = CheckpointStore(path / "ckpt").paths()[-1:]
    assert torch.load(newest, weights_only=True)["digests"].keys() == {"records.jsonl", "events.jsonl"}


def test_what_differs_in_the_environment_is_named(tmp_path: Path) -> None:
    path = stopped(tmp_path)
    text = (path / "env.json").read_text()
    (path / "env.json").write_text(text.replace('"threads": 1', '"threads": 8'))
    heard = Heard()
    resume(path, listeners=[heard])
    assert heard.warnings == ["resume: threads was 8 and is 1; figures may differ in their last bits."]


def test_a_second_process_on_the_same_run_is_refused(tmp_path: Path) -> None:
    path = stopped(tmp_path)
    with RunDirectory(path).lock(), pytest.raises(ConfigurationError, match="is being run by another process"):
        resume(path)
    assert resume(path).status == "done"


def test_a_run_under_way_is_not_started_anew(tmp_path: Path) -> None:
    path = stopped(tmp_path)
    anew = experiment_of({"er": {}}, tmp_path / "stopped", again=True, **{**SETTINGS, "epochs": 1})
    assert path_of(anew) == path
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with RunDirectory(path).lock(), pytest.raises(ConfigurationError, match="is being run by another process"):
        run(anew)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert run(anew).status == "done"


@pytest.mark.parametrize("elsewhere", ["stopped", "finished"])
def test_a_run_that_another_process_starts_while_the_data_are_read_stands(
    elsewhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cl_framework.runner as runner

    experiment = experiment_of({"er": {}}, tmp_path, **{**SETTINGS, "epochs": 1})
    assemble, calls = runner.assemble, []

    def overtaken(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            run(experiment, stop_requested=lambda step: elsewhere == "stopped" and step == 3)
        return assemble(*arguments)

    monkeypatch.setattr(runner, "assemble", overtaken)
    if elsewhere == "stopped":
        with pytest.raises(ConfigurationError, match=r"holds an unfinished run\. Continue it with `clu resume"):
            run(experiment)
    else:
        assert run(experiment).status == "done"
    assert len(calls) == 2
    assert RunDirectory(path_of(experiment)).status == ("unfinished" if elsewhere == "stopped" else "done")


def test_a_run_that_failed_says_why_when_it_is_started_again(tmp_path: Path) -> None:
    class Breaks(Listener):
        def on_event_start(self, index: int) -> None:
            raise FrameworkError("the lamp went out")

    experiment = experiment_of({"er": {}}, tmp_path, **{**SETTINGS, "epochs": 1})
    with pytest.raises(FrameworkError, match="lamp"):
        run(experiment, listeners=[Breaks()])
    text = r"holds a run that failed: FrameworkError: the lamp went out\. Mend that and continue it with `clu resume .*`, or start anew"
    with pytest.raises(ConfigurationError, match=text):
        run(experiment)
    assert resume(path_of(experiment)).status == "done"


def test_a_full_disk_ends_with_one_sentence_and_the_run_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cl_framework.records as records

    experiment = experiment_of({"er": {}}, tmp_path / "full", **{**SETTINGS, "epochs": 1})
    flush, calls = os.fsync, 0

    def full_after_a_while(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 16:
            raise OSError(28, "No space left on device")
        flush(handle)

    with monkeypatch.context() as patch:
        patch.setattr(records.os, "fsync", full_after_a_while)
        with pytest.raises(
            FrameworkError, match=r"cannot be written: No space left on device. Free some space; nothing written before is lost"
        ):
            run(experiment)
    path = path_of(experiment)
    assert RunDirectory(path).records()  # what was written before is there
    result = resume(path)
    whole = finish(experiment_of({"er": {}}, tmp_path / "whole", **{**SETTINGS, "epochs": 1}))
    assert_equal_outcomes(whole, outcome_of(result.path), "after a full disk")
