"""Answers of models whose answer depends on the task of a row, and of those whose does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cl_framework.inputs import Inputs, at, device_of

Answer = tuple[Tensor | None, Tensor]  # features (B, D), None if there are none, and logits (B, C)


def answer_of(model: nn.Module, inputs: Inputs) -> Answer:
    """Features and logits of one pass of a model that has `features` and `head`; otherwise logits alone."""
    extract, head = getattr(model, "features", None), getattr(model, "head", None)
    if callable(extract) and callable(head):
        features = extract(inputs)
        return features, head(features)
    return None, model(inputs)


def answers_by_task(inputs: Inputs, tasks: Tensor, present: Sequence[int], answer: Callable[[Inputs, int], Answer]) -> Answer:
    """Each row's answer by its own task: `answer` is asked once for each of the tasks that are `present` in `tasks` (B,)."""
    if len(present) == 1:
        return answer(inputs, present[0])
    places = [(tasks == task).nonzero().flatten().to(device_of(inputs)) for task in present]
    parts = [answer(at(inputs, place), task) for task, place in zip(present, places, strict=True)]
    back = torch.cat(places).argsort()
    features = [part for part, _ in parts if part is not None]
    return torch.cat(features)[back] if features else None, torch.cat([logits for _, logits in parts])[back]
