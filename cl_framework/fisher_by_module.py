"""Squared gradients of all rows at once, for models whose parameters all lie in linear modules: a few matrix products a batch.

A row's gradient of a linear map's weight is the outer product of what comes back and what goes in, so the square of it is the outer
product of their squares, and the sum over rows is one product of two matrices (Goodfellow 2015, arXiv 1510.01799). `fisher` computes the
same for any model, row by row, and takes many times as long for an MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

PROBES = (2, 3)  # numbers of rows for which every linear module must be called once, with as many rows


def linear_modules(model: nn.Module, names: Sequence[str], run: Callable[[int], object]) -> list[nn.Linear] | None:
    """The modules that own the parameters of these names, if all are linear, share none, and see each row of a batch apart; else None.

    `run(count)` runs the model on so many rows.
    """
    owners: dict[str, nn.Linear] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if type(module) is nn.Linear and parameter is not None:
                owners[f"{path}.{name}" if path else name] = module
    every = [parameter for _, parameter in model.named_parameters(remove_duplicate=False)]
    shared = len({id(parameter) for parameter in every}) < len(every)
    if shared or not names or not set(names) <= owners.keys():
        return None
    modules = list(dict.fromkeys(owners[name] for name in names))
    for count in PROBES:
        with torch.no_grad(), watched(modules) as seen:
            run(count)
        if any([tuple(inside.shape[:-1]) for inside, _ in seen[module]] != [(count,)] for module in modules):
            return None
    return modules


@contextmanager
def watched(modules: Sequence[nn.Linear]) -> Iterator[Mapping[nn.Linear, list[tuple[Tensor, Tensor]]]]:
    """What goes into these modules and what comes out, of each call."""
    seen: dict[nn.Linear, list[tuple[Tensor, Tensor]]] = {module: [] for module in modules}

    def note(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Linear)
        seen[module].append((arguments[0], output))

    hooks = [module.register_forward_hook(note) for module in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def squared_gradients_by_module(
    model: nn.Module,
    names: Sequence[str],
    modules: Sequence[nn.Linear],
    log_probabilities: Callable[[], Tensor],
    targets: Tensor,
    labels: str,
) -> tuple[Tensor, ...]:
    """What `fisher.squared_gradients` says, a tensor for each name, of a model that `linear_modules` found to be linear modules.

    `log_probabilities()` runs the model once on all rows and gives (B, C); `targets` (B,).
    """
    with torch.enable_grad(), watched(modules) as seen:
        log_p = log_probabilities()
        inside = [seen[module][0][0].detach().square() for module in modules]
        outputs = [seen[module][0][1] for module in modules]
        columns = [torch.full_like(targets, label) for label in range(log_p.shape[1])] if labels == "expected" else [targets]
        found: dict[int, Tensor] = {}
        for column in columns:
            chosen = log_p.gather(1, column.unsqueeze(1))
            share = torch.ones_like(chosen) if labels == "given" else chosen.detach().exp()
            gradients = torch.autograd.grad(chosen.sum(), outputs, retain_graph=column is not columns[-1])
            for module, squares, gradient in zip(modules, inside, gradients, strict=True):
                weighted = share * gradient.square()
                _add(found, module.weight, weighted.T @ squares)
                if module.bias is not None:
                    _add(found, module.bias, weighted.sum(0))
    named = dict(model.named_parameters())
    return tuple(found[id(named[name])] for name in names)


def _add(found: dict[int, Tensor], parameter: Tensor, part: Tensor) -> None:
    found[id(parameter)] = found[id(parameter)] + part if id(parameter) in found else part
