"""View batches in runs: strong rows, beside ER and DER++ with and without views of their draws, memories, and other strategies."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import strategies.power_law
import strategies.view_batch
import tests.contract.fakes
from cl_framework import Batch, Closure, ConfigurationError, Context, Evaluation, Output, StepFn
from cl_framework.assembly import make_benchmark
from cl_framework.benchmarks.base import Benchmark
from cl_framework.config import Experiment
from cl_framework.testing.checks_of_steps import assert_finite
from cl_framework.testing.laboratory import (
    ROUGH,
    Jitter,
    Outcome,
    assert_different_weights,
    assert_equal_outcomes,
    beside,
    experiment_of,
    finish,
    finish_in_pieces,
    first_difference,
)
from cl_framework.testing.neighbours import Neighbour, slot

MEMORIES = ({"use": "er", "capacity": 200}, {"use": "derpp", "capacity": 200, "alpha": 0.3, "beta": 0.4})


class Strengthened(Jitter):
    """Noise for all rows, and 100 on top for strong ones."""

    def strong(self, items: Tensor, generator: torch.Generator) -> Tensor:
        return items.float() / 255 + 0.1 * torch.randn(items.shape, generator=generator) + 100


class Spy(Neighbour):
    """Outermost: notes each step's batch, the values of all terms and the answers."""

    def step(self, inner: StepFn, context: Context) -> StepFn:
        def noted(closure: Closure) -> Evaluation:
            batch: Batch = closure._batch  # type: ignore[attr-defined]
            evaluation = closure.values(*closure.names)
            draws = {draw.key: (draw, evaluation.output.of(draw).logits) for named in batch.draws.values() for draw in named.values()}
            self.journal.append({"batch": batch, "terms": evaluation.terms, "logits": evaluation.output.logits, "draws": draws})
            return inner(closure)

        return noted

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        self.journal[-1]["committed"] = output.logits


class Sizes(Neighbour):
    """Notes how many rows each step has; beside it no strategy's pass runs sooner."""

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        self.journal.append(len(batch))


def strengthened(experiment: Experiment) -> Benchmark:
    return replace(make_benchmark(experiment), transform=Strengthened())


def with_views(options: Mapping[str, Any], memory: Mapping[str, Any] | None = None) -> dict[str, Mapping[str, Any]]:
    return {"views": {"use": "view_batch", **options}} | ({} if memory is None else {"memory": memory})


def journal_of(folder: Path, slots: Mapping[str, Mapping[str, Any]], **settings: Any) -> tuple[list[dict[str, Any]], Outcome]:
    spy = slot(Spy)
    experiment = experiment_of(slots, folder, **{"epochs": 4, **settings})
    outcome = finish(beside(experiment, before=[spy]), strengthened(experiment))
    journal: list[dict[str, Any]] = spy.strategy_class.journal
    return journal, outcome


def pooled_double_loop(parts: list[tuple[Tensor, Tensor]]) -> float:
    total, pairs = 0.0, 0
    for logits, group in parts:
        answers = logits.double().log_softmax(1)
        for row, name in enumerate(group.tolist()):
            first = group.tolist().index(name)
            if first != row:
                total += float((answers[first].exp() * (answers[first] - answers[row])).sum())
                pairs += 1
    return total / pairs


# --- what a step shows ---


def test_the_first_view_is_weak_and_the_others_strong(tmp_path: Path) -> None:
    for options, strong_rows in (({}, 3), ({"strong": False}, 0)):
        journal, _ = journal_of(tmp_path / str(strong_rows), with_views(options))
        assert len(journal) == 2 * 4 * 5
        for entry in journal:
            batch = entry["batch"]
            bright = batch.inputs.flatten(1).mean(1) > 50
            assert batch.view.tolist() == [0, 1, 2, 3] * (len(batch) // 4)
            assert bright.tolist() == ((batch.view > 0) & (strong_rows > 0)).tolist()
            assert len(batch.ids.unique()) == len(batch) // 4
            for name in batch.group.unique():
                assert len(batch.ids[batch.group == name].unique()) == 1
                assert len(batch.inputs[batch.group == name].unique(dim=0)) == 4, "each view has its own noise"


def test_rows_and_passes_are_as_many_as_without(tmp_path: Path) -> None:
    def costs(name: str, slots: Mapping[str, Mapping[str, Any]]) -> list[tuple[int, ...]]:
        path = finish(experiment_of(slots, tmp_path / name, epochs=4)).path
        rows = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
        return [tuple(row[key] for key in ("steps", "samples", "forward_passes", "forward_rows", "backward_passes")) for row in rows]

    plain = costs("plain", {})
    assert plain[0][:2] == (20, 144)
    assert costs("views", with_views({})) == plain
    assert costs("every", with_views({"interval": 1})) == [(steps, 4 * rows, steps, 4 * rows, steps) for steps, rows, *_ in plain]


@pytest.mark.parametrize("memory", MEMORIES, ids=lambda memory: memory["use"])
@pytest.mark.parametrize("viewed", [True, False], ids=["replay", "stream"])
def test_the_term_is_the_mean_over_all_pairs_that_are_shown(memory: Mapping[str, Any], viewed: bool, tmp_path: Path) -> None:
    journal, _ = journal_of(tmp_path, with_views({"replay": viewed}, memory))
    swept = 0
    for entry in journal:
        parts = [(entry["logits"], entry["batch"].group)]
        for draw, logits in entry["draws"].values():
            assert (draw.rows.group is not None) == viewed
            if viewed:
                parts.append((logits, draw.rows.group))
                swept += 1
        assert float(entry["terms"]["views/consistency"]) == pytest.approx(pooled_double_loop(parts), rel=1e-3, abs=1e-6)
    assert len(journal) == 40 and swept == viewed * 39 * (2 if memory["use"] == "derpp" else 1)


def test_logits_go_along_with_the_views_of_a_draw(tmp_path: Path) -> None:
    journal, outcome = journal_of(tmp_path, with_views({}, MEMORIES[1]))
    columns = outcome.learner["strategies"]["memory"]["memory"]["columns"]
    stored = {(int(sample), tuple(logits.tolist())) for sample, logits in zip(columns["ids"], columns["extra/logits"], strict=True)}
    swept = 0
    for entry in journal[1:]:
        rows = entry["draws"]["memory/logits"][0].rows
        for first in range(0, len(rows), 4):
            assert len(rows.ids[first : first + 4].unique()) == len(rows.extras["logits"][first : first + 4].unique(dim=0)) == 1
            assert (int(rows.ids[first]), tuple(rows.extras["logits"][first].tolist())) in stored
            swept += 1
    assert swept > 70


@pytest.mark.parametrize("viewed", [True, False], ids=["replay", "stream"])
def test_a_memory_takes_a_sample_once_a_visit_and_the_weak_view_s_logits(viewed: bool, tmp_path: Path) -> None:
    journal, outcome = journal_of(tmp_path, with_views({"replay": viewed}, MEMORIES[1]))
    memory = outcome.learner["strategies"]["memory"]["memory"]
    assert memory["seen"] == memory["count"] == 2 * 36
    assert memory["columns"]["ids"].tolist() == [sample for entry in journal for sample in entry["batch"].ids[::4].tolist()]
    weak = torch.cat([entry["committed"][0::4] for entry in journal])
    assert torch.equal(memory["columns"]["extra/logits"], weak)
    assert not torch.allclose(weak, torch.cat([entry["committed"][1::4] for entry in journal])), "the strong views' answers are the same"


# --- neutral settings, composition ---


@pytest.mark.parametrize("memory", MEMORIES, ids=lambda memory: memory["use"])
def test_one_view_is_the_host_alone_bit_for_bit(memory: Mapping[str, Any], tmp_path: Path) -> None:
    def run(name: str, slots: Mapping[str, Mapping[str, Any]]) -> Outcome:
        experiment = experiment_of(slots, tmp_path / name, epochs=2, model=ROUGH)
        return finish(experiment, strengthened(experiment))

    host = run("host", {"memory": memory})
    for options in ({"views": 1}, {"views": 1, "weight": 0.0, "strong": True, "reduction": "released"}):
        assert_equal_outcomes(host, run(str(len(options)), with_views(options, memory)), f"with {options}", slot="memory")
    assert_different_weights(host, run("views", with_views({"views": 2, "weight": 0.0}, memory)), "two views")


@pytest.mark.slow
def test_each_option_has_an_effect(tmp_path: Path) -> None:
    def weights(name: str, **options: Any) -> dict[str, Tensor]:
        experiment = experiment_of(with_views(options, MEMORIES[0]), tmp_path / name, epochs=2)
        return finish(experiment, strengthened(experiment)).weights

    default, swept = weights("default"), 0
    for option, value in {
        "views": 2, "interval": 2, "weight": 0.0, "reduction": "released", "warm_up": 1, "strong": False, "replay": False,
    }.items():  # fmt: skip
        assert first_difference(default, weights(option, **{option: value})) is not None, option
        swept += 1
    assert swept == len(strategies.view_batch.ViewBatchConfig.__dataclass_fields__)
    assert first_difference(default, weights("again", strong=True)) is None


ALONE = ("agem", "der", "derpp", "er", "er_ace", "mir")


@pytest.mark.parametrize("memory", ALONE)
def test_steps_without_rows_are_made_all_the_same(memory: str, tmp_path: Path) -> None:
    """34 samples in steps of 8: of the epochs' last steps, 2 visits each, every other one gets none of the groups of four."""
    importlib.import_module(f"strategies.{memory}")
    benchmark = {"name": "synthetic", "tasks": 2, "classes_per_task": 2, "train_per_class": 17, "test_per_class": 10}
    sizes = slot(Sizes)
    experiment = experiment_of(with_views({}, {"use": memory}), tmp_path, benchmark=benchmark, epochs=4)
    assert_finite(finish(beside(experiment, after=[sizes])), "with empty steps")
    shown = sizes.strategy_class.journal
    assert len(shown) == 2 * 4 * 5 and shown.count(0) == 4 and sum(shown) == 2 * 4 * 34


def test_rehearsed_samples_are_viewed_where_power_law_comes_before(tmp_path: Path) -> None:
    rehearsal = {"use": "power_law", "budget": 0.5}
    views = {"use": "view_batch"}
    before, _ = journal_of(tmp_path / "before", {"past": rehearsal, "views": views}, stream="L0 L1")
    after, _ = journal_of(tmp_path / "after", {"views": views, "past": rehearsal}, stream="L0 L1")

    def views_of_past(journal: list[dict[str, Any]]) -> set[int]:
        counts: set[int] = set()
        for entry in journal:
            batch = entry["batch"]
            past = batch.group[batch.ids < 36] if int(batch.ids.max()) >= 36 else batch.group[:0]
            counts |= set(past.unique(return_counts=True)[1].tolist())
        return counts

    assert views_of_past(before) == {4} and views_of_past(after) == {1}


@pytest.mark.parametrize("fake", tests.contract.fakes.FAKES)
def test_beside_every_kind_of_strategy(fake: str, tmp_path: Path) -> None:
    options = {"count": 4} if fake == "fake_views" else {}  # it wants to meet as many views as it makes
    for order in (("views", "fake"), ("fake", "views")):
        slots = {name: {"use": "view_batch"} if name == "views" else {"use": fake, **options} for name in order}
        experiment = experiment_of(slots, tmp_path / order[0], model=ROUGH, epochs=2)
        assert_finite(finish(experiment, strengthened(experiment)), f"{order}")


def test_stopped_and_resumed_beside_a_memory(tmp_path: Path) -> None:
    def experiment(name: str) -> Experiment:
        return experiment_of(with_views({}, MEMORIES[1]), tmp_path / name, epochs=2, model=ROUGH)

    data = strengthened(experiment("data"))
    whole = finish(experiment("whole"), data)
    pieces, stops = finish_in_pieces(experiment("pieces"), lambda step: step % 3 == 1, data)
    assert stops == 7
    assert_equal_outcomes(whole, pieces, "resumed it ends elsewhere")


# --- refusals ---


def test_a_run_is_refused_with_the_slot_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"strategies\.views\.views: 3 does not divide batch_size 8, "):
        finish(experiment_of(with_views({"views": 3}), tmp_path))
    with pytest.raises(ConfigurationError, match=r"strategies\.views\.strong=true needs a strong augmentation"):
        finish(experiment_of(with_views({"strong": True}), tmp_path))
    assert not list(tmp_path.rglob("*.*"))
