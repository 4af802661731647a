"""Distances that methods add to the objective: quadratic ones of weights from where they were (EWC, SI and their kin), and Bregman's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cl_framework.strategy import Gradients, Term


def weighted_squares(parameters: Sequence[Tensor], anchors: Sequence[Tensor], importances: Sequence[Tensor]) -> Tensor:
    """The sum over all entries of importance * (parameter - anchor)^2, differentiable; 0 of no tensors.

    The three sequences have tensors of the same shapes. As a term of an objective, `WeightedSquares` is faster.
    """
    return _squares(_moved(parameters, anchors), importances)


class WeightedSquares:
    """`weighted_squares` at the parameters as they are when it is first asked, with its gradient in closed form: make one an evaluation."""

    def __init__(self, parameters: Sequence[Tensor], anchors: Sequence[Tensor], importances: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._anchors = anchors
        self._importances = importances
        self._kept: list[Tensor] | None = None

    def term(self, weight: float) -> Term:
        return Term(self.value, weight, self.plus_gradient)

    def value(self) -> Tensor:
        return _squares(self._moved(), self._importances)

    def plus_gradient(self, gradients: Gradients, factor: float) -> Gradients:
        """`gradients` and `factor` times its own, 2 * importance * (parameter - anchor): new tensors, none of them None."""
        moved = self._moved()
        if not moved:
            return ()
        given = [torch.zeros_like(part) if gradient is None else gradient for gradient, part in zip(gradients, moved, strict=True)]
        return tuple(torch._foreach_addcmul(given, list(self._importances), moved, value=2 * factor))

    def _moved(self) -> list[Tensor]:
        if self._kept is None:
            with torch.no_grad():
                self._kept = _moved(self._parameters, self._anchors)
        return self._kept


def _moved(parameters: Sequence[Tensor], anchors: Sequence[Tensor]) -> list[Tensor]:
    return list(torch._foreach_sub(list(parameters), list(anchors))) if parameters else []


def _squares(moved: list[Tensor], importances: Sequence[Tensor]) -> Tensor:
    if not moved:
        return torch.zeros(())
    weighted = torch._foreach_mul(moved, list(importances))
    return torch.stack([torch.dot(one.flatten(), other.flatten()) for one, other in zip(weighted, moved, strict=True)]).sum()


def bregman_divergence(potential: Callable[[Tensor], Tensor], p: Tensor, q: Tensor) -> Tensor:
    """D(p, q) = potential(p) - potential(q) - <gradient at q, p - q>: a scalar, >= 0 where the potential is convex, differentiable in both.

    p and q have one shape, and the potential makes a scalar of it. The distances of the unified objective of Wang et al. 2024 (arXiv
    2403.13249): the squared norm gives the squared distance, sum p log p the KL divergence of distributions, F-weighted squares EWC's.
    """
    gradient, value = torch.func.grad_and_value(potential)(q)
    return potential(p) - value - (gradient * (p - q)).sum()
