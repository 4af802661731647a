"""ResNet-18 and the vision transformer: against torchvision and by hand, heads, refusals, and resume bit for bit with augmentation."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from cl_framework import Benchmark, BenchmarkContext, ConfigurationError
from cl_framework.assembly import make_benchmark
from cl_framework.augment import Augmented
from cl_framework.benchmarks.synthetic import SyntheticOptions, synthetic
from cl_framework.config import Experiment
from cl_framework.models.resnet import ResNet18, ResNetOptions, SlimResNetOptions, resnet18, slim_resnet18
from cl_framework.models.vit import Attention, VisionTransformer, ViTOptions, vit
from cl_framework.testing.laboratory import assert_different_weights, assert_equal_outcomes, experiment_of, finish, finish_in_pieces


def benchmark_of(*shape: int, classes: int = 6) -> Benchmark:
    made = synthetic(SyntheticOptions(tasks=3, classes_per_task=classes // 3), BenchmarkContext(Path(), False, 0, ""))
    return replace(made, input_shape=shape)


# --- ResNet ---


def test_resnet18_is_torchvisions_with_another_stem() -> None:
    torch.manual_seed(0)
    ours = ResNet18(3, 10)
    theirs = torchvision.models.resnet18(num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    values = list(ours.state_dict().values())
    names = list(theirs.state_dict())
    assert [value.shape for value in values] == [value.shape for value in theirs.state_dict().values()]
    theirs.load_state_dict(dict(zip(names, values, strict=True)))
    assert sum(parameter.numel() for parameter in ours.parameters()) == 11_173_962
    inputs = torch.rand(2, 3, 16, 16)
    assert torch.allclose(ours(inputs), theirs(inputs), atol=1e-5)
    with torch.no_grad():
        ours.conv.weight[0] += 1
    assert not torch.allclose(ours(inputs), theirs(inputs), atol=1e-5)


def test_forward_is_head_of_features_and_the_slim_one_is_slim() -> None:
    model = slim_resnet18(SlimResNetOptions(), benchmark_of(1, 8, 8))
    assert isinstance(model, ResNet18)
    model.eval()
    inputs = torch.rand(2, 1, 8, 8)
    assert model.features(inputs).shape == (2, 160)
    assert torch.equal(model(inputs), model.head(model.features(inputs)))
    assert model(inputs).shape == (2, 6)
    wide = resnet18(ResNetOptions(), benchmark_of(3, 8, 8))
    assert isinstance(wide, ResNet18) and wide.head.in_features == 512


def test_a_head_of_cosines_is_its_definition() -> None:
    torch.manual_seed(0)
    model = slim_resnet18(SlimResNetOptions(width=2, head="cosine"), benchmark_of(3, 8, 8))
    assert isinstance(model, ResNet18)
    model.eval()
    inputs = torch.rand(4, 3, 8, 8)
    features, weight = model.features(inputs), model.head.weight
    assert isinstance(weight, Tensor) and weight.shape == (6, 16) and [name for name, _ in model.head.named_parameters()] == ["weight"]
    logits, swept = model(inputs).detach(), 0
    for row, feature in enumerate(features.tolist()):
        for label, own in enumerate(weight.tolist()):
            cosine = sum(one * two for one, two in zip(feature, own, strict=True)) / (math.hypot(*feature) * math.hypot(*own))
            assert float(logits[row, label]) == pytest.approx(10 * cosine, abs=1e-4)
            swept += 1
    assert swept == 24
    linear = resnet18(ResNetOptions(width=2), benchmark_of(3, 8, 8))
    assert isinstance(linear, ResNet18)
    for head, same in ((model.head, True), (linear.head, False)):
        assert torch.allclose(head(features), head(3 * features), atol=1e-4) is same
    with pytest.raises(ValueError, match="head must be one of linear, cosine, got 'sine'"):
        ResNetOptions(head="sine")


def test_the_choice_of_a_head_leaves_runs_with_a_linear_one_as_they_were(tmp_path: Path) -> None:
    def fingerprint(**options: Any) -> str:
        return experiment_of({}, tmp_path, model={"name": "resnet18", "width": 4, **options}).fingerprint

    assert fingerprint() == fingerprint(head="linear") != fingerprint(head="cosine")


# --- transformer ---


def test_attention_is_its_definition() -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2)
    tokens = torch.rand(3, 5, 8)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        query, key, value = (part(tokens)[..., head] for part in (attention.query, attention.key, attention.value))
        heads.append(torch.softmax(query @ key.transpose(1, 2) / math.sqrt(4), 2) @ value)
    assert torch.allclose(attention(tokens), attention.output(torch.cat(heads, 2)), atol=1e-6)
    assert not torch.allclose(attention(tokens), attention.output(torch.cat(heads[::-1], 2)), atol=1e-4)


def test_vit_has_features_a_head_and_plain_names() -> None:
    torch.manual_seed(0)
    model = vit(ViTOptions(patch=4, depth=2, width=12, heads=3), benchmark_of(3, 8, 12))
    assert isinstance(model, VisionTransformer)
    inputs = torch.rand(2, 3, 8, 12)
    assert model.features(inputs).shape == (2, 12)
    assert torch.equal(model(inputs), model.head(model.features(inputs)))
    assert model(inputs).shape == (2, 6)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name.startswith("blocks.1.attention")]
    assert linear == [f"blocks.1.attention.{part}" for part in ("query", "key", "value", "output")]
    assert model.positions.shape == (1, 7, 12)


def test_the_head_reads_the_token_or_the_mean_of_the_patches() -> None:
    inputs = torch.rand(3, 1, 8, 8)
    seen = []
    for pool in ("token", "mean"):
        torch.manual_seed(0)
        model = vit(ViTOptions(patch=4, depth=2, width=12, heads=3, pool=pool), benchmark_of(1, 8, 8))
        assert isinstance(model, VisionTransformer)
        patches = model.embedding(inputs).flatten(2).transpose(1, 2)
        if pool == "token":
            assert model.token is not None
            hidden = model.blocks(torch.cat([model.token.expand(3, 1, 12), patches], 1) + model.positions)[:, 0]
        else:
            assert model.token is None and model.positions.shape == (1, 4, 12)
            hidden = model.blocks(patches + model.positions).mean(1)
        assert torch.allclose(model.features(inputs), model.norm(hidden), atol=1e-6)
        assert not torch.allclose(model.features(inputs), model.norm(patches.mean(1)), atol=1e-3)
        seen.append(pool)
    assert len(seen) == 2
    with pytest.raises(ValueError, match="pool must be one of token, mean, got 'max'"):
        ViTOptions(pool="max")


def test_vit_knows_where_a_patch_was() -> None:
    torch.manual_seed(0)
    model = vit(ViTOptions(patch=4, depth=1, width=12, heads=3), benchmark_of(1, 8, 8))
    assert isinstance(model, VisionTransformer)
    inputs = torch.rand(1, 1, 8, 8)
    moved = torch.cat([inputs[..., 4:, :], inputs[..., :4, :]], 2)
    assert not torch.allclose(model(inputs), model(moved), atol=1e-6)
    nn.init.zeros_(model.positions)
    assert torch.allclose(model(inputs), model(moved), atol=1e-6)


# --- refusals ---


def test_errors_name_the_remedy() -> None:
    with pytest.raises(ConfigurationError, match=r"model.patch=5 does not divide images of 8x12 pixels .* Use one of 1, 2, 4\."):
        vit(ViTOptions(patch=5), benchmark_of(3, 8, 12))
    for build, options in ((resnet18, ResNetOptions()), (slim_resnet18, SlimResNetOptions()), (vit, ViTOptions())):
        with pytest.raises(ConfigurationError, match=r"reads images .* have shape \(12,\)\. Use model.name=mlp"):
            build(options, benchmark_of(12))  # type: ignore[operator]
    with pytest.raises(ValueError, match="width must be a multiple of heads=5, got 192"):
        ViTOptions(heads=5)
    with pytest.raises(ValueError, match=r"width must be >= 1, got 0"):
        ResNetOptions(width=0)


# --- runs ---


SMALL = [
    pytest.param({"name": "resnet18", "width": 4}, marks=pytest.mark.slow, id="resnet18"),
    pytest.param({"name": "slim_resnet18", "width": 2, "head": "cosine"}, marks=pytest.mark.slow, id="cosine"),
    pytest.param({"name": "vit", "patch": 2, "depth": 1, "width": 6, "heads": 2, "dropout": 0.1}, id="vit"),
]


@pytest.mark.parametrize("model", SMALL)
def test_a_run_with_augmentation_resumes_bit_for_bit(model: dict[str, Any], tmp_path: Path) -> None:
    def prepared(folder: str, **transform: Any) -> tuple[Experiment, Benchmark]:
        experiment = experiment_of({"er": {"capacity": 10}}, tmp_path / folder, model=model)
        return experiment, replace(make_benchmark(experiment), transform=Augmented(**transform))

    whole = finish(*prepared("whole", padding=1, flip=True))
    experiment, benchmark = prepared("pieces", padding=1, flip=True)
    pieces, stops = finish_in_pieces(experiment, lambda step: step in (2, 5, 8), benchmark)
    assert stops == 3
    assert_equal_outcomes(whole, pieces, "a run in pieces")
    assert_different_weights(whole, finish(*prepared("plain")), "augmentation")
