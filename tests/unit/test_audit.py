"""Audits of real runs: oracles against runs that never saw the data, a cache that trains nothing twice, exact zeros, and edits found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch

from cl_framework import run
from cl_framework.assembly import assemble, make_benchmark
from cl_framework.cli import main
from cl_framework.config import Experiment
from cl_framework.digests import digest_of
from cl_framework.errors import FrameworkError
from cl_framework.learner import Learner
from cl_framework.stream import Stream, Unlearn
from cl_framework.testing.laboratory import experiment_of, finish, first_difference
from cl_framework.unlearning import audit_report
from cl_framework.unlearning.audit import audit, moved
from cl_framework.unlearning.fast import PASS
from cl_framework.unlearning.measure import Question, measure
from cl_framework.unlearning.oracle import Oracles, live_again
from cl_framework.unlearning.orders import distinct_orders, shuffled
from cl_framework.unlearning.verify import verify

STREAM = "L0 L1 U0 L2 U1:class=3 U2:fraction=0.3@seed5 L0"
IMAGES = {"name": "split_digits"}


def made(folder: Path, unlearner: str = "rewind", stream: str = STREAM, **settings: Any) -> Experiment:
    more: dict[str, Any] = {"benchmark": IMAGES, "epochs": 2, "batch_size": 32, "optimizer": {"lr": 0.1}, **settings}
    return experiment_of({"er": {"capacity": 60}, unlearner: {}}, folder, stream=stream, **more)


def oracles_of(experiment: Experiment, folder: Path, seed: int = 0) -> Oracles:
    return Oracles(experiment, make_benchmark(experiment), seed, folder)


def never_saw(experiment: Experiment, folder: Path, stream: str, without: str = "") -> Any:
    shown = replace(experiment, run=replace(experiment.run, stream=stream, without=without, out=str(folder)))
    return finish(shown).learner


@pytest.mark.parametrize(
    ("index", "stream", "without"),
    [(2, "L1", ""), (3, "L1 L2", ""), (4, "L1 L2", "U1:class=3"), (6, "L1 L2 L0", "U1:class=3 U2:fraction=0.3@seed5")],
)
def test_an_oracle_is_the_run_that_never_saw_the_data(index: int, stream: str, without: str, tmp_path: Path) -> None:
    experiment = made(tmp_path / "run")
    oracles = oracles_of(experiment, tmp_path / "oracles")
    for earlier in range(2, index):
        oracles.after(earlier)
    oracles.after(index)
    wanted = never_saw(experiment, tmp_path / "wanted", stream, without)
    assert first_difference(oracles.learner.model.state_dict(), wanted["model"]) is None
    assert first_difference(oracles.learner.stack.state_dict()["er"], wanted["strategies"]["er"]) is None
    other = never_saw(experiment, tmp_path / "other", "L0 L1")
    assert first_difference(oracles.learner.model.state_dict(), other["model"]) is not None


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_trained_twice_whatever_unlearns(seed: int, tmp_path: Path) -> None:
    first = oracles_of(made(tmp_path / "run", seed=seed), tmp_path / "oracles", seed)
    trained = [first.after(index).new_events for index in (2, 4, 5)]
    assert trained == [1, 2, 1]  # L1; then L1 without the class and L2; then L2 without the samples
    again = oracles_of(made(tmp_path / "run", "do_nothing", seed=seed), tmp_path / "oracles", seed)
    costs = [again.after(index) for index in (2, 4, 5)]
    assert [cost.new_events for cost in costs] == [0, 0, 0] and all(cost.seconds > 0 and cost.samples > 0 for cost in costs)
    assert oracles_of(made(tmp_path / "run", seed=seed), tmp_path / "oracles", seed + 1).after(2).new_events == 1
    assert oracles_of(made(tmp_path / "run", seed=seed, epochs=3), tmp_path / "oracles", seed).after(2).new_events == 1


def test_the_suffix_is_what_the_oracle_does_not_share(tmp_path: Path) -> None:
    oracles = oracles_of(made(tmp_path / "run", stream="L0 L1 U1 L2"), tmp_path / "oracles")
    kept = oracles.after(2)
    assert kept.new_events == 1 and kept.suffix_seconds == 0 < kept.seconds  # L0 alone, as the run has it
    later = oracles.after(3)
    assert 0 < later.suffix_seconds < later.seconds


def test_a_kept_state_that_is_damaged_is_trained_anew(tmp_path: Path) -> None:
    experiment = made(tmp_path / "run")
    oracles_of(experiment, tmp_path / "oracles").after(3)
    newest = max((tmp_path / "oracles").rglob("0002-*.pt"))
    newest.write_bytes(newest.read_bytes()[:-9])
    oracles = oracles_of(experiment, tmp_path / "oracles")
    assert oracles.after(3).new_events == 1
    assert first_difference(oracles.learner.model.state_dict(), never_saw(experiment, tmp_path / "w", "L1 L2")["model"]) is None


def test_a_run_that_gives_other_bits_is_not_audited(tmp_path: Path) -> None:
    experiment = made(tmp_path / "run", stream="L0 L1 U0")
    seen: list[int] = []
    live_again(experiment, make_benchmark(experiment), {}, lambda index, learner: seen.append(index))
    assert seen == [-1, 0, 1, 2]
    with pytest.raises(FrameworkError, match=r"the state after U0 \(event 2\) is not the one that the run recorded"):
        live_again(experiment, make_benchmark(experiment), {2: "0" * 64}, lambda index, learner: None)


def test_measuring_changes_nothing_and_repeats(tmp_path: Path) -> None:
    rough = {"name": "mlp", "hidden": [16], "dropout": 0.2, "batch_norm": True}
    experiment = made(tmp_path, "rewind", "L0 L1 U0", model=rough)
    learner = assemble(experiment, make_benchmark(experiment))
    event = learner.stream.events[2]
    assert isinstance(event, Unlearn)
    question = Question.of(learner, event, 2, (0, 1))

    def state(one: Learner) -> tuple[str, bytes, list[bool]]:
        return digest_of(one.state_dict()), torch.get_rng_state().numpy().tobytes(), [part.training for part in one.model.modules()]

    before = state(learner)
    first, second = measure(learner, question), measure(learner, question)
    assert state(learner) == before
    assert first.glance == second.glance and first.relearning == second.relearning and first.attack == second.attack
    assert torch.equal(first.pool, second.pool) and first.quantized == second.quantized
    assert first.relearning[-1] > first.relearning[0]  # a copy did learn


def test_the_samples_of_a_question(tmp_path: Path) -> None:
    experiment = made(tmp_path)
    learner = assemble(experiment, make_benchmark(experiment))
    asked = {
        event.granularity: Question.of(learner, event, index, learner.stream.learned_after[index])
        for index, event in enumerate(learner.stream)
        if isinstance(event, Unlearn)
    }
    test = learner.benchmark.test
    assert len(asked["task"].pool) == len(test[0]) and asked["task"].pool.task == 0
    assert set(asked["class"].pool.targets(learner).tolist()) == {3}
    assert set(asked["class"].probed.targets(learner).tolist()) == {2, 3}
    assert torch.equal(asked["sample"].pool.places, asked["sample"].members.places) and asked["sample"].pool.task is None
    for question in asked.values():
        splits = question.splits
        assert not set(splits["relearning"].tolist()) & set(splits["relearning_test"].tolist())
        assert not set(splits["probe_train"].tolist()) & set(splits["probe_test"].tolist())
        assert question.event.task not in {samples.task for samples in question.retained} or question.event.granularity != "task"
    assert asked["task"].own.tolist() == [True, True, False, False] and asked["class"].chance == 25.0


# --- whole audits ---


def values(result: dict[str, Any], event: int) -> dict[str, tuple[float | None, str]]:
    return {figure["name"]: (figure["value"], figure["verdict"]) for figure in result["requests"][event]["figures"]}


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("audited")
    found = {}
    for unlearner in ("rewind", "do_nothing"):
        path = run(made(folder, unlearner, "L0 L1 U0 L2 U1:class=3 L3", epochs=8)).path
        found[unlearner] = path, audit(path, seeds=2)
    return found


@pytest.mark.slow
def test_rewind_is_the_oracle_in_every_figure(audited: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    for event in (0, 1):
        found = values(audited["rewind"][1], event)
        assert {name: found[name] for name in ("M1", "M4", "M5", "M6", "M8", "M9", "M11")} == dict.fromkeys(
            ("M1", "M4", "M5", "M6", "M8", "M9", "M11"), (0.0, PASS)
        )
        assert found["M3"] == (0.0, PASS)
    assert [request["unlearned"] for request in audited["rewind"][1]["requests"]] == [True, True]


@pytest.mark.slow
def test_doing_nothing_is_found_out(audited: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    for event in (0, 1):
        found = values(audited["do_nothing"][1], event)
        assert found["M1"][1] == found["M6"][1] == "FAIL" and (found["M1"][0] or 0) > 50
    assert [request["unlearned"] for request in audited["do_nothing"][1]["requests"]] == [False, False]


@pytest.mark.slow
def test_controls_stand_beside_the_figures(audited: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    """How far the weights went; how a task is learned that was never seen, where one is left."""
    of_task, of_class = audited["rewind"][1]["requests"]
    (figure,) = of_task["never_seen_figures"]
    curves = of_task["relearning"]
    assert figure["name"] == "M4" and figure["value"] == pytest.approx(mean(curves["never_seen"]) - mean(curves["oracle"]))
    assert curves["never_seen"] != curves["oracle"] and "never_seen_figures" not in of_class
    shares = {name: [_details(request, "M12")["moved"] for request in audited[name][1]["requests"]] for name in audited}
    assert shares["do_nothing"] == [0.0, 0.0] and min(shares["rewind"]) > 0.1
    assert moved({}, {}) is None and moved({"w": torch.ones(2)}, {"w": torch.ones(3)}) is None
    assert moved({"w": torch.full((4,), 2.0)}, {"w": torch.full((4,), 3.0)}) == pytest.approx(0.5)


def _details(request: dict[str, Any], name: str) -> dict[str, float]:
    return next(figure["details"] for figure in request["figures"] if figure["name"] == name)


@pytest.mark.slow
def test_both_shared_their_oracles(audited: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    path, result = audited["do_nothing"]
    assert result["oracle_seeds"] == [0, 1]
    folders = sorted(one.name for one in (path.parent.parent / "oracles").glob("*/"))
    assert "delete this folder" in (path.parent.parent / "oracles" / "CONTAINS_DATA.txt").read_text()
    assert len(folders) == 2 and {name[-6:] for name in folders} == {"-s0-o0", "-s0-o1"}


@pytest.mark.slow
def test_an_audit_is_sealed(audited: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    path, result = audited["rewind"]
    assert json.loads((path / "audit" / "standard.json").read_text()) == json.loads(json.dumps(result))
    assert main(["verify", str(path)]) == 0
    for file, edit in (("standard.json", ('"PASS"', '"FAIL"')), ("splits.json", ("0", "1"))):
        edited = path / "audit" / file
        kept = edited.read_text()
        edited.write_text(kept.replace(*edit, 1))
        findings = [finding for finding in verify(path) if finding.verdict == "FAIL"]
        edited.write_text(kept)
        assert [finding.why for finding in findings] == [f"{edited} was changed or removed after it was written."]


@pytest.mark.slow
def test_tables_of_audits(audited: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(path) for path, _ in audited.values()]
    out, plot, page = tmp_path / "a.csv", tmp_path / "t.png", tmp_path / "page.md"
    page.write_text("<!-- table: audit -->\n<!-- end -->\n")
    assert main(["audit", *paths, "--out", str(out), "--plot", str(plot), "--into", f"{page}#audit"]) == 0
    shown = capsys.readouterr().out
    assert "oracles of seeds 0, 1" in shown and plot.read_bytes().startswith(b"\x89PNG")
    assert Path(paths[0], "plots", "relearning.png").exists()
    rows = [row for _, result in audited.values() for row in audit_report.rows_of(result)]
    assert audit_report.read_csv(out) == rows
    table = page.read_text()
    assert main(["audit", str(out), "--into", f"{page}#audit"]) == 0 and page.read_text() == table
    lines = [line.split(" | ") for line in table.splitlines() if line.startswith("| task | er, ")]
    assert [(line[1], line[2]) for line in lines] == [("er, do_nothing", lines[0][2]), ("er, rewind", "0.00 (1P)")]
    assert lines[0][2].endswith("(1F)") and "oracle of another seed" in table
    (never,) = [line for line in table.splitlines() if "a task never seen" in line]
    assert never.startswith("| task |") and "NOT RUN" in never


@pytest.mark.slow
def test_a_key_that_was_thrown_away_unlearns_nothing(tmp_path: Path) -> None:
    """UnCLe with the published rate hides a task behind its new embedding; with the defaults the old one, put back, brings nothing back."""
    found = {}
    for name, options in (("weak", {"unlearning_lr": 0.0005, "gamma": 0.001}), ("strong", {})):
        strategies = {"hypernetwork": {"chunk_size": 500, "hidden": [32], "embedding": 8, "chunk_embedding": 8, **options}}
        settings: dict[str, Any] = {"benchmark": IMAGES, "epochs": 8, "batch_size": 32, "optimizer": {"name": "adam", "lr": 0.003}}
        experiment = experiment_of(strategies, tmp_path / name, stream="L0 L1 U0", scenario="task_il", **settings)
        (request,) = audit(run(experiment).path, seeds=2)["requests"]
        found[name] = next(figure for figure in request["figures"] if figure["name"] == "M1")
    assert found["weak"]["details"]["old_embedding_put_back"] > 90 and found["weak"]["verdict"] == "FAIL"
    assert found["strong"]["details"]["old_embedding_put_back"] < 75


@pytest.mark.slow
def test_a_report_shows_what_was_audited(audited: dict[str, tuple[Path, dict[str, Any]]], capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = audited["rewind"]
    (path / "plots" / "relearning.png").unlink(missing_ok=True)
    assert main(["report", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "audited beside oracles:" in shown and "│M9 probe     │0 PASS" in shown and (path / "plots" / "relearning.png").exists()
    assert main(["report", str(path.parent)]) == 0
    assert "audited beside oracles:" in (table := capsys.readouterr().out) and "M11" in table


@pytest.mark.slow
def test_the_fast_tier_trains_nothing(audited: dict[str, tuple[Path, dict[str, Any]]], capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = audited["do_nothing"]
    assert main(["audit", str(path), "--tier", "fast"]) == 0
    shown = capsys.readouterr()
    assert "from its own records" in shown.out and "│M4 relearning│NOT RUN" in shown.out and not shown.err


# --- orders ---


def test_orders_keep_what_each_task_went_through() -> None:
    stream = Stream.parse("L0 L1 L2 U1 L1 L3 U0", 4)
    seen = set()
    for number in range(1, 30):
        again = shuffled(stream, 6, number, seed=0)
        assert str(again.events[-1]) == "U0" and len(again) == 7
        assert Stream.parse(str(again), 4) == again  # a stream that can be run
        seen.add(str(again))
    assert len(seen) > 10


def test_few_events_have_few_orders() -> None:
    assert [str(one) for one in distinct_orders(Stream.parse("L0 U0 L1", 2), 1, 3, seed=0)] == ["L0 U0"]
    found = [str(one) for one in distinct_orders(Stream.parse("L0 L1 U1", 2), 2, 3, seed=0)]
    assert found == ["L0 L1 U1", "L1 L0 U1"]


@pytest.mark.slow
def test_the_full_tier_adds_orders(tmp_path: Path) -> None:
    path = run(made(tmp_path, "rewind", "L0 L1 L2 U0", epochs=4)).path
    (request,) = audit(path, "full", seeds=1)["requests"]
    figure = next(one for one in request["figures"] if one["name"] == "M7")
    assert (figure["details"]["M1_range"], figure["verdict"]) == (0.0, PASS) and len(request["orders"]) == 3
    assert figure["value"] == figure["details"]["distance_oracle"] > 0
    assert len({row["stream"] for row in request["orders"]}) > 1


# --- bad input ---


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nowhere"], "nowhere does not exist. Name run directories, or .csv files"),
        (["seed=1"], "clu audit needs a run directory"),
        (["RUN", "epochs=9"], "was run under another configuration than epochs=9 asks for"),
        (["RUN", "--seeds", "0"], "--seeds must be 1 or more, got 0."),
        (["RUN", "--out", "x.md"], "--out x.md: the name must end in .csv."),
        (["RUN", "--plot", "x.pdf"], "its name must end with .png"),
        (["LEARNED"], "no Unlearn is done in this run, so there is nothing to audit."),
        (["OTHER.csv"], "holds no rows of audits. Write some with `clu audit RUN_DIR… --out FILE.csv`."),
    ],
)
def test_what_cannot_be_audited(
    words: Sequence[str], text: str, audited: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    named = {"RUN": str(audited["rewind"][0]), "OTHER.csv": str(tmp_path / "other.csv")}
    if "LEARNED" in words:
        named["LEARNED"] = str(run(experiment_of({"er": {}}, tmp_path / "learned")).path)
    again = ["--again"] if "RUN" in words else []
    assert main(["audit", *(named.get(word, word) for word in words), *again]) == 2
    assert text in capsys.readouterr().err
