"""The deletion record: its chain, its two phases through crashes, what `clu verify` finds, and canaries that were not let go."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from cl_framework import Batch, ConfigurationError, Context, Done, Forgotten, Output, Strategy, Traits, Unlearn, register, resume, run
from cl_framework.assembly import assemble, make_benchmark
from cl_framework.checkpoint import CheckpointStore
from cl_framework.cli import main
from cl_framework.config import load_experiment
from cl_framework.digests import digest_of
from cl_framework.testing.laboratory import experiment_of
from cl_framework.testing.neighbours import NoOptions
from cl_framework.unlearning.certificate import Certifier
from cl_framework.unlearning.deletion import FIRST, BrokenChain, DeletionLog, sealed
from cl_framework.unlearning.shadow import Canaries, artefacts_in_memory, artefacts_on_disk
from cl_framework.unlearning.verify import FAIL, NOT_RUN, PASS, verify
from cl_framework.walk import Walk

STREAM = "L0 L1 U0 L2 U1:class=3"
IMAGES = {"name": "split_digits"}  # of the synthetic samples some have too few bytes to be canaries


@register("fake_lister")
class Lister(Strategy):
    """Keeps the ids of what it saw, in place of the samples, and forgets them only if it is told to."""

    Config = NoOptions
    traits = Traits(unlearns=frozenset({"task"}), no_neutral="made up")
    forgets = False

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.ids = torch.empty(0, dtype=torch.int64)

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        self.ids = torch.cat([self.ids, batch.ids])

    def unlearn(self, event: Unlearn, context: Context) -> Done:
        return Done()

    def forget(self, forgotten: Forgotten, context: Context) -> None:
        if self.forgets:
            self.ids = self.ids[~torch.isin(self.ids, forgotten.ids)]

    def state_dict(self) -> dict[str, Any]:
        return {"table": {"ids": self.ids}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.ids = state["table"]["ids"]


@register("fake_hoarder")
class Hoarder(Strategy):
    """Keeps the samples of every batch, and says that it unlearned them."""

    Config = NoOptions
    traits = Traits(stores_data=True, unlearns=frozenset({"task", "class", "sample"}), no_neutral="made up")

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.kept: list[torch.Tensor] = []

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        assert isinstance(batch.items, torch.Tensor)
        self.kept.append(batch.items.clone())

    def unlearn(self, event: Unlearn, context: Context) -> Done:
        return Done()

    def state_dict(self) -> dict[str, Any]:
        return {"kept": list(self.kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.kept = list(state["kept"])


def finished(folder: Path, strategy: str = "rewind", stream: str = STREAM) -> Path:
    settings: dict[str, Any] = {"stream": stream, "benchmark": IMAGES, "epochs": 1, "batch_size": 64}
    return run(experiment_of({strategy: {}}, folder, **settings)).path


@pytest.fixture(scope="module")
def rewound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("rewound"))


def copy_of(path: Path, folder: Path) -> Path:
    import shutil

    return Path(shutil.copytree(path, folder / path.name))


def done_in(path: Path) -> list[dict[str, Any]]:
    return [entry for entry in DeletionLog(path / "deletion").entries() if entry["kind"] == "done"]


def failures(path: Path) -> dict[str, str]:
    return {finding.claim: finding.why for finding in verify(path) if finding.verdict == FAIL}


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


# --- a run's record ---


def test_a_run_records_each_request_and_what_was_done(rewound: Path) -> None:
    entries = DeletionLog(rewound / "deletion").entries()
    assert [(entry["kind"], entry["event"]) for entry in entries] == [
        *((kind, event) for event in ("U0", "U1:class=3") for kind in ("requested", "done")),
        ("finished", "end"),
    ]
    request, done = entries[0], entries[1]
    assert (request["strategy"], request["guarantee_declared"], request["reads"]) == ("rewind", "exact", ["past"])
    assert request["state_before"] != done["state_after"]
    assert done["guarantee_achieved"] == "exact" and not done["contains"] and not done["finished_on_resume"]
    assert len(done["purged"]) >= 3 and done["canaries"]["searched"] > 20
    assert set(done["ancestry"].values()) == {"clean"}


def test_a_stream_without_unlearn_has_no_record(tmp_path: Path) -> None:
    path = finished(tmp_path, stream="L0 L1")
    assert not (path / "deletion").exists()
    assert main(["verify", str(path)]) == 2


def test_what_was_recorded_verifies(rewound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    findings = verify(rewound)
    assert len(findings) == 10 and {finding.verdict for finding in findings[:-1]} == {PASS}
    assert findings[-1].verdict == NOT_RUN and f"`clu audit {rewound}` makes one" in findings[-1].why
    assert main(["verify", str(rewound)]) == 0
    assert "every Unlearn is recorded" in capsys.readouterr().out


def test_a_state_that_moved_on_is_checked_when_the_run_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Certifier, "finished", crash)
        with pytest.raises(KeyboardInterrupt):
            finished(tmp_path, stream="L0 U0 L1")
    (path,) = (tmp_path / "contract").iterdir()
    claim = "the state is the one recorded"
    found = {finding.claim: finding for finding in verify(path)}
    assert found[claim].verdict == NOT_RUN and "L1 came after U0 and moved the state on" in found[claim].why
    resume(path)
    found = {finding.claim: finding for finding in verify(path)}
    assert found[claim].verdict == PASS
    assert {finding.verdict for claim, finding in found.items() if claim != "audits are as they were written"} == {PASS}
    edited_rows("records.jsonl", '"event": "L1"', '"event": "L2"')(path)
    assert "changed in what came before the end of the run" in failures(path)["records and events are as they were"]


def edited_rows(name: str, what: str = '"event": "L0"', into: str = '"event": "L1"') -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        file = path / name
        text = file.read_text()
        assert what in text
        file.write_text(into.join(text.rsplit(what, 1)))

    return edit


def cut_record(lines: int) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        file = path / "deletion" / "log.jsonl"
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:-lines]))

    return cut


def state_that_knew(path: Path) -> None:
    """A kept state under another name, as if the way to it had shown what was unlearned."""
    kept = sorted((path / "ckpt" / "history").glob("*.pt"))[-1]
    count, _, digest = kept.stem.split("-")
    kept.rename(kept.with_name(f"{count}-{'0' * 16}-{digest}.pt"))


def hidden_samples_of_a_blurred_task(path: Path) -> None:
    """Those that the data of other tasks lent to the one that was unlearned."""
    learner = assemble(load_experiment(path / "config.yaml"))
    shown = learner.training_ids(0)
    lent = shown[~torch.isin(shown, learner.benchmark.ids_of(0))]
    items, _, _ = learner.benchmark.read(lent)
    assert isinstance(items, torch.Tensor)
    (path / "samples.bin").write_bytes(items.numpy().tobytes())


def older_checkpoint(path: Path) -> None:
    import hashlib
    import io

    newest = sorted((path / "ckpt").glob("*.pt"))[-1]
    state = torch.load(newest, weights_only=True)
    state["position"]["event_index"] = 2
    buffer = io.BytesIO()
    torch.save(state, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:16]
    (path / "ckpt" / f"000000-000000010-{digest}.pt").write_bytes(buffer.getvalue())


def purged_again(path: Path) -> None:
    name = DeletionLog(path / "deletion").entries()[1]["purged"][0]
    (path / "ckpt" / "history" / name).write_bytes(b"")


def other_state(path: Path) -> None:
    for file in (path / "ckpt").glob("*.pt"):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(bytes(data))


def better_figures(path: Path) -> None:
    summary = json.loads((path / "summary.json").read_text())
    summary["unlearning"][0]["figures"][1]["value"] = 0.1234
    (path / "summary.json").write_text(json.dumps(summary))


def hidden_sample(path: Path) -> None:
    benchmark = make_benchmark(load_experiment(path / "config.yaml"))
    items, _, _ = benchmark.read(benchmark.ids_of(0)[:1])
    assert isinstance(items, torch.Tensor)
    (path / "plots").mkdir(exist_ok=True)
    (path / "plots" / "samples.bin").write_bytes(b"head" + items.numpy().tobytes() + b"tail")


HARMS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "records edited": (edited_rows("records.jsonl"), "records and events are as they were", "records.jsonl was changed"),
    "events edited": (edited_rows("events.jsonl"), "records and events are as they were", "events.jsonl was changed"),
    "record cut": (cut_record(3), "every Unlearn is recorded", "event 4 (U1:class=3) is done, but the deletion record does not hold it"),
    "end of the record cut": (cut_record(1), "every Unlearn is recorded", "its last lines were cut"),
    "kept state of another history": (state_that_knew, "no state descends from what was unlearned", "a history that showed what"),
    "older checkpoint": (older_checkpoint, "no older state remains", "what was unlearned can be resumed from it"),
    "purged file back": (purged_again, "what was purged is gone", "was purged, and is there again"),
    "checkpoint changed": (other_state, "no older state remains", "is damaged"),
    "figures edited": (better_figures, "the figures follow from the records", "unlearning does not follow from the records"),
    "sample hidden": (hidden_sample, "no sample is left in the run's files", "samples.bin holds samples that U0 unlearned"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_verify_finds_each_edit(harm: str, rewound: Path, tmp_path: Path) -> None:
    path = copy_of(rewound, tmp_path)
    assert failures(path) == {}
    spoil, claim, why = HARMS[harm]
    spoil(path)
    found = failures(path)
    assert why in found[claim], found
    assert main(["verify", str(path)]) == 1


def test_a_strategy_that_keeps_what_it_should_forget_is_found_out(tmp_path: Path) -> None:
    path = finished(tmp_path, "fake_hoarder", "L0 L1 U0")
    done = done_in(path)[-1]
    assert done["guarantee_achieved"] == "none"
    assert any(place.startswith("memory.strategies.fake_hoarder.kept") for place in done["contains"])
    assert any(place.startswith("ckpt/") for place in done["contains"])
    assert "contains" in done["ancestry"].values()
    assert "holds samples that U0 unlearned" in failures(path)["no sample is left in the run's files"]


@pytest.mark.parametrize("forgets", [False, True])
def test_ids_in_place_of_samples_are_found_out(forgets: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lister, "forgets", forgets)
    path = finished(tmp_path, "fake_lister", "L0 L1 U0")
    place = "strategies.fake_lister.table.ids (ids)"
    assert (f"memory.{place}" in done_in(path)[-1]["contains"]) is not forgets
    found = failures(path)
    told = f"the newest checkpoint still holds what U0 unlearned, at learner.{place}."
    assert found == ({} if forgets else {"no state descends from what was unlearned": told})


def test_without_the_data_what_needs_them_is_not_run(tmp_path: Path) -> None:
    data = make_benchmark(experiment_of({}, tmp_path, benchmark=IMAGES))
    settings: dict[str, Any] = {"stream": "L0 L1 U0", "benchmark": IMAGES, "batch_size": 64}
    path = run(experiment_of({"rewind": {}}, tmp_path, **settings), benchmark=data).path
    found = {finding.claim: finding for finding in verify(path)}
    for claim in ("no state descends from what was unlearned", "no sample is left in the run's files"):
        assert found[claim].verdict == NOT_RUN and "was given as an object, which a file cannot hold" in found[claim].why
    assert failures(path) == {}


def test_in_a_blurred_stream_the_samples_searched_for_are_those_that_were_shown(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"stream": "L0 L1 U0", "benchmark": IMAGES, "batch_size": 64, "blurry": 0.3}
    path = run(experiment_of({"do_nothing": {}}, tmp_path, **settings)).path
    assert failures(path) == {}
    hidden_samples_of_a_blurred_task(path)
    assert "samples.bin holds samples that U0 unlearned" in failures(path)["no sample is left in the run's files"]


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
            run(experiment_of({"do_nothing": {}}, tmp_path, **settings))
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
    assert done["do_nothing"]["contains"] == ["memory.weights, which the request did not change"]
    assert done["do_nothing"]["guarantee_achieved"] == "none" and done["rewind"]["contains"] == []


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
    even = Canaries.of_items(torch.zeros(5, 1, 5, 5, dtype=torch.uint8))
    assert (even.searched, even.of) == (0, 5) and not even.found_in(bytes(100))
