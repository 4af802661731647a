"""Squared gradients of all rows at once, for models whose parameters lie in linear maps, convolutions and batch norms.

A row's gradient of a linear map's weight is the outer product of what comes back and what goes in, so the square of it is the outer
product of their squares, and the sum over rows is one product of two matrices (Goodfellow 2015, arXiv 1510.01799). A convolution is such
a map of the patches of its input, whose outer products are summed over the places of a row before they are squared; a norm in evaluation
mode scales each channel. `fisher` computes the same for any model, row by row, and takes many times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

PROBES = (2, 3)  # numbers of rows for which every module must be called once, with as many rows
_LARGEST = 1 << 22  # entries of gradients a row held at once

# Of what comes back to a module's output and a factor (B, 1) of each row's square: the sums over rows for its weight and bias.
Squares = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def modules_apart(model: nn.Module, names: Sequence[str], run: Callable[[int], object]) -> list[nn.Module] | None:
    """The modules that own the parameters of these names, if all are of a kind known here, share none, and see rows apart; else None.

    `run(count)` runs the model, which is in evaluation mode, on so many rows.
    """
    owners: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        if _known(module):
            for name, _ in module.named_parameters(recurse=False):
                owners[f"{path}.{name}" if path else name] = module
    every = [parameter for _, parameter in model.named_parameters(remove_duplicate=False)]
    shared = len({id(parameter) for parameter in every}) < len(every)
    if shared or not names or not set(names) <= owners.keys():
        return None
    modules = list(dict.fromkeys(owners[name] for name in names))
    for count in PROBES:
        with torch.no_grad(), watched(modules) as seen:
            run(count)
        if not all(len(calls) == 1 and calls[0].apart(module, count) for module, calls in seen.items()):
            return None
    return modules


def _known(module: nn.Module) -> bool:
    if type(module) is nn.Conv2d:
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) is nn.Linear or (type(module) is nn.BatchNorm2d and module.track_running_stats)


class Call(NamedTuple):
    """What went into a module and what came out, and how often each had been changed in place until then."""

    inside: Tensor
    output: Tensor
    versions: tuple[int, int]

    def apart(self, module: nn.Module, count: int) -> bool:
        """Whether each of `count` rows came in by itself, and nothing was changed in place afterwards: then it is not what was seen."""
        by_itself = self.inside.ndim == (2 if isinstance(module, nn.Linear) else 4) and len(self.inside) == count
        return by_itself and self.versions == (self.inside._version, self.output._version)


@contextmanager
def watched(modules: Sequence[nn.Module]) -> Iterator[Mapping[nn.Module, list[Call]]]:
    """The calls of these modules."""
    seen: dict[nn.Module, list[Call]] = {module: [] for module in modules}

    def note(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        seen[module].append(Call(arguments[0], output, (arguments[0]._version, output._version)))

    hooks = [module.register_forward_hook(note) for module in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def squared_gradients_by_module(
    model: nn.Module,
    names: Sequence[str],
    modules: Sequence[nn.Module],
    log_probabilities: Callable[[], Tensor],
    targets: Tensor,
    labels: str,
) -> tuple[Tensor, ...]:
    """What `fisher.squared_gradients` says, a tensor for each name, of a model for which `modules_apart` found these modules.

    `log_probabilities()` runs the model, in evaluation mode, once on all rows and gives (B, C); `targets` (B,).
    """
    with torch.enable_grad(), watched(modules) as seen:
        log_p = log_probabilities()
        outputs = [seen[module][0].output for module in modules]
        squares = [_squares(module, seen[module][0].inside.detach()) for module in modules]
        columns = [torch.full_like(targets, label) for label in range(log_p.shape[1])] if labels == "expected" else [targets]
        found: dict[int, Tensor] = {}
        for column in columns:
            chosen = log_p.gather(1, column.unsqueeze(1))
            share = torch.ones_like(chosen) if labels == "given" else chosen.detach().exp()
            gradients = torch.autograd.grad(chosen.sum(), outputs, retain_graph=column is not columns[-1])
            for module, of_module, gradient in zip(modules, squares, gradients, strict=True):
                weight, bias = of_module(gradient, share)
                _add(found, module.weight, weight)
                _add(found, module.bias, bias)
    named = dict(model.named_parameters())
    return tuple(found[id(named[name])] for name in names)


def _add(found: dict[int, Tensor], parameter: Tensor | nn.Module | None, part: Tensor) -> None:
    if isinstance(parameter, Tensor):
        found[id(parameter)] = found[id(parameter)] + part if id(parameter) in found else part


def _squares(module: nn.Module, inside: Tensor) -> Squares:
    """The sums of squares of a module's weight and bias, into which `inside` went; what does not depend on the gradient is done once."""
    if isinstance(module, nn.Conv2d):
        return _of_convolution(module, inside)
    return _of_norm(module, inside) if isinstance(module, nn.BatchNorm2d) else _of_linear(inside)


def _of_linear(inside: Tensor) -> Squares:
    squares = inside.square()

    def of(gradient: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        weighted = share * gradient.square()
        return weighted.T @ squares, weighted.sum(0)

    return of


def _of_convolution(module: nn.Conv2d, inside: Tensor) -> Squares:
    entries = module.weight.numel()
    chunk = max(1, _LARGEST // entries)  # a gradient a row is held

    def of(gradient: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros(1, entries, dtype=gradient.dtype, device=gradient.device)
        for rows, back, factors in zip(inside.split(chunk), gradient.flatten(2).split(chunk), share.split(chunk), strict=True):
            patches = functional.unfold(rows, module.kernel_size, module.dilation, module.padding, module.stride)  # type: ignore[arg-type]
            total.addmm_(factors.T, (back @ patches.transpose(1, 2)).square_().flatten(1))
        return total.view_as(module.weight), (share * gradient.sum((2, 3)).square()).sum(0)

    return of


def _of_norm(module: nn.BatchNorm2d, inside: Tensor) -> Squares:
    assert module.running_mean is not None and module.running_var is not None
    mean, deviation = module.running_mean, (module.running_var + module.eps).sqrt()
    scaled = (inside - mean.view(1, -1, 1, 1)) / deviation.view(1, -1, 1, 1)

    def of(gradient: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias = ((gradient * scaled).sum((2, 3)), gradient.sum((2, 3)))
        return (share * weight.square()).sum(0), (share * bias.square()).sum(0)

    return of
