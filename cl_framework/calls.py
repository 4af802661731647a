"""Calls of the model: at its own parameters or at others, in a mode, without a trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cl_framework.errors import ContractError, FrameworkError
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


def logits_at(model: nn.Module, rows: Rows, places: Tensor) -> Tensor:
    """(B, C): the logits at one place (B,) of each text. A head answers each place of features (B, L, D) by itself: here no other."""
    chosen = torch.arange(len(places), device=places.device)
    extract, head = getattr(model, "features", None), getattr(model, "head", None)
    if callable(getattr(model, "features_and_logits", None)) or not (callable(extract) and callable(head)):
        return run_model(model, rows)[1][chosen, :, places]
    scores: Tensor = head(extract(rows.inputs, *conditioning(model, rows))[chosen, places].unsqueeze(1))
    return scores.squeeze(2)


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
    """The model's answer with these parameters and buffers in place of its own: see `replaced`."""
    with replaced(model, values):
        answer: Tensor = model(*arguments)
    return answer


def run_model_at(model: nn.Module, values: Mapping[str, Tensor], rows: Rows) -> tuple[Tensor | None, Tensor]:
    """Features and logits with these parameters and buffers in place of the model's own."""
    with replaced(model, values):
        return run_model(model, rows)


@contextmanager
def replaced(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """These parameters and buffers in place of the model's own, which are back afterwards.

    `values` has the names of `named_parameters` or of `state_dict`. What several modules share is replaced in all of them: under
    each of its names by that name's value, where there is none by another's. `torch.func.functional_call` replaces, too, and takes as
    long as a small model's pass.
    """
    places = [
        (f"{path}.{leaf}" if path else leaf, store, leaf, own)
        for path, module in model.named_modules(remove_duplicate=False)
        for store in (module._parameters, module._buffers)
        for leaf, own in store.items()
        if own is not None
    ]
    unknown = values.keys() - {name for name, *_ in places}
    if unknown:
        raise ContractError(f"values were given for {min(unknown)!r}, which is no parameter or buffer of the model.")
    shared = {id(own): values[name] for name, _, _, own in places if name in values}
    concerned = [(store, leaf, own, values.get(name, shared[id(own)])) for name, store, leaf, own in places if id(own) in shared]
    try:
        for store, leaf, _, value in concerned:
            store[leaf] = value
        yield
    finally:
        for store, leaf, own, _ in concerned:
            store[leaf] = own


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
    """Evaluation mode, and afterwards each module's own mode again. The flags alone are set: a `train` that does more is not called."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
