"""LoRA: the model is frozen, and low-rank changes of its linear layers are learned; one set for the stream, or one a task.

Source: Hu et al. 2021 "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1: W x + (alpha / r) B A x, B = 0 at the start.
Uses: check, build, mask, unlearn
Cost: rank * (inputs + outputs) trained numbers a layer, and no gradient or optimizer state for the rest; activations still pass back
    through it, and a step has two thin products more a layer. The frozen weights are buffers, which calls of the closure without a
    trace save and put back. per_task: a set of adapters and a head for every task of the benchmark. Unlearning takes no step.
Differs: A is drawn as peft draws it, uniform (He et al.) and not Gaussian. All linear layers but the head are adapted, where the
    publication adapts queries and values (targets=[query,value] in BERT), and the head is trained beside them (train_head), since a new
    one is of no use untrained. The paper's models are pretrained: on a model from scratch what is frozen is random.
    per_task: the task of a row is known, not inferred; all sets start alike, so a task learned again is learned as the first time.
Interacts: normalisation keeps the statistics that the model came with, so nothing but adapters and head ever moves, whoever else
    acts. per_task: replay of old tasks moves nothing; exact as long as nobody else in the stack carries what a task has taught into
    another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from cl_framework import (
    AdaptedModel,
    ConfigurationError,
    Context,
    Done,
    Learn,
    Setting,
    Strategy,
    TaskAdaptedModel,
    Traits,
    Unlearn,
    adaptable_layers,
    check_range,
    register,
)


@dataclass(frozen=True)
class LoRAConfig:
    rank: int = 8  # of the change of each layer, >= 1
    alpha: float = 16.0  # the change is multiplied by alpha / rank, > 0
    dropout: float = 0.0  # of what the adapters read, [0, 1)
    targets: tuple[str, ...] = ()  # endings of the names of the layers that are adapted; (): all linear ones but the head
    per_task: bool = False  # adapters and a head for each task, chosen by the task of a row (task_il)
    train_head: bool = True  # or freeze it as it is

    def __post_init__(self) -> None:
        check_range("rank", self.rank, low=1)
        check_range("alpha", self.alpha, above=0)
        check_range("dropout", self.dropout, low=0, below=1)


@register("lora")
class LoRA(Strategy):
    """Low-rank adapters in a frozen model; what a task of its own has can be unlearned exactly."""

    Config = LoRAConfig
    traits = Traits(no_neutral="the model's own weights are frozen, whatever the settings")

    def __init__(self, config: LoRAConfig) -> None:
        super().__init__(config)
        if config.per_task:
            self.traits = replace(
                self.traits,
                needs_task_id=True,
                needs_boundaries=True,
                unlearns=frozenset({"task"}),
                exact=True,
                scenarios=("task_il",),
            )

    def check(self, setting: Setting) -> None:
        model = setting.model
        if model is None:
            return
        if not (callable(getattr(model, "features", None)) and callable(getattr(model, "head", None))):
            raise ConfigurationError("targets: adapters need a model with `features` and `head`. Choose another model.")
        adaptable_layers(model, self.config.targets)

    def build(self, model: nn.Module, context: Context) -> nn.Module:
        options = self.config
        adapted = AdaptedModel(model, options.rank, options.alpha, options.dropout, options.targets, options.train_head)
        return TaskAdaptedModel(adapted, context.num_tasks) if options.per_task else adapted

    def mask(self, context: Context) -> Mapping[str, bool]:
        if not self.config.per_task:
            return {}
        event = context.position.event
        own = f"parts.{event.task}." if isinstance(event, Learn) else None
        return {name: own is not None and name.startswith(own) for name, _ in context.model.named_parameters()}

    def unlearn(self, event: Unlearn, context: Context) -> Done:
        model = context.model
        assert isinstance(model, TaskAdaptedModel)
        model.reset(event.task)
        return Done()
