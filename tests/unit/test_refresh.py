"""Refresh: the ascent and its noise against their equations; options."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cl_framework import Strategy
from strategies.refresh import (
    DAMP,
    DECAY,
    SIGMA,
    Refresh,
    RefreshConfig,
    ascend,
    ascend_released,
    noise_like,
    preconditioner,
    reached,
    released_preconditioner,
)
from tests.unit.elsewhere import ELSEWHERE, Waits, a_device_elsewhere, nothing_waits


def tensors(seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in ((3, 4), (4,), (2, 1, 3))]


def flat(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def roots_of(parts: list[Tensor]) -> list[Tensor]:
    return [part.sqrt() for part in parts]


# --- the equations ---


def test_the_ascent_follows_its_equation() -> None:
    parameters, gradients, scales, noise = tensors(0), tensors(1), [part.abs() for part in tensors(2)], tensors(3)
    before = flat(parameters).clone()
    ascend(parameters, gradients, scales, roots_of(scales), 0.3, 0.2, noise)
    swept = 0
    for found, theta, g, p, e in zip(flat(parameters), before, flat(gradients), flat(scales), flat(noise), strict=True):
        expected = float(theta) + 0.3 * float(p) * float(g) + math.sqrt(2 * 0.3 * 0.2 * float(p)) * float(e)
        assert float(found) == pytest.approx(expected, rel=1e-12)
        swept += 1
    assert swept == 22


def test_at_temperature_0_there_is_no_noise() -> None:
    one, other, warm = tensors(0), tensors(0), tensors(0)
    scales = [part.abs() for part in tensors(2)]
    ascend(one, tensors(1), scales, roots_of(scales), 0.3, 0.0, tensors(3))
    ascend(other, tensors(1), scales, roots_of(scales), 0.3, 0.0, tensors(4))
    ascend(warm, tensors(1), scales, roots_of(scales), 0.3, 0.1, tensors(4))
    assert torch.equal(flat(one), flat(other)) and not torch.equal(flat(one), flat(warm))


def test_a_small_ascent_raises_the_loss_by_gamma_times_the_scaled_square_of_its_gradient() -> None:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    targets = torch.randint(3, (20,), generator=generator)
    swept = 0
    for gamma in (1e-4, 1e-5, 1e-6):
        weight = torch.randn(3, 6, generator=generator, dtype=torch.float64, requires_grad=True)
        scale = preconditioner(torch.rand(3, 6, generator=generator, dtype=torch.float64), 1.0)
        before = functional.cross_entropy(inputs @ weight.T, targets)
        (gradient,) = torch.autograd.grad(before, weight)
        moved = weight.detach().clone()
        ascend([moved], [gradient], [scale], [scale.sqrt()], gamma, 0.0, [gradient])
        rise = float(functional.cross_entropy(inputs @ moved.T, targets) - before.detach())
        first_order = gamma * float((gradient * scale * gradient).sum())
        assert rise > 0 and rise == pytest.approx(first_order, rel=20 * gamma + 1e-6)
        assert rise != pytest.approx(gamma * float(gradient.square().sum()), rel=0.05), "without the preconditioner it is another rise"
        swept += 1
    assert swept == 3


def test_the_released_move_has_delta_times_each_tensors_own_norm_along_its_gradient() -> None:
    parameters, gradients = tensors(0), [part * 1e-3 for part in tensors(1)]
    before = [part.clone() for part in parameters]
    ones = [torch.ones_like(part) for part in parameters]
    ascend_released(parameters, gradients, ones, 1e-5, 0.0, tensors(3))
    for now, then, gradient in zip(parameters, before, gradients, strict=True):
        moved = now - then
        assert float(moved.norm()) == pytest.approx(1e-5 * float(then.norm()), rel=1e-5)
        assert float(functional.cosine_similarity(moved.flatten(), gradient.flatten(), dim=0)) == pytest.approx(1, abs=1e-9)
    larger = [part.clone() for part in before]
    ascend_released(larger, [100 * part for part in gradients], ones, 1e-5, 0.0, tensors(3))
    torch.testing.assert_close(flat(larger), flat(parameters), rtol=0, atol=1e-15)
    together = flat(parameters) - flat(before)
    whole = flat(gradients) * float(flat(before).norm()) / float(flat(gradients).norm())
    assert not torch.allclose(together, 1e-5 * whole, rtol=0.01), "one norm for all tensors is another direction"


def test_the_released_noise_is_added_to_the_direction_before_it_is_scaled() -> None:
    fishers = [1000 * part.abs() for part in tensors(2)]
    scales = [released_preconditioner(fisher) for fisher in fishers]
    quiet, noisy, noise = tensors(0), tensors(0), tensors(3)
    ascend_released(quiet, tensors(1), scales, 0.1, 0.0, noise)
    ascend_released(noisy, tensors(1), scales, 0.1, SIGMA, noise)
    expected = 0.1 * 0.001 * flat(noise) / (1 + 0.001 * flat(fishers))
    torch.testing.assert_close(flat(noisy) - flat(quiet), expected, rtol=1e-9, atol=1e-15)


def test_a_tensor_of_zeros_or_without_a_gradient_gets_noise_alone_in_the_released_rule() -> None:
    zeros, still = torch.zeros(5), torch.ones(5)
    ascend_released([zeros, still], [torch.ones(5), torch.zeros(5)], [torch.ones(5)] * 2, 0.5, 0.0, [torch.ones(5)] * 2)
    assert torch.equal(zeros, torch.zeros(5)) and torch.equal(still, torch.ones(5))
    ascend_released([zeros, still], [torch.ones(5), torch.zeros(5)], [torch.ones(5)] * 2, 0.5, 0.2, [torch.ones(5)] * 2)
    torch.testing.assert_close(zeros, torch.full((5,), 0.1))
    torch.testing.assert_close(still, torch.full((5,), 1.1))


def test_preconditioners() -> None:
    fisher = torch.tensor([0.0, 0.5, 9.0, 1e9])
    torch.testing.assert_close(preconditioner(fisher, 1.0), torch.tensor([1.0, 1 / 1.5, 0.1, 1e-9]))
    torch.testing.assert_close(preconditioner(fisher, 0.1), torch.tensor([10.0, 1 / 0.6, 1 / 9.1, 1e-9]))
    torch.testing.assert_close(released_preconditioner(fisher), torch.tensor([1.0, 1 / 1.0005, 1 / 1.009, 1e-6]), rtol=1e-5, atol=0)
    for form in (lambda value: preconditioner(value, 1.0), released_preconditioner):
        moves = [float(form(factor * torch.tensor(0.7))) for factor in (0, 1, 10, 1e4, 1e12)]
        assert moves == sorted(moves, reverse=True) and moves[0] == 1 and moves[-1] < 1e-8


# --- the noise ---


@pytest.mark.slow
def test_the_noise_has_mean_0_variance_1_and_no_correlations() -> None:
    generator = torch.Generator().manual_seed(1)
    like = [torch.empty(3, 2), torch.empty(5)]
    draws = torch.stack([flat(noise_like(like, generator)) for _ in range(20_000)])  # (20000, 11)
    assert [part.shape for part in noise_like(like, generator)] == [(3, 2), (5,)]
    torch.testing.assert_close(draws.mean(0), torch.zeros(11), rtol=0, atol=0.03)
    torch.testing.assert_close(torch.cov(draws.T), torch.eye(11), rtol=0, atol=0.03)
    assert not torch.allclose(torch.cov(draws.T), 1.1 * torch.eye(11), rtol=0, atol=0.03)


def test_the_spread_of_the_ascent_is_2_gamma_over_fisher() -> None:
    """Property 5 of the card: the covariance of the noise is 2 gamma P."""
    generator = torch.Generator().manual_seed(2)
    fisher, gamma = torch.tensor([0.0, 1.0, 3.0, 24.0]), 0.05
    moved = torch.zeros(40_000, 4)
    scales = [preconditioner(fisher, 1.0).expand(40_000, 4)]
    ascend([moved], [torch.zeros(40_000, 4)], scales, roots_of(scales), gamma, 1.0, noise_like([moved], generator))
    found = torch.cov(moved.T)
    torch.testing.assert_close(found.diagonal(), 2 * gamma / (fisher + 1), rtol=0.03, atol=0)
    torch.testing.assert_close(found - torch.diag(found.diagonal()), torch.zeros(4, 4), rtol=0, atol=0.002)
    torch.testing.assert_close(moved.mean(0), torch.zeros(4), rtol=0, atol=0.01)


def test_which_tensors_a_gradient_reaches() -> None:
    first, second, third = torch.zeros(1), torch.ones(1), torch.ones(2)
    gradients, column = reached((first, None, third), [first, second, third])
    assert gradients[0] is first and gradients[1] is third and len(gradients) == 2
    assert column[0] is first and column[1] is third and len(column) == 2
    assert reached((None, None), [first, second]) == ([], [])


def test_an_ascent_never_waits_for_the_device() -> None:
    with a_device_elsewhere():
        parameters, gradients, scales = ([part.to(ELSEWHERE) for part in tensors(seed, torch.float32)] for seed in range(3))
        with nothing_waits():
            noise = noise_like(parameters, torch.Generator(ELSEWHERE))
            ascend(parameters, gradients, scales, scales, 0.1, 0.1, noise)
            ascend_released(parameters, gradients, scales, 0.1, 0.1, noise)
        with pytest.raises(Waits), nothing_waits():
            assert parameters[0].sum() > 0


# --- refusals ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "released", "gamma": 0.03}, "gamma belongs to variant=paper; with variant=released set delta"),
        ({"variant": "released", "gamma": 0.0}, "gamma belongs to variant=paper; with variant=released set delta"),
        ({"variant": "released", "steps": 1}, "steps belongs to variant=paper; with variant=released set delta"),
        ({"variant": "released", "damping": 1.0}, "damping belongs to variant=paper; with variant=released set delta"),
        ({"variant": "released", "temperature": 0.0}, "temperature belongs to variant=paper; with variant=released set delta"),
        ({"delta": 1e-5}, "delta belongs to variant=released; with variant=paper set gamma"),
        ({"variant": "sam"}, "variant must be one of paper, released, got 'sam'"),
        ({"gamma": -0.1}, "gamma must be >= 0, got -0.1"),
        ({"steps": -1}, "steps must be >= 0, got -1"),
        ({"damping": 0.0}, "damping must be > 0, got 0.0"),
        ({"temperature": -1.0}, "temperature must be >= 0, got -1.0"),
        ({"variant": "released", "delta": -1.0}, "delta must be >= 0, got -1.0"),
        ({"fisher_samples": 0}, "fisher_samples must be >= 1, got 0"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RefreshConfig(**options)


def test_the_constants_of_the_released_code() -> None:
    assert (SIGMA, DAMP, DECAY, RefreshConfig(variant="released").value("delta")) == (1e-3, 1e-3, 1e-5, 1e-5)
    assert RefreshConfig().value("damping") == 1.0
    assert issubclass(Refresh, Strategy)
