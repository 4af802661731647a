"""Unlearning by a hypernetwork: without data, at chance with the old embedding too, held at noise later; the released form's quirks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_framework import ConfigurationError, Context, Forgotten, Phase, TaskConditionedModel, Unlearn, mean_squared_distance
from cl_framework.assembly import assemble, make_benchmark
from cl_framework.evaluation import evaluate
from cl_framework.models.mlp import MLP
from cl_framework.records import RunDirectory
from cl_framework.strategy import Setting
from cl_framework.testing.laboratory import Outcome, experiment_of, finish, in_place_of
from strategies.hypernetwork import Hypernetwork, HypernetworkConfig, fewer_steps

SMALL = {"embedding": 8, "chunk_embedding": 8, "hidden": [32], "chunk_size": 200}
SETTINGS: dict[str, Any] = {"scenario": "task_il", "epochs": 20, "optimizer": {"name": "adam", "lr": 0.003}}


def outcome(folder: Path, stream: str, **options: Any) -> Outcome:
    settings = {**SETTINGS, **({"epochs": options.pop("epochs")} if "epochs" in options else {})}
    return finish(experiment_of({"hypernetwork": {**SMALL, **options}}, folder, stream=stream, **settings))


def accuracies(found: Outcome) -> list[float]:
    return found.summary["accuracy_matrix"][-1]


def weights(found: Outcome) -> dict[str, Tensor]:
    return dict(found.learner["model"])


def accuracy_with(found: Outcome, folder: Path, task: int, embedding: Tensor) -> float:
    """Of the final model on a task, with an embedding put in place of its own."""
    learner = assemble(experiment_of({"hypernetwork": SMALL}, folder, stream="L0 L1", **SETTINGS))
    learner.model.load_state_dict(weights(found))
    assert isinstance(learner.model, TaskConditionedModel)
    with learner.model.with_task_key(task, {**learner.model.task_key(task), "embedding": embedding}):
        (accuracy,) = evaluate(learner, [task], [task])
    return accuracy.percent


@pytest.mark.parametrize("noise", ["fresh", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fixed", "fixed_body"))])
def test_a_task_is_at_chance_and_the_others_stay(noise: str, tmp_path: Path) -> None:
    learned, unlearned = outcome(tmp_path / "learned", "L0 L1"), outcome(tmp_path / "unlearned", "L0 L1 U0", noise=noise)
    before, after = accuracies(learned), accuracies(unlearned)
    assert before[0] > 90 and abs(after[0] - 50) <= 15, (before, after)  # of 40 samples
    assert after[1] >= before[1] - 5
    (row,) = [row for row in RunDirectory(unlearned.path).events() if row["kind"] == "unlearn"]
    assert (row["steps"], row["samples"], row["samples_drawn"]) == (100, 0, 0)  # no data was touched
    assert (row["forward_passes"], row["forward_rows"]) == (300, 400)  # of the hypernetwork: the held task twice, and two embeddings


@pytest.mark.slow
def test_the_old_embedding_put_back_brings_nothing_back_even_after_further_learning(tmp_path: Path) -> None:
    learned, unlearned = outcome(tmp_path / "learned", "L0 L1"), outcome(tmp_path / "unlearned", "L0 L1 U0")
    old = weights(learned)["embeddings.0"]
    assert accuracy_with(learned, tmp_path, 0, old) > 90
    assert abs(accuracy_with(unlearned, tmp_path, 0, old) - 50) <= 15
    assert not torch.equal(weights(unlearned)["embeddings.0"], old)
    assert torch.equal(weights(unlearned)["embeddings.1"], weights(learned)["embeddings.1"])
    assert abs(accuracy_with(outcome(tmp_path / "later", "L0 L1 U0 L2"), tmp_path, 0, old) - 50) <= 15


@pytest.mark.slow
def test_the_published_rate_and_weight_hide_a_task_behind_its_new_embedding(tmp_path: Path) -> None:
    learned = outcome(tmp_path / "learned", "L0 L1")
    hidden = outcome(tmp_path / "hidden", "L0 L1 U0", unlearning_lr=0.001, gamma=0.01)
    assert abs(accuracies(hidden)[0] - 50) <= 15
    assert accuracy_with(hidden, tmp_path, 0, weights(learned)["embeddings.0"]) > 90


class Locked:
    """Training samples that cannot be read while they are locked."""

    in_memory = True
    locked = False

    def __init__(self, source: Any) -> None:
        self.source, self.targets = source, source.targets

    def __len__(self) -> int:
        return len(self.source)

    def read(self, rows: Tensor) -> Any:
        assert not Locked.locked, "read while locked"
        return self.source.read(rows)


@pytest.mark.parametrize("locks", ["unlearn", "begin"])
def test_unlearning_reads_no_training_sample(locks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Locked, "locked", False)
    seen: list[str] = []

    class Locking(Hypernetwork):
        def begin(self, context: Context) -> Sequence[Phase]:
            Locked.locked = locks == "begin"  # the negative control: a Learn cannot do without
            return super().begin(context)

        def unlearn(self, event: Unlearn, context: Context) -> Sequence[Phase]:
            Locked.locked = True
            return super().unlearn(event, context)

        def forget(self, forgotten: Forgotten, context: Context) -> None:
            super().forget(forgotten, context)
            seen.append(str(forgotten.event))
            Locked.locked = False  # the audit after the event reads the samples, to search what is left for their bytes

    asked = in_place_of(experiment_of({"hypernetwork": SMALL}, tmp_path, stream="L0 L1 U0 L2 U1", **{**SETTINGS, "epochs": 1}), Locking)
    benchmark = make_benchmark(asked)
    locked = replace(benchmark, train=[Locked(source) for source in benchmark.train])
    if locks == "begin":
        with pytest.raises(AssertionError, match="read while locked"):
            finish(asked, locked)
    else:
        finish(asked, locked)
        assert seen == ["U0", "U1"]


def test_the_new_embedding_owes_nothing_to_the_data(tmp_path: Path) -> None:
    one, other = outcome(tmp_path / "one", "L0 L1 U0"), outcome(tmp_path / "other", "L0 L1 U0", epochs=1)
    assert torch.equal(weights(one)["embeddings.0"], weights(other)["embeddings.0"])
    assert not torch.equal(weights(one)["embeddings.1"], weights(other)["embeddings.1"])


@pytest.mark.slow
def test_an_unlearned_task_stays_at_its_noise_while_others_are_learned(tmp_path: Path) -> None:
    def written(found: Outcome) -> Tensor:
        learner = assemble(experiment_of({"hypernetwork": SMALL}, tmp_path, stream="L0 L1", **SETTINGS))
        learner.model.load_state_dict(weights(found))
        assert isinstance(learner.model, TaskConditionedModel)
        return learner.model.weights_of([0])[0].detach()

    def drift(**options: Any) -> float:
        name = f"{options}"
        then = outcome(tmp_path / name / "then", "L0 L1 U0", epochs=8, **options)
        now = outcome(tmp_path / name / "now", "L0 L1 U0 L2", epochs=8, **options)
        return float((written(now) - written(then)).norm() / written(then).norm())

    assert drift(beta=10.0) < 0.5 * drift(beta=10.0, variant="released")

    for variant, held in (("sound", [0]), ("released", [])):
        state = outcome(tmp_path / variant, "L0 L1 U0", epochs=1, variant=variant).learner["strategies"]["hypernetwork"]
        assert state["unlearned"] == held and state["embedding"] is None and not state["before"]


@pytest.mark.parametrize("variant", ["sound", pytest.param("released", marks=pytest.mark.slow)])
def test_the_last_live_task_can_be_unlearned_and_a_task_learned_again(variant: str, tmp_path: Path) -> None:
    alone = outcome(tmp_path / "alone", "L0 U0", variant=variant)
    assert all(bool(value.isfinite().all()) for value in weights(alone).values())
    assert abs(accuracies(alone)[0] - 50) <= 15
    again = outcome(tmp_path / "again", "L0 U0 L1 L0", variant=variant)
    assert min(accuracies(again)[:2]) > 85
    assert again.learner["strategies"]["hypernetwork"]["unlearned"] == []


@pytest.mark.slow
def test_tasks_are_learned_again_after_all_were_unlearned(tmp_path: Path) -> None:
    """Units of a plain ReLU die where the same noise is written for all tasks, and with them all that could be learned later."""
    images: dict[str, Any] = {"benchmark": {"name": "split_digits"}, "model": {"name": "mlp"}, "batch_size": 10, "epochs": 5}
    settings = {**SETTINGS, **images, "optimizer": {"name": "adam", "lr": 0.001}, "stream": "L0 L1 L2 U0 U1 U2 L0 L1"}

    def lowest(leak: float) -> float:
        options = {"chunk_size": 2000, "leak": leak}
        return min(accuracies(finish(experiment_of({"hypernetwork": options}, tmp_path / f"{leak}", **settings)))[:2])

    assert lowest(leak=0.01) > 90
    assert lowest(leak=0.0) < 60


@pytest.mark.slow
def test_the_released_form_keeps_the_embedding_and_takes_fewer_steps_each_time(tmp_path: Path) -> None:
    learned = outcome(tmp_path / "learned", "L0 L1", epochs=1, variant="released")
    released = outcome(tmp_path / "released", "L0 L1 U0", epochs=1, variant="released")
    assert torch.equal(weights(released)["embeddings.0"], weights(learned)["embeddings.0"])
    rows = {
        variant: RunDirectory(outcome(tmp_path / f"{variant}-two", "L0 L1 U0 U1", epochs=1, variant=variant).path).events()
        for variant in ("released", "sound")
    }
    steps = {variant: [row["steps"] for row in found if row["kind"] == "unlearn"] for variant, found in rows.items()}
    assert steps == {"released": [100, 90], "sound": [100, 100]}


class Noting(Hypernetwork):
    """Notes each step's terms, and the same by hand from what is written in the hypernetwork's own units."""

    journal: list[dict[str, Any]] = []  # noqa: RUF012 - one test at a time reads it

    def loss(self, batch: Any, output: Any, context: Context) -> Any:
        terms = super().loss(batch, output, context)
        model, event = context.model, context.position.event
        assert isinstance(model, TaskConditionedModel)
        with torch.no_grad():
            note: dict[str, Any] = {"event": str(event), "chunks": model.hypernetwork.chunks.clone()}
            note |= {f"{name} found": float(term.value()) for name, term in terms.items()}
            note |= {f"{name} weight": term.weight for name, term in terms.items()}
            others = [task for task in context.live_tasks if task != event.task]
            if "held" in terms:
                here = [model.weights_of([task], raw=True) - model.weights_of([task], self.before, raw=True) for task in others]
                note["held by hand"] = sum(float(part.square().sum()) for part in here) / len(here)
            if "noise" in terms:
                written = model.hypernetwork(model.embeddings[event.task].unsqueeze(0), True)
                noise = model.hypernetwork.raw_noise(context.random("noise").at_step(), self.config.draws)
                note["noise by hand"] = float((written - noise).square().sum())
        self.journal.append(note)
        return terms


def test_the_released_terms_are_of_all_that_is_written_and_of_all_live_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Noting, "journal", [])
    chosen: dict[str, Any] = {**SMALL, "variant": "released", "beta": 0.5, "unlearning_steps": 10}
    settings = {
        **SETTINGS,
        "epochs": 1,
        "benchmark": {"name": "synthetic", "tasks": 4, "train_per_class": 20, "test_per_class": 4, "seed": 0},
    }
    finish(in_place_of(experiment_of({"hypernetwork": chosen}, tmp_path, stream="L0-3 U1", **settings), Noting))
    held = [note for note in Noting.journal if "held found" in note]
    assert {note["event"] for note in held} == {"L1", "L2", "L3", "U1"}
    moved = [note for note in held if note["held found"] > 0]
    assert len(moved) > len(held) / 2
    for note in held:
        assert note["held found"] == pytest.approx(note["held by hand"], rel=1e-4)
        wanted = {"L1": 0.5 * 1 / 4, "L2": 0.5 * 2 / 4, "L3": 0.5 * 3 / 4, "U1": 1.0}[note["event"]]
        assert note["held weight"] == pytest.approx(wanted)
    noise = [note for note in Noting.journal if "noise found" in note]
    assert [note["event"] for note in noise] == ["U1"] * 10
    for note in noise:
        assert note["noise found"] == pytest.approx(note["noise by hand"], rel=1e-5) and note["noise weight"] == 0.01
    first = Noting.journal[0]["chunks"]
    assert all(torch.equal(note["chunks"], first) for note in Noting.journal), "chunk embeddings are not trained"


def test_all_that_is_written_has_what_is_cut_off_and_the_weights_in_it() -> None:
    one = model()
    raw, weights_ = one.weights_of([1], raw=True), one.weights_of([1])
    total = one.hypernetwork.layout.total
    assert raw.shape[1] > total == weights_.shape[1]
    sizes = torch.tensor(one.hypernetwork.layout.sizes)
    scaled = one.hypernetwork.offsets.repeat_interleave(sizes) + one.hypernetwork.scales.repeat_interleave(sizes) * raw[:, :total]
    torch.testing.assert_close(scaled, weights_)
    assert not torch.allclose(raw[:, :total], weights_)
    noise = {draws: one.hypernetwork.raw_noise(torch.Generator().manual_seed(1), draws) for draws in (1, 25)}
    assert noise[1].shape == raw[0].shape and float(noise[1].std()) == pytest.approx(1, rel=0.05)
    assert torch.allclose(noise[25] * 5, noise[1], atol=1e-5)


def test_each_variant_has_its_defaults_and_spelled_out_they_are_the_same(tmp_path: Path) -> None:
    def fingerprint(**options: Any) -> str:
        return experiment_of({"hypernetwork": {**SMALL, **options}}, tmp_path, stream="L0 L1 U0", **SETTINGS).fingerprint

    assert fingerprint() == fingerprint(sampled_tasks=2, leak=0.01, gamma=0.1, unlearning_lr=0.01) != fingerprint(gamma=0.01)
    assert fingerprint(variant="released") == fingerprint(variant="released", leak=0.0, gamma=0.01, unlearning_lr=0.001)
    assert fingerprint() != fingerprint(leak=0.0)
    assert fingerprint(variant="released") != fingerprint(variant="released", sampled_tasks=2)


def test_each_request_has_nine_tenths_of_the_steps_of_the_one_before_rounded_down() -> None:
    assert [fewer_steps(100, requests) for requests in range(10)] == [100, 90, 81, 72, 64, 57, 51, 45, 40, 36]
    assert [fewer_steps(2, requests) for requests in range(4)] == [2, 1, 1, 1]


def model() -> TaskConditionedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TaskConditionedModel(nn.Sequential(nn.Flatten(), nn.Linear(60, 50), nn.ReLU(), nn.Linear(50, 4)), 2, 4, 4, (8,), 500)


def test_noise_is_spread_as_fresh_weights_and_less_for_the_mean_of_several_draws() -> None:
    hypernetwork = model().hypernetwork
    named = {draws: hypernetwork.layout.named(hypernetwork.fresh_weights(torch.Generator().manual_seed(1), draws)) for draws in (1, 25)}
    for index, name in enumerate(hypernetwork.layout.names):
        if "weight" in name and named[1][name].numel() > 100:
            scale = float(hypernetwork.scales[index])
            assert float(named[1][name].std()) == pytest.approx(scale, rel=0.15)
            assert torch.allclose(named[25][name] * 5, named[1][name], atol=1e-5)


def test_a_start_without_a_head_prefers_no_class_and_keeps_its_features() -> None:
    model = TaskConditionedModel(MLP((6,), 4, (50,)), 2, 4, 4, (8,), 500)
    drawn = model.hypernetwork.fresh_weights(torch.Generator().manual_seed(1))
    rows, answers = torch.randn(5, 6), {}
    for name, weights in (("drawn", drawn), ("without", model.hypernetwork.start_without_head(drawn))):
        features, logits = model._run(rows, 0, weights)
        answers[name] = (features, logits)
    assert torch.equal(answers["drawn"][0], answers["without"][0])
    assert float(answers["without"][1].abs().max()) == 0.0 < float(answers["drawn"][1].abs().max())


def test_the_mean_of_draws_has_the_gradient_of_the_mean_distance() -> None:
    generator = torch.Generator().manual_seed(2)
    written = torch.randn(7, generator=generator, requires_grad=True)
    draws = torch.randn(5, 7, generator=generator)
    mean_of_distances = torch.stack([(written - z).square().sum() for z in draws]).mean()
    (wanted,) = torch.autograd.grad(mean_of_distances, written)
    (found,) = torch.autograd.grad(mean_squared_distance(written.unsqueeze(0), draws.mean(0, keepdim=True)), written)
    assert torch.allclose(wanted, found, atol=1e-5)
    (one,) = torch.autograd.grad(mean_squared_distance(written.unsqueeze(0), draws[:1]), written)
    assert not torch.allclose(wanted, one, atol=1e-2)


def test_the_expected_distance_to_noise_is_that_to_its_mean_and_its_variance() -> None:
    """E |W - z|^2 = |W - offset|^2 + sum of squared scales; its gradient 2 (W - offset), with a variance that falls as 1 / draws."""
    hypernetwork = model().hypernetwork
    sizes = torch.tensor(hypernetwork.layout.sizes)
    offsets, scales = (value.repeat_interleave(sizes).double() for value in (hypernetwork.offsets, hypernetwork.scales))
    generator = torch.Generator().manual_seed(3)
    written = offsets + torch.randn(len(offsets), generator=generator, dtype=torch.float64) * scales

    def noise(draws: int) -> Tensor:
        return torch.stack([hypernetwork.fresh_weights(generator, draws) for _ in range(2000)]).double()

    one, ten = noise(1), noise(10)
    expected = (written - offsets).square().sum() + scales.square().sum()
    assert float((written - one).square().sum(1).mean()) == pytest.approx(float(expected), rel=0.01)
    assert float((written - ten).square().sum(1).mean()) < 0.8 * float(expected)  # of ten draws the distance is to their mean
    gradient, wanted = 2 * (written - one.mean(0)), 2 * (written - offsets)
    assert float((gradient - wanted).norm() / wanted.norm()) < 0.05
    assert float(one.var(0).sum() / ten.var(0).sum()) == pytest.approx(10, rel=0.05)


def test_what_is_held_pulls_at_nothing_where_nothing_has_moved() -> None:
    """Without alignment with noise a step of unlearning would leave everything as it is."""
    one = model()
    shared, before = list(one.hypernetwork.parameters()), one.shared_parameters()

    def pull() -> float:
        distance = mean_squared_distance(one.weights_of([0, 1]), one.weights_of([0, 1], before).detach())
        return sum(float(gradient.abs().sum()) for gradient in torch.autograd.grad(distance, shared))

    assert pull() == 0.0
    with torch.no_grad():
        one.hypernetwork.output.bias.add_(0.1)
    assert pull() > 0.0


def test_another_embedding_answers_meanwhile_and_its_own_again_after_an_error() -> None:
    one = model()
    own, other = one.embeddings[0].detach().clone(), torch.ones(4)
    with one.with_task_key(0, {**one.task_key(0), "embedding": other}):
        assert torch.equal(one.weights_of([0]), one.weights_at(other.unsqueeze(0)))
    assert torch.equal(one.embeddings[0], own)
    with pytest.raises(RuntimeError, match="on purpose"), one.with_task_key(0, {**one.task_key(0), "embedding": other}):
        raise RuntimeError("on purpose")
    assert torch.equal(one.embeddings[0], own) and not torch.equal(own, other)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"variant": "published"}, "hypernetwork.variant must be one of sound, released, got 'published'"),
        ({"gamma": 0}, "hypernetwork.gamma must be > 0, got 0.0"),
        ({"noise": "loud"}, "hypernetwork.noise must be one of fresh, fixed, fixed_body, got 'loud'"),
        ({"unlearning_steps": 0}, "hypernetwork.unlearning_steps must be >= 1, got 0"),
        ({"noise": "fixed", "draws": 2}, "hypernetwork.draws=2 belongs to noise=fresh; with noise=fixed one set is .*, leave draws out"),
        ({"noise": "fixed_body", "draws": 2}, "with noise=fixed_body one set is drawn, leave draws out"),
        ({"noise": "fixed_body", "variant": "released"}, "noise=fixed_body is for variant=sound and writes=all, .* Use noise=fixed"),
        ({"noise": "fixed_body", "writes": "head"}, "noise=fixed_body is for variant=sound and writes=all, .* Use noise=fixed"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=text):
        experiment_of({"hypernetwork": options}, tmp_path, scenario="task_il")


def test_a_body_is_told_from_a_head(tmp_path: Path) -> None:
    strategy, setting = Hypernetwork(HypernetworkConfig(noise="fixed_body")), Setting("task_il", 8, 1, 0.0, 2, {})
    strategy.check(replace(setting, model=MLP((6,), 4, (5,))))
    with pytest.raises(ConfigurationError, match=r"noise=fixed_body tells a head from a body; .* Use noise=fixed\."):
        strategy.check(replace(setting, model=nn.Linear(6, 4)))


def test_it_unlearns_whole_tasks_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="U0:class=1 unlearns at class level, but no strategy of this stack can do that"):
        outcome(tmp_path, "L0 U0:class=1")
