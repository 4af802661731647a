"""Audits of real runs: oracles against runs that never saw the data, a cache that trains nothing twice, exact zeros, and edits found."""

from __future__ import annotations

import base64
import copy
import importlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
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
from cl_framework.plots import png
from cl_framework.stream import Stream, Unlearn
from cl_framework.testing.laboratory import augmented, experiment_of, finish, first_difference
from cl_framework.unlearning import audit_pictures, audit_report, kept_measurements, oracle
from cl_framework.unlearning.audit import audit, efficiency
from cl_framework.unlearning.deletion import DeletionLog
from cl_framework.unlearning.fast import FAIL, INCONCLUSIVE, NOT_RUN, PASS, Figure
from cl_framework.unlearning.kept_measurements import KeptMeasurements
from cl_framework.unlearning.measure import Question, measure
from cl_framework.unlearning.oracle import Learned, Oracles, Trained, live_again
from cl_framework.unlearning.orders import distinct_orders, shuffled
from cl_framework.unlearning.surroundings import digest_of_files, source_files, surroundings
from cl_framework.unlearning.verify import verify
from cl_framework.unlearning.watch import moved
from strategies.do_nothing import DoNothing

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


@pytest.mark.parametrize(
    ("stream", "know"),
    [
        ("L0 L1 U0 L2", False),
        ("L0 L1 U1 L0", False),
        ("L0 L1 U0 L2 U1", True),  # the first oracle learned task 1
        ("L0 L1 U0 U1:class=3", True),
        ("L0 L1 U0 U1:fraction=0.3@seed5", True),
    ],
)
def test_an_oracle_knows_what_a_later_request_unlearns(stream: str, know: bool, tmp_path: Path) -> None:
    oracles = oracles_of(made(tmp_path / "run", stream=stream), tmp_path / "oracles")
    assert not oracles.know_unlearned(), "nothing is kept yet"
    for index in range(2, len(oracles.whole)):
        oracles.after(index)
    assert oracles.know_unlearned() is know


def test_a_kept_state_that_is_damaged_is_trained_anew(tmp_path: Path) -> None:
    experiment = made(tmp_path / "run")
    oracles_of(experiment, tmp_path / "oracles").after(3)
    newest = max((tmp_path / "oracles").rglob("0002-*.pt"))
    newest.write_bytes(newest.read_bytes()[:-9])
    oracles = oracles_of(experiment, tmp_path / "oracles")
    assert oracles.after(3).new_events == 1
    assert first_difference(oracles.learner.model.state_dict(), never_saw(experiment, tmp_path / "w", "L1 L2")["model"]) is None


# --- what audits of runs share that differ only in how they unlearn ---


def of_stack(unlearner: str, folder: Path) -> Path:
    return run(made(folder, unlearner, "L0 L1 U1 L2 U0", epochs=1)).path


def figures_of(result: dict[str, Any]) -> str:
    """All that an audit found but what a clock did, and which states were kept."""
    requests = copy.deepcopy(result["requests"])
    for request in requests:
        for name in [name for name in request if name.endswith("figures")]:
            request[name] = [figure for figure in request[name] if figure["name"] != "M12"]
    return json.dumps(requests)


def test_what_was_learned_is_kept_for_the_next_audit_and_gives_the_same_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = figures_of(audit(of_stack("gradient_ascent", tmp_path / "alone"), seeds=2))
    told: list[str] = []
    first = audit(of_stack("do_nothing", tmp_path / "runs"), seeds=2, tell=told.append)
    path, oracles = of_stack("gradient_ascent", tmp_path / "runs"), tmp_path / "runs" / "oracles"
    asked: list[Question] = []
    monkeypatch.setattr(kept_measurements, "measure", lambda learner, question: asked.append(question) or measure(learner, question))
    audit(path, seeds=2, tell=told.append)
    assert not any("were kept, and" in line for line in told), "it is kept only where that is asked for"
    assert len(list(oracles.rglob("measured/*.pt"))) == 4, "nor is what was measured of a model that knew"
    assert len(asked) == 2, "the model before U1 and before U0, but none of the oracles"
    audit(of_stack("do_nothing", tmp_path / "runs"), seeds=2, keep_learned=True)
    asked.clear()
    shared = figures_of(audit(path, seeds=2, tell=told.append))
    assert "2 of them were kept, and are not run again" in told and any(str(oracles) in line for line in told)
    result = audit_report.read_audit(path / "audit" / "standard.json")
    assert result["learned"]["events_kept"] == 2 and len(result["measurements_kept"]) == 5
    requested = DeletionLog(path / "deletion").requested()
    assert result["learned"]["state"] == requested[2]["state_before"] != requested[4]["state_before"]
    assert shared == alone != figures_of(first)
    assert len(asked) == 1, "the model before U0, which only this run has"


@pytest.mark.parametrize("damaged", ["state", "record"])
def test_what_was_learned_must_be_the_run_s_own(damaged: str, tmp_path: Path) -> None:
    experiment = made(tmp_path / "run", "do_nothing", "L0 L1 U1", epochs=1)
    digests: dict[int, str] = {}

    def seen(index: int, learner: Learner) -> None:
        digests[index] = digest_of(learner.state_dict())

    benchmark, oracles = make_benchmark(experiment), oracles_of(experiment, tmp_path / "oracles")
    assert live_again(experiment, benchmark, {}, seen) == 3
    lived = dict(digests)
    learned = Learned(oracles, 2, digests[1], keeps=True)
    assert live_again(experiment, benchmark, {}, seen, learned) == 3, "nothing is kept yet"
    digests.clear()
    assert live_again(experiment, benchmark, {2: lived[2]}, seen, learned) == 1
    assert digests == {1: lived[1], 2: lived[2]}
    if damaged == "record":
        learned = replace(learned, digest="0" * 64)
    else:
        state = oracles.learned(2)
        assert state is not None
        next(iter(state["model"].values())).view(-1)[0] += 1e-3
        for path in oracles.history.folder.glob("0002-*.pt"):
            path.unlink()
        oracles.keep_learned(2, state)
    digests.clear()
    assert live_again(experiment, benchmark, {2: lived[2]}, seen, learned) == 3, "another state is not taken"
    assert digests == lived


def test_measurements_are_read_as_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = made(tmp_path, "do_nothing", "L0 L1 U0", epochs=1)
    learner = assemble(experiment, make_benchmark(experiment))
    asked = [Question.of(learner, event, index, learner.stream) for index, event in enumerate(learner.stream) if isinstance(event, Unlearn)]
    kept = KeptMeasurements(tmp_path / "measured")
    first = kept.of(learner, asked[0])
    count = []
    monkeypatch.setattr(kept_measurements, "measure", lambda *of: count.append(of) or measure(*of))
    assert digest_of(asdict(kept.of(learner, asked[0]))) == digest_of(asdict(first)) and not count
    kept.of(learner, replace(asked[0], index=1))
    assert len(count) == 1, "asked otherwise"
    with torch.no_grad():
        next(learner.model.parameters()).mul_(1.5)
    assert digest_of(asdict(kept.of(learner, asked[0]))) != digest_of(asdict(first)) and len(count) == 2
    for path in (tmp_path / "measured").iterdir():
        path.write_bytes(path.read_bytes()[:-5])
    kept.of(learner, asked[0])
    assert len(count) == 3, "a damaged file is not read"
    kept.of(learner, asked[0])
    assert len(count) == 3
    source = learner.benchmark.test[0]
    changed = copy.copy(source)
    changed.targets = source.targets.roll(1)
    learner.benchmark = replace(learner.benchmark, test=[changed, *learner.benchmark.test[1:]])
    kept.of(learner, asked[0])
    assert len(count) == 4, "the same places, but other data"


# --- which kept states are taken ---


SURROUND = {"framework", "strategies", "device", "threads"}
SURROUND |= {f"version {name}" for name in ("torch", "cl-framework", "transformers", "tokenizers", "peft")}


@pytest.mark.parametrize("changed", ["nothing", *sorted(SURROUND)])
def test_states_are_kept_by_code_and_machine(changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = made(tmp_path / "run")
    here = surroundings(experiment, torch.device("cpu"))
    assert set(here) == SURROUND
    own = digest_of_files((Path(oracle.__file__).parent.parent).rglob("*.py"))
    found = (here["framework"], here["threads"], here["device"], here["version torch"])
    assert found == (own, torch.get_num_threads(), "cpu", version("torch"))
    assert set(here["strategies"]) == {"er", "rewind"} and here["strategies"]["er"] != here["strategies"]["rewind"]
    before = oracles_of(experiment, tmp_path / "oracles")
    assert before.after(2).new_events == 1
    then = here | {changed: "other"} if changed in here else here
    monkeypatch.setattr(oracle, "surroundings", lambda experiment, device: then if changed in here else surroundings(experiment, device))
    after = oracles_of(experiment, tmp_path / "oracles")
    assert after.after(2).new_events == (1 if changed in here else 0)
    assert (after.history.folder == before.history.folder) is (changed == "nothing")


def test_states_are_kept_by_the_data(tmp_path: Path) -> None:
    experiment = made(tmp_path / "run")
    whole = make_benchmark(experiment)
    changed = copy.copy(whole.train[1])
    changed.targets = whole.train[1].targets.roll(1)
    other = replace(whole, train=[whole.train[0], changed, *whole.train[2:]])
    found = [Oracles(experiment, data, 0, tmp_path / "oracles").after(2).new_events for data in (whole, make_benchmark(experiment), other)]
    assert found == [1, 0, 1], "files may change under a name"


def test_the_source_of_a_strategy_is_that_of_all_it_takes_from_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "pulling_back"
    package.mkdir()
    for name, text in {
        "__init__": "",
        "maths": "def pull(value):\n    return value\n",
        "other": "def unused():\n    pass\n",
        "strategy": "from cl_framework import Strategy\nfrom pulling_back.maths import pull\n\n\nclass Pull(Strategy):\n    pass\n",
    }.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    strategy_class = importlib.import_module("pulling_back.strategy").Pull
    importlib.import_module("pulling_back.other")
    assert {path.name for path in source_files(strategy_class)} == {"maths.py", "strategy.py"}
    digests = []
    for edited in ("other", "maths", "strategy"):
        before = digest_of_files(source_files(strategy_class))
        (package / f"{edited}.py").write_text((package / f"{edited}.py").read_text() + "# edited\n")
        digests.append(digest_of_files(source_files(strategy_class)) != before)
    assert digests == [False, True, True]
    assert source_files(type("Typed", (), {"__module__": "__nowhere__"})) == set()
    assert [path.name for path in source_files(DoNothing)] == ["do_nothing.py"]


def test_an_audit_tells_which_oracle_states_it_has_used_and_takes_kept_ones_unless_asked_not_to(tmp_path: Path) -> None:
    experiment = experiment_of({"rewind": {}}, tmp_path, stream="L0 L1 U0 L2")
    path = run(experiment).path
    first = audit(path, seeds=2)["oracle_states"]
    assert [(row["seed"], row["event_index"], row["kept"]) for row in first] == [
        (seed, index, False) for seed in (0, 1) for index in (2, 3)
    ]
    for row in first:
        own = Oracles(experiment, make_benchmark(experiment), row["seed"], tmp_path / "others")
        own.after(row["event_index"])
        assert row["state"] == digest_of(own.learner.state_dict())
    assert len({row["state"] for row in first}) == 4
    kept = audit(path, seeds=2)["oracle_states"]
    anew = audit(path, seeds=2, made=(folders := set()))["oracle_states"]
    assert [row["kept"] for row in kept] == [True] * 4 and [row["kept"] for row in anew] == [False] * 4
    assert [row["state"] for row in kept] == [row["state"] for row in anew] == [row["state"] for row in first]
    assert len(folders) == 2
    assert all(row["kept"] for row in audit(path, seeds=2, made=folders)["oracle_states"]), "another run of the same command"


@pytest.mark.parametrize("planted", [True, False])
def test_an_oracle_that_is_the_model_before_the_request_is_none(planted: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = experiment_of({"do_nothing": {}}, tmp_path, stream="L0 L1 U1", epochs=8)
    path, benchmark = run(experiment).path, make_benchmark(experiment)
    if planted:
        state: dict[str, Any] = {}
        live_again(
            experiment, benchmark, {}, lambda index, learner: state.update(copy.deepcopy(learner.state_dict())) if index == 1 else None
        )
        forged = Oracles(experiment, benchmark, 0, tmp_path / "oracles")
        forged.learner.stream, count = forged.whole.without_unlearned(2)
        forged.history.keep(forged.learner.stream, count, forged.learner, {**state, "strategies": {}})
    (request,) = audit(path, seeds=1)["requests"]
    figures = {figure["name"]: figure for figure in request["figures"]}
    assert (figures["M1"]["verdict"] == "INVALID") is planted and request["unlearned"] is False
    assert ("the oracle is the model before the request: nothing was learned from the data, or" in figures["M1"]["why"]) is planted
    assert main(["report", str(path)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("INVALID, U1 (event 2) M1") == shown.count(": the oracle is the model before the request") == planted
    (anew,) = audit(path, seeds=1, made=set())["requests"]
    assert {figure["name"]: figure["verdict"] for figure in anew["figures"]}["M1"] == FAIL, "what is planted is not taken"


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
    question = Question.of(learner, event, 2, learner.stream)

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
        event.granularity: Question.of(learner, event, index, learner.stream)
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


def cost_of(seconds: float, samples: int, **of_oracle: Any) -> Figure:
    """M12 of a request that took so long and read so many samples, 10 of them drawn; its oracle took 4 s and 100 samples for the suffix."""
    row = {"train_seconds": seconds, "samples": samples - 10, "samples_drawn": 10, "samples_new": 5}
    oracle = {"seconds": 8.0, "samples": 200, "suffix_seconds": 4.0, "suffix_samples": 100, "new_events": 1, **of_oracle}
    return efficiency({**row, "stored_bytes": 7, "peak_rss_mib": 300.5}, Trained(**oracle))


@pytest.mark.parametrize(
    ("seconds", "samples", "value", "verdict"),
    [
        (4.0, 100, 1.0, PASS),
        (0.4, 101, 0.1, FAIL),  # more samples in a tenth of the time
        (4.1, 100, 1.025, INCONCLUSIVE),
        (8.0, 100, 2.0, INCONCLUSIVE),
        (8.1, 10, 2.025, FAIL),  # a tenth of the samples, in more than twice the time
    ],
)
def test_a_request_must_cost_neither_more_samples_nor_more_seconds_than_the_suffix(
    seconds: float, samples: int, value: float, verdict: str
) -> None:
    found = cost_of(seconds, samples)
    assert (found.value, found.verdict, found.bound) == (pytest.approx(value), verdict, 1.0)
    assert found.details == {
        "seconds": seconds,
        "samples": samples,
        "samples_forget": 5,
        "stored_bytes": 7,
        "peak_rss_mib": 300.5,
        "oracle_seconds": 4.0,
        "whole_seconds": 8.0,
        "oracle_samples": 100,
        "whole_samples": 200,
    }


def test_a_request_costs_what_its_whole_answer_has_taken_where_that_is_on_record() -> None:
    older = {"train_seconds": 1.0, "samples": 20, "samples_drawn": 10, "samples_new": 5, "stored_bytes": 7, "peak_rss_mib": 300.5}
    newer = {**older, "answer_seconds": 3.0, "samples_forgotten": 40, "samples_retained": 61}
    oracle = Trained(seconds=8.0, samples=200, suffix_seconds=4.0, suffix_samples=100, new_events=1)
    found = {name: efficiency(row, oracle) for name, row in (("older", older), ("newer", newer))}
    told = {name: [one.details[key] for key in ("seconds", "samples", "samples_forget")] for name, one in found.items()}
    assert told == {"older": [1.0, 30, 5], "newer": [3.0, 101, 40]}
    assert [one.verdict for one in found.values()] == [PASS, FAIL] and found["newer"].value == 0.75


def test_without_a_suffix_there_is_no_cost_to_compare_with() -> None:
    found = cost_of(4.0, 100, suffix_seconds=0.0)
    assert (found.value, found.verdict, found.details["peak_rss_mib"]) == (None, NOT_RUN, 300.5)


def test_members_are_attacked_as_in_evaluation_and_not_as_they_were_trained(tmp_path: Path) -> None:
    """With the augmentation of training, members would differ from others by it, and any model would seem to leak."""
    experiment = experiment_of({"rewind": {}}, tmp_path, stream="L0 L1 U0")
    plain, jittered = assemble(experiment, make_benchmark(experiment)), assemble(experiment, augmented(experiment))
    event = plain.stream.events[2]
    assert isinstance(event, Unlearn)
    question = Question.of(jittered, event, 2, jittered.stream)
    assert measure(jittered, question).attack == measure(plain, question).attack
    read, items = question.members.read(jittered).inputs, question.members.read(jittered).items
    assert isinstance(read, torch.Tensor) and not torch.equal(read, jittered.inputs_of(items, "stream", None))  # type: ignore[arg-type]


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
def test_a_reset_head_looks_perfect_and_does_not_earn_the_word(tmp_path: Path) -> None:
    (request,) = audit(run(made(tmp_path, "reset_head", "L0 L1 U0", epochs=8)).path, seeds=2)["requests"]
    found = {figure["name"]: (figure["value"], figure["verdict"]) for figure in request["figures"]}
    assert found["M1"][1] == found["M2"][1] == PASS, "to accuracy"
    assert found["M11"] == (2.0, "FAIL"), "weights and biases of the body are as they were"
    assert request["unlearned"] is False


@pytest.mark.slow
def test_controls_stand_beside_the_figures(audited: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    """How far the weights went; how a task is learned that was never seen, where one is left."""
    of_task, of_class = audited["rewind"][1]["requests"]
    (figure,) = of_task["never_seen_figures"]
    curves = of_task["relearning"]
    assert figure["name"] == "M4" and figure["value"] == pytest.approx(mean(curves["never_seen"]) - mean(curves["oracle"]))
    assert curves["never_seen"] != curves["oracle"] and "never_seen_figures" not in of_class
    for name in ("rewind", "do_nothing"):  # the same way up to the request, so the same model before it, which knows
        first = audited[name][1]["requests"][0]
        before = {figure["name"]: figure for figure in first["before_figures"]}
        assert before["M1"]["verdict"] == before["M6"]["verdict"] == "FAIL" and before["M3"]["verdict"] == "NOT RUN"
        assert before["M1"]["value"] == pytest.approx(_details(of_task, "M1")["before"] - _details(of_task, "M1")["oracle"])
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
@pytest.mark.parametrize("later", ["", " U1"])
def test_an_audit_names_the_folder_that_still_knows_what_was_unlearned(
    later: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run(made(tmp_path / "my runs", "do_nothing", f"L0 L1 L2 U0{later}", epochs=1)).path
    folder = tmp_path / "my runs" / "oracles"
    for again in ([], ["--again"], []):  # the last one takes what the one before has kept
        (path / "audit" / "standard.json").unlink(missing_ok=True)
        kept = (path / "audit" / "splits.json").exists() and not again
        trained = 0 if kept else 3 if later else 2
        assert main(["audit", str(path), "--seeds", "1", *again]) == 0
        told = capsys.readouterr().err
        assert f"oracles of seed 0: {trained} events trained" in told
        text = f"{folder} keeps models that know what a later request unlearned, so that further audits need not train them.\n"
        assert (text in told) is bool(later) is (f"remove them: rm -r '{folder}'\n" in told)


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
    assert lines[0][2].endswith("(1F)") and "oracle of another seed" in table and "| task | before the request |" in table
    (never,) = [line for line in table.splitlines() if "a task never seen" in line]
    assert never.startswith("| task |") and "NOT RUN" in never
    assert main(["audit", paths[0], "--costs", "--into", f"{page}#audit"]) == 0 and "samples ÷ suffix" in capsys.readouterr().out
    assert page.read_text().startswith("<!-- table: audit -->\n| unlearns | strategies | seconds | forgotten samples |")
    assert "| peak MiB | requests | seeds |" in page.read_text()


def row_of_costs(granularity: str, seed: int, details: dict[str, float], **more: Any) -> dict[str, Any]:
    row = {"name": "M12", "model": audit_report.UNLEARNED, "granularity": granularity, "strategies": ["er", "npo"], "seed": seed}
    return {**row, "details": details, **more}


def test_the_table_of_costs_has_means_of_ratios_by_method_and_granularity() -> None:
    first = {"seconds": 1.0, "samples": 30.0, "samples_forget": 10.0}
    first |= {"oracle_seconds": 4.0, "whole_seconds": 8.0, "oracle_samples": 300.0, "whole_samples": 600.0}
    second = {**first, "seconds": 3.0, "oracle_seconds": 4.0}
    rows = [row_of_costs("sample", 0, first), row_of_costs("task", 1, second), row_of_costs("task", 0, first)]
    others = [row_of_costs("task", 2, second, name="M1"), row_of_costs("task", 3, second, model=audit_report.ORACLE)]
    header, lines = audit_report.costs([*rows, *others])
    assert header[2:] == [
        "seconds",
        "forgotten samples",
        "retained samples",
        "seconds ÷ suffix",
        "samples ÷ suffix",
        "seconds ÷ whole",
        "samples ÷ whole",
        "requests",
        "seeds",
    ]
    assert lines == [
        ["task", "er, npo", "2.00", "10", "20", "0.500", "0.100", "0.250", "0.050", "2", "0, 1"],
        ["sample", "er, npo", "1.00", "10", "20", "0.250", "0.100", "0.125", "0.050", "1", "0"],
    ]


@pytest.mark.parametrize(("seconds", "shown"), [(0.0, "0.00"), (0.0021, "0.002"), (0.0049, "0.005"), (0.0051, "0.01"), (2.0, "2.00")])
def test_an_answer_that_took_a_moment_is_not_shown_as_one_that_took_none(seconds: float, shown: str) -> None:
    ((_, _, cell, *_),) = audit_report.costs([row_of_costs("task", 0, {"seconds": seconds, "samples": 3.0, "samples_forget": 3.0})])[1]
    assert cell == shown


def test_costs_that_are_not_on_record_are_not_made_up() -> None:
    known = {"seconds": 1.0, "samples": 3.0, "samples_forget": 0.0, "peak_rss_mib": 100.0}
    header, lines = audit_report.costs([row_of_costs("task", 0, known)])
    assert header == ["unlearns", "strategies", "seconds", "forgotten samples", "retained samples", "peak MiB", "requests", "seeds"]
    assert lines == [["task", "er, npo", "1.00", "0", "3", "100", "1", "0"]]
    older = {key: value for key, value in known.items() if key != "peak_rss_mib"} | {"oracle_seconds": 0.0}
    (line,) = audit_report.costs([row_of_costs("task", 0, known), row_of_costs("task", 1, older)])[1]
    assert line == ["task", "er, npo", "1.00", "0", "3", "2", "0, 1"], "a mean of which a part is not on record is none"


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
    assert "audited beside oracles:" in shown and "│M9 probe     │0 PASS" in shown
    curves = base64.b64encode((path / "plots" / "relearning.png").read_bytes()).decode()
    assert curves in (path / "report.html").read_text()
    assert main(["report", str(path.parent)]) == 0
    assert "audited beside oracles:" in (table := capsys.readouterr().out) and "M11" in table


@pytest.mark.slow
def test_a_report_draws_the_trade_off_of_audited_runs(
    audited: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, plot = audited["rewind"][0].parent, tmp_path / "all.png"
    assert main(["report", str(folder), "--plot", str(plot)]) == 0
    assert f"written: {tmp_path / 'all_tradeoff.png'}" in capsys.readouterr().out
    rows = [row for _, result in audited.values() for row in audit_report.rows_of(result)]
    assert (tmp_path / "all_tradeoff.png").read_bytes() == png(audit_pictures.tradeoff_picture(rows)) != plot.read_bytes()
    not_audited = run(experiment_of({"er": {}}, tmp_path / "learned", stream="L0 L1")).path
    assert main(["report", str(not_audited), "--plot", str(tmp_path / "one.png")]) == 0
    assert not (tmp_path / "one_tradeoff.png").exists()


@pytest.mark.slow
def test_rewind_stands_where_the_oracle_does(audited: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path) -> None:
    """To do nothing loses nothing of what is retained, but training again without most of a task does, by as much as the oracle."""
    found = {name: audit_pictures.standings(audit_report.rows_of(result)) for name, (_, result) in audited.items()}
    for granularity in ("task", "class"):
        (exact,), (nothing,) = found["rewind"][granularity], found["do_nothing"][granularity]
        assert exact.gaps == [0.0] and exact.spills == exact.oracle
        assert nothing.gaps[0] > 50 and nothing.spills == [0.0]
    for unlearner in ("rewind", "do_nothing"):
        result = audit(run(made(tmp_path, unlearner, "L0 L1 U1:fraction=0.98@seed5")).path, seeds=1)
        (found[unlearner]["sample"],) = audit_pictures.standings(audit_report.rows_of(result)).values()
    (exact,), (nothing,) = found["rewind"]["sample"], found["do_nothing"]["sample"]
    assert exact.spills == pytest.approx(exact.oracle, rel=1e-4) and exact.oracle == nothing.oracle  # rows have five digits of details
    assert exact.spills[0] > 10 and nothing.spills == [0.0]


@pytest.mark.slow
def test_the_fast_tier_trains_nothing(audited: dict[str, tuple[Path, dict[str, Any]]], capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = audited["do_nothing"]
    assert main(["audit", str(path), "--tier", "fast"]) == 0
    shown = capsys.readouterr()
    assert "from its own records" in shown.out and "│M4 relearning│NOT RUN" in shown.out and not shown.err


@pytest.mark.parametrize("claimed", [True, False])
def test_an_audit_tells_who_claims_to_be_exact_and_is_not(claimed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DoNothing, "traits", replace(DoNothing.traits, exact=claimed))
    (request,) = (result := audit(run(experiment_of({"do_nothing": {}}, tmp_path, stream="L0 L1 U0")).path, seeds=1))["requests"]
    (claim,) = (figure for figure in request["figures"] if figure["name"] == "E1")
    assert claim["verdict"] == (FAIL if claimed else NOT_RUN)
    assert claim["value"] > 0.1 if claimed else claim["value"] is None
    (cell,) = (line[1] for line in audit_report.verdicts_of(result)[1] if line[0] == "E1 exactness")
    assert cell == (f"{claim['value']:.3g} FAIL" if claimed else NOT_RUN)
    (row,) = (row for row in audit_report.rows_of(result) if row["name"] == "E1")
    assert (row["model"], row["verdict"]) == ("unlearned", claim["verdict"])
    header, lines = audit_report.comparison(audit_report.rows_of(result))
    (shown,) = (line[header.index("E1")] for line in lines if line[1] == "do_nothing")
    assert shown == (f"{claim['value']:.2f} (1F)" if claimed else NOT_RUN)


@pytest.mark.parametrize("unlearner", ["rewind", "analytic"])
def test_an_exact_answer_keeps_its_word(unlearner: str, tmp_path: Path) -> None:
    (request,) = audit(run(experiment_of({unlearner: {}}, tmp_path, stream="L0 L1 U0:class=1")).path, seeds=1)["requests"]
    (claim,) = (figure for figure in request["figures"] if figure["name"] == "E1")
    assert claim["verdict"] == PASS and claim["value"] <= (0 if unlearner == "rewind" else claim["bound"])


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


def test_a_run_without_some_samples_of_a_later_task_is_audited_after_other_orders(tmp_path: Path) -> None:
    """Orders end with the request: what is left out of tasks behind it does nothing there, and that is no fault of the run."""
    path = run(made(tmp_path, "rewind", "L0 L1 U0 L2", epochs=1, without="U2:class=5")).path
    figures = {figure["name"]: figure for figure in audit(path, tier="full", seeds=1, orders=2)["requests"][0]["figures"]}
    assert figures["M7"]["verdict"] != "NOT RUN"


@pytest.mark.slow
def test_the_full_tier_adds_orders(tmp_path: Path) -> None:
    path = run(made(tmp_path, "rewind", "L0 L1 L2 U0", epochs=4)).path
    (request,) = audit(path, "full", seeds=1)["requests"]
    figure = next(one for one in request["figures"] if one["name"] == "M7")
    assert (figure["details"]["M1_range"], figure["verdict"]) == (0.0, PASS) and len(request["orders"]) == 3
    assert figure["value"] == figure["details"]["distance_oracle"] > 0
    assert len({row["stream"] for row in request["orders"]}) > 1 and len({row["oracle_state"] for row in request["orders"]}) > 1


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
        (["experiments/results/digits.csv"], "digits.csv is a file of runs: use `clu report experiments/results/digits.csv`."),
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


def test_a_configuration_that_was_edited_is_not_audited(
    audited: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(shutil.copytree(audited["rewind"][0], tmp_path / audited["rewind"][0].name))
    file = path / "config.yaml"
    written = file.read_text()
    file.write_text(re.sub(r"^batch_size: \d+", "batch_size: 7", written, flags=re.MULTILINE))
    assert file.read_text() != written and main(["audit", str(path), "--again"]) == 2
    told = "was run under another configuration than its config.yaml says now, or than this version makes of it. Undo that."
    assert told in capsys.readouterr().err
