"""Parameters by category and layer, in the families of models that people train."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from torchvision import models

from cl_framework import Matrix, matrices
from cl_framework.models.hypernetwork import TaskConditionedModel
from cl_framework.models.mlp import MLP
from cl_framework.models.resnet import ResNet18
from cl_framework.models.vit import VisionTransformer, ViTOptions
from cl_framework.parameters import SELECTABLE


def by_module(model: nn.Module) -> dict[str, tuple[str, str]]:
    return {matrix.module: (matrix.category, matrix.layer) for matrix in matrices(model)}


def tree(**parts: nn.Module) -> nn.ModuleDict:
    """Modules under names, as a model's own attributes are."""
    return nn.ModuleDict(parts)


class Conv1D(nn.Module):
    """GPT-2's linear module, by its class's name in transformers."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(before, after)), nn.Parameter(torch.zeros(after))


class Experts(nn.Module):
    """All experts in one tensor a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Parameter(torch.zeros(3, 4, 8)), nn.Parameter(torch.zeros(3, 4, 4))


def linear() -> nn.Linear:
    return nn.Linear(4, 4)


def encoder_layer() -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


FAMILIES = {
    "mlp": lambda: MLP((1, 4, 4), 5, (8, 8), batch_norm=True),
    "sequential": lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
    "resnet": lambda: ResNet18(3, 10, 4),
    "vit": lambda: VisionTransformer((1, 8, 8), 3, ViTOptions(patch=4, width=8, depth=2, heads=2)),
    "torchvision_resnet": models.resnet18,
    "torchvision_vit": lambda: models.VisionTransformer(8, 4, 3, 2, 8, 16),
    "torchvision_swin": models.swin_t,
    "torchvision_efficientnet": models.efficientnet_b0,
    "torch_encoder": lambda: tree(embed=nn.Embedding(3, 8), layers=nn.TransformerEncoder(encoder_layer(), 2)),
    "hypernetwork": lambda: TaskConditionedModel(MLP((4,), 2, (3,)), 2, hidden=(5, 6)),
}


@pytest.fixture(scope="module")
def found() -> dict[str, list[Matrix]]:
    return {name: matrices(make()) for name, make in FAMILIES.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_is_in_one_matrix(name: str) -> None:
    model = FAMILIES[name]()
    names = [name for matrix in matrices(model) for name in matrix.parameters]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert sum(matrix.size for matrix in matrices(model)) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_what_can_be_chosen_lies_in_a_layer_and_heads_do_not(name: str, found: dict[str, list[Matrix]]) -> None:
    for matrix in found[name]:
        assert bool(matrix.layer) == (matrix.category in SELECTABLE) or (matrix.layer and matrix.category == "other"), matrix
    assert {matrix.category for matrix in found[name]} & {"head", "embedding"}, "nothing is always trained"
    assert len({matrix.layer for matrix in found[name] if matrix.layer}) >= (1 if name == "sequential" else 2)


def test_an_mlp() -> None:
    rows = [(matrix.module, matrix.category, matrix.layer, matrix.parameters) for matrix in matrices(MLP((4,), 5, (8, 8), batch_norm=True))]
    assert rows == [
        ("body.1", "linear", "body.1", ("body.1.weight", "body.1.bias")),
        ("body.2", "norm", "body.1", ("body.2.weight", "body.2.bias")),
        ("body.4", "linear", "body.4", ("body.4.weight", "body.4.bias")),
        ("body.5", "norm", "body.4", ("body.5.weight", "body.5.bias")),
        ("head", "head", "", ("head.weight", "head.bias")),
    ]
    assert by_module(FAMILIES["sequential"]()) == {"0": ("linear", "0"), "2": ("head", "")}


def test_residual_networks(found: dict[str, list[Matrix]]) -> None:
    for name, head, block in (("resnet", "head", "stages."), ("torchvision_resnet", "fc", "layer")):
        counts = Counter(matrix.category for matrix in found[name])
        assert counts == {"convolution": 20, "norm": 20, "head": 1}
        assert found[name][-1].module == head
        layers = {matrix.layer for matrix in found[name] if matrix.category == "convolution"}
        assert len(layers) == 9 and sum(layer.startswith(block) for layer in layers) == 8  # the stem is the ninth
        stem, norm = found[name][:2]
        assert stem.layer == norm.layer == stem.module
    classifier = [matrix for matrix in found["torchvision_efficientnet"] if matrix.module == "classifier.1"]
    assert [matrix.category for matrix in classifier] == ["head"]


def test_vision_transformers(found: dict[str, list[Matrix]]) -> None:
    per_layer = {"vit": {"attention": 4, "feed_forward": 2, "norm": 2}, "torchvision_vit": {"attention": 2, "feed_forward": 2, "norm": 2}}
    swept = 0
    for name, expected in per_layer.items():  # torchvision's attention is fused: in_proj and out_proj
        layers = {matrix.layer for matrix in found[name] if matrix.layer}
        for layer in layers:
            assert Counter(matrix.category for matrix in found[name] if matrix.layer == layer) == expected
            swept += 1
        assert not any(matrix.category == "convolution" for matrix in found[name]), "patches are an embedding"
    assert swept == 2 + 3
    outside = {matrix.module: matrix.category for matrix in found["torchvision_vit"] if not matrix.layer}
    assert outside == {"": "other", "encoder": "other", "conv_proj": "embedding", "encoder.ln": "other", "heads.head": "head"}
    encoder = Counter((matrix.layer, matrix.category) for matrix in found["torch_encoder"])
    assert encoder["layers.layers.0", "attention"] == encoder["layers.layers.1", "feed_forward"] == 2


def test_transformers_by_the_names_of_libraries() -> None:
    bert = tree(
        embeddings=tree(word_embeddings=nn.Embedding(3, 4), LayerNorm=nn.LayerNorm(4)),
        layer=nn.ModuleList(
            tree(
                attention=tree(self=tree(query=linear(), key=linear()), output=tree(dense=linear(), LayerNorm=nn.LayerNorm(4))),
                intermediate=tree(dense=linear()),
                output=tree(dense=linear(), LayerNorm=nn.LayerNorm(4)),
            )
            for _ in range(2)
        ),
        classifier=linear(),
    )
    found = by_module(bert)
    assert {found["embeddings.word_embeddings"], found["embeddings.LayerNorm"]} == {("embedding", "")}
    assert found["layer.1.attention.self.query"] == found["layer.1.attention.output.dense"] == ("attention", "layer.1")
    assert found["layer.0.intermediate.dense"] == found["layer.0.output.dense"] == ("feed_forward", "layer.0")
    assert found["layer.0.output.LayerNorm"] == ("norm", "layer.0")
    gpt2 = tree(
        wte=nn.Embedding(3, 4),
        h=nn.ModuleList([tree(attn=tree(c_attn=Conv1D(4, 12), c_proj=Conv1D(4, 4)), mlp=tree(c_fc=Conv1D(4, 8), c_proj=Conv1D(8, 4)))]),
        ln_f=nn.LayerNorm(4),
        lm_head=linear(),
    )
    gpt2["lm_head"].weight = gpt2["wte"].weight = nn.Parameter(torch.zeros(4, 4))
    assert by_module(gpt2) == {
        "wte": ("embedding", ""),  # tied: the head has only its bias left
        "h.0.attn.c_attn": ("attention", "h.0"),
        "h.0.attn.c_proj": ("attention", "h.0"),
        "h.0.mlp.c_fc": ("feed_forward", "h.0"),
        "h.0.mlp.c_proj": ("feed_forward", "h.0"),
        "ln_f": ("other", ""),
        "lm_head": ("head", ""),
    }
    t5 = tree(block=nn.ModuleList([tree(layer=nn.ModuleList([tree(SelfAttention=tree(q=linear(), o=linear())), tree(wi=linear())]))]))
    assert set(by_module(t5).values()) == {("attention", "block.0"), ("feed_forward", "block.0")}


def test_experts_are_feed_forward_and_their_router_is_left_alone() -> None:
    attention = tree(q_proj=linear(), o_proj=linear())
    experts = nn.ModuleList(tree(w1=linear(), w2=linear(), w3=linear()) for _ in range(2))
    apart = nn.ModuleList([tree(self_attn=attention, moe=tree(gate=linear(), experts=experts))])
    counts = Counter(matrix.category for matrix in matrices(tree(layers=apart)))
    assert counts == {"attention": 2, "feed_forward": 6, "other": 1}
    fused = by_module(tree(layers=nn.ModuleList([tree(self_attn=attention, experts=Experts())])))
    assert fused["layers.0.experts"] == ("feed_forward", "layers.0")


def test_a_hypernetwork_keeps_what_tells_tasks_and_chunks_apart(found: dict[str, list[Matrix]]) -> None:
    rows = {matrix.module: matrix.category for matrix in found["hypernetwork"]}
    assert rows == {
        "embeddings": "embedding",
        "hypernetwork": "other",  # the chunks' own
        "hypernetwork.trunk.0": "linear",
        "hypernetwork.trunk.2": "linear",
        "hypernetwork.output": "head",
    }
