"""Calls of the model: at its own parameters or at others, in a mode, without a trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cl_framework.errors import FrameworkError
from cl_framework.joining import JoinedRows
from cl_framework.models.freezing import moving_buffers
from cl_framework.strategy import Rows


def conditioning(model: nn.Module, rows: Rows | JoinedRows) -> tuple[Tensor, ...]:
    """What a model is given beside the inputs: the task of each row, if it asks for that; on the host where it is known there."""
    if not getattr(model, "task_conditioned", False):
        return ()
    tasks = rows.tasks  # refused where no strategy of the stack declares that it needs them
    return (tasks if rows.host_tasks is None else rows.host_tasks,)


def run_model(model: nn.Module, rows: Rows | JoinedRows) -> tuple[Tensor | None, Tensor]:
    """Features (None if the model has no `features` and `head`) and logits of one forward pass.

    A task-conditioned model, whose head depends on the task, gives both at once by `features_and_logits`.
    """
    try:
        return _features_and_logits(model, rows)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise FrameworkError(
            "a batch of one sample reached a BatchNorm layer, which needs two to normalise. Choose a batch_size "
            "(and where a strategy draws rows, a minibatch and a capacity) that leaves no single sample over, or a model without BatchNorm."
        ) from error


def has_features(model: nn.Module) -> bool:
    """Whether `run_model` gives features of this model."""
    if callable(getattr(model, "features_and_logits", None)):
        return True
    return callable(getattr(model, "features", None)) and callable(getattr(model, "head", None))


def _features_and_logits(model: nn.Module, rows: Rows | JoinedRows) -> tuple[Tensor | None, Tensor]:
    beside = conditioning(model, rows)
    both = getattr(model, "features_and_logits", None)
    if callable(both):
        answers: tuple[Tensor | None, Tensor] = both(rows.inputs, *beside)
        return answers
    extract, head = getattr(model, "features", None), getattr(model, "head", None)
    if callable(extract) and callable(head):
        features = extract(rows.inputs, *beside)
        return features, head(features)
    return None, model(rows.inputs, *beside)


def call_at(model: nn.Module, values: Mapping[str, Tensor], *arguments: object) -> Tensor:
    """The model's answer with these parameters and buffers in place of its own, which are back afterwards.

    `values` has the names of `named_parameters` or of `state_dict`. A parameter that several modules share is replaced in all of them;
    a module that is reachable under several names is replaced in once, since torch would otherwise leave the replacement behind.
    """
    owners = dict(model.named_modules(remove_duplicate=False))
    chosen: dict[tuple[int, str], tuple[str, Tensor]] = {}
    shared = {id(parameter): values[name] for name, parameter in model.named_parameters() if name in values}
    tied = ((name, shared[id(parameter)]) for name, parameter in model.named_parameters(remove_duplicate=False) if id(parameter) in shared)
    for name, value in (*values.items(), *tied):
        owner, _, leaf = name.rpartition(".")
        chosen.setdefault((id(owners[owner]), leaf), (name, value))
    return functional_call(model, dict(chosen.values()), arguments, tie_weights=False)


class _Answering(nn.Module):
    """A model whose call gives features and logits of rows."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: Rows) -> tuple[Tensor | None, Tensor]:
        return run_model(self.model, rows)


def run_model_at(model: nn.Module, values: Mapping[str, Tensor], rows: Rows) -> tuple[Tensor | None, Tensor]:
    """Features and logits with these parameters and buffers in place of the model's own, which are back afterwards."""
    answers: Any = call_at(_Answering(model), {f"model.{name}": value for name, value in values.items()}, rows)
    features, logits = answers
    return features, logits


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put the model's buffers (BatchNorm statistics) back afterwards."""
    saved = [(buffer, buffer.clone()) for buffer in moving_buffers(model).values()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in saved:
                buffer.copy_(before)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards each module's own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
