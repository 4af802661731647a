"""Which samples stand for a class, in such an order that the first few of them stand for it already."""

from __future__ import annotations

import torch
from torch import Tensor


def herding(features: Tensor, count: int) -> Tensor:
    """The first `count` rows of (N, D) whose running mean follows the mean of all; all N if there are fewer. (K,) int64.

    Row k is the one that brings the mean of the first k closest to the mean of all (Rebuffi et al. 2017, algorithm 4). A smaller
    count gives a prefix of a larger one's result, so that what is chosen can be cut to size from its tail.
    """
    mean = features.mean(0)
    total = torch.zeros_like(mean)
    free = torch.ones(features.shape[0], dtype=torch.bool, device=features.device)
    order = torch.empty(min(count, features.shape[0]), dtype=torch.int64, device=features.device)
    for place in range(len(order)):  # in terms of tensors alone: no pick waits for the device
        distances = (mean - (total + features) / (place + 1)).norm(dim=1)
        best = distances.masked_fill(~free, float("inf")).argmin()
        order[place] = best
        free.index_fill_(0, best, False)
        total = total + features.index_select(0, best.unsqueeze(0)).squeeze(0)
    return order
