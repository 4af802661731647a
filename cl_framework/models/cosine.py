"""A head of cosines, and the choice between it and a linear one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

HEADS = ("linear", "cosine")
SCALE = 10.0


class CosineHead(nn.Module):
    """Logits are `SCALE` times the cosine between the features and each class's weights: neither one's length counts. No bias."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, width))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as a linear layer's

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, num_classes), in [-SCALE, SCALE]."""
        return SCALE * linear(normalize(features), normalize(self.weight))


def head_of(kind: str, width: int, num_classes: int) -> nn.Module:
    """A head for all classes, one of `HEADS`."""
    return CosineHead(width, num_classes) if kind == "cosine" else nn.Linear(width, num_classes)
