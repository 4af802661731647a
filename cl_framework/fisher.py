"""Squared gradients of the log-likelihood, sample by sample: the diagonal of the Fisher information."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import grad, vmap

LABELS = ("given", "expected", "weighted")
_LARGEST = 1 << 26  # gradient entries held at once: 256 MiB in float32

LogProbabilities = Callable[[tuple[Tensor, ...], Tensor, Tensor], Tensor]  # parameters, one input (1, ...), its task (1,) -> (1, C)


def squared_gradients(
    log_probabilities: LogProbabilities, parameters: Sequence[Tensor], inputs: Tensor, targets: Tensor, task: Tensor, labels: str
) -> tuple[Tensor, ...]:
    """The sum over rows of (d log p(y|x) / d theta)^2, one tensor for each of `parameters`.

    `inputs` (B, ...), `targets` (B,), `task` (1,) the task of all rows. `labels`:
    given: y is the row's label, the empirical Fisher (Kirkpatrick et al. 2017 as commonly implemented);
    expected: the mean over y ~ p(y|x), the Fisher information itself (one backward pass a class);
    weighted: y is the label and each gradient is multiplied by p(y|x), as in the released code of Buzzega et al. 2020.
    """
    if labels not in LABELS:
        raise ValueError(f"labels must be one of {', '.join(LABELS)}, got {labels!r}")
    held = tuple(parameter.detach() for parameter in parameters)

    def of_label(values: tuple[Tensor, ...], row: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """log p(label | row), and the same as an auxiliary value."""
        found = log_probabilities(values, row.unsqueeze(0), task)[0]
        chosen = found.gather(0, label.view(1))[0]
        return chosen, chosen

    def of_row(row: Tensor, label: Tensor) -> tuple[Tensor, ...]:
        gradients, log_p = grad(of_label, has_aux=True)(held, row, label)
        weight = {"given": torch.ones_like(log_p), "weighted": log_p.exp() ** 2, "expected": log_p.exp()}[labels]
        return tuple(weight * gradient.square() for gradient in gradients)

    entries = sum(parameter.numel() for parameter in held)
    chunk = max(1, _LARGEST // max(1, entries))
    if labels != "expected":
        return _summed(of_row, inputs, targets, chunk)
    classes = log_probabilities(held, inputs[:1], task).shape[1]
    parts = [_summed(of_row, inputs, torch.full_like(targets, label), chunk) for label in range(classes)]
    return tuple(torch.stack(part).sum(0) for part in zip(*parts, strict=True))


def _summed(of_row: Callable[[Tensor, Tensor], tuple[Tensor, ...]], inputs: Tensor, targets: Tensor, chunk: int) -> tuple[Tensor, ...]:
    """The sum of `of_row` over rows, at most `chunk` of them held at once."""
    total: tuple[Tensor, ...] | None = None
    for some, labels in zip(inputs.split(chunk), targets.split(chunk), strict=True):
        part = tuple(found.sum(0) for found in vmap(of_row)(some, labels))
        total = part if total is None else tuple(one + other for one, other in zip(total, part, strict=True))
    assert total is not None
    return total
