"""Items and model inputs: one tensor, or a mapping of tensors by name (text). What is done to them is done to each tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Inputs = Tensor | dict[str, Tensor]


def each(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """`function` of the tensor, or of each tensor of the mapping."""
    if isinstance(inputs, dict):
        return {name: function(value) for name, value in inputs.items()}
    return function(inputs)


def at(inputs: Inputs, places: Tensor) -> Inputs:
    """Some rows of the inputs, by number (N,) or by a mask (B,)."""
    return each(lambda part: part[places], inputs)


def device_of(inputs: Inputs) -> torch.device:
    return next(iter(inputs.values())).device if isinstance(inputs, dict) else inputs.device


def host(copy: Tensor | None, values: Tensor) -> Tensor:
    """Values on the host: the copy that came with the batch, so that no step waits for the device."""
    return values.cpu() if copy is None else copy


def combined(function: Callable[[Tensor, Tensor], Tensor], one: Inputs, other: Inputs) -> Inputs:
    """`function` of both tensors, or of both tensors of each name."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {name: function(value, other[name]) for name, value in one.items()}
    assert isinstance(one, Tensor) and isinstance(other, Tensor)
    return function(one, other)


def concatenated(parts: Sequence[Inputs]) -> Inputs:
    """Rows of all parts, one part after another."""
    first = parts[0]
    if isinstance(first, dict):
        return {name: torch.cat([part[name] for part in parts if isinstance(part, dict)]) for name in first}
    return torch.cat([part for part in parts if isinstance(part, Tensor)])


def parted(inputs: Inputs, sizes: Sequence[int]) -> Sequence[Inputs]:
    """Consecutive parts of `sizes` rows each, as views."""
    if isinstance(inputs, dict):
        columns = {name: value.split(list(sizes)) for name, value in inputs.items()}
        return [{name: column[part] for name, column in columns.items()} for part in range(len(sizes))]
    return inputs.split(list(sizes))
