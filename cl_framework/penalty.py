"""Quadratic penalties on the distance of weights from where they were: what EWC, SI and their kin add to the objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _WeightedSquares(torch.autograd.Function):
    """Value and gradient in a few operations for all tensors together, where autograd would take several a tensor."""

    @staticmethod
    def forward(ctx: Any, anchors: list[Tensor], importances: list[Tensor], *parameters: Tensor) -> Tensor:
        moved = torch._foreach_sub(parameters, anchors)
        weighted = torch._foreach_mul(moved, importances)
        ctx.save_for_backward(*weighted)
        return torch.stack([torch.dot(one.flatten(), other.flatten()) for one, other in zip(weighted, moved, strict=True)]).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return (None, None, *torch._foreach_mul(ctx.saved_tensors, 2 * gradients[0]))


def weighted_squares(parameters: Sequence[Tensor], anchors: Sequence[Tensor], importances: Sequence[Tensor]) -> Tensor:
    """The sum over all entries of importance * (parameter - anchor)^2, differentiable in the parameters; 0 of no tensors.

    The three sequences have tensors of the same shapes.
    """
    if not parameters:
        return torch.zeros(())
    return _WeightedSquares.apply(list(anchors), list(importances), *parameters)
