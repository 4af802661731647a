"""The deletion record: its chain, its two phases through crashes, and the digests and canaries that it rests on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cl_framework import ConfigurationError, resume, run
from cl_framework.assembly import assemble
from cl_framework.benchmarks.base import Benchmark
from cl_framework.checkpoint import CheckpointStore
from cl_framework.cli import main
from cl_framework.digests import digest_of
from cl_framework.history import History
from cl_framework.records import RunDirectory
from cl_framework.stream import Unlearn
from cl_framework.testing.laboratory import experiment_of
from cl_framework.unlearning.certificate import Certifier
from cl_framework.unlearning.deletion import FIRST, BrokenChain, DeletionLog, sealed
from cl_framework.unlearning.shadow import Canaries, artefacts_in_memory, artefacts_on_disk
from cl_framework.walk import Walk
from tests.unit.deletion_runs import IMAGES, done_in, edited_rows, failures, finished

# --- the chain ---


def log_of(folder: Path, *events: str) -> DeletionLog:
    log = DeletionLog(folder)
    for index, event in enumerate(events):
        for kind in ("requested", "done"):
            log.append(kind, {"event_index": index, "event": event})
    return log


def test_each_entry_has_the_hash_of_the_one_before(tmp_path: Path) -> None:
    entries = log_of(tmp_path, "U0", "U1").entries()
    assert [entry["previous"] for entry in entries] == [FIRST, *(entry["hash"] for entry in entries[:-1])]
    assert sealed({"a": 1}, FIRST)["hash"] != sealed({"a": 2}, FIRST)["hash"] != sealed({"a": 2}, "1" * 64)["hash"]


EDITS: dict[str, Callable[[list[str]], list[str]]] = {
    "a word": lambda lines: [lines[0].replace('"U0"', '"U7"'), *lines[1:]],
    "first line cut": lambda lines: lines[1:],
    "middle cut": lambda lines: [lines[0], *lines[2:]],
    "swapped": lambda lines: [*lines[:1], lines[2], lines[1], lines[3]],
    "twice": lambda lines: [*lines[:2], *lines[:2], *lines[2:]],
    "a hash made anew": lambda lines: [json.dumps(sealed({**json.loads(lines[0]), "event": "U7"}, FIRST)), *lines[1:]],
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_breaks_the_chain(edit: str, tmp_path: Path) -> None:
    log = log_of(tmp_path, "U0", "U1")
    lines = log.path.read_text().splitlines()
    log.path.write_text("\n".join(EDITS[edit](lines)) + "\n")
    with pytest.raises(BrokenChain, match=r"log\.jsonl"):
        log.entries()


def test_a_line_half_written_is_no_entry_and_is_written_again(tmp_path: Path) -> None:
    log = log_of(tmp_path, "U0")
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + b'{"kind": "requ')
    assert len(log.entries()) == 2 and log.open_request() is None
    log.append("requested", {"event_index": 5, "event": "U1"})
    assert log.path.read_bytes().startswith(whole) and len(log.entries()) == 3
    request = log.open_request()
    assert request is not None and request["event"] == "U1"


# --- a crash between the two phases ---


def test_a_kill_between_the_new_checkpoint_and_the_end_of_older_ones_is_finished_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"stream": "L0 L1 U0", "benchmark": IMAGES, "batch_size": 64}
    save = CheckpointStore.save

    def killed(self: CheckpointStore, *arguments: Any, replace_all: bool = False) -> list[str]:
        save(self, *arguments)
        if replace_all:
            raise KeyboardInterrupt
        return []

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            run(experiment_of({"noise": {}}, tmp_path, **settings))
    (path,) = (tmp_path / "contract").iterdir()
    left = CheckpointStore(path / "ckpt").paths()
    before_the_request = [file for file in left if torch.load(file, weights_only=True)["position"]["event_index"] < 3]
    assert before_the_request
    resume(path)
    assert failures(path) == {} and not any(file.exists() for file in before_the_request)
    assert {file.name for file in before_the_request} <= set(done_in(path)[-1]["purged"])


def test_a_run_repeated_from_its_beginning_verifies_by_what_it_wrote_then(tmp_path: Path) -> None:
    path = finished(tmp_path, stream="L0 L1 U0")
    for file in (path / "ckpt").glob("*.pt"):
        file.write_bytes(b"damaged")
    (path / "DONE").unlink()
    resume(path)
    kinds = [entry["kind"] for entry in DeletionLog(path / "deletion").entries()]
    assert kinds == [*(walk := ["requested", "done", "finished"]), "begun again", *walk]
    assert failures(path) == {}
    edited_rows("events.jsonl")(path)
    assert "records and events are as they were" in failures(path)


def test_a_file_of_ids_that_changed_is_noticed_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "forget.txt"
    file.write_text("0 1 2")
    with monkeypatch.context() as patch:
        patch.setattr(Certifier, "request", lambda self, index: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            finished(tmp_path / "runs", stream=f"L0 L1 U0:ids={file}")
    (path,) = (tmp_path / "runs" / "contract").iterdir()
    file.write_text("0 1 3")
    with pytest.raises(ConfigurationError, match="another configuration: a file of ids in the stream has changed or is gone"):
        resume(path)
    file.write_text("0 1 2")
    assert resume(path).status == "done"


@pytest.mark.parametrize("moment", ["before the purge is recorded", "before anything is done"])
def test_a_crash_in_between_is_finished_on_resume(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    settings: dict[str, Any] = {"stream": "L0 L1 U0 L2", "benchmark": IMAGES, "batch_size": 64}
    experiment = experiment_of({"rewind": {}}, tmp_path / "crashed", **settings)
    with monkeypatch.context() as patch:
        patch.setattr(*((Certifier, "done", crash) if "purge" in moment else (Walk, "_replay", crash)))
        with pytest.raises(KeyboardInterrupt):
            run(experiment)
    (path,) = (tmp_path / "crashed" / "contract").iterdir()
    log = DeletionLog(path / "deletion")
    standing = log.open_request()
    assert standing is not None and standing["event"] == "U0"
    told = {"every Unlearn is recorded": f"{path}: the request U0 is open in the deletion record. Finish it with `clu resume {path}`."}
    assert failures(path) == told and main(["verify", str(path)]) == 1
    resume(path)
    entries = log.entries()
    assert [entry["kind"] for entry in entries] == ["requested", "done", "finished"]
    assert entries[0] == standing and entries[1]["finished_on_resume"] == ("purge" in moment)
    assert failures(path) == {}
    straight = run(experiment_of({"rewind": {}}, tmp_path / "straight", **settings)).path
    assert DeletionLog(straight / "deletion").entries()[1]["state_after"] == entries[1]["state_after"]


def test_what_was_purged_is_known_after_a_kill_that_came_before_it_was_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"stream": "L0 L1 U0", "benchmark": IMAGES, "batch_size": 64}
    straight = done_in(run(experiment_of({"rewind": {}}, tmp_path / "straight", **settings)).path)[-1]

    def crash(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Certifier, "done", crash)
        with pytest.raises(KeyboardInterrupt):
            run(experiment_of({"rewind": {}}, tmp_path / "crashed", **settings))
    (path,) = (tmp_path / "crashed" / "contract").iterdir()
    resume(path)
    purged = done_in(path)[-1]["purged"]
    serial = [{name.rpartition("-")[0] for name in names} for names in (straight["purged"], purged)]  # digests tell the folders apart
    assert len(serial[0]) == 4 and serial[0] <= serial[1] and failures(path) == {}


def test_a_run_begun_again_while_a_request_was_open_closes_it(tmp_path: Path) -> None:
    log = DeletionLog(tmp_path)
    log.append("requested", {"event_index": 5, "event": "U1"})
    log.append("begun again", {"event_index": -1, "event": "start"})
    log.append("requested", {"event_index": 2, "event": "U0"})
    assert [entry["kind"] for entry in log.entries()] == ["requested", "begun again", "requested"]
    assert [entry["event"] for entry in log.current()] == ["U0"]
    standing = log.open_request()
    assert standing is not None and standing["event_index"] == 2
    log.append("requested", {"event_index": 3, "event": "U3"})
    with pytest.raises(BrokenChain, match="line 4 requests U3 while the request for U0 is open"):
        log.entries()


def test_a_request_that_changes_no_weight_leaves_the_weights_as_they_knew_the_data(tmp_path: Path) -> None:
    done = {}
    for name in ("do_nothing", "rewind"):
        done[name] = done_in(finished(tmp_path / name, name, "L0 L1 U0"))[-1]
    left = done["do_nothing"]["contains"]
    assert len(left) >= 4 and all(place.startswith("memory.weights.") and "as it was before the request" in place for place in left)
    assert done["do_nothing"]["guarantee_achieved"] == "none" and done["rewind"]["contains"] == []


@pytest.mark.parametrize(("name", "told"), [("do_nothing", "contains"), ("gradient_ascent", "treated"), ("rewind", "clean")])
def test_checkpoints_have_the_ancestry_of_the_state_that_they_hold(name: str, told: str, tmp_path: Path) -> None:
    path = finished(tmp_path, name, "L0 L1 U0")
    ancestry = done_in(path)[-1]["ancestry"]
    assert {ancestry[str(file.relative_to(path))] for file in (path / "ckpt").glob("*.pt")} == {told} == {ancestry["weights"]}
    assert ancestry["records.jsonl"] == ancestry["deletion/log.jsonl"] == ancestry[f"strategies.{name}"] == "clean"


def test_a_file_is_clean_unless_a_sample_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Certifier.request

    def asked_and_drawn(self: Certifier, index: int) -> None:
        asked(self, index)
        items, _, _ = self.learner.benchmark.read(self.learner.training_ids(0)[:1])
        assert isinstance(items, torch.Tensor)
        (self.directory.path / "plots").mkdir()
        (self.directory.path / "plots" / "samples.bin").write_bytes(b"head" + items.numpy().tobytes())
        (self.directory.path / "plots" / "accuracy.png").write_bytes(b"a curve")

    monkeypatch.setattr(Certifier, "request", asked_and_drawn)
    done = done_in(finished(tmp_path, "rewind", "L0 L1 U0"))[-1]
    assert done["contains"] == ["plots/samples.bin"] and done["ancestry"]["plots/samples.bin"] == "contains"
    assert done["ancestry"]["plots/accuracy.png"] == "clean"


def test_a_kept_state_that_was_not_purged_contains_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(History, "purge", lambda self, *arguments: [])
    done = done_in(finished(tmp_path, "rewind", "L0 L1 U0"))[-1]
    assert len(done["contains"]) == 2 and all(place.startswith("ckpt/history/") for place in done["contains"]), "after L0, after L1"
    assert [done["ancestry"][place] for place in done["contains"]] == ["contains"] * 2
    assert done["guarantee_achieved"] == "none" and done["ancestry"]["weights"] == "clean"


# --- digests and canaries ---


def test_a_digest_tells_any_two_states_apart() -> None:
    state = {"a": torch.arange(3), "b": [1.0, "x", None], "c": {"d": torch.zeros(2)}}
    assert digest_of(state) == digest_of({"c": {"d": torch.zeros(2)}, "b": [1.0, "x", None], "a": torch.arange(3)})
    others = [
        {**state, "a": torch.tensor([0, 1, 3])},
        {**state, "a": torch.arange(3).float()},
        {**state, "a": torch.arange(3).view(1, 3)},
        {**state, "b": ["x", 1.0, None]},
        {**state, "b": [1, "x", None]},
        {**state, "c": {"e": torch.zeros(2)}},
        {**state, "c": {"d": -torch.zeros(2)}},
        {key: value for key, value in state.items() if key != "c"},
    ]
    assert len({digest_of(other) for other in [state, *others]}) == 9


def test_canaries_are_found_in_every_form_and_nothing_else_is(tmp_path: Path) -> None:
    items = torch.randint(256, (200, 1, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    canaries = Canaries.of_items(items)
    assert (canaries.searched, canaries.of, len(canaries.forms)) == (64, 200, 192)
    own = items[0]
    state = {"a": torch.zeros(9), "b": [own.float(), {"c": torch.cat([torch.ones(3), own.flatten() / 255])}], "d": (items[:1] + 1)}
    assert artefacts_in_memory(state, canaries) == ["memory.b[0]", "memory.b[1].c"]
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "one").write_bytes(b"x" + own.numpy().tobytes())
    (tmp_path / "two").write_bytes((own + 1).numpy().tobytes())
    assert artefacts_on_disk(tmp_path, canaries) == ["deep/one"]
    inputs = items.float() / 255
    assert Canaries.of_items(items, inputs).forms == canaries.forms, "a form that is there already is searched for once"
    assert len(Canaries.of_items(items, inputs - 1).forms) == 256
    even = Canaries.of_items(torch.zeros(5, 1, 5, 5, dtype=torch.uint8))
    assert (even.searched, even.of) == (0, 5) and not even.found_in(bytes(100))


def test_no_more_samples_are_read_than_are_searched_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = experiment_of({"do_nothing": {}}, tmp_path, stream="L0 U0", benchmark={"name": "split_digits"})
    learner = assemble(experiment)
    event = learner.stream.events[1]
    assert isinstance(event, Unlearn)
    ids = learner.forgotten(event).ids
    items, _, _ = learner.benchmark.read(ids)
    all_read = Canaries.of_items(items, learner.benchmark.transform(items, None))
    read: list[int] = []

    def counted(self: Benchmark, some: torch.Tensor) -> Any:
        read.append(len(some))
        return original(self, some)

    original = Benchmark.read
    monkeypatch.setattr(Benchmark, "read", counted)
    assert Certifier(RunDirectory(tmp_path), learner)._canaries(event) == all_read
    assert read == [64] and all_read.of == len(ids) > 64
