"""What `clu verify` finds: nothing in a run's record as it was written, each edit of it, and canaries that were not let go."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from cl_framework import Batch, Context, Done, Forgotten, Output, Strategy, Traits, Unlearn, register, resume, run
from cl_framework.assembly import assemble, make_benchmark
from cl_framework.cli import main
from cl_framework.config import load_experiment
from cl_framework.testing.laboratory import experiment_of
from cl_framework.testing.neighbours import NoOptions
from cl_framework.unlearning.certificate import Certifier
from cl_framework.unlearning.deletion import DeletionLog
from cl_framework.unlearning.verify import NOT_RUN, PASS, verify
from tests.unit.deletion_runs import IMAGES, done_in, edited_rows, failures, finished


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


@pytest.fixture(scope="module")
def rewound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("rewound"))


def copy_of(path: Path, folder: Path) -> Path:
    import shutil

    return Path(shutil.copytree(path, folder / path.name))


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
    kept = {name: told for name, told in done["ancestry"].items() if name not in done["purged"]}
    assert set(kept.values()) == {"clean"} and {done["ancestry"][name] for name in done["purged"]} == {"removed"}
    files = {name for name in kept if "/" in name or name.endswith(("json", "jsonl"))}
    assert {name.split("/")[0] for name in files} >= {"ckpt", "deletion", "events.jsonl", "records.jsonl"}
    assert sum(name.startswith("ckpt/history/") for name in files) == 2, "before any event, and after the one that is left"


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
