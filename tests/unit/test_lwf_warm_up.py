"""LwF: the warm-up of new classes, LwF beside a hypernetwork, and what is refused."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import strategies.hypernetwork  # noqa: F401 - registers it
from cl_framework import Batch, ConfigurationError, Context, Output, Setting
from cl_framework.records import RunDirectory
from cl_framework.testing.laboratory import ROUGH, experiment_of, finish, first_difference, in_place_of
from strategies.lwf import LwF, LwFConfig
from tests.unit.lwf_runs import RELEASED, Spied, on_pictures, run_spied

# --- the warm-up ---


def test_in_the_warm_up_only_the_heads_part_for_new_classes_moves(tmp_path: Path) -> None:
    moved: list[dict[str, list[int]]] = []

    class Watching(LwF):
        """Notes which rows of each tensor moved from the start of an event to the end of its warm-up."""

        def begin(self, context: Context) -> Any:
            self.before = {name: value.detach().clone() for name, value in context.model.named_parameters()}
            return super().begin(context)

        def commit(self, batch: Batch, output: Output, context: Context) -> None:
            phase, step = context.position.phase, context.position.step
            assert phase is not None
            if step != phase.steps - 1 or (phase.name != "lwf/warm_up" and context.position.event_index):
                return
            moving = {name: value != self.before[name] for name, value in context.model.named_parameters()}
            rows = {name: part if part.ndim == 1 else part.any(1) for name, part in moving.items()}
            moved.append({name: part.nonzero().flatten().tolist() for name, part in rows.items()})

    experiment = experiment_of({"lwf": {"warm_up": 2}}, tmp_path, stream="L0 L1 L2")
    outcome = finish(in_place_of(experiment, Watching))
    first, *warm_ups = moved  # the first task's learning is the control
    assert len(first["body.1.weight"]) > 8 and first["head.weight"] == list(range(6))
    for event, found in enumerate(warm_ups, start=1):
        new = [2 * event, 2 * event + 1]
        assert found == {"body.1.weight": [], "body.1.bias": [], "head.weight": new, "head.bias": new}
    assert len(warm_ups) == 2
    phases = [[(phase["name"], phase["steps"]) for phase in row["phases"]] for row in RunDirectory(outcome.path).events()]
    assert phases == [[("learn", 5)], [("lwf/warm_up", 10), ("learn", 5)], [("lwf/warm_up", 10), ("learn", 5)]]


def test_the_teacher_is_of_before_the_warm_up_and_known_classes_have_none(tmp_path: Path) -> None:
    journal = run_spied(tmp_path, {"warm_up": 1}, "L0 L1 L0", model=ROUGH)
    phases = [(entry["event"], entry["phase"]) for entry in journal]
    assert phases == [(0, "learn")] * 5 + [(1, "lwf/warm_up")] * 5 + [(1, "learn")] * 5 + [(2, "learn")] * 5
    for entry in journal[5:]:
        assert first_difference(entry["state"]["teacher"], entry["began"]) is None
        assert bool(entry["terms"]) == (entry["phase"] == "learn")


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_released_warm_up_is_plain_descent_of_the_head_on_features_of_evaluation_mode(variant: str, tmp_path: Path) -> None:
    steps: list[tuple[dict[str, Tensor], Tensor, Tensor]] = []  # of the warm-up: the model after the update, features, targets
    began: list[dict[str, Tensor]] = []

    class Watching(LwF):
        def begin(self, context: Context) -> Any:
            self.before = deepcopy(context.model).eval()
            began[:] = [context.snapshot()]
            return super().begin(context)

        def commit(self, batch: Batch, output: Output, context: Context) -> None:
            assert context.position.phase is not None
            if context.position.phase.name == "lwf/warm_up":
                with torch.no_grad():
                    steps.append((context.snapshot(), self.before.features(batch.inputs), batch.targets))

    experiment = in_place_of(experiment_of({"lwf": {"variant": variant, "warm_up": 2}}, tmp_path, model=ROUGH), Watching)
    finish(experiment, on_pictures(experiment))
    assert len(steps) == 10
    weight, bias = began[0]["head.weight"].clone(), began[0]["head.bias"].clone()
    agreed = []
    for model, features, targets in steps:
        change = ((features @ weight[2:4].T + bias[2:4]).softmax(1) - functional.one_hot(targets - 2, 2)) / len(targets)
        weight[2:4] -= 0.05 * change.T @ features
        bias[2:4] -= 0.05 * change.sum(0)
        agreed.append(torch.allclose(model["head.weight"], weight, atol=1e-6) and torch.allclose(model["head.bias"], bias, atol=1e-6))
    others = {name for name, value in began[0].items() if not torch.equal(value, steps[-1][0][name])} - {"head.weight", "head.bias"}
    if variant == "released":
        assert all(agreed) and not others
    else:
        assert not any(agreed) and any(name.endswith("running_mean") for name in others)


def test_the_released_warm_up_runs_for_the_runs_epochs_unless_told_otherwise(tmp_path: Path) -> None:
    def warm_up(name: str, **options: Any) -> list[int]:
        outcome = finish(experiment_of({"lwf": options}, tmp_path / name, epochs=3))
        phases = [phase for row in RunDirectory(outcome.path).events() for phase in row["phases"]]
        return [phase["steps"] for phase in phases if phase["name"] == "lwf/warm_up"]

    assert warm_up("released", **RELEASED) == [15]
    assert warm_up("shorter", **RELEASED, warm_up=1) == [5]
    assert warm_up("none", **RELEASED, warm_up=0) == warm_up("paper") == []


# --- with others, and what is refused ---


SMALL = {"embedding": 4, "chunk_embedding": 4, "hidden": [8], "chunk_size": 40, "sampled_tasks": 1}


def test_on_a_task_conditioned_model_both_answer_as_the_rows_own_task(tmp_path: Path) -> None:
    Spied.journal.clear()
    experiment = experiment_of({"lwf": {}, "hypernetwork": SMALL}, tmp_path, stream="L0 L1", scenario="task_il")
    finish(in_place_of(experiment, Spied))
    entries = [entry for entry in Spied.journal if entry["event"] == 1]
    same = [torch.allclose(entry["batch"].extras["lwf"], entry["logits"], atol=1e-6) for entry in entries]
    assert same == [True, False, False, False, False] and set(entries[0]["batch"].host_tasks.tolist()) == {1}


def test_a_warm_up_on_a_model_whose_weights_are_written_is_refused_before_the_run(tmp_path: Path) -> None:
    experiment = experiment_of({"lwf": {"warm_up": 1}, "hypernetwork": SMALL}, tmp_path, scenario="task_il")
    with pytest.raises(
        ConfigurationError, match=r"^strategies\.lwf\.warm_up=1 warms up a part of the model's `head`, but this model has no"
    ):
        finish(experiment)
    assert not list(tmp_path.iterdir())


def test_a_warm_up_needs_a_linear_head() -> None:
    def setting(model: nn.Module | None) -> Setting:
        return Setting("class_il", 10, 1, 0.0, 2, {}, model=model)

    headless = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    text = r"^warm_up=3 warms up a part of the model's `head`, but this model has no linear one\. Set warm_up=0\.$"
    with pytest.raises(ConfigurationError, match=text):
        LwF(LwFConfig(warm_up=3)).check(setting(headless))
    for options, model in ((LwFConfig(), headless), (LwFConfig(warm_up=3), None)):
        LwF(options).check(setting(model))
    with_head = nn.Module()
    with_head.head = nn.Linear(4, 2)
    LwF(LwFConfig(warm_up=3)).check(setting(with_head))
    with pytest.raises(ConfigurationError, match=r"^variant=released warms up a part"):
        LwF(LwFConfig(variant="released")).check(setting(headless))
    text = r"^variant=released warms up a head over the model's `features`, which this model does not have\. Set warm_up=0\.$"
    with pytest.raises(ConfigurationError, match=text):
        LwF(LwFConfig(variant="released")).check(setting(with_head))
    LwF(LwFConfig(variant="released", warm_up=0)).check(setting(headless))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "weight must be >= 0, got -1.0"),
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0"),
        ({"heads": "all"}, "heads must be one of joint, task, got 'all'"),
        ({"warm_up": -1}, "warm_up must be >= 0, got -1"),
        ({"variant": "code"}, "variant must be one of paper, released, got 'code'"),
        ({"variant": "released", "heads": "task"}, "heads=task belongs to variant=paper; with variant=released set heads=joint"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LwFConfig(**options)
