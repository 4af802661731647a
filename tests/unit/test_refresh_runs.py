"""Refresh in runs: what an ascent does to a step and leaves alone, what is frozen, the Fisher information it is scaled by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cl_framework import Batch, Closure, Context, Evaluation, Output, StepFn
from cl_framework.testing.laboratory import (
    ROUGH,
    Outcome,
    assert_different_weights,
    assert_equal_outcomes,
    beside,
    experiment_of,
    finish,
    first_difference,
    in_place_of,
)
from cl_framework.testing.neighbours import Counting, Freezing, Neighbour, Oblivious, TwoViews, place_of, slot, snapshot
from strategies.refresh import (
    DECAY,
    Refresh,
)


def flat(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


# --- in a step ---


class Before(Neighbour):
    """Stands outside: notes the weights, the rest of the learner's state, and the gradients by name."""

    names: tuple[str, ...] = ()

    def step(self, inner: StepFn, context: Context) -> StepFn:
        def noted(closure: Closure) -> Evaluation:
            found = closure.gradients(*self.names).gradients
            assert found is not None
            gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(context.parameters, found, strict=True)]
            self.journal.append(entry(context, gradients=gradients))
            return inner(closure)

        return noted


class OfTheTask(Before):
    names = ("task",)


class After(Neighbour):
    """Stands inside: notes what the ascent has left."""

    def step(self, inner: StepFn, context: Context) -> StepFn:
        def noted(closure: Closure) -> Evaluation:
            self.journal.append(entry(context, loss=closure.values().loss))
            return inner(closure)

        return noted


def entry(context: Context, **more: Any) -> dict[str, Any]:
    learner = context.learner  # type: ignore[attr-defined]
    state = snapshot(learner.state_dict())
    weights = [parameter.detach().clone() for parameter in context.parameters]
    names = set(context.parameter_names)
    state["model"] = {name: value for name, value in state["model"].items() if name not in names}
    state["grad"] = [parameter.grad is None for parameter in context.parameters]
    return {"place": place_of(context), "weights": weights, "state": state, "random": torch.get_rng_state(), **more}


def journals(
    folder: Path, options: dict[str, Any], outside: type[Before] = Before, host: dict[str, Any] | None = None, **settings: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    settings.setdefault("stream", "L0 L1")
    before, after = slot(outside), slot(After)
    finish(beside(experiment_of({"refresh": options, **(host or {})}, folder, **settings), before=[before], after=[after]))
    return before.strategy_class.journal, after.strategy_class.journal


ADAM = {"name": "adam", "lr": 0.01, "reset": "never"}


def test_before_the_first_task_ends_the_ascent_is_gamma_times_the_gradient_of_the_whole_objective(tmp_path: Path) -> None:
    host = {"derpp": {"capacity": 30}}
    before, after = journals(tmp_path, {"gamma": 0.02, "temperature": 0.0}, host=host, stream="L0", optimizer=ADAM)
    alone, _ = journals(tmp_path / "task", {"gamma": 0.02, "temperature": 0.0}, OfTheTask, host, stream="L0", optimizer=ADAM)
    swept = differing = 0
    for one, other, task in zip(before, after, alone, strict=True):
        for theta, moved, gradient, part in zip(one["weights"], other["weights"], one["gradients"], task["gradients"], strict=True):
            torch.testing.assert_close(moved, theta + 0.02 * gradient, rtol=0, atol=1e-7)
            differing += not torch.allclose(gradient, part, rtol=0, atol=1e-4)
            swept += 1
    assert swept == 5 * 4 and differing >= 3 * 4, "the memory's terms are part of what is unlearned"


@pytest.mark.parametrize("options", [{"gamma": 0.02, "temperature": 0.01}, {"variant": "released", "delta": 0.01}])
def test_nothing_but_the_weights_is_touched_by_the_ascent(tmp_path: Path, options: dict[str, Any]) -> None:
    """BatchNorm statistics, optimizer moments, memories, `.grad` and the random state."""
    before, after = journals(tmp_path, options, host={"er": {"capacity": 30}}, model=ROUGH, optimizer=ADAM)
    assert len(before) == len(after) == 10
    for one, other in zip(before, after, strict=True):
        assert first_difference(one["state"], other["state"]) is None and one["place"] == other["place"]
        assert all(one["state"]["grad"]) and all(other["state"]["grad"])
        assert flat(one["weights"]).ne(flat(other["weights"])).float().mean() > 0.5
    moved = [first_difference(one["state"], other["state"]) for one, other in zip(before, after[1:], strict=False)]
    assert all(moved), "a whole step does move this state"


def test_the_second_ascent_starts_where_the_first_led(tmp_path: Path) -> None:
    twice, after_two = journals(tmp_path / "2", {"gamma": 0.05, "temperature": 0.0, "steps": 2}, stream="L0")
    once, after_one = journals(tmp_path / "1", {"gamma": 0.05, "temperature": 0.0}, stream="L0")
    assert torch.equal(flat(once[0]["weights"]), flat(twice[0]["weights"]))
    ahead, at_one, at_two = (flat(parts) for parts in (once[0]["weights"], after_one[0]["weights"], after_two[0]["weights"]))
    second = at_two - at_one
    assert not torch.allclose(second, at_one - ahead, rtol=0.01), "the same gradient twice is another step"
    assert float(functional.cosine_similarity(second, at_one - ahead, dim=0)) > 0.8
    assert after_two[0]["loss"] > after_one[0]["loss"]


def test_one_step_inward_however_many_ascents(tmp_path: Path) -> None:
    for steps in (0, 1, 3):
        counting = slot(Counting)
        done = finish(beside(experiment_of({"refresh": {"steps": steps}}, tmp_path / str(steps)), after=[counting])).summary["steps"]
        assert len(counting.strategy_class.journal) == len(set(counting.strategy_class.journal)) == 10
        assert done == (10 if steps == 0 else 20), "the Fisher passes are steps of their own"


def test_the_passes_are_what_the_card_says(tmp_path: Path) -> None:
    def passes(options: dict[str, Any] | None) -> tuple[int, int]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        events = finish(experiment_of({} if options is None else {"refresh": options}, folder, stream="L0")).path / "events.jsonl"
        row = json.loads(events.read_text().splitlines()[0])
        return row["forward_passes"], row["backward_passes"]

    plain, one, three = passes(None), passes({}), passes({"steps": 3})
    assert plain == (5, 5)
    assert one == (5 + 5 + 2 * 5, 5 + 5 + 5), "an ascent a step; in the Fisher pass a look and a gradient a sample"
    assert three == (one[0] + 2 * 5, one[1] + 2 * 5)


def test_the_noise_belongs_to_the_step_and_the_slot(tmp_path: Path) -> None:
    def first_moves(folder: str, name: str = "refresh", seed: int = 0) -> list[Tensor]:
        options = {"use": "refresh", "gamma": 1e-9, "temperature": 1e6}  # the noise alone
        before, after = slot(Before), slot(After)
        finish(beside(experiment_of({name: options}, tmp_path / folder, stream="L0", seed=seed), before=[before], after=[after]))
        pairs = zip(before.strategy_class.journal, after.strategy_class.journal, strict=True)
        return [flat(after["weights"]) - flat(before["weights"]) for before, after in pairs]

    moves = first_moves("one")
    assert len(moves) == 5 and not torch.allclose(moves[0], moves[1], atol=1e-3)
    torch.testing.assert_close(moves[0], first_moves("again")[0])
    assert not torch.allclose(moves[0], first_moves("other", name="second")[0], atol=1e-3)
    assert not torch.allclose(moves[0], first_moves("seed", seed=1)[0], atol=1e-3)


# --- what is frozen ---


class Inside(Freezing):
    """Freezes as its base does; notes at the place where the gradient is taken whether its entries stand where they were."""

    def step(self, inner: StepFn, context: Context) -> StepFn:
        def noted(closure: Closure) -> Evaluation:
            now = dict(context.model.named_parameters())[self._part_name].detach()
            before = self._before[self._part_name]
            equal = [torch.equal(before[which], now[which]) for which in (~self._moves, self._moves)]
            self.journal.append({"place": place_of(context), "frozen": equal[0], "free": equal[1]})
            return inner(closure)

        return noted

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        pass


@pytest.mark.parametrize("options", [{"gamma": 0.05, "temperature": 0.01, "steps": 2}, {"variant": "released", "delta": 0.1}])
def test_the_gradient_is_taken_where_frozen_entries_are_frozen(tmp_path: Path, options: dict[str, Any]) -> None:
    frozen = slot(Inside)
    finish(beside(experiment_of({"refresh": options}, tmp_path / "frozen"), after=[frozen]))
    journal = frozen.strategy_class.journal
    assert len(journal) == 10 and all(entry["frozen"] for entry in journal)
    assert not any(entry["free"] for entry in journal)
    control = slot(Inside)
    control.strategy_class.freezes = False  # type: ignore[attr-defined]
    finish(beside(experiment_of({"refresh": options}, tmp_path / "free"), after=[control]))
    assert len(control.strategy_class.journal) == 10 and not any(entry["frozen"] for entry in control.strategy_class.journal)


# --- the Fisher information ---


def state_after(folder: Path, options: dict[str, Any], stream: str, **settings: Any) -> Outcome:
    return finish(experiment_of({"refresh": options}, folder, stream=stream, **settings))


class Recording(Refresh):
    """Keeps what each pass found."""

    kept: list[dict[str, Tensor]] = []  # noqa: RUF012 - one test at a time reads it

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        phase = context.position.phase
        super().commit(batch, output, context)
        if phase is not None and phase.owner == context.slot and context.position.step == phase.steps - 1:
            self.kept.append(snapshot(self._fisher))


@pytest.mark.parametrize(("options", "decay"), [({}, 0.0), ({"variant": "released"}, DECAY)])
def test_the_fisher_is_that_of_the_latest_task(tmp_path: Path, options: dict[str, Any], decay: float) -> None:
    Recording.kept.clear()
    outcome = finish(in_place_of(experiment_of({"refresh": options}, tmp_path, stream="L0 L1"), Recording))
    first, second = Recording.kept
    assert outcome.learner["strategies"]["refresh"]["fisher"].keys() == {name for name in outcome.weights if "num" not in name}
    model, labels = outcome.weights, "weighted" if decay else "given"
    for name, own in of_the_second_task(tmp_path, model, labels).items():
        torch.testing.assert_close(second[name], own + decay * first[name], rtol=1e-4, atol=1e-9)
        assert bool((second[name] >= 0).all()) and bool(torch.isfinite(second[name]).all())
    control = of_the_second_task(tmp_path, model, "given" if decay else "weighted")
    assert not torch.allclose(second["head.weight"], control["head.weight"], rtol=0.05)


def of_the_second_task(folder: Path, weights: dict[str, Tensor], labels: str) -> dict[str, Tensor]:
    """Mean squared gradients over task 1, sample by sample, of the plain two-layer model written out."""
    from cl_framework.assembly import make_benchmark

    benchmark = make_benchmark(experiment_of({}, folder))
    items, targets, _ = benchmark.read(benchmark.ids_of(1))
    total = {name: torch.zeros_like(value) for name, value in weights.items()}
    for item, target in zip(items.float() / 255, targets, strict=True):  # type: ignore[union-attr]
        held = {name: value.clone().requires_grad_() for name, value in weights.items()}
        hidden = functional.relu(item.flatten() @ held["body.1.weight"].T + held["body.1.bias"])
        log_p = (hidden @ held["head.weight"].T + held["head.bias"]).log_softmax(0)[target]
        factor = float(log_p.detach().exp()) if labels == "weighted" else 1.0
        for name, gradient in zip(held, torch.autograd.grad(log_p, list(held.values())), strict=True):
            total[name] += factor * gradient.square()
    assert len(targets) == 36
    return {name: value / len(targets) for name, value in total.items()}


def test_after_a_task_the_ascent_is_scaled_by_its_fisher(tmp_path: Path) -> None:
    options = {"gamma": 1e-4, "temperature": 0.0, "damping": 0.01}
    before, after = journals(tmp_path, options)
    fisher = state_after(tmp_path / "one", options, "L0").learner["strategies"]["refresh"]["fisher"]
    one, other = before[5], after[5]
    differing = 0
    for theta, moved, gradient, part in zip(one["weights"], other["weights"], one["gradients"], fisher.values(), strict=True):
        torch.testing.assert_close(moved - theta, 1e-4 * gradient / (part + 0.01), rtol=1e-4, atol=1e-7)
        differing += not torch.allclose(moved - theta, 0.01 * gradient, rtol=0.05, atol=1e-7)
    assert differing == 4, "the Fisher of the first task counts"


def test_fewer_samples_give_another_fisher_of_as_many_steps_as_they_fill(tmp_path: Path) -> None:
    def steps_and_fisher(samples: int | None) -> tuple[int, Tensor]:
        outcome = state_after(tmp_path / str(samples), {"gamma": 1e-12, "fisher_samples": samples}, "L0")
        return outcome.summary["steps"], outcome.learner["strategies"]["refresh"]["fisher"]["head.weight"]

    found = {samples: steps_and_fisher(samples) for samples in (None, 36, 100, 20, 3)}
    assert {samples: steps - 5 for samples, (steps, _) in found.items()} == {None: 5, 36: 5, 100: 5, 20: 3, 3: 1}
    torch.testing.assert_close(found[36][1], found[None][1])
    assert not torch.allclose(found[20][1], found[None][1], rtol=0.01)


def test_what_was_unlearned_leaves_no_fisher_behind(tmp_path: Path) -> None:
    def fisher(stream: str) -> dict[str, Tensor]:
        experiment = experiment_of({"refresh": {}}, tmp_path / stream.replace(" ", ""), stream=stream)
        outcome = finish(beside(experiment, after=[slot(Oblivious)]))
        return dict(outcome.learner["strategies"]["refresh"]["fisher"])

    assert fisher("L0 L1") and not fisher("L0 L1 U0") and fisher("L0 L1 U0 L2")


# --- settings at which it is the host ---


@pytest.mark.parametrize("options", [{"gamma": 0.0}, {"steps": 0}, {"variant": "released", "delta": 0.0}])
def test_without_an_ascent_it_is_the_host_bit_for_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    def outcome(name: str, stack: dict[str, Any]) -> Outcome:
        return finish(experiment_of({**stack, "derpp": {"capacity": 20}}, tmp_path / name, model=ROUGH, optimizer=ADAM))

    host = outcome("host", {})
    assert_equal_outcomes(outcome("idle", {"refresh": options}), host, f"with {options}", slot="derpp")
    assert_different_weights(outcome("acts", {"refresh": {}}), host, "with defaults")


class Skipping(TwoViews):
    """Leaves some steps without rows."""

    def plan(self, plan: Any, context: Context) -> Any:
        self.journal.append(plan.steps)
        keep = torch.ones(plan.visits, dtype=torch.bool)
        keep[int(plan.offsets[1]) : int(plan.offsets[2])] = False
        return plan.keep(keep)


@pytest.mark.parametrize("options", [{}, {"variant": "released"}])
@pytest.mark.parametrize("host", [{}, {"er": {"capacity": 20}}])
def test_a_step_without_stream_rows(tmp_path: Path, options: dict[str, Any], host: dict[str, Any]) -> None:
    skipping = slot(Skipping)
    experiment = experiment_of({"refresh": options, **host}, tmp_path, stream="L0 L1")
    assert finish(beside(experiment, after=[skipping])).summary["steps"] == 20
    assert skipping.strategy_class.journal == [5, 5]
