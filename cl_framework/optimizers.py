"""The core's optimizers, by name; their state is kept by parameter name so that it survives a change of what is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from cl_framework.errors import ContractError
from cl_framework.schema import OptimizerConfig
from cl_framework.strategy import Gradients


def build_optimizer(
    config: OptimizerConfig,
    changes: Mapping[str, Any],
    parameters: Sequence[nn.Parameter],
    names: Sequence[str],
    remembered: Mapping[str, Any],
) -> torch.optim.Optimizer:
    """An optimizer over `parameters`; `changes` replace fields of `config`, `remembered` is state by parameter name."""
    unknown = set(changes) - {option.name for option in fields(config)}
    if unknown:
        raise ContractError(f"a phase changes optimizer options that do not exist: {', '.join(sorted(unknown))}.")
    options = {option.name: changes.get(option.name, getattr(config, option.name)) for option in fields(config)}
    optimizer = _new(options, list(parameters) or [nn.Parameter(torch.zeros(0))])
    for parameter, name in zip(parameters, names, strict=True):
        if name in remembered:
            optimizer.state[parameter] = {key: _copy(value) for key, value in remembered[name].items()}
    return optimizer


def _new(options: Mapping[str, Any], parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    name, rate, decay = options["name"], options["lr"], options["weight_decay"]
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=options["momentum"], weight_decay=decay)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    # One kernel: on a CPU nine times as fast for a million weights. It wants tensors without gaps, see `laid_out_as`.
    return kind(parameters, lr=rate, weight_decay=decay, fused=all(map(_without_gaps, parameters)))


def _without_gaps(parameter: nn.Parameter) -> bool:
    """False of a part of a larger tensor, whose layout no new tensor takes on."""
    return torch.empty_like(parameter, device="meta").stride() == parameter.stride()


def is_plain_sgd(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its whole update is `parameter -= lr * gradient`."""
    groups = optimizer.param_groups
    return type(optimizer) is torch.optim.SGD and not any(group["momentum"] or group["weight_decay"] for group in groups)


@torch.no_grad()
def apply_plain_sgd(rate: float, parameters: Sequence[nn.Parameter], gradients: Gradients) -> None:
    """What `torch.optim.SGD.step` does without momentum, bit for bit; its hooks and checks cost more than a small model's update."""
    reached = [(parameter, gradient) for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
    if reached:
        torch._foreach_add_([parameter for parameter, _ in reached], [gradient for _, gradient in reached], alpha=-rate)


def laid_out_as(parameter: nn.Parameter, gradient: torch.Tensor | None) -> torch.Tensor | None:
    """The gradient in the parameter's memory layout, which differs where autograd passes on a view: a slice, an expansion, a transpose.

    The fused update takes it for granted: on a CUDA device it raises, on a CPU it pairs the wrong entries without a word.
    """
    if gradient is None or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def optimizer_state_by_name(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Any]:
    """The optimizer's state of each parameter, by its name."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if len(parameters) != len(names):
        return {}
    return {
        name: {key: _copy(value) for key, value in optimizer.state[parameter].items()}
        for name, parameter in zip(names, parameters, strict=True)
        if parameter in optimizer.state
    }


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value
