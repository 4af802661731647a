"""Membership inference, figure M5: can samples that were learned be told from samples that were not, by what a model says of them.

Scores are higher for members. Members and non-members must be of the same classes and go through the same transforms.
(Modified entropy: Song & Mittal 2021, "Systematic Evaluation of Privacy Risks", eq. 6.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SCORES = ("loss", "confidence", "entropy", "modified_entropy")
_TINY = 1e-12


def membership_scores(log_probabilities: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Each score of each row, (N,), higher for members, from log-probabilities (N, C) and labels (N,)."""
    p = log_probabilities.exp()
    own = log_probabilities.gather(1, targets.unsqueeze(1)).squeeze(1)
    entropy = -(p * log_probabilities.clamp(min=-1e4)).sum(1)
    return {
        "loss": own,
        "confidence": p.max(1).values,
        "entropy": -entropy,
        "modified_entropy": -modified_entropy(log_probabilities, targets),
    }


def modified_entropy(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    """-(1 - p_y) log p_y - sum over the other classes of p_c log(1 - p_c), of each row, (N,), >= 0: 0 only for a sure, right answer."""
    p = log_probabilities.exp().clamp(max=1.0)
    label = torch.zeros_like(p, dtype=torch.bool).scatter_(1, targets.unsqueeze(1), True)
    own = (p * label).sum(1)
    log_own = log_probabilities.gather(1, targets.unsqueeze(1)).squeeze(1).clamp(min=-1e4)
    others = torch.where(label, torch.zeros_like(p), p * (1 - p).clamp(min=_TINY).log())
    return -(1 - own) * log_own - others.sum(1)


def calibrated(likelihoods: Tensor, peers: Sequence[Tensor]) -> Tensor:
    """(N,) log-likelihoods less their mean under models that never saw these samples: what is easy for all tells nothing of membership.

    (Watson et al. 2022, "On the Importance of Difficulty Calibration in Membership Inference Attacks", eq. 3.)
    """
    return likelihoods - torch.stack(list(peers)).mean(0)


def auc(members: Tensor, others: Tensor) -> float:
    """Area under the ROC curve of scores (N,), (M,): the chance that a member scores higher, ties counted half; in [0, 1]."""
    if not len(members) or not len(others):
        raise ValueError("there are no members, or no others")
    ordered = others.sort().values
    below = torch.searchsorted(ordered, members.contiguous(), right=False).double()
    not_above = torch.searchsorted(ordered, members.contiguous(), right=True).double()
    return float(((below + not_above) / 2).mean() / len(others))


def tpr_at_fpr(members: Tensor, others: Tensor, fpr: float = 0.01) -> float:
    """The largest share of members found by a threshold that takes at most a share `fpr` of the others for members; in [0, 1]."""
    if not len(members) or not len(others):
        raise ValueError("there are no members, or no others")
    allowed = int(fpr * len(others))
    ordered = others.sort(descending=True).values
    return float((members > ordered[allowed]).float().mean()) if allowed < len(others) else 1.0
