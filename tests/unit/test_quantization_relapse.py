"""An update too small for the 4-bit grid unlearns in full precision and comes back when weights are rounded; the audit catches it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from cl_framework import Context, Done, Learn, Phase, Strategy, Traits, Unlearn, register, run
from cl_framework.assembly import assemble, make_benchmark
from cl_framework.evaluation import candidates
from cl_framework.models.hypernetwork import TaskConditionedModel
from cl_framework.testing.laboratory import experiment_of
from cl_framework.testing.neighbours import NoOptions
from cl_framework.unlearning import quantization
from cl_framework.unlearning.audit import audit
from cl_framework.unlearning.fast import FAIL
from cl_framework.unlearning.quantization import (
    is_weight,
    quantized,
    quantized_weights,
    rounded_accuracies,
    rounded_weights,
    roundings,
)

INT4 = 4
SHARE = 0.2  # of a step of the grid: the most that a weight moves


class OnTheGrid(Strategy):
    """Weights are rounded to int4 after every Learn, as those of a model that is served so. Unlearns by ascent within a box around them."""

    Config = NoOptions
    box = SHARE
    traits = Traits(unlearns=frozenset({"task"}), unlearning_reads=frozenset({"forget"}), no_neutral="weights are rounded after every task")

    def end(self, context: Context) -> Sequence[Phase]:
        if isinstance(context.position.event, Learn):
            with torch.no_grad():
                for parameter in context.model.parameters():
                    parameter.copy_(quantized(parameter, INT4) if is_weight(parameter) else parameter)
        return ()

    def unlearn(self, event: Unlearn, context: Context) -> Done:
        rows = context.read(context.requested_ids)
        weights = [parameter for parameter in context.model.parameters() if is_weight(parameter)]
        boxes = [self.box * weight.detach().abs().amax(1, keepdim=True) / 7 for weight in weights]
        start = [weight.detach().clone() for weight in weights]
        named = {id(parameter): place for place, parameter in enumerate(context.model.parameters())}
        for parameter in context.model.parameters():
            parameter.requires_grad_(True)
        for _ in range(60):
            loss = context.criterion(context.model(rows.inputs), rows).mean()
            gradients = torch.autograd.grad(loss, list(context.model.parameters()))
            with torch.no_grad():
                for weight, first, box in zip(weights, start, boxes, strict=True):
                    moved = weight + 0.1 * box * gradients[named[id(weight)]].sign()
                    weight.copy_(torch.clamp(moved, first - box, first + box))
        return Done()


@register("fake_small_steps")
class SmallSteps(OnTheGrid):
    """Moves no weight across a step of the grid."""


@register("fake_large_steps")
class LargeSteps(OnTheGrid):
    """The control: moves weights on to the next step of the grid."""

    box = 0.6


def audited(unlearner: str, folder: Path, seed: int) -> dict[str, Any]:
    """The figures of one request on two tasks of split digits, by name."""
    settings: dict[str, Any] = {"benchmark": {"name": "split_digits"}, "epochs": 15, "batch_size": 32, "optimizer": {"lr": 0.1}}
    model = {"name": "mlp", "hidden": [256, 256]}
    experiment = experiment_of({"er": {"capacity": 200}, unlearner: {}}, folder, stream="L0 L1 U1", model=model, seed=seed, **settings)
    result = audit(run(experiment).path, seeds=2)
    return {figure["name"]: figure for figure in result["requests"][0]["figures"]}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_what_came_back_is_found_and_what_did_not_is_not(seed: int, tmp_path: Path) -> None:
    small = audited("fake_small_steps", tmp_path / "small", seed)
    known, left, back = small["M1"]["details"]["before"], small["M1"]["details"]["accuracy"], small["M8"]["details"]["int4"]
    print(
        f"seed {seed}: {known:.1f} percent before, {left:.1f} unlearned, {back:.1f} points come back in int4: M8 {small['M8']['verdict']}"
    )
    assert known > 90 and left < 60  # in full precision half of it is gone
    assert small["M8"]["verdict"] == FAIL and back > 20
    large = audited("fake_large_steps", tmp_path / "large", seed)
    assert large["M1"]["details"]["accuracy"] < 60 and large["M8"]["value"] == 0.0


def test_rounding_puts_such_a_model_back_where_it_was() -> None:
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(20, 8, bias=False)
    with torch.no_grad():
        model.weight.copy_(quantized(torch.randn(8, 20, generator=generator), INT4))
        known, box = model.weight.clone(), SHARE * model.weight.abs().amax(1, keepdim=True) / 7
        model.weight.add_(box * torch.randn(8, 20, generator=generator).sign())
        moved = model.weight.clone()
        with rounded_weights(model, INT4):
            scales = (model.weight.abs().amax(1) / known.abs().amax(1)).unsqueeze(1)
            assert torch.allclose(model.weight, known * scales, atol=1e-6)
        assert torch.equal(model.weight, moved) and not torch.equal(moved, known)


def test_what_is_retained_is_tried_on_fewer_samples_than_what_was_unlearned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"benchmark": {"name": "split_digits"}, "batch_size": 32, "optimizer": {"lr": 0.1}}
    experiment = experiment_of({"do_nothing": {}}, tmp_path, stream="L0 L1 L2 U1", **settings)
    learner = assemble(experiment, make_benchmark(experiment))
    whole = rounded_accuracies(learner, 1, (0, 2))
    assert [(name, one.task) for name, one in whole] == [(name, task) for name in ("int8", "int4") for task in (0, 1, 2)]
    monkeypatch.setattr(quantization, "RETAINED", 20)
    test, fewer = learner.benchmark.test, rounded_accuracies(learner, 1, (0, 2))
    assert [one.count for _, one in fewer] == 2 * [20, len(test[1]), 20]
    assert [pair for pair in fewer if pair[1].task == 1] == [pair for pair in whole if pair[1].task == 1]

    def correct(places: torch.Tensor) -> int:
        with rounded_weights(learner.model, 4), torch.no_grad():
            answers = learner.model.eval()(learner.benchmark.transform(test[0].read(places), None))
        mask = candidates(learner, "class_il", 0, (0, 2))
        return int((answers.masked_fill(~mask, float("-inf")).argmax(1) == test[0].targets[places]).sum())

    found = next(one.correct for name, one in fewer if (name, one.task) == ("int4", 0))
    assert found == correct(torch.linspace(0, len(test[0]) - 1, 20).round().long()) != correct(torch.arange(20))


def test_what_a_hypernetwork_writes_is_rounded_too_and_apart_from_its_own_weights() -> None:
    torch.manual_seed(0)
    model = TaskConditionedModel(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), 2, hidden=(8,), chunk_size=20).eval()
    inputs, tasks = torch.rand(4, 6), torch.ones(4, dtype=torch.int64)
    plain = model(inputs, tasks)
    answers = {name: model(inputs, tasks) for name in roundings(model)}
    assert list(answers) == ["int8", "int8_written", "int4", "int4_written"]
    assert torch.equal(model(inputs, tasks), plain), "afterwards it is what it was"
    assert not any(torch.equal(answer, plain) for answer in answers.values())
    written = quantized_weights(model.hypernetwork.layout.named(model.weights_of([1])[0]), 4)
    by_hand = functional.linear(inputs, written["model.0.weight"], written["model.0.bias"]).relu()
    torch.testing.assert_close(answers["int4_written"], functional.linear(by_hand, written["model.2.weight"], written["model.2.bias"]))
    assert list(roundings(nn.Linear(2, 2))) == ["int8", "int4"]
