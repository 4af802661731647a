"""Distances that methods add to the objective: quadratic ones of weights from where they were (EWC, SI and their kin), and Bregman's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def bregman_divergence(potential: Callable[[Tensor], Tensor], p: Tensor, q: Tensor) -> Tensor:
    """D(p, q) = potential(p) - potential(q) - <gradient at q, p - q>: a scalar, >= 0 where the potential is convex, differentiable in both.

    p and q have one shape, and the potential makes a scalar of it. The distances of the unified objective of Wang et al. 2024 (arXiv
    2403.13249): the squared norm gives the squared distance, sum p log p the KL divergence of distributions, F-weighted squares EWC's.
    """
    gradient, value = torch.func.grad_and_value(potential)(q)
    return potential(p) - value - (gradient * (p - q)).sum()
