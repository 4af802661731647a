"""The MLP: shapes, initialisation, the relation of forward, features and head."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cl_framework.models.mlp import MLP, MLPOptions


def test_forward_is_head_of_features() -> None:
    model = MLP((1, 4, 4), 7, (5, 3))
    inputs = torch.rand(2, 1, 4, 4)
    assert model.features(inputs).shape == (2, 3)
    assert torch.equal(model(inputs), model.head(model.features(inputs)))
    assert model(inputs).shape == (2, 7)


def test_xavier_weights_and_zero_biases() -> None:
    torch.manual_seed(0)
    model = MLP((784,), 10)
    sizes = [(784, 100), (100, 100), (100, 10)]
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for (before, after), layer in zip(sizes, layers, strict=True):
        assert layer.weight.shape == (after, before)
        bound = math.sqrt(6 / (before + after))
        assert 0.95 * bound < float(layer.weight.detach().abs().max()) <= bound
        assert float(layer.bias.detach().abs().max()) == 0.0


def test_options() -> None:
    model = MLP((4,), 2, (3,), dropout=0.5, batch_norm=True)
    kinds = [type(module) for module in model.body]
    assert kinds == [nn.Flatten, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout]
    with pytest.raises(ValueError, match=r"dropout must be >= 0 and < 1, got 1.0"):
        MLPOptions(dropout=1.0)
