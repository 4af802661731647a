"""What W&B is told, read back from the files of an offline run."""

from __future__ import annotations

import itertools
import json
import os
import struct
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cl_framework.config import Experiment, load_experiment
from cl_framework.errors import ConfigurationError, FrameworkError
from cl_framework.listeners import Listener, Progress
from cl_framework.loggers.wandb import TRAINING_INTERVAL, WandbListener, evaluation_row, files_under, history_step, run_id, training_row
from cl_framework.records import RunDirectory
from cl_framework.runner import RunResult, resume, run
from cl_framework.strategy import Position
from cl_framework.stream import Learn, Stream

# --- rows ---


def record(index: int, task: int, value: float | None, scenario: str = "class_il", stream_step: int = 0) -> dict[str, Any]:
    where = {"event_index": index, "eval_task": task, "split": "test", "scenario": scenario}
    return where | {"metric": "accuracy", "value": value, "stream_step": stream_step}


def test_an_evaluation_row_holds_each_task_and_the_figures_so_far() -> None:
    records = [
        *(record(-1, task, 10.0) for task in (0, 1)),
        record(0, 0, 90.0, stream_step=7),
        record(0, 1, 20.0, stream_step=7),
        record(1, 0, 30.0, stream_step=15),
        record(1, 1, 80.0, stream_step=15),
        record(1, 1, 99.0, scenario="task_il", stream_step=15),
    ]
    row = evaluation_row(records, Stream.parse("L0 L1", 2), 2, 1, "class_il")
    assert row == {
        "event": 1.0,
        "stream_step": 15.0,
        "accuracy/class_il/task_0": 30.0,
        "accuracy/class_il/task_1": 80.0,
        "accuracy/task_il/task_1": 99.0,
        "average_accuracy": (30.0 + 80.0) / 2,
        "forgetting": 90.0 - 30.0,
    }


def test_a_loss_that_is_no_number_is_left_out_of_a_row() -> None:
    records = [record(0, 0, 90.0), {**record(0, 0, 2.5), "metric": "loss"}]
    stream = Stream.parse("L0", 1)
    assert evaluation_row(records, stream, 1, 0, "class_il")["loss/class_il/task_0"] == 2.5
    records[1]["value"] = None
    row = evaluation_row(records, stream, 1, 0, "class_il")
    assert row == {"event": 0.0, "stream_step": 0.0, "accuracy/class_il/task_0": 90.0, "average_accuracy": 90.0}


def test_the_untrained_model_has_no_figures_and_the_first_task_no_forgetting() -> None:
    records = [record(-1, 0, 10.0), record(0, 0, 90.0, stream_step=7)]
    stream = Stream.parse("L0 L1", 2)
    assert evaluation_row(records, stream, 2, -1, "class_il") == {"event": -1.0, "stream_step": 0.0, "accuracy/class_il/task_0": 10.0}
    assert "forgetting" not in evaluation_row(records, stream, 2, 0, "class_il")
    assert evaluation_row(records, stream, 2, 0, "class_il")["average_accuracy"] == 90.0


class FakeRows(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.targets)


def progress(targets: list[int], answers: list[int]) -> Progress:
    logits = torch.nn.functional.one_hot(torch.tensor(answers, dtype=torch.int64), 4).float()
    evaluation = SimpleNamespace(loss=torch.tensor(0.5), output=SimpleNamespace(logits=logits))
    return Progress(Position(Learn(0), stream_step=12), cast(Any, evaluation), cast(Any, FakeRows(targets=torch.tensor(targets))))


def test_a_training_row_is_of_the_last_step() -> None:
    assert training_row(progress([0, 1, 2, 3], [0, 1, 2, 0])) == {"stream_step": 12.0, "train/loss": 0.5, "train/accuracy": 75.0}
    assert training_row(progress([], [])) == {"stream_step": 12.0, "train/loss": 0.5}


@given(steps=st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_history_steps_grow_strictly_along_every_stream(steps: list[int]) -> None:
    numbers = [history_step({"stream_step": 0}, -1, evaluation=True)]
    stream_step = 0
    for index, count in enumerate(steps):
        for _ in range(count):
            stream_step += 1
            numbers.append(history_step({"stream_step": stream_step}, index, evaluation=False))
        numbers.append(history_step({"stream_step": stream_step}, index, evaluation=True))
    assert numbers[0] == 0
    assert all(earlier < later for earlier, later in itertools.pairwise(numbers))


# --- the id and the folders ---


def test_the_id_is_kept_and_another_run_has_another(tmp_path: Path) -> None:
    first = run_id(tmp_path / "wandb.json")
    assert first
    assert run_id(tmp_path / "wandb.json") == first
    assert run_id(tmp_path / "other.json") != first


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": 1}'])
def test_a_damaged_id_file_is_named_with_the_remedy(tmp_path: Path, text: str) -> None:
    path = tmp_path / "wandb.json"
    path.write_text(text)
    with pytest.raises(FrameworkError, match=r"wandb\.json is damaged .* Remove it to go on under a new W&B run"):
        run_id(path)


def test_w_and_b_s_folders_are_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", "before")
    monkeypatch.delenv("WANDB_CACHE_DIR", raising=False)
    with files_under(tmp_path):
        assert os.environ["WANDB_DATA_DIR"] == os.environ["WANDB_CACHE_DIR"] == str(tmp_path)
    assert os.environ["WANDB_DATA_DIR"] == "before"
    assert "WANDB_CACHE_DIR" not in os.environ


# --- a real run, stopped, resumed, and read back ---


def read_datastore(path: Path) -> list[Any]:
    """The records of a .wandb file: LevelDB's log format in blocks of 32 KiB behind a header of seven bytes.

    W&B's service may be writing still: a record whose end has not come yet is left for the next look.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    records, parts, at = [], b"", 7
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + length > len(data):
            break
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            records.append(Record.FromString(parts))
            parts = b""
    return records


class OfflineRun:
    """One session of a W&B run as it lies on the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = read_datastore(path)

    def of_kind(self, kind: str) -> list[Any]:
        return [getattr(one, kind) for one in self.records if one.WhichOneof("record_type") == kind]

    @property
    def history(self) -> list[dict[str, Any]]:
        return [
            {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row.item} | {"_step": row.step.num}
            for row in self.of_kind("history")
        ]

    @property
    def summary(self) -> dict[str, Any]:
        return {item.key: json.loads(item.value_json) for row in self.of_kind("summary") for item in row.update}

    @property
    def config(self) -> dict[str, Any]:
        (first, *_) = self.of_kind("run")
        updates = [first.config, *self.of_kind("config")]
        return {item.key or item.nested_key[0]: json.loads(item.value_json) for update in updates for item in update.update}

    def file(self, row: dict[str, Any], key: str) -> Path:
        return self.path.parent / "files" / row[f"{key}/path"]


STREAM = "L0 L1 L0"


def experiment_in(out: Path, *overrides: str) -> Experiment:
    return load_experiment(
        {"experiment": "blobs", "stream": STREAM, "benchmark": {"name": "synthetic"}, "batch_size": 1, "epochs": 2, "threads": 1},
        ["logger=wandb", f"out={out}", *overrides],
    )


class Halfway(Listener):
    """Says when the second event has begun to train: a stop is asked for then."""

    def __init__(self) -> None:
        self.reached = False

    def on_event_start(self, index: int) -> None:
        self.reached = self.reached or index == 1


def sessions_of(result: RunResult) -> list[OfflineRun]:
    """The sessions of a run once they are whole: W&B's service may write a session's last record after `finish` has returned."""
    for _ in range(300):
        sessions = read_sessions(result)
        if all(session.of_kind("exit") for session in sessions):
            return sessions
        time.sleep(0.1)
    raise AssertionError(f"after 30 s a session of {result.path} has no exit record")


def read_sessions(result: RunResult) -> list[OfflineRun]:
    return [OfflineRun(path) for path in sorted(result.path.glob("wandb/offline-run-*/*.wandb"))]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run stopped at the head of its second event and then resumed to the end."""
    experiment = experiment_in(tmp_path_factory.mktemp("interrupted"))
    halfway = Halfway()
    listener = WandbListener(experiment.run.wandb)
    stopped = run(experiment, listeners=[listener, halfway], stop_requested=lambda step: halfway.reached)
    assert stopped.status == "stopped"
    time.sleep(1.1)  # W&B names a session's folder by the second
    result = resume(stopped.path, listeners=[WandbListener(experiment.run.wandb)])
    assert result.status == "done"
    return result


@pytest.mark.slow
def test_a_resumed_run_goes_on_under_the_same_id(interrupted: RunResult) -> None:
    kept = json.loads((interrupted.path / "wandb.json").read_text())["id"]
    sessions = sessions_of(interrupted)
    assert [session.of_kind("run")[0].run_id for session in sessions] == [kept, kept]
    assert [session.of_kind("exit")[0].exit_code for session in sessions] == [1, 0]
    assert [session.summary["status"] for session in sessions] == ["stopped", "done"]


@pytest.mark.slow
def test_every_record_is_in_the_history(interrupted: RunResult) -> None:
    logged = {
        (int(row["event"]), key, row["stream_step"], value)
        for session in sessions_of(interrupted)
        for row in session.history
        for key, value in row.items()
        if key.startswith("accuracy/")
    }
    records = RunDirectory(interrupted.path).records()
    expected = {
        (one["event_index"], f"accuracy/{one['scenario']}/task_{one['eval_task']}", one["stream_step"], one["value"]) for one in records
    }
    assert logged == expected
    assert len(expected) == len(records) > 0
    assert {index for index, *_ in logged} == {-1, 0, 1, 2}


@pytest.mark.slow
def test_figures_of_each_event_and_of_the_run(interrupted: RunResult) -> None:
    assert interrupted.summary is not None
    matrix = interrupted.summary["accuracy_matrix"]
    rows = [row for session in sessions_of(interrupted) for row in session.history if row.get("event", -1) >= 0]
    assert [row["average_accuracy"] for row in rows] == pytest.approx([matrix[0][0], sum(matrix[1][:2]) / 2, sum(matrix[2][:2]) / 2])
    last = sessions_of(interrupted)[-1]
    assert last.summary["average_accuracy"] == interrupted.summary["average_accuracy"] == pytest.approx(rows[-1]["average_accuracy"])
    assert last.summary["forgetting"] == interrupted.summary["forgetting"] == pytest.approx(rows[-1]["forgetting"])


@pytest.mark.slow
def test_training_is_read_at_the_throttle_and_at_the_head_of_each_event(interrupted: RunResult) -> None:
    events = RunDirectory(interrupted.path).events()
    rows = [row for session in sessions_of(interrupted) for row in session.history if "train/loss" in row]
    assert len(rows) >= len(events)
    assert all(0 <= row["train/accuracy"] <= 100 for row in rows)
    first = 0
    for event in events:
        of_event = [row["stream_step"] for row in rows if first < row["stream_step"] <= event["stream_step"]]
        assert len(of_event) >= 2
        assert all(later - earlier >= TRAINING_INTERVAL for earlier, later in itertools.pairwise(of_event))
        first = event["stream_step"]


@pytest.mark.slow
def test_the_history_has_its_own_step_axis_and_grows(interrupted: RunResult) -> None:
    steps = [row["_step"] for session in sessions_of(interrupted) for row in session.history]
    assert steps == sorted(set(steps))
    for session in sessions_of(interrupted):
        metrics = {metric.name or metric.glob_name: metric for metric in session.of_kind("metric")}
        assert metrics["*"].step_metric == "stream_step"


@pytest.mark.slow
def test_the_matrix_is_a_table_and_a_heat_map(interrupted: RunResult) -> None:
    assert interrupted.summary is not None
    last = sessions_of(interrupted)[-1]
    row = last.history[-1]
    table = json.loads(last.file(row, "accuracy_matrix").read_text())
    tasks = len(interrupted.summary["accuracy_matrix"][0])
    assert table["columns"] == ["event", *(f"task {task}" for task in range(tasks))]
    assert [line[0] for line in table["data"]] == STREAM.split()
    assert [line[1:] for line in table["data"]] == interrupted.summary["accuracy_matrix"]
    picture = last.file(row, "accuracy_matrix_heat_map").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert picture == (interrupted.path / "plots" / "accuracy_matrix.png").read_bytes()


@pytest.mark.slow
def test_the_resolved_configuration_is_sent(interrupted: RunResult) -> None:
    config = sessions_of(interrupted)[-1].config
    assert config["stream"] == STREAM
    assert config["optimizer"]["name"] == "sgd"
    assert config["benchmark"]["name"] == "synthetic"


@pytest.mark.slow
def test_another_seed_has_another_id_and_another_history(interrupted: RunResult, tmp_path: Path) -> None:
    experiment = experiment_in(tmp_path, "seed=1")
    other = run(experiment, listeners=[WandbListener(experiment.run.wandb)])
    (session,) = sessions_of(other)
    assert session.of_kind("run")[0].run_id != sessions_of(interrupted)[0].of_kind("run")[0].run_id
    losses = [[row["train/loss"] for row in one.history if "train/loss" in row] for one in (session, sessions_of(interrupted)[0])]
    assert losses[0][0] != losses[1][0]
    assert (other.path / "records.jsonl").read_bytes() != (interrupted.path / "records.jsonl").read_bytes()


@pytest.mark.slow
def test_listening_changes_no_record_and_says_nothing(interrupted: RunResult, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    silent = run(experiment_in(tmp_path / "silent", "logger=none"))
    assert (silent.path / "records.jsonl").read_bytes() == (interrupted.path / "records.jsonl").read_bytes()
    assert not (silent.path / "wandb").exists()
    experiment = experiment_in(tmp_path / "heard")
    capfd.readouterr()
    run(experiment, listeners=[WandbListener(experiment.run.wandb)])
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_failure_closes_the_w_and_b_run(tmp_path: Path) -> None:
    experiment = experiment_in(tmp_path)

    def break_down(step: int) -> bool:
        if step >= 3:
            raise FrameworkError("broken on purpose")
        return False

    with pytest.raises(FrameworkError, match="broken on purpose"):
        run(experiment, listeners=[WandbListener(experiment.run.wandb)], stop_requested=break_down)
    (path,) = tmp_path.glob("*/*/wandb/offline-run-*/*.wandb")
    session = OfflineRun(path)
    assert session.of_kind("exit")[0].exit_code == 1
    assert session.summary["status"] == "failed"
    assert "WANDB_DATA_DIR" not in os.environ


# --- what is refused ---


def settings(mode: str) -> Any:
    return load_experiment({"benchmark": {"name": "synthetic"}, "wandb": {"mode": mode}}).run.wandb


def test_a_missing_package_names_the_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigurationError, match=r"logger=wandb needs wandb.*`pip install wandb`, or use logger=none"):
        WandbListener(settings("offline"))


def test_online_without_credentials_is_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match=r"found no W&B credentials. Run `wandb login` first, or use wandb.mode=offline"):
        WandbListener(settings("online"))
    WandbListener(settings("offline"))
