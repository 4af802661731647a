"""What `clu verify` finds: nothing in a run's record as it was written, each edit of it, and canaries that were not let go."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cl_framework import Batch, Context, Done, Forgotten, Output, Strategy, Traits, Unlearn, register, registry, resume, run
from cl_framework.assembly import assemble, make_benchmark
from cl_framework.cli import main
from cl_framework.config import load_experiment
from cl_framework.records import RunDirectory
from cl_framework.testing.laboratory import experiment_of
from cl_framework.testing.neighbours import NoOptions
from cl_framework.unlearning.audit import write
from cl_framework.unlearning.deletion import DeletionLog
from cl_framework.unlearning.verify import FAIL, NOT_RUN, PASS, verify
from tests.unit.deletion_runs import (
    IMAGES,
    cut_record,
    done_in,
    edited_rows,
    empty_record,
    failures,
    finished,
    halve_the_last_line,
    killed_at_its_end,
    remove_record,
    sealed_anew,
)


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

    @torch.no_grad()
    def unlearn(self, event: Unlearn, context: Context) -> Done:
        for parameter in context.model.parameters():
            parameter.mul_(0.9)
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
    assert len(findings) == 13 and {finding.verdict for finding in findings[:-2]} == {PASS}
    assert [finding.verdict for finding in findings[-2:]] == [NOT_RUN] * 2
    assert f"`clu audit {rewound}` makes one" in findings[-2].why and f"of U0, U1:class=3; `clu audit {rewound}` does" in findings[-1].why
    assert main(["verify", str(rewound)]) == 0
    assert "every Unlearn is recorded" in capsys.readouterr().out


def test_a_state_that_moved_on_is_checked_when_the_run_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = killed_at_its_end(tmp_path, monkeypatch, "L0 U0 L1")
    claim = "the state is the one recorded"
    found = {finding.claim: finding for finding in verify(path)}
    assert found[claim].verdict == NOT_RUN and "L1 came after U0 and moved the state on" in found[claim].why
    resume(path)
    found = {finding.claim: finding for finding in verify(path)}
    assert found[claim].verdict == PASS
    unaudited = {"audits are as they were written", "what is called exact is the oracle"}
    assert {finding.verdict for claim, finding in found.items() if claim not in unaudited} == {PASS}
    edited_rows("records.jsonl", '"event": "L1"', '"event": "L2"')(path)
    assert "changed in what came before the end of the run" in failures(path)["records and events are as they were"]


def edited(name: str, edit: Callable[[str], str]) -> Callable[[Path], None]:
    """Write another text into a file of the run."""

    def write(path: Path) -> None:
        before = (path / name).read_text()
        after = edit(before)
        assert after != before
        (path / name).write_text(after)

    return write


def edited_summary(key: str, value: Any) -> Callable[[Path], None]:
    return edited("summary.json", lambda text: json.dumps(json.loads(text) | {key: value}))


def said_twice(text: str) -> str:
    """The first key once more, with another value: readers of JSON take the last one."""
    return text.replace("{", '{"fingerprint": "other",', 1)


def removed(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


def audit_without_a_line(path: Path) -> None:
    """An audit whose lines in the deletion record were cut."""
    audited(path)
    cut_record(2)(path)


def audit_with_half_a_line(path: Path) -> None:
    audited(path)
    halve_the_last_line(path)


def audited(path: Path, requests: Sequence[Mapping[str, Any]] = ()) -> None:
    """As if `clu audit` had come to its end here, with nothing to tell but these."""
    write(RunDirectory(path), DeletionLog(path / "deletion"), {"tier": "standard", "requests": list(requests)}, [])


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
    newest = sorted((path / "ckpt").glob("*.pt"))[-1]
    state = torch.load(newest, weights_only=True)
    state["position"]["event_index"] = 2
    buffer = io.BytesIO()
    torch.save(state, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:16]
    (path / "ckpt" / f"000000-000000010-{digest}.pt").write_bytes(buffer.getvalue())


def another_content(path: Path) -> None:
    """The weights of before in the newest checkpoint, under the name that its new digest gives it."""
    newest = sorted((path / "ckpt").glob("*.pt"))[-1]
    state = torch.load(newest, weights_only=True)
    state["learner"]["model"] = {name: value * 2 for name, value in state["learner"]["model"].items()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:16]
    newest.unlink()
    newest.with_name(f"{newest.stem.rpartition('-')[0]}-{digest}.pt").write_bytes(buffer.getvalue())


def copied_to(place: str, **how: Any) -> Callable[[Path], None]:
    """A state of some other run at a place in this one, as torch writes it."""

    def copy(path: Path) -> None:
        (path / place).parent.mkdir(exist_ok=True)
        torch.save({"weight": torch.arange(9.0)}, path / place, **how)

    return copy


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


def appended(name: str) -> Callable[[Path], None]:
    """The last row once more."""
    return edited(name, lambda text: text + text.splitlines(keepends=True)[-1])


OLDER, STATES = "no older state remains", "files of states are as they were"
RECORDED, ROWS, FIGURES = "every Unlearn is recorded", "records and events are as they were", "the figures follow from the records"
STARTED, AUDITS = "configuration, environment and command are as they were", "audits are as they were written"
HARMS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "records edited": (edited_rows("records.jsonl"), "records and events are as they were", "records.jsonl was changed"),
    "events edited": (edited_rows("events.jsonl"), "records and events are as they were", "events.jsonl was changed"),
    "record cut": (cut_record(3), "every Unlearn is recorded", "event 4 (U1:class=3) is in the run, but not whole in the deletion"),
    "end of the record cut": (cut_record(1), "every Unlearn is recorded", "its last lines were cut"),
    "kept state of another history": (state_that_knew, "no state descends from what was unlearned", "a history that showed what"),
    "older checkpoint": (older_checkpoint, "no older state remains", "what was unlearned can be resumed from it"),
    "content replaced under a valid name": (another_content, STATES, "is none of the states that the run had at the end of the run"),
    "model elsewhere": (copied_to("best/model.pt"), OLDER, "best/model.pt may hold a model, and is no state that this run has written"),
    "model under another name": (copied_to("ckpt/model.bak"), OLDER, "model.bak may hold a model, and is no state that this run"),
    "model without a suffix": (copied_to("plots/curve"), OLDER, "plots/curve may hold a model, and is no state that this run"),
    "model in the old form": (copied_to("notes", _use_new_zipfile_serialization=False), OLDER, "notes may hold a model, and is no state"),
    "purged file back": (purged_again, "what was purged is gone", "was purged, and is there again"),
    "checkpoint changed": (other_state, "no older state remains", "is damaged"),
    "figures edited": (better_figures, "the figures follow from the records", "unlearning does not follow from the records"),
    "row appended": (appended("records.jsonl"), ROWS, "records.jsonl goes on after the end of the run"),
    "event appended": (appended("events.jsonl"), ROWS, "events.jsonl goes on after the end of the run"),
    "half a row appended": (
        edited("records.jsonl", lambda text: text + '{"run": "'),
        ROWS,
        "records.jsonl goes on after the end of the run",
    ),
    "events removed": (removed("events.jsonl"), RECORDED, "reports event 2 (U0), which events.jsonl does not hold"),
    "record removed": (
        remove_record,
        RECORDED,
        "event 2 (U0) is in the run, but not whole in the deletion record. Restore deletion/log.jsonl",
    ),
    "record emptied": (empty_record, RECORDED, "event 2 (U0) is in the run, but not whole in the deletion record"),
    "record cut to a line": (cut_record(4), RECORDED, "event 2 (U0) is in the run, but not whole in the deletion record"),
    "last line halved": (halve_the_last_line, "the record is whole", "log.jsonl ends in half a line: it was cut, or its writer was killed"),
    "forgetting edited": (
        edited_summary("forgetting", 0.0),
        FIGURES,
        "summary.json: forgetting does not follow from the records. `clu res",
    ),
    "figure added": (edited_summary("robustness", 100.0), FIGURES, "robustness does not follow from the records"),
    "summary said twice": (edited("summary.json", said_twice), FIGURES, "summary.json was written by another hand: its figures are right"),
    "summary removed": (removed("summary.json"), FIGURES, "summary.json cannot be read"),
    "summary without a mapping": (edited("summary.json", lambda text: "[]"), FIGURES, "summary.json is damaged: it holds no mapping"),
    "rate edited": (edited("config.yaml", lambda text: text.replace("lr: ", "lr: 1")), STARTED, "config.yaml was changed or removed after"),
    "seed edited": (edited("config.yaml", lambda text: text.replace("seed: 0", "seed: 7")), STARTED, "config.yaml was changed or removed"),
    "no configuration": (
        edited("config.yaml", lambda text: "a: [1\n"),
        STARTED,
        "config.yaml was changed or removed after the run was star",
    ),
    "environment edited": (edited("env.json", lambda text: text.replace("python", "Python")), STARTED, "env.json was changed or removed"),
    "command edited": (edited("command.txt", lambda text: "clu run other.yaml"), STARTED, "command.txt was changed or removed after the"),
    "command removed": (removed("command.txt"), STARTED, "command.txt was changed or removed after the run was started"),
    "audit without a line": (audit_without_a_line, AUDITS, "splits.json has no line in the deletion record: lines were cut, or it is from"),
    "audit with half a line": (audit_with_half_a_line, "the record is whole", "--again` writes it again"),
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


def test_other_files_in_the_folder_are_not_taken_for_states(rewound: Path, tmp_path: Path) -> None:
    path = copy_of(rewound, tmp_path)
    (path / "notes.txt").write_bytes(b"PK\x03\x04 is how archives begin")
    (path / "figures.npz").write_bytes(b"PK\x03\x04" + b"figures.npy" * 9)
    assert failures(path) == {}


def test_states_written_after_a_request_are_fine_and_sealed_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = killed_at_its_end(tmp_path, monkeypatch, "L0 L1 U0 L2 L0")
    (path / "ckpt" / ".000009-1-2.pt.x.partial").write_bytes(b"half")
    found = {finding.claim: finding for finding in verify(path)}
    assert failures(path) == {} and "written since, to be sealed when the run is finished" in found[STATES].why
    resume(path)
    found = {finding.claim: finding for finding in verify(path)}
    assert failures(path) == {} and found[STATES].why.endswith("sealed at the end of the run")
    (path / "ckpt" / ".000009-1-2.pt.x.partial").write_bytes(b"half")
    assert "may hold a model" in failures(path)[OLDER], "in a finished run nobody is writing"


def test_a_state_of_before_is_found_in_a_run_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = killed_at_its_end(tmp_path, monkeypatch, "L0 U0")
    assert failures(path) == {}
    another_content(path)
    assert "is none of the states that the run had at the end of U0" in failures(path)[STATES]


def test_a_record_without_seals_of_states_is_checked_for_the_rest(rewound: Path, tmp_path: Path) -> None:
    path = copy_of(rewound, tmp_path)
    sealed_anew(path, lambda entry: {key: value for key, value in entry.items() if key not in ("states", "held", "removed")})
    found = {finding.claim: finding for finding in verify(path)}
    assert failures(path) == {}
    assert (found[STATES].verdict, found[STATES].why) == (NOT_RUN, "the record was written by a version that did not seal them")
    copied_to("best/model.pt")(path)
    assert "may hold a model" in failures(path)[OLDER]


@pytest.mark.parametrize(
    ("kind", "column", "put"),
    [
        ("done", "records", None),
        ("done", "records", {"bytes": "all"}),
        ("done", "canaries", None),
        ("done", "canaries", {}),
        ("done", "purged", None),
        ("done", "contains", None),
        ("done", "contains", "nothing"),
        ("done", "state_after", None),
        ("done", "states", []),
        ("finished", "events", None),
        ("finished", "started_with", {}),
        ("requested", "ids_sha256", None),
    ],
)
def test_a_line_without_what_its_kind_holds_is_told_in_a_sentence(
    kind: str, column: str, put: Any, rewound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy_of(rewound, tmp_path)
    sealed_anew(path, lambda entry: entry)
    assert failures(path) == {}, "sealed anew without a change it is the same"

    def change(entry: dict[str, Any]) -> dict[str, Any]:
        rest = {name: value for name, value in entry.items() if name != column or entry["kind"] != kind}
        return rest if put is None or entry["kind"] != kind else rest | {column: put}

    sealed_anew(path, change)
    found = failures(path)
    assert list(found) == ["the record is whole"] and f" ({kind}) has no {column}" in found["the record is whole"]
    assert main(["verify", str(path)]) == 1
    for command in (["audit", "--tier", "fast"], ["report"], ["resume"]):
        capsys.readouterr()
        assert main([command[0], str(path), *command[1:]]) in (1, 2)
        assert f" ({kind}) has no {column}" in capsys.readouterr().err


@pytest.mark.parametrize("harm", ["last line halved", "record removed"])
def test_without_a_whole_record_nothing_else_is_claimed(harm: str, rewound: Path, tmp_path: Path) -> None:
    path = copy_of(rewound, tmp_path)
    spoil, claim, _ = HARMS[harm]
    spoil(path)
    first, *rest = [finding for finding in verify(path) if finding.verdict != PASS]
    assert (first.claim, first.verdict) == (claim, FAIL)
    assert len(rest) >= 9 and {(finding.verdict, finding.why) for finding in rest} == {(NOT_RUN, "it rests on the record")}


def test_another_configuration_is_named_where_the_data_would_be_read(rewound: Path, tmp_path: Path) -> None:
    path = copy_of(rewound, tmp_path)
    (path / "config.yaml").write_text("a: [1\n")
    found = {finding.claim: finding for finding in verify(path)}
    for claim in ("no state descends from what was unlearned", FIGURES, "no sample is left in the run's files"):
        told = f"{path / 'config.yaml'} is not the one that the run was started with"
        assert (found[claim].verdict, found[claim].why) == (NOT_RUN, told)


def test_a_row_without_a_column_takes_no_figure_with_it(rewound: Path, tmp_path: Path) -> None:
    path = copy_of(rewound, tmp_path)
    edited_rows("events.jsonl", '"peak_rss_mib"', '"peak"')(path)
    found = {finding.claim: finding for finding in verify(path)}
    assert found[ROWS].verdict == FAIL
    assert (found[FIGURES].verdict, found[FIGURES].why) == (NOT_RUN, "they rest on records that were changed")


@pytest.mark.parametrize(
    ("verdict", "found", "said"),
    [
        (PASS, PASS, "2 of 2, by their audits"),
        (FAIL, FAIL, "the answer to U1:class=3 is called exact, but its audit finds another model than the oracle."),
        (None, NOT_RUN, "no audit has shown it of U1:class=3; `clu audit"),
    ],
)
def test_what_is_called_exact_is_asked_of_its_audit(verdict: str | None, found: str, said: str, rewound: Path, tmp_path: Path) -> None:
    path = copy_of(rewound, tmp_path)
    first, second = DeletionLog(path / "deletion").done()
    claims = {first: {"name": "E1", "verdict": PASS}, second: {"name": "E1", "verdict": verdict}}
    figures = {index: [claim, {"name": "M1", "verdict": FAIL}] for index, claim in claims.items() if claim["verdict"] is not None}
    audited(path, [{"event_index": index, "figures": told} for index, told in figures.items()])
    (finding,) = (finding for finding in verify(path) if finding.claim == "what is called exact is the oracle")
    assert finding.verdict == found and finding.why.startswith(said)


def test_a_state_that_was_sealed_and_is_gone_is_named(rewound: Path, tmp_path: Path) -> None:
    path = copy_of(rewound, tmp_path)
    older = sorted((path / "ckpt").glob("*.pt"))[0]
    older.unlink()
    assert failures(path) == {"files of states are as they were": f"{older} is gone, which the run had at the end of the run."}


def test_half_a_line_of_an_audit_is_mended_by_the_next_audit(rewound: Path, tmp_path: Path) -> None:
    path = copy_of(rewound, tmp_path)
    audit_with_half_a_line(path)
    assert f"If so, `clu audit {path} --again` writes it again." in failures(path)["the record is whole"]
    audited(path)
    assert failures(path) == {}


def test_rows_written_again_after_the_end_are_sealed_again(tmp_path: Path) -> None:
    """Where the newest checkpoint is damaged, a resume of a run that was just sealed makes its last event, and its seconds, again."""
    path = finished(tmp_path, stream="L0 U0 L1")
    (path / "DONE").unlink()
    newest = sorted((path / "ckpt").glob("*.pt"))[-1]
    newest.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="is damaged"):
        resume(path)
    newest.unlink(missing_ok=True)
    kinds = [entry["kind"] for entry in DeletionLog(path / "deletion").entries()]
    assert kinds == ["requested", "done", "finished", "finished"] and failures(path) == {}


def test_a_run_verifies_from_inside_its_folder(rewound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(rewound)
    assert main(["verify", "."]) == 0


def test_an_audit_cut_with_all_that_came_of_it_shows_against_the_head_kept_elsewhere(
    rewound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy_of(rewound, tmp_path)
    audited(path)
    assert main(["verify", str(path)]) == 0
    (head,) = (line.split()[-1] for line in capsys.readouterr().out.splitlines() if line.startswith("head of the record"))
    assert head == DeletionLog(path / "deletion").entries()[-1]["hash"]
    assert main(["verify", str(path), "--head", head]) == 0
    audited(path)  # lines that come later leave it there
    assert main(["verify", str(path), "--head", head]) == 0
    cut_record(3)(path)
    for file in (path / "audit").iterdir():
        if file.name != "standard.json":
            file.unlink()
    assert failures(path) == {}
    capsys.readouterr()
    assert main(["verify", str(path), "--head", head]) == 1
    assert "head of the record" not in capsys.readouterr().out
    told = {finding.claim: finding.why for finding in verify(path, head) if finding.verdict == FAIL}
    assert "has no line with the hash that was kept elsewhere: lines were cut, or all were sealed anew." in told["the record is whole"]
    assert main(["verify", str(path), "--head", head[:16]]) == 2
    assert f"--head {head[:16]} is no hash of a line: 64 hexadecimal digits" in capsys.readouterr().err


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


def test_without_the_data_what_needs_them_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_benchmark(experiment_of({}, tmp_path, benchmark=IMAGES))
    settings: dict[str, Any] = {"stream": "L0 L1 U0", "benchmark": IMAGES, "batch_size": 64}
    path = run(experiment_of({"rewind": {}}, tmp_path, **settings), benchmark=data).path
    found = {finding.claim: finding for finding in verify(path)}
    for claim in ("no state descends from what was unlearned", "no sample is left in the run's files"):
        assert found[claim].verdict == NOT_RUN and "was given as an object, which a file cannot hold" in found[claim].why
    assert failures(path) == {}
    assert main(["verify", str(path)]) == 3
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("not checked: 4 of 13 claims: ") and "given as an object" in last and "`clu audit" in last


def test_what_was_learned_again_leaves_nothing_to_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = finished(tmp_path, stream="L0 L1 U0 L0")
    assert main(["verify", str(path)]) == 0
    assert "no sample is left in the run's files (all that was unlearned was learned again)" in capsys.readouterr().out.splitlines()[-1]


def test_a_plug_in_that_is_missing_leaves_the_central_claims_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = finished(tmp_path, "fake_lister", "L0 L1 U0 L0")
    assert main(["verify", str(path)]) == 0
    registry.strategies.remove("fake_lister")
    try:
        assert main(["verify", str(path)]) == 3
        last = capsys.readouterr().out.splitlines()[-1]
    finally:
        registry.strategies.add("fake_lister", Lister)
    assert last.startswith("not checked: 3 of 13 claims: ") and "fake_lister" in last


def test_the_help_tells_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["verify", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Exit code: 0 if all holds, 1 if a claim does not, 2 if there is nothing to verify, and 3 if none fails, but" in said


def test_in_a_blurred_stream_the_samples_searched_for_are_those_that_were_shown(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"stream": "L0 L1 U0", "benchmark": IMAGES, "batch_size": 64, "blurry": 0.3}
    path = run(experiment_of({"noise": {}}, tmp_path, **settings)).path
    assert failures(path) == {}
    hidden_samples_of_a_blurred_task(path)
    assert "samples.bin holds samples that U0 unlearned" in failures(path)["no sample is left in the run's files"]


def test_weights_that_a_request_left_as_they_were_are_told(tmp_path: Path) -> None:
    claim = "no state descends from what was unlearned"
    paths = {name: finished(tmp_path / name, name, "L0 L1 U0 L2") for name in ("do_nothing", "noise")}
    assert "still holds what U0 unlearned, at learner.model." in failures(paths["do_nothing"])[claim]
    assert failures(paths["noise"]) == {}
