"""Quantization relapse, figure M8: what an unlearned model knows once its weights are rounded to a few bits.

Weight-only, symmetric absmax rounding, in simulation: w -> s round(w / s), s = max |w| / (2^(bits - 1) - 1) over a channel or a group.
An update smaller than half a step of that grid is rounded away, and what it had unlearned comes back (Zhang et al. 2024,
"Catastrophic Failure of LLM Unlearning via Quantization"). Where a hypernetwork writes the weights, its own are rounded, and, apart
from that, those that it writes: either may be what is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from cl_framework.evaluation import Accuracy, evaluate
from cl_framework.learner import Learner
from cl_framework.models.freezing import moving_buffers
from cl_framework.models.hypernetwork import TaskConditionedModel
from cl_framework.stream import TaskId

BITS = (8, 4)
RETAINED = 1000  # test samples a task, at most, that tell whether a rounded model has collapsed: a question of ten points


def quantized(weight: Tensor, bits: int, group: int | None = None) -> Tensor:
    """A matrix or filter (O, ...) rounded to `bits` (2 to 16): one scale an output channel, or one for each `group` of its weights."""
    codes, scales = _codes(weight, bits, group)
    return (codes * scales).reshape(_padded(weight, group).shape)[:, : weight[0].numel()].reshape(weight.shape)


def quantized_weights(named: Mapping[str, Tensor], bits: int, group: int | None = None) -> dict[str, Tensor]:
    """All tensors by name, matrices and filters rounded; biases, gains and statistics (fewer than two dimensions) as they are."""
    return {name: quantized(value, bits, group) if is_weight(value) else value for name, value in named.items()}


@contextmanager
def rounded_weights(model: nn.Module, bits: int, group: int | None = None) -> Iterator[None]:
    """A model whose weights are rounded meanwhile, and no statistics; afterwards they are what they were, bit for bit."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = {name: value for name, value in before.items() if name not in moving_buffers(model)}
    model.load_state_dict(before | quantized_weights(weights, bits, group))
    try:
        yield
    finally:
        model.load_state_dict(before)


def roundings(model: nn.Module) -> Iterator[str]:
    """Each way in which a model is rounded, by its name; while it is named, the model answers so."""
    for bits in BITS:
        with rounded_weights(model, bits):
            yield f"int{bits}"
        if isinstance(model, TaskConditionedModel):
            with model.writing_changed(partial(quantized_weights, bits=bits)):
                yield f"int{bits}_written"


def rounded_accuracies(learner: Learner, task: TaskId, live: Sequence[TaskId]) -> list[tuple[str, Accuracy]]:
    """After an Unlearn of a task or a part of it: the name of each rounding, and accuracies in the run's own scenario, of the task on all
    test samples, of the other `live` ones on `RETAINED` of each. Nothing where a strategy answers in the model's place."""
    retained, accuracies = [other for other in live if other != task], []
    for name in roundings(learner.model) if learner.stack.predictor is None else ():
        found = evaluate(learner, [task], live) + evaluate(learner, retained, live, RETAINED)
        own = [one for one in found if one.scenario == learner.run.scenario]
        accuracies += [(name, one) for one in sorted(own, key=lambda one: one.task)]
    return accuracies


def is_weight(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim >= 2


def _codes(weight: Tensor, bits: int, group: int | None) -> tuple[Tensor, Tensor]:
    """Codes (R, G) and scales (R, 1) of all channels or groups."""
    if not 2 <= bits <= 16:
        raise ValueError(f"bits must lie between 2 and 16, got {bits}")
    rows = _padded(weight, group)
    rows = rows if group is None else rows.reshape(-1, group)
    scales = rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny) / (2 ** (bits - 1) - 1)
    return (rows / scales).round(), scales


def _padded(weight: Tensor, group: int | None) -> Tensor:
    """(O, I), I filled up with zeros to a multiple of the group."""
    rows = weight.reshape(weight.shape[0], -1)
    return rows if group is None else torch.nn.functional.pad(rows, (0, -rows.shape[1] % group))
