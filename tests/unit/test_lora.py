"""LoRA: adapters against their formula, what is frozen under whoever acts, and one set a task that leaves nothing when it goes."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_framework import AdaptedModel, ConfigurationError, TaskAdaptedModel, adaptable_layers
from cl_framework.assembly import assemble
from cl_framework.models.mlp import MLP
from cl_framework.show import _strategies
from cl_framework.strategy import Strategy
from cl_framework.testing.contract import CHECKS, Subject
from cl_framework.testing.laboratory import Outcome, beside, experiment_of, finish, first_difference
from cl_framework.testing.neighbours import Auditing, slot
from cl_framework.testing.suite import applicable
from strategies.lora import LoRA, LoRAConfig
from tests.unit.test_imports import LOADED, python
from tests.unit.test_text_models import experiment as text_experiment

pytest.importorskip("peft")
ROUGH = {"name": "mlp", "hidden": [16], "dropout": 0.2, "batch_norm": True}
INPUTS = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def rough() -> MLP:
    """With statistics that are not those of a fresh model."""
    model = MLP((1, 4, 4), 6, (12, 10), dropout=0.2, batch_norm=True)
    for _ in range(3):
        model(torch.rand(8, 1, 4, 4))
    return model


def trained(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters())


@torch.no_grad()
def with_changes(model: AdaptedModel) -> AdaptedModel:
    """The model with adapters that do something."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.copy_(torch.randn(parameter.shape))
    return model.eval()


# --- the model ---


def test_fresh_adapters_give_the_models_own_answers() -> None:
    model = rough()
    before = deepcopy(model).eval()(INPUTS)
    adapted = AdaptedModel(model, rank=3).eval()
    assert torch.equal(adapted(INPUTS), before)
    assert not torch.allclose(with_changes(adapted)(INPUTS), before, atol=1e-2)


def test_answers_by_the_formula() -> None:
    model = with_changes(AdaptedModel(MLP((1, 4, 4), 6, (12, 10)), rank=3, alpha=5.0))
    values = INPUTS.flatten(1)
    named = dict(model.state_dict())
    for layer in ("base.body.1", "base.body.3"):
        change = named[f"{layer}.lora_B.default.weight"] @ named[f"{layer}.lora_A.default.weight"]
        weight = named[f"{layer}.base_layer.weight"] + 5.0 / 3 * change
        values = (values @ weight.T + named[f"{layer}.base_layer.bias"]).relu()
    expected = values @ named["base.head.weight"].T + named["base.head.bias"]
    assert torch.allclose(model.features(INPUTS), values, atol=1e-4)
    assert torch.allclose(model(INPUTS), expected, atol=1e-4)
    assert not torch.allclose(with_changes(AdaptedModel(MLP((1, 4, 4), 6, (12, 10)), rank=3))(INPUTS), expected, atol=1e-1)


def test_merged_adapters_answer_alike() -> None:
    model = rough()
    plain = deepcopy(model).eval()(INPUTS)
    adapted = with_changes(AdaptedModel(model, rank=3))
    before = adapted(INPUTS)
    layers = [module for module in adapted.modules() if hasattr(module, "merge")]
    for layer in layers:
        layer.merge()
    assert len(layers) == 2
    assert torch.allclose(adapted(INPUTS), before, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(adapted(INPUTS), plain, atol=1e-1)


@pytest.mark.parametrize(("head", "in_head"), [(True, 10 * 6 + 6), (False, 0)])
def test_as_many_numbers_are_trained_as_by_hand(head: bool, in_head: int) -> None:
    adapted = AdaptedModel(MLP((1, 4, 4), 6, (12, 10)), rank=3, train_head=head)
    assert sum(parameter.numel() for parameter in adapted.parameters()) == 3 * (16 + 12) + 3 * (12 + 10) + in_head
    assert all("lora_" in name or name.startswith("base.head.") for name in trained(adapted))
    tasks = TaskAdaptedModel(adapted, 4)
    assert sum(parameter.numel() for parameter in tasks.parameters()) == 4 * (3 * (16 + 12) + 3 * (12 + 10) + in_head)


def test_a_rank_that_no_layer_has_is_refused() -> None:
    """Of layers 16 -> 12 -> 10 the first has the largest."""
    assert AdaptedModel(MLP((1, 4, 4), 6, (12, 10)), rank=12)
    with pytest.raises(ConfigurationError, match=r"^rank=13 is above 12, the largest rank that a layer of this model has\. Set it to that"):
        AdaptedModel(MLP((1, 4, 4), 6, (12, 10)), rank=13)


def test_statistics_rest_and_dropout_acts() -> None:
    model = AdaptedModel(rough(), dropout=0.5)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with_changes(model).train()
    torch.manual_seed(0)
    one = model(INPUTS)
    torch.manual_seed(0)
    again, other = model(INPUTS), model(INPUTS)
    assert first_difference(before, dict(model.named_buffers())) is None and len(before) > 6
    assert torch.equal(one, again) and not torch.equal(one, other)
    model.eval()
    assert torch.equal(model(INPUTS), model(INPUTS))


def test_each_row_is_answered_by_its_own_task() -> None:
    single = AdaptedModel(rough(), rank=2)
    model = TaskAdaptedModel(deepcopy(single), 3).eval()
    rows = torch.rand(4, 1, 4, 4)
    fresh = model(rows, torch.tensor([2, 0, 2, 1]))
    assert torch.allclose(fresh, single.eval()(rows), atol=1e-6)
    with torch.no_grad():
        for task, part in enumerate(model.parts):
            for parameter in part.parameters():
                parameter.add_(0.1 * task)
    mixed = model(rows, torch.tensor([2, 0, 2, 1]))
    assert torch.allclose(mixed[1], fresh[1], atol=1e-6)
    for row, task in ((0, 2), (2, 2), (3, 1)):
        assert torch.allclose(mixed[row], model(rows[row : row + 1], torch.tensor([task]))[0], atol=1e-6)
        assert not torch.allclose(mixed[row], fresh[row], atol=1e-2)
    model.reset(2)
    assert torch.allclose(model(rows, torch.tensor([2, 0, 2, 1]))[:3], fresh[:3], atol=1e-6)


def test_a_head_that_shares_its_weight_does_not_move_what_is_frozen() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.table.weight

        def features(self, inputs: Tensor) -> Tensor:
            return self.layer(self.table(inputs)).mean(1)

    model = AdaptedModel(Tied(), rank=2)
    tokens = torch.tensor([[1, 2, 3]])
    before, logits = model.features(tokens), model(tokens)
    with torch.no_grad():
        trained(model)["base.head.weight"].add_(1.0)
    assert torch.equal(model.features(tokens), before) and not torch.equal(model(tokens), logits)


def test_which_layers() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.query, self.inner_query = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.attention = nn.MultiheadAttention(4, 2)
            self.head = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))

    model = Mixed()
    assert adaptable_layers(model) == ["first", "query", "inner_query"]  # attention reads its projection's weight without a call
    assert adaptable_layers(model, ("query",)) == ["query"]
    assert adaptable_layers(model, ("query", "first")) == ["first", "query"]
    with pytest.raises(ConfigurationError, match=r"targets: no linear layer's name ends with 'quer'. Did you mean 'query'\?"):
        adaptable_layers(model, ("quer",))
    with pytest.raises(ConfigurationError, match="targets: the model has no linear layer but its head"):
        adaptable_layers(MLP((1, 2, 2), 3, ()))


# --- in a run ---


def outcome(folder: Path, stream: str, options: Mapping[str, Any], strategies: Mapping[str, Any] | None = None, **settings: Any) -> Outcome:
    settings = {"scenario": "task_il" if options.get("per_task") else "class_il", "model": ROUGH, **settings}
    return finish(experiment_of({"lora": options, **(strategies or {})}, folder, stream=stream, **settings))


def frozen_in(found: Outcome) -> dict[str, Tensor]:
    return {name: value for name, value in found.weights.items() if "lora_" not in name and "head" not in name and "parts." not in name}


@pytest.mark.parametrize("beside_it", [{}, {"er": {"capacity": 30}, "grad_diff": {}}, {"ewc": {}}])
def test_whoever_acts_the_model_itself_rests(beside_it: dict[str, Any], tmp_path: Path) -> None:
    stream = "L0 L1 U0" if "grad_diff" in beside_it else "L0 L1"
    learner = assemble(experiment_of({"lora": {}}, tmp_path / "start", model=ROUGH))
    found = outcome(tmp_path / "run", stream, {"rank": 4}, beside_it)
    start = learner.model.state_dict()
    assert len(frozen_in(found)) == 7  # the weights, scale and offset of a layer, its statistics
    assert first_difference({name: start[name] for name in frozen_in(found)}, frozen_in(found)) is None
    moved = [name for name in found.weights if name not in frozen_in(found) and not torch.equal(start[name][:4], found.weights[name][:4])]
    assert len(moved) == 4  # A and B of a layer, the head's weight and bias


def test_dropout_keeps_the_law_of_the_closure(tmp_path: Path) -> None:
    auditor = slot(Auditing)
    options = {"dropout": 0.5}
    finish(beside(experiment_of({"lora": options}, tmp_path / "audited", model=ROUGH), before=[auditor]))
    assert len(auditor.strategy_class.journal) == 10
    assert all(moved is None and repeated is None for _, moved, repeated in auditor.strategy_class.journal)
    with_dropout, without = outcome(tmp_path / "with", "L0", options), outcome(tmp_path / "without", "L0", {})
    assert first_difference(with_dropout.weights, without.weights) is not None


def part_of(found: Outcome, task: int) -> dict[str, Tensor]:
    return {name: value for name, value in found.weights.items() if name.startswith(f"parts.{task}.")}


@pytest.mark.parametrize("strategies", [{}, {"er": {"capacity": 30}}])
def test_a_task_moves_its_own_part_alone(strategies: dict[str, Any], tmp_path: Path) -> None:
    options = {"per_task": True}
    one, both = outcome(tmp_path / "a", "L0", options, strategies), outcome(tmp_path / "b", "L0 L1", options, strategies)
    assert len(part_of(one, 0)) == 4
    assert first_difference(part_of(one, 0), part_of(both, 0)) is None
    assert first_difference(part_of(one, 1), part_of(both, 1)) is not None
    assert first_difference(part_of(one, 2), part_of(both, 2)) is None


@pytest.mark.parametrize("options", [{"dropout": 0.3}, {"train_head": False}])
def test_what_goes_leaves_nothing_and_comes_back_as_the_first_time(options: dict[str, Any], tmp_path: Path) -> None:
    options = {"per_task": True, **options}
    never = outcome(tmp_path / "never", "L1", options)
    assert first_difference(outcome(tmp_path / "gone", "L0 L1 U0", options).weights, never.weights) is None
    first = outcome(tmp_path / "first", "L0 L1", options)
    assert first_difference(first.weights, never.weights) is not None
    assert first_difference(outcome(tmp_path / "again", "L0 L1 U0 L0", options).weights, first.weights) is None


class OneATask(LoRA):
    """What `per_task` makes of the strategy, as traits of a class, which is where the contract's checks look for them."""

    traits = LoRA(LoRAConfig(per_task=True)).traits

    def __init__(self, config: LoRAConfig) -> None:
        Strategy.__init__(self, config)


OneATask.__module__ = LoRA.__module__  # where its card is
ONE_A_TASK = Subject("lora", OneATask, {"per_task": True})


@pytest.mark.slow
@pytest.mark.parametrize("name", applicable(ONE_A_TASK)[0])
def test_one_a_task_keeps_the_contract(name: str) -> None:
    CHECKS[name](ONE_A_TASK)


def test_what_is_claimed_follows_from_the_options(tmp_path: Path) -> None:
    names = set(applicable(ONE_A_TASK)[0]) - set(applicable(Subject.named("lora"))[0])
    assert names == {"declared_needs_are_real_needs", "other_scenarios_are_refused", "an_exact_claim_equals_never_learned"}
    assert not LoRA(LoRAConfig()).traits.unlearns and not LoRA.traits.exact
    with pytest.raises(ConfigurationError, match="event U0 unlearns at task level, but no strategy of this stack can do that"):
        assemble(experiment_of({"lora": {}}, tmp_path, stream="L0 U0"))
    with pytest.raises(ConfigurationError, match=r"strategies.lora does not work with scenario=class_il; it allows: task_il"):
        assemble(experiment_of({"lora": {"per_task": True}}, tmp_path, scenario="class_il"))
    shown = [_strategies(experiment_of({"lora": {"per_task": each}}, tmp_path))[0] for each in (True, False)]
    assert "unlearns task (exact; reads nothing)" in shown[0] and "no special needs" in shown[1]


# --- text ---


def test_an_encoder_of_text(tmp_path: Path) -> None:
    finetuned = assemble(text_experiment(tmp_path, {})).model
    learner = assemble(text_experiment(tmp_path, {"lora": {"targets": ["query", "value"], "rank": 2}}))
    own = trained(learner.model)
    assert sum(parameter.numel() for parameter in own.values()) == 2 * 2 * (16 + 16) + sum(p.numel() for p in finetuned.head.parameters())
    rows = learner.read(learner.training_ids(0)[:6])
    finetuned.eval(), learner.model.eval()
    assert torch.equal(learner.model(rows.inputs), finetuned(rows.inputs))
    with_changes(learner.model)  # type: ignore[arg-type]
    assert not torch.allclose(learner.model(rows.inputs), finetuned(rows.inputs), atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"per_task": True}])
def test_runs_on_text(options: dict[str, Any], tmp_path: Path) -> None:
    settings = {"scenario": "task_il", "stream": "L0 L1 U0 L2"} if options else {"stream": "L0 L1 L2"}
    stack = {"lora": {"rank": 2, "dropout": 0.1, **options}, **({} if options else {"er": {"capacity": 8}, "lwf": {}})}
    found = finish(text_experiment(tmp_path, stack, **settings))
    start = assemble(text_experiment(tmp_path, stack, **settings)).model.state_dict()
    assert len(frozen_in(found)) > 20
    assert first_difference({name: start[name] for name in frozen_in(found)}, frozen_in(found)) is None
    assert first_difference(dict(start), found.weights) is not None


# --- what is refused, and what is loaded when ---


def test_without_peft_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        ConfigurationError, match=r"low-rank adapters need the package peft: pip install -e '\.\[text\]' -c constraints\.txt"
    ):
        assemble(experiment_of({"lora": {}}, tmp_path))


@pytest.mark.slow
def test_peft_is_loaded_only_when_adapters_are_made() -> None:
    result = python(LOADED, "strategies.lora", "peft", "transformers", "accelerate", "torch")
    assert result.stdout.split() == ["torch"], result.stderr


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rank": 0}, "strategies.lora.rank must be >= 1, got 0"),
        ({"alpha": 0}, "strategies.lora.alpha must be > 0, got 0.0"),
        ({"dropout": 1}, "strategies.lora.dropout must be >= 0 and < 1, got 1.0"),
        ({"targets": ["qwery"]}, r"strategies.lora.targets: no linear layer's name ends with 'qwery'. Known: 1."),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=text):
        assemble(experiment_of({"lora": options}, tmp_path))


def test_models_that_cannot_be_adapted_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"strategies.lora.targets: the model has no linear layer but its head"):
        assemble(experiment_of({"lora": {}}, tmp_path, model={"name": "mlp", "hidden": []}))
    setting = Namespace(model=nn.Linear(2, 2))
    with pytest.raises(ConfigurationError, match="targets: adapters need a model with `features` and `head`"):
        LoRA(LoRAConfig()).check(setting)  # type: ignore[arg-type]
