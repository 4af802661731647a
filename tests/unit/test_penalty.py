"""Quadratic penalties: value and gradient against the definition and against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cl_framework import weighted_squares

SHAPES = ((3, 4), (4,), (), (2, 1, 3))


def tensors(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def by_definition(parameters: list[Tensor], anchors: list[Tensor], importances: list[Tensor]) -> Tensor:
    parts = [(i * (p - a) ** 2).sum() for p, a, i in zip(parameters, anchors, importances, strict=True)]
    return torch.stack(parts).sum()


@pytest.mark.parametrize("factor", [1.0, 7.5])
def test_value_and_gradient_are_those_of_the_definition(factor: float) -> None:
    anchors, importances = tensors(1), [part.abs() for part in tensors(2)]
    found, expected = ([part.requires_grad_() for part in tensors(0)] for _ in range(2))
    one, other = weighted_squares(found, anchors, importances), by_definition(expected, anchors, importances)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
    gradients = torch.autograd.grad(factor * one, found), torch.autograd.grad(factor * other, expected)
    for mine, theirs, parameter, anchor, importance in zip(*gradients, tensors(0), anchors, importances, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0)
        torch.testing.assert_close(mine, 2 * factor * importance * (parameter - anchor), rtol=1e-12, atol=0)
    assert float(one.detach()) > 1 and len(gradients[0]) == len(SHAPES)


def test_at_the_anchors_and_without_importance_both_are_0() -> None:
    swept = 0
    for anchors, importances in ((tensors(0), tensors(2)), (tensors(1), [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES])):
        parameters = [part.requires_grad_() for part in tensors(0)]
        value = weighted_squares(parameters, anchors, importances)
        assert float(value.detach()) == 0
        for gradient in torch.autograd.grad(value, parameters):
            assert not gradient.any()
            swept += 1
    assert swept == 2 * len(SHAPES)


def test_what_it_adds_to_another_loss() -> None:
    parameters = [part.requires_grad_() for part in tensors(0)]
    rest = torch.stack([part.sum() for part in parameters]).sum()
    gradients = torch.autograd.grad(rest + weighted_squares(parameters, tensors(1), tensors(2)), parameters)
    for gradient, parameter, anchor, importance in zip(gradients, tensors(0), tensors(1), tensors(2), strict=True):
        torch.testing.assert_close(gradient, 1 + 2 * importance * (parameter - anchor))


def test_some_parameters_may_be_frozen_and_none_is_fine() -> None:
    moving, frozen = (part.detach() for part in tensors(0)[:2])
    value = weighted_squares([moving.requires_grad_(), frozen], tensors(1)[:2], tensors(2)[:2])
    (gradient,) = torch.autograd.grad(value, [moving])
    torch.testing.assert_close(gradient, 2 * tensors(2)[0] * (moving.detach() - tensors(1)[0]))
    assert float(weighted_squares([], [], [])) == 0
    with torch.no_grad():
        assert not weighted_squares(tensors(0), tensors(1), tensors(2)).requires_grad
