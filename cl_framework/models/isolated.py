"""One sub-model a task: what a task has taught lies in a part of its own, and goes with it."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from cl_framework.inputs import Inputs
from cl_framework.models.by_task import Answer, answer_of, answers_by_task
from cl_framework.models.freezing import give_up_training


class IsolatedModel(nn.Module):
    """Copies of a model, one a task, of which only that of a row's task answers; or of its head, over one frozen body.

    Copies that are not being trained run in evaluation mode, so that no row of another task moves their statistics.
    """

    task_conditioned = True
    one_a_task = "parts"  # the list whose entries serve one task each, in their order

    def __init__(self, model: nn.Module, num_tasks: int, part: str = "model") -> None:
        super().__init__()
        self.part = part
        if part == "head":
            self.body = model
            head = model.head
            assert isinstance(head, nn.Module)
            self.parts = nn.ModuleList(deepcopy(head) for _ in range(num_tasks))
            give_up_training(self.body)  # a mask would not reach phases of other strategies
        else:
            self.parts = nn.ModuleList(deepcopy(model) for _ in range(num_tasks))
        self._fresh = {name: value.clone() for name, value in self.parts[0].state_dict().items()}

    def forward(self, inputs: Inputs, tasks: Tensor) -> Tensor:
        """Inputs (B, ...) and the task of each row (B,) -> logits (B, C)."""
        return self.features_and_logits(inputs, tasks)[1]

    def features_and_logits(self, inputs: Inputs, tasks: Tensor) -> tuple[Tensor | None, Tensor]:
        """Features (B, D), None if the model has none, and logits (B, C). Tasks on the host save a wait for the device."""
        return answers_by_task(inputs, tasks, torch.unique(tasks).tolist(), self._answer)

    def _answer(self, inputs: Inputs, task: int) -> Answer:
        own = self.parts[task]
        own.train(self.training and any(parameter.requires_grad for parameter in own.parameters()))
        if self.part == "head":
            extract = self.body.features
            assert callable(extract)
            features = extract(inputs)
            return features, own(features)
        return answer_of(own, inputs)

    def train(self, mode: bool = True) -> IsolatedModel:
        super().train(mode)
        if self.part == "head":
            self.body.eval()
        return self

    @torch.no_grad()
    def reset(self, task: int) -> None:
        """The part of a task as if it had never been trained."""
        self.parts[task].load_state_dict(self._fresh)
