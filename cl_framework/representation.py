"""Probes of the representation: how many directions the features of held-out samples fill, and how fast their spectrum decays.

Features are the model's before its head, of a fixed set of test samples of each task; of a text of several places, those of the last
one that asks something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from cl_framework.calls import evaluation_mode, run_model
from cl_framework.criterion import last_asked
from cl_framework.evaluation import evenly, held_out_batches
from cl_framework.learner import Learner
from cl_framework.rng import global_randomness_kept
from cl_framework.stream import TaskId

SAMPLES = 512  # of a task's test split at most, evenly chosen, since splits may be sorted: the measures depend on how many there are
_EPSILON = 1e-7


def rankme(features: Tensor, of: str = "singular") -> float | None:
    """The effective rank, exp of the entropy of the spectrum, in [1, min(N, D)]; features (N, D). None where the spectrum is all zero.

    singular: of the singular values, not centred (Garrido et al. 2023, "RankMe", eq. 1); covariance: of the eigenvalues of the
    covariance, which is never larger on features about zero; of those about another mean that mean is one large singular value.
    """
    if of not in ("singular", "covariance"):
        raise ValueError(f"of must be one of singular, covariance, got {of!r}")
    values = spectrum(features) if of == "covariance" else torch.linalg.svdvals(features.double())
    if not values.any():
        return None
    shares = values / values.sum() + _EPSILON
    shares = shares / shares.sum()
    return float((-shares * shares.log()).sum().exp())


def alpha_req(features: Tensor) -> float | None:
    """The exponent alpha of the power law l_i ~ i^-alpha of the covariance's eigenvalues; features (N, D).

    Least squares of log l_i on log i with weights 1 / i over ranks 11 to 100 (Agrawal et al. 2022, "alpha-ReQ"); of fewer than 200
    dimensions over ranks D / 16 to D / 2, a range of our own. None where the spectrum ends within them, as that of N samples does with
    rank N - 1: the logarithms there would be those of rounding errors.
    """
    values = spectrum(features)
    dimensions = len(values)
    first, last = (11, 100) if dimensions >= 200 else (max(1, dimensions // 16), max(2, dimensions // 2))
    if last > dimensions or not values[last - 1]:
        return None
    ranks = torch.arange(first, last + 1, dtype=torch.float64)
    x, y, weights = ranks.log(), values[first - 1 : last].log(), 1 / ranks
    x, y = x - (weights * x).sum() / weights.sum(), y - (weights * y).sum() / weights.sum()
    return float(-(weights * x * y).sum() / (weights * x * x).sum())


def spectrum(features: Tensor) -> Tensor:
    """Eigenvalues of the covariance, largest first, (D,) float64; 0 where they cannot be told from rounding errors."""
    features = features.double()
    centred = features - features.mean(0)
    values = torch.linalg.eigvalsh(centred.T @ centred / len(features)).flip(0)
    rounding = max(features.shape) * torch.finfo(torch.float64).eps  # relative: of the eigenvalues, and of the mean that was taken off
    noise = rounding * (values[0] + rounding * features.square().sum(1).mean())
    return values.where(values > noise, torch.zeros_like(values))


PROBES: Mapping[str, Callable[[Tensor], float | None]] = {"rankme": rankme, "alpha_req": alpha_req}


def probed(learner: Learner, tasks: Sequence[TaskId], probes: Sequence[str]) -> Iterator[tuple[TaskId, str, float | None, int]]:
    """Task, probe, its value and the number of samples, for each of the tasks; None of features that are not finite. Changes nothing."""
    if not probes:
        return
    for task in tasks:
        features = _features(learner, task)
        for probe in probes:
            value = PROBES[probe](features) if bool(features.isfinite().all()) else None
            yield task, probe, value, len(features)


def _features(learner: Learner, task: TaskId) -> Tensor:
    parts = []
    places = evenly(len(learner.benchmark.test[task]), SAMPLES)
    with torch.no_grad(), evaluation_mode(learner.model), global_randomness_kept(learner.device):
        for rows in held_out_batches(learner, task, places):
            features, _ = run_model(learner.model, rows)
            assert features is not None  # `assemble` has asked
            parts.append(_of_rows(features, rows.targets).cpu())
    return torch.cat(parts)


def _of_rows(features: Tensor, targets: Tensor) -> Tensor:
    """(B, D), from as many or from those of every place, (B, L, D)."""
    return features if features.ndim == 2 else features[torch.arange(len(features), device=features.device), last_asked(targets)]
