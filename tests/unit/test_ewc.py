"""Online EWC: the penalty, its Fisher information and its anchors against their definitions; what is forgotten; options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_framework import Closure, Context, Evaluation, StepFn, run
from cl_framework.testing.laboratory import ROUGH, Outcome, beside, experiment_of, finish, first_difference
from cl_framework.testing.neighbours import Neighbour, Oblivious, slot, snapshot
from cl_framework.unlearning.deletion import DeletionLog
from strategies.ewc import EWC, EWCConfig, accumulated

TINY = 1e-12  # a weight of the penalty that leaves the trajectory as it would be without


def test_the_fisher_is_a_decayed_sum() -> None:
    old, new = {"a": torch.tensor([1.0, 2.0]), "gone": torch.tensor([4.0])}, {"a": torch.tensor([3.0, 0.0]), "born": torch.tensor([5.0])}
    found = accumulated(old, new, 0.5)
    assert {name: value.tolist() for name, value in found.items()} == {"a": [3.5, 1.0], "gone": [2.0], "born": [5.0]}
    assert accumulated({}, new, 0.5) == new


# --- the penalty in a step ---


class Seeing(Neighbour):
    """Notes the penalty, its gradient, the weights and the strategy's state at each step of the stream."""

    def step(self, inner: StepFn, context: Context) -> StepFn:
        def noted(closure: Closure) -> Evaluation:
            penalised = "ewc/penalty" in closure.names
            found = closure.gradients("ewc/penalty") if penalised else None
            whole, task = closure.gradients(), closure.gradients("task")
            state = context.learner.stack.state_dict()["ewc"]  # type: ignore[attr-defined]
            self.journal.append(
                {
                    "event": context.position.event_index,
                    "weights": {name: p.detach().clone() for name, p in zip(context.parameter_names, context.parameters, strict=True)},
                    "state": snapshot(state),
                    "penalty": found,
                    "rise": float(whole.loss - task.loss),
                }
            )
            return inner(closure)

        return noted


def seen(folder: Path, options: dict[str, Any], **settings: Any) -> list[dict[str, Any]]:
    seeing = slot(Seeing)
    finish(beside(experiment_of({"ewc": options}, folder, stream="L0 L1 L2", **settings), before=[seeing]))
    journal: list[dict[str, Any]] = seeing.strategy_class.journal
    assert len(journal) == 15 and [entry["event"] for entry in journal] == [0] * 5 + [1] * 5 + [2] * 5
    return journal


@pytest.mark.parametrize(("variant", "half"), [("paper", 0.5), ("released", 1.0)])
def test_the_penalty_and_its_gradient_follow_the_equation(tmp_path: Path, variant: str, half: float) -> None:
    swept = other_factor = 0
    for number, entry in enumerate(seen(tmp_path, {"weight": 30.0, "variant": variant})):
        state, found = entry["state"], entry["penalty"]
        if number < 5:
            assert found is None and not state["fisher"]
            continue
        squares = sum(
            float((fisher * (entry["weights"][name] - state["anchors"][name]).square()).sum()) for name, fisher in state["fisher"].items()
        )
        assert float(found.loss) == pytest.approx(squares, rel=1e-4, abs=1e-9)
        assert entry["rise"] == pytest.approx(half * 30 * squares, rel=1e-3, abs=1e-5)
        other_factor += entry["rise"] != pytest.approx((1.5 - half) * 30 * squares, rel=1e-3, abs=1e-5)
        for (name, fisher), gradient in zip(state["fisher"].items(), found.gradients, strict=True):
            torch.testing.assert_close(gradient, 2 * fisher * (entry["weights"][name] - state["anchors"][name]), rtol=1e-4, atol=1e-9)
            swept += 1
    assert swept == 10 * 4 and other_factor >= 7


def test_where_a_task_begins_the_penalty_and_its_gradient_are_0(tmp_path: Path) -> None:
    journal = seen(tmp_path, {"weight": 30.0})
    for number in (5, 10):
        found = journal[number]["penalty"]
        assert float(found.loss) == 0 and not any(bool(gradient.any()) for gradient in found.gradients)
        assert float(journal[number + 1]["penalty"].loss) > 0
        assert first_difference(journal[number]["weights"], journal[number]["state"]["anchors"]) is None


def test_it_holds_the_weights_the_more_firmly_the_larger_its_weight(tmp_path: Path) -> None:
    def moved(weight: float) -> float:
        settings: dict[str, Any] = {"optimizer": {"name": "sgd", "lr": 0.01}, "epochs": 4}
        start = finish(experiment_of({"ewc": {"weight": weight}}, tmp_path / f"{weight}-start", stream="L0", **settings))
        end = finish(experiment_of({"ewc": {"weight": weight}}, tmp_path / f"{weight}-end", stream="L0 L1", **settings))
        fisher = start.learner["strategies"]["ewc"]["fisher"]
        return sum(float((fisher[name] * (end.weights[name] - start.weights[name]).square()).sum()) for name in fisher)

    found = [moved(weight) for weight in (0.1, 10.0, 100.0)]
    assert found == sorted(found, reverse=True) and found[-1] < 0.7 * found[0]


# --- the Fisher information and the anchors ---


def outcome(folder: Path, options: dict[str, Any], stream: str, **settings: Any) -> Outcome:
    return finish(experiment_of({"ewc": {"weight": TINY, **options}}, folder, stream=stream, **settings))


def fisher_after(folder: Path, options: dict[str, Any], stream: str, **settings: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = outcome(folder, options, stream, **settings).learner["strategies"]["ewc"]["fisher"]
    assert found and all(bool(torch.isfinite(value).all()) and bool((value >= 0).all()) for value in found.values())
    return found


def test_tasks_add_up_and_earlier_ones_decay(tmp_path: Path) -> None:
    first = fisher_after(tmp_path / "first", {}, "L0")
    second = fisher_after(tmp_path / "second", {"gamma": 0.0}, "L0 L1")
    swept = 0
    for gamma in (0.3, 1.0):
        both = fisher_after(tmp_path / f"both-{gamma}", {"gamma": gamma}, "L0 L1")
        for name, value in both.items():
            torch.testing.assert_close(value, gamma * first[name] + second[name], rtol=1e-4, atol=1e-7)
            assert not torch.allclose(value, second[name], rtol=0.01)
            swept += 1
    assert swept == 2 * 4


def test_it_holds_parameters_and_no_statistics_and_the_anchors_are_the_last_weights(tmp_path: Path) -> None:
    found = outcome(tmp_path, {}, "L0 L1", model=ROUGH)
    state = found.learner["strategies"]["ewc"]
    statistics = {name for name in found.weights if "running" in name or "num_batches" in name}
    assert len(statistics) == 3 and state["fisher"].keys() == state["anchors"].keys() == found.weights.keys() - statistics
    assert all(torch.equal(anchor, found.weights[name]) for name, anchor in state["anchors"].items())
    before = outcome(tmp_path / "before", {}, "L0", model=ROUGH)
    assert first_difference(before.learner["strategies"]["ewc"]["anchors"], state["anchors"]) is not None


def test_which_labels_the_squares_are_taken_at(tmp_path: Path) -> None:
    found = {
        labels: fisher_after(tmp_path / str(labels), {} if labels is None else {"fisher_labels": labels}, "L0")["head.weight"]
        for labels in (None, "given", "expected", "weighted")
    }
    released = fisher_after(tmp_path / "released", {"variant": "released"}, "L0")["head.weight"]
    mixed = fisher_after(tmp_path / "mixed", {"variant": "released", "fisher_labels": "given"}, "L0")["head.weight"]
    given = found["given"]
    assert found[None] is not given and torch.equal(found[None], given) and torch.equal(mixed, given)
    assert torch.equal(released, found["weighted"])
    assert not torch.allclose(given, found["expected"], rtol=0.01) and bool((found["weighted"] <= given).all())


def test_rows_of_the_head_for_other_tasks_are_free_where_their_logits_do_not_compete(tmp_path: Path) -> None:
    masked = fisher_after(tmp_path / "task_il", {}, "L0", scenario="task_il")["head.weight"]
    competing = fisher_after(tmp_path / "class_il", {}, "L0", scenario="class_il")["head.weight"]
    assert bool((masked[2:] == 0).all()) and bool((masked[:2] > 0).any()) and bool((competing[2:] > 0).any())


def test_fewer_samples_take_fewer_steps(tmp_path: Path) -> None:
    steps = {
        samples: outcome(tmp_path / str(samples), {"fisher_samples": samples}, "L0").summary["steps"] - 5 for samples in (None, 50, 17, 1)
    }
    assert steps == {None: 5, 50: 5, 17: 3, 1: 1}


def test_what_it_costs(tmp_path: Path) -> None:
    def passes(stack: dict[str, Any], name: str) -> list[tuple[int, int]]:
        events = finish(experiment_of(stack, tmp_path / name, stream="L0 L1")).path / "events.jsonl"
        rows = [json.loads(line) for line in events.read_text().splitlines()]
        return [(row["forward_passes"], row["backward_passes"]) for row in rows]

    assert passes({}, "plain") == [(5, 5), (5, 5)]
    assert passes({"ewc": {}}, "ewc") == [(15, 10), (15, 10)], "in the pass a look and a gradient a sample; none in a step"


# --- forgetting ---


def test_after_an_unlearning_nothing_is_held_until_the_next_task_has_ended(tmp_path: Path) -> None:
    def state(stream: str) -> dict[str, Any]:
        experiment = experiment_of({"ewc": {}}, tmp_path / stream.replace(" ", "").replace(":", "-"), stream=stream)
        found: dict[str, Any] = finish(beside(experiment, after=[slot(Oblivious)])).learner["strategies"]["ewc"]
        return found

    assert state("L0 L1")["fisher"] and state("L0 L1")["anchors"]
    for event in ("U0", "U1", "U0:fraction=0.5@seed1"):
        assert state(f"L0 L1 {event}") == {"fisher": {}, "anchors": {}, "pass": {"sums": {}, "rows": 0}}
    again = state("L0 L1 U0 L2")
    assert again["fisher"] and again["anchors"]


def test_what_is_learned_next_is_not_pulled_back_to_weights_that_knew_the_task(tmp_path: Path) -> None:
    seeing = slot(Seeing)
    experiment = beside(experiment_of({"ewc": {"weight": 50.0}}, tmp_path, stream="L0 L1 U0 L2"), before=[seeing])
    finish(beside(experiment, after=[slot(Oblivious)]))
    of_event = {index: [entry for entry in seeing.strategy_class.journal if entry["event"] == index] for index in range(4)}
    assert [len(of_event[index]) for index in range(4)] == [5, 5, 0, 5]
    assert all(entry["penalty"] is None for entry in of_event[3]) and all(entry["penalty"] is not None for entry in of_event[1])


@pytest.mark.parametrize("forgets", [True, False])
def test_anchors_that_outlive_a_request_bring_the_task_back_and_are_found(
    forgets: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A known error elsewhere: importance anchors keep what was unlearned, and the next task pulls the weights back to it."""
    if not forgets:
        monkeypatch.setattr(EWC, "forget", lambda self, forgotten, context: None)
    settings = {"benchmark": {"name": "split_digits"}, "scenario": "task_il", "batch_size": 32, "epochs": 3}
    path = run(experiment_of({"ewc": {"weight": 100.0}, "reset_head": {}}, tmp_path, **settings, stream="L0 L1 U0 L2")).path
    figures = {figure["name"]: figure for figure in json.loads((path / "summary.json").read_text())["unlearning"][0]["figures"]}
    (done,) = DeletionLog(path / "deletion").done().values()
    held = [place for place in done["contains"] if place.startswith("memory.strategies.ewc.anchors")]
    assert (figures["M3"]["value"] > 50, bool(held)) == (not forgets, not forgets)


# --- refusals ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "weight must be >= 0, got -1.0"),
        ({"gamma": 1.5}, r"gamma must be .*1.*got 1.5"),
        ({"gamma": -0.5}, r"gamma must be .*0.*got -0.5"),
        ({"variant": "offline"}, "variant must be one of paper, released, got 'offline'"),
        ({"fisher_labels": "true"}, "fisher_labels must be one of given, expected, weighted, got 'true'"),
        ({"fisher_samples": 0}, "fisher_samples must be >= 1, got 0"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EWCConfig(**options)
