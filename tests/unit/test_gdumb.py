"""GDumb: schedule, CutMix and sampler against their definitions; the learner sees the memory alone, whatever the order of tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_framework import Batch, ConfigurationError, Context, Draw, Output, Plan, registry
from cl_framework.assembly import make_stack
from cl_framework.optimizers import build_optimizer
from cl_framework.records import RunDirectory
from cl_framework.schema import OptimizerConfig
from cl_framework.testing.laboratory import (
    ROUGH,
    Outcome,
    assert_different_weights,
    beside,
    experiment_of,
    finish,
    first_difference,
    in_place_of,
)
from cl_framework.testing.neighbours import Counting, Doubling, Oblivious, Structural, slot
from strategies.gdumb import GDumb, GDumbConfig, cut_and_paste, cut_box, first_pass, warm_restarts

QUICK = {"epochs": 7}

# --- the schedule ---


def test_rates_follow_cosine_cycles_that_double() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=1, T_mult=2, eta_min=0.0005)
    for epoch in range(300):
        assert warm_restarts(epoch, 0.05, 0.0005) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6), epoch
        optimizer.step()
        scheduler.step()
    tops = [epoch for epoch in range(256) if warm_restarts(epoch, 0.05, 0.0005) == 0.05]
    assert tops == [0, 1, 3, 7, 15, 31, 63, 127, 255]


# --- CutMix ---


def test_a_box_is_cut_around_its_centre_and_at_the_edges() -> None:
    assert cut_box((8, 8), 0.75, (0.5, 0.5)) == (slice(2, 6), slice(2, 6))
    assert cut_box((8, 16), 0.75, (0.0, 0.999)) == (slice(0, 2), slice(12, 16))
    assert cut_box((8, 8), 0.0, (0.5, 0.5)) == (slice(0, 8), slice(0, 8))
    rows, columns = cut_box((8, 8), 1.0, (0.3, 0.7))
    assert rows.start == rows.stop and columns.start == columns.stop


def test_what_is_pasted_is_the_partners_and_the_share_is_counted() -> None:
    generator, swept = torch.Generator().manual_seed(0), 0
    for kept in (0.0, 0.3, 0.6, 0.9, 1.0):
        for _ in range(6):
            images = torch.randint(256, (5, 2, 6, 7), generator=generator, dtype=torch.uint8)
            before = images.clone()
            partner = torch.randperm(5, generator=generator)
            box = cut_box((6, 7), kept, torch.rand(2, generator=generator).tolist())
            mixed, share = cut_and_paste(images, partner, box)
            own = 0
            for row in range(6):
                for column in range(7):
                    inside = box[0].start <= row < box[0].stop and box[1].start <= column < box[1].stop
                    source = images[partner] if inside else images
                    assert torch.equal(mixed[:, :, row, column], source[:, :, row, column])
                    own += not inside
            assert share == pytest.approx(own / 42) and torch.equal(images, before)
            swept += 1
    assert swept == 30


class Spied(GDumb):
    """Notes each draw of its own phase and the value of its term."""

    journal: list[dict[str, Any]] = []  # noqa: RUF012 - one test at a time reads it

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        draw = batch.draws.get(context.slot, {}).get("memory")
        if draw is not None:
            with torch.no_grad():
                (term,) = self.loss(batch, output, context).values()
                value = float(term.value())
            rate = context.learning_rate
            entry = {"rows": draw.rows, "logits": output.of(draw).logits, "value": value, "rate": rate, "step": context.position.step}
            self.journal.append({**entry, "kind": draw.kind, "event": context.position.event_index, "stored": self.memory.rows()})
        super().commit(batch, output, context)


def run_spied(folder: Path, options: dict[str, Any], stream: str = "L0 L1", **settings: Any) -> list[dict[str, Any]]:
    Spied.journal.clear()
    finish(in_place_of(experiment_of({"gdumb": {**QUICK, **options}}, folder, stream=stream, **settings), Spied))
    return list(Spied.journal)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits, targets, reduction="none")


def test_mixed_rows_are_scored_by_the_share_of_each_label(tmp_path: Path) -> None:
    journal = run_spied(tmp_path / "mixed", {})
    shares = set()
    for entry in journal:
        rows = entry["rows"]
        (share,) = rows.extras["share"].unique().tolist()
        partners = rows.targets[rows.extras["partner"]]
        expected = share * cross_entropy(entry["logits"], rows.targets) + (1 - share) * cross_entropy(entry["logits"], partners)
        assert entry["value"] == pytest.approx(float(expected.mean()), rel=1e-5)
        assert sorted(rows.extras["partner"].tolist()) == list(range(len(rows)))
        shares.add(share)
    assert len(journal) == 7 * 5 + 7 * 9 and len(shares) >= 8
    for entry in run_spied(tmp_path / "plain", {"cutmix": 0.0}):
        assert not entry["rows"].extras
        assert entry["value"] == pytest.approx(float(cross_entropy(entry["logits"], entry["rows"].targets).mean()), rel=1e-5)


def test_in_task_incremental_runs_each_label_is_scored_within_its_own_task(tmp_path: Path) -> None:
    journal = run_spied(tmp_path, {}, scenario="task_il")
    across = sum(bool((entry["rows"].task_of_row != entry["rows"].task_of_row[entry["rows"].extras["partner"]]).any()) for entry in journal)
    assert across > 20 and all(0 < entry["value"] < 20 for entry in journal)


def test_a_small_alpha_mixes_less(tmp_path: Path) -> None:
    def spread(alpha: float) -> float:
        shares = torch.tensor([float(entry["rows"].extras["share"][0]) for entry in run_spied(tmp_path / str(alpha), {"cutmix": alpha})])
        return float((shares - shares.mean()).abs().mean())

    assert spread(0.05) > spread(1.0) > spread(50.0)  # Beta(a, a): at 0 or 1, uniform, at one half


# --- the sampler ---


def test_a_stream_is_read_once_and_nothing_stored_is_offered_again() -> None:
    plan = Plan.over(torch.arange(10), 4, 3, torch.Generator().manual_seed(0))
    once = first_pass(plan, torch.empty(0, dtype=torch.int64))
    assert once.epochs == 1 and once.steps == 3 and torch.equal(once.ids, plan.ids[:10]) and once.offsets.tolist() == [0, 4, 8, 10]
    fresh = first_pass(plan, torch.tensor([1, 5, 7]))
    assert fresh.steps == 3 and fresh.ids.tolist() == [sample for sample in plan.ids[:10].tolist() if sample not in (1, 5, 7)]
    empty = first_pass(Plan.empty(), torch.tensor([1]))
    assert (empty.steps, empty.visits, empty.epochs) == (0, 0, 0)


def outcome(folder: Path, stream: str, options: dict[str, Any] | None = None, **settings: Any) -> Outcome:
    experiment = experiment_of({"gdumb": {**QUICK, **(options or {})}}, folder, stream=stream, **settings)
    return finish(beside(experiment, after=[slot(Oblivious)]))


def memory_of(found: Outcome) -> dict[str, Tensor]:
    columns: dict[str, Tensor] = found.learner["strategies"]["gdumb"]["memory"]["columns"]
    return columns


def test_its_classes_differ_by_at_most_one_and_no_sample_is_stored_twice(tmp_path: Path) -> None:
    columns = memory_of(outcome(tmp_path / "greedy", "L0 L1 L2 L0", {"capacity": 40, "epochs": 1}, epochs=3))
    counts = torch.bincount(columns["targets"], minlength=6)
    assert int(counts.sum()) == 40 and int(counts.max() - counts.min()) == 1 and len(columns["ids"].unique()) == 40
    columns = memory_of(outcome(tmp_path / "reservoir", "L0 L1 L2", {"capacity": 40, "policy": "reservoir", "epochs": 1}))
    counts = torch.bincount(columns["targets"], minlength=6)
    assert int(counts.sum()) == 40 and int(counts.max() - counts.min()) > 1


# --- the learner ---


def test_every_pass_shows_each_stored_sample_once_at_the_rate_of_its_epoch(tmp_path: Path) -> None:
    journal = run_spied(tmp_path, {"minibatch": 16, "cutmix": 0.0, "lr": 0.2, "min_lr": 0.01})
    for event, per_epoch in ((0, 3), (1, 5)):
        own = [entry for entry in journal if entry["event"] == event]
        assert len(own) == 7 * per_epoch and {entry["kind"] for entry in own} == {Draw.separate(own[0]["rows"]).kind}
        orders = set()
        for epoch in range(7):
            visits = own[epoch * per_epoch : (epoch + 1) * per_epoch]
            shown = [sample for entry in visits for sample in entry["rows"].ids.tolist()]
            assert sorted(shown) == sorted(own[0]["stored"].ids.tolist())
            orders.add(tuple(shown))
            assert [entry["rate"] for entry in visits] == pytest.approx([warm_restarts(epoch, 0.2, 0.01)] * per_epoch)
        assert len(orders) == 7, "another order each time"


@pytest.mark.slow
def test_the_result_does_not_depend_on_the_order_of_tasks_that_filled_the_memory(tmp_path: Path) -> None:
    one, other = (outcome(tmp_path / stream.replace(" ", ""), stream) for stream in ("L0 L1 L2", "L1 L0 L2"))
    assert sorted(memory_of(one)["ids"].tolist()) == sorted(memory_of(other)["ids"].tolist())
    assert memory_of(one)["ids"].tolist() != memory_of(other)["ids"].tolist()
    assert first_difference(one.weights, other.weights) is None
    assert_different_weights(one, outcome(tmp_path / "less", "L1 L0 L2", {"capacity": 100}), "another memory")


@pytest.mark.slow
def test_nothing_but_the_memory_counts(tmp_path: Path) -> None:
    """What the model was before, and the run's optimizer but for its momentum and weight decay: neither has an effect."""
    alone = outcome(tmp_path / "alone", "L0 L1")
    other_rate = outcome(tmp_path / "rate", "L0 L1", optimizer={"name": "adam", "lr": 0.01, "reset": "never"})
    plain = {"name": "sgd", "lr": 0.7}
    assert first_difference(other_rate.weights, outcome(tmp_path / "plain", "L0 L1", optimizer=plain).weights) is None
    assert_different_weights(alone, other_rate, "the run's momentum and weight decay are used")


COMPOSE = {"cumulative", "joint", "power_law", "replay_share", "do_nothing", "noise", "reset_head", "rewind"}


def test_a_part_in_steps_that_are_never_applied_is_refused_before_the_data_are_read(tmp_path: Path) -> None:
    import tests.contract.fakes

    built_in = {entry.name for entry in registry.strategies.entries() if entry.load().__module__.startswith("strategies.")}
    plug_ins = set(tests.contract.fakes.FAKES)
    composing_plug_ins = {"fake_adapter", "fake_three_calls"}  # builds; looks at steps and leaves them as they are
    allowed, refused = set(), {}
    for name in (built_in | plug_ins) - {"gdumb"}:
        scenario = registry.strategies.get(name).traits.scenarios[-1]
        try:
            make_stack(experiment_of({name: {}, "gdumb": {}}, tmp_path, scenario=scenario))
            allowed.add(name)
        except ConfigurationError as error:
            refused[name] = str(error)
    assert (len(built_in), len(plug_ins)) == (36, 13)
    assert allowed == COMPOSE | composing_plug_ins
    for name, parts in {"half": "mask", "refresh": "step", "er": "draw", "er_ace": "draw, loss", "hypernetwork": "mask, loss"}.items():
        assert refused.pop(name) == (
            "strategies.gdumb.step: a fresh model is trained on the memory alone, "
            f"so what {name} does in steps ({parts}) would have no effect. Remove {name}."
        )
    assert refused.pop("analytic").endswith(" Remove gdumb."), "it applies no step either, and is asked first"
    for name, text in refused.items():
        assert text.startswith("strategies.gdumb.step: ") and text.endswith(f" Remove {name}."), text


def test_what_has_no_part_in_steps_or_only_watches_composes(tmp_path: Path) -> None:
    alone = finish(experiment_of({"gdumb": dict(QUICK)}, tmp_path / "alone", model=ROUGH))
    for where, kind, same in (("watched", Counting, True), ("wider", Structural, False), ("asked", Doubling, True)):
        beside_it = slot(kind)
        found = finish(beside(experiment_of({"gdumb": dict(QUICK)}, tmp_path / where, model=ROUGH), before=[beside_it]))
        assert beside_it.strategy_class.journal and (first_difference(found.weights, alone.weights) is None) == same
    small = {"gdumb": {**QUICK, "capacity": 20}}
    offered = finish(experiment_of({"cumulative": {}, **small}, tmp_path / "cumulative", model=ROUGH))
    assert_different_weights(offered, finish(experiment_of(small, tmp_path / "small", model=ROUGH)), "what the memory was offered")


def test_who_answers_an_unlearn_only_has_to_answer_but_rewind_lives_the_rest_again(tmp_path: Path) -> None:
    def answered_by(name: str, stream: str = "L0 L1 U0") -> Outcome:
        return finish(experiment_of({name: {}, "gdumb": {**QUICK, "capacity": 20}}, tmp_path / name, stream=stream))

    nothing, rewound = answered_by("do_nothing"), answered_by("rewind")
    assert first_difference(answered_by("noise").weights, nothing.weights) is None, "trained anew on what is left"
    never = answered_by("rewind", "L1")
    assert first_difference(rewound.weights, never.weights) is None
    assert_different_weights(nothing, never, "a memory that other samples once shared")


def phases(found: Outcome) -> list[list[str]]:
    return [[phase["name"] for phase in row["phases"]] for row in RunDirectory(found.path).events()]


def test_when_it_trains(tmp_path: Path) -> None:
    every = outcome(tmp_path / "every", "L0 L1 U0 L2")
    assert phases(every) == [["learn", "gdumb/train"], ["learn", "gdumb/train"], ["gdumb/train"], ["learn", "gdumb/train"]]
    last = outcome(tmp_path / "last", "L0 L1 U0 L2", {"when": "last"})
    assert phases(last) == [["learn"], ["learn"], [], ["learn", "gdumb/train"]]
    assert first_difference(every.weights, last.weights) is None
    after = outcome(tmp_path / "after", "L0 L1 U0", {"when": "last"})
    assert phases(after) == [["learn"], ["learn", "gdumb/train"], ["gdumb/train"]]


def test_without_samples_the_model_is_a_fresh_one(tmp_path: Path) -> None:
    gone = outcome(tmp_path / "gone", "L0 U0")
    assert memory_of(gone) == {}
    untrained = outcome(tmp_path / "untrained", "L0", {"epochs": 1, "lr": 1e-30, "min_lr": 0.0}, optimizer={"name": "sgd"})
    assert all(torch.allclose(value, untrained.weights[name], rtol=0, atol=1e-20) for name, value in gone.weights.items())
    assert_different_weights(gone, outcome(tmp_path / "trained", "L0"), "a trained model")


def test_the_clip_is_that_of_its_own_phase(tmp_path: Path) -> None:
    plain: dict[str, Any] = {"name": "sgd", "lr": 0.1}
    free = outcome(tmp_path / "free", "L0", optimizer=plain)
    clipped = outcome(tmp_path / "own", "L0", {"clip": 0.01}, optimizer=plain)
    runs = outcome(tmp_path / "runs", "L0", optimizer={**plain, "clip": 0.01})
    assert first_difference(clipped.weights, runs.weights) is None
    assert_different_weights(free, clipped, "clipped")
    unheard = outcome(tmp_path / "unheard", "L0", {"clip": 1e9}, optimizer={**plain, "clip": 0.01})
    assert all(torch.allclose(value, free.weights[name], atol=1e-6) for name, value in unheard.weights.items())


def test_sgd_is_its_optimizer_whatever_the_runs() -> None:
    optimizer = build_optimizer(
        OptimizerConfig(name="adam", lr=1e-3), {"name": "sgd", "lr": 0.05}, [nn.Parameter(torch.ones(1))], ["w"], {}
    )
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.param_groups[0]["lr"] == 0.05


# --- refusals ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 0}, "capacity must be >= 1, got 0"),
        ({"policy": "ring"}, "policy must be one of greedy, reservoir, got 'ring'"),
        ({"when": "never"}, "when must be one of every, last, got 'never'"),
        ({"epochs": 0}, "epochs must be >= 1, got 0"),
        ({"minibatch": 0}, "minibatch must be >= 1, got 0"),
        ({"lr": 0.0}, "lr must be > 0, got 0.0"),
        ({"min_lr": 0.1}, "min_lr must be >= 0 and <= 0.05, got 0.1"),
        ({"clip": 0.0}, "clip must be > 0, got 0.0"),
        ({"cutmix": -1.0}, "cutmix must be >= 0, got -1.0"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GDumbConfig(**options)


def test_fewer_samples_than_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"strategies.gdumb.capacity=5 cannot hold one sample of each of 6 classes, .*\. Raise it"):
        outcome(tmp_path, "L0 L1 L2", {"capacity": 5})
    assert len(memory_of(outcome(tmp_path, "L0 L1", {"capacity": 5}))["ids"]) == 5, "the stream shows four classes only"
    assert len(memory_of(outcome(tmp_path, "L0 L1 L2", {"capacity": 5, "policy": "reservoir"}))["ids"]) == 5, "it balances nothing"


def test_cutmix_is_refused_where_there_are_no_images() -> None:
    from cl_framework import Setting

    def check(shape: tuple[int, ...], cutmix: float) -> None:
        GDumb(GDumbConfig(cutmix=cutmix)).check(Setting("class_il", 8, 1, 0.0, 1, {}, classes_shown=4, input_shape=shape))

    with pytest.raises(ConfigurationError, match=r"cutmix=1 mixes images, but an input of this benchmark has shape \(20,\). Set cutmix=0"):
        check((20,), 1.0)
    check((20,), 0.0)
    check((3, 8, 8), 1.0)


def test_what_would_offer_samples_again_must_stand_before_it(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"strategies.gdumb.plan: cumulative would offer samples to the memory again. Put this slot"
    ):
        finish(experiment_of({"gdumb": dict(QUICK), "cumulative": {}}, tmp_path, stream="L0 L1"))
    found = finish(experiment_of({"cumulative": {}, "gdumb": dict(QUICK)}, tmp_path, stream="L0 L1"))
    ids = memory_of(found)["ids"]
    assert len(ids.unique()) == len(ids)
