"""Low-rank adapters in the linear layers of a frozen model, put there by peft: one set for all rows, or one a task.

    W x  ->  W x + (alpha / rank) B A x        A (rank, inputs) drawn at random, B (outputs, rank) zero at the start

The model's own weights become buffers: no phase of any strategy, no optimizer and no penalty reaches them. Normalisation stays in
evaluation mode, so that its statistics rest as well.
Sets of tasks lie beside the model and are put in place for a pass. peft would hold many adapters in a layer itself, but choosing one
there turns gradients on and off, which here the mask decides, and walks over all of them; its mixed batches name an adapter for every
row.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from cl_framework.errors import ConfigurationError, nearest
from cl_framework.inputs import Inputs
from cl_framework.models.by_task import Answer, answer_of, answers_by_task
from cl_framework.models.freezing import give_up_training

_READ_THEIR_LAYERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)  # use the weights of what they hold without calling it


def adaptable_layers(model: nn.Module, targets: Sequence[str] = ()) -> list[str]:
    """Names of a model's linear layers, its head left out: all, or those whose names end with one of `targets`.

    Raises ConfigurationError for a target that names none, and if there are none at all.
    """
    passed_by = {id(part) for part in model.head.modules()} if isinstance(model.head, nn.Module) else set()
    for module in model.modules():
        if isinstance(module, _READ_THEIR_LAYERS):
            passed_by |= {id(part) for part in module.modules()}
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and id(module) not in passed_by]
    if not layers:
        raise ConfigurationError("targets: the model has no linear layer but its head, so that there is nothing to adapt.")
    for target in targets:
        if not any(_ends(name, target) for name in layers):
            known = {name.rpartition(".")[2] for name in layers}
            raise ConfigurationError(f"targets: no linear layer's name ends with {target!r}. {nearest(target, known)}")
    return [name for name in layers if not targets or any(_ends(name, target) for target in targets)]


def _ends(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


class AdaptedModel(nn.Module):
    """A frozen model with features and a head, adapters in its linear layers, and its head trained beside them or frozen too."""

    def __init__(
        self,
        model: nn.Module,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        targets: Sequence[str] = (),
        train_head: bool = True,
    ) -> None:
        super().__init__()
        peft, layers, head = _peft(), adaptable_layers(model, targets), deepcopy(model.head)
        linear = [layer for layer in map(model.get_submodule, layers) if isinstance(layer, nn.Linear)]
        largest = max(min(layer.in_features, layer.out_features) for layer in linear)
        if rank > largest:
            raise ConfigurationError(
                f"rank={rank} is above {largest}, the largest rank that a layer of this model has. Set it to that or lower."
            )
        named = "|".join(map(re.escape, layers))  # peft takes a string for a pattern of whole names, a list for endings
        config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=named)
        self.base: Any = peft.inject_adapter_in_model(config, model)
        give_up_training(self.base, kept=[parameter for name, parameter in self.base.named_parameters() if ".lora_" in name])
        if train_head:
            self.base.head = head  # a copy: a frozen embedding may share the weight

    @property
    def head(self) -> nn.Module:
        """The model's own, in its place."""
        head: nn.Module = self.base.head
        return head

    def features(self, inputs: Inputs) -> Tensor:
        """(B, ...) -> (B, D)."""
        features: Tensor = self.base.features(inputs)
        return features

    def forward(self, inputs: Inputs) -> Tensor:
        """(B, ...) -> (B, C)."""
        logits: Tensor = self.head(self.features(inputs))
        return logits

    def train(self, mode: bool = True) -> AdaptedModel:
        """As in any module, but normalisation rests, and the adapters' dropout acts in a backbone that keeps to evaluation, too."""
        super().train(mode)
        for name, module in self.named_modules():
            if isinstance(module, _NormBase):
                module.eval()
            elif ".lora_dropout" in name:
                module.train(mode)
        return self


class TaskAdaptedModel(nn.Module):
    """A frozen model with a set of adapters, and a head, for each task, of which those of a row's task answer. All start alike."""

    task_conditioned = True
    one_a_task = "parts"  # the list whose entries serve one task each, in their order

    def __init__(self, model: AdaptedModel, num_tasks: int) -> None:
        super().__init__()
        self.base = WithAnswer(model)
        own = dict(self.base.named_parameters())
        self.names = tuple(own)
        self._fresh = [parameter.detach().clone() for parameter in own.values()]
        self.parts = nn.ModuleList(nn.ParameterList(value.clone() for value in self._fresh) for _ in range(num_tasks))
        for name in self.names:
            owner, _, leaf = name.rpartition(".")
            self.base.get_submodule(owner).register_parameter(leaf, None)

    def forward(self, inputs: Inputs, tasks: Tensor) -> Tensor:
        """Inputs (B, ...) and the task of each row (B,) -> logits (B, C)."""
        return self.features_and_logits(inputs, tasks)[1]

    def features_and_logits(self, inputs: Inputs, tasks: Tensor) -> Answer:
        """Features (B, D) and logits (B, C). Tasks on the host save a wait for the device."""
        return answers_by_task(inputs, tasks, torch.unique(tasks).tolist(), self._answer)

    def _answer(self, inputs: Inputs, task: int) -> Answer:
        part = self.parts[task]
        assert isinstance(part, nn.ParameterList)
        answer: Answer = functional_call(self.base, dict(zip(self.names, part, strict=True)), (inputs,), tie_weights=False)
        return answer

    @torch.no_grad()
    def reset(self, task: int) -> None:
        """The adapters and the head of a task as if they had never been trained."""
        part = self.parts[task]
        assert isinstance(part, nn.ParameterList)
        for parameter, fresh in zip(part, self._fresh, strict=True):
            parameter.copy_(fresh)


class WithAnswer(nn.Module):
    """A model that gives features and logits of one pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Inputs) -> Answer:
        return answer_of(self.model, inputs)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ConfigurationError(
            "low-rank adapters need the package peft: pip install -e '.[text]' -c constraints.txt, where the project lies."
        ) from error
    return peft
