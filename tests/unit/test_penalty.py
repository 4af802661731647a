"""Quadratic penalties: value and gradient against the definition and against autograd. Bregman divergences: what methods add, as such."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cl_framework import WeightedSquares, bregman_divergence, weighted_squares
from cl_framework.unlearning.divergences import kl_divergence
from strategies.lwf import distillation

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


def test_the_gradient_in_closed_form_is_autograds() -> None:
    parameters, anchors, importances, given = ([part.requires_grad_(seed == 0) for part in tensors(seed)] for seed in range(4))
    expected = torch.autograd.grad(0.7 * weighted_squares(parameters, anchors, importances), parameters)
    penalty = WeightedSquares(parameters, anchors, importances)
    found = penalty.plus_gradient((given[0], None, given[2], None), 0.7)
    swept = 0
    for place, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        assert mine is not None and not mine.requires_grad
        torch.testing.assert_close(mine, theirs if place % 2 else given[place] + theirs, rtol=1e-10, atol=1e-12)
        assert not torch.allclose(mine, theirs / 2 if place % 2 else given[place] + theirs / 2, rtol=1e-3)
        swept += 1
    assert swept == len(SHAPES)
    assert all(torch.equal(one, other) for one, other in zip(given, tensors(3), strict=True)), "what was given stays what it was"
    assert WeightedSquares([], [], []).plus_gradient((), 1.0) == () and float(WeightedSquares([], [], []).value()) == 0


def test_its_value_is_that_of_where_it_was_first_asked() -> None:
    parameters = tensors(0)
    penalty = WeightedSquares(parameters, tensors(1), tensors(2))
    before = weighted_squares(parameters, tensors(1), tensors(2))
    penalty.plus_gradient((None,) * len(SHAPES), 1.0)
    for parameter in parameters:
        parameter.add_(1.0)
    assert torch.equal(penalty.value(), before)
    assert not torch.isclose(WeightedSquares(parameters, tensors(1), tensors(2)).value(), before)


# --- Bregman divergences: the unified objective of refresh learning's paper ---


def squared_norm(point: Tensor) -> Tensor:
    return point.square().sum()


def negative_entropy(point: Tensor) -> Tensor:
    return torch.special.xlogy(point, point).sum()


def pair(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (B, C) of a student and a teacher."""
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    return one, other


def same(one: Tensor, other: Tensor) -> bool:
    return bool(torch.allclose(one, other, rtol=1e-10, atol=1e-12))


def test_three_potentials_give_three_known_distances() -> None:
    student, teacher = pair()
    p, q = student.softmax(1), teacher.softmax(1)
    importance = pair(1)[0].abs()
    assert same(bregman_divergence(squared_norm, student, teacher), (student - teacher).square().sum())
    assert same(bregman_divergence(negative_entropy, p, q), kl_divergence(p.log(), q.log()).sum())
    found = bregman_divergence(lambda point: 0.5 * (importance * point.square()).sum(), student, teacher)
    assert same(found, 0.5 * (importance * (student - teacher).square()).sum())
    assert not same(found, (student - teacher).square().sum())


def test_the_order_of_its_arguments_matters_but_for_squares() -> None:
    p, q = (logits.softmax(1) for logits in pair())
    assert not same(bregman_divergence(negative_entropy, p, q), bregman_divergence(negative_entropy, q, p))
    assert same(bregman_divergence(squared_norm, p, q), bregman_divergence(squared_norm, q, p))


@pytest.mark.parametrize("potential", [squared_norm, negative_entropy, lambda point: point.exp().sum()])
def test_it_is_0_at_one_point_and_more_elsewhere(potential: Callable[[Tensor], Tensor]) -> None:
    swept = 0
    for seed in range(20):
        p, q = (logits.softmax(1) for logits in pair(seed))
        assert abs(float(bregman_divergence(potential, p, p))) < 1e-12
        assert float(bregman_divergence(potential, p, q)) > 1e-3
        swept += 1
    assert swept == 20
    assert float(bregman_divergence(lambda point: -squared_norm(point), *pair())) < 0  # the control: no convex potential


def agree(one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], at: Tensor) -> bool:
    """Whether two terms have one gradient at a point, and so train alike."""
    points = [at.clone().requires_grad_() for _ in range(2)]
    gradients = [torch.autograd.grad(term(point), point)[0] for term, point in zip((one, other), points, strict=True)]
    return same(*gradients)


def test_the_terms_of_ewc_er_der_and_lwf_are_special_cases() -> None:
    student, teacher = pair()
    importance, rows = pair(1)[0].abs(), len(student)
    terms: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
        "ewc": (
            lambda weights: weighted_squares([weights], [teacher], [importance]),
            lambda weights: bregman_divergence(lambda point: (importance * point.square()).sum(), weights, teacher),
        ),
        "er": (
            lambda logits: functional.cross_entropy(logits, teacher.argmax(1)),
            lambda logits: bregman_divergence(negative_entropy, functional.one_hot(teacher.argmax(1), 4), logits.softmax(1)) / rows,
        ),
        "der": (
            lambda logits: functional.mse_loss(logits, teacher),
            lambda logits: bregman_divergence(squared_norm, logits, teacher) / logits.numel(),
        ),
        "lwf": (
            lambda logits: distillation(logits, teacher, 2.0),
            lambda logits: bregman_divergence(negative_entropy, (teacher / 2).softmax(1), (logits / 2).softmax(1)) / rows,
        ),
    }
    for name, (term, divergence) in terms.items():
        assert agree(term, divergence, student), name
    rest = distillation(student, teacher, 2.0) - terms["lwf"][1](student)
    assert same(rest, -negative_entropy((teacher / 2).softmax(1)) / rows), "the teacher's entropy, which no weight moves"
    assert not agree(
        terms["lwf"][0],
        lambda logits: bregman_divergence(negative_entropy, (logits / 2).softmax(1), (teacher / 2).softmax(1)) / rows,
        student,
    )
