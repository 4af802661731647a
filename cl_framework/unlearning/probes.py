"""Probe leakage, figure M9: how well a fresh classifier on frozen features tells the classes of a task that was unlearned.

The probe is ridge regression on one-hot labels, solved exactly and without randomness, so that two models' figures differ by their
features alone; a nearest-neighbour answer stands beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def linear_probe(train: Tensor, labels: Tensor, test: Tensor, answers: Tensor, ridge: float = 1e-3) -> float:
    """Accuracy in percent of a ridge classifier: features (N, D), labels (N,), tested on (M, D) with answers (M,).

    Features are standardised by the training features; `ridge` is in units of the number of samples, > 0.
    """
    mean, deviation = train.double().mean(0), train.double().std(0, unbiased=False).clamp(min=1e-8)
    x, y = (((part.double() - mean) / deviation) for part in (train, test))
    x, y = (functional.pad(part, (0, 1), value=1.0) for part in (x, y))
    classes = torch.unique(labels)
    wanted = (labels.unsqueeze(1) == classes).double()
    gram = x.T @ x + ridge * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, x.T @ wanted)
    return 100 * float((classes[(y @ weights).argmax(1)] == answers).double().mean())


def nearest_neighbours(train: Tensor, labels: Tensor, test: Tensor, answers: Tensor, k: int = 5) -> float:
    """Accuracy in percent of the majority among the k nearest training features (Euclidean); ties go to the smaller label."""
    nearest = torch.cdist(test.double(), train.double()).topk(min(k, len(train)), largest=False).indices
    votes = functional.one_hot(labels[nearest], int(labels.max()) + 1).sum(1)
    return 100 * float((votes.argmax(1) == answers).double().mean())


def probe_leakage(unlearned: float, oracle: float, knowing: float, rows: int | None = None) -> float | None:
    """(LP_u - LP_O) / (LP_B - LP_O): 0 as the oracle, 1 as the model that knows; accuracies in percent.

    None where the model that knows is not ahead of the oracle by a point, and of so many `rows` by three standard errors.
    """
    error = 0.0 if rows is None else 100 * (oracle / 100 * (1 - oracle / 100) / max(1, rows)) ** 0.5
    ahead = knowing - oracle
    return (unlearned - oracle) / ahead if ahead > max(1.0, 3 * error) else None
