"""A control of unlearning: draw the head's rows of the classes concerned anew, and leave everything below as it is.

Source: EVALUATION's controls: "a reset head always looks perfect", to accuracy alone; probes and relearning tell.
Uses: check, unlearn
Cost: none.
Differs: nothing to differ from. Rows are drawn as torch.nn.Linear draws them, uniform within 1 / sqrt(inputs), whatever the model drew
    its own from; biases are 0, where it draws them as well.
Interacts: in a domain-incremental run all tasks share the classes, and in a language model the tokens, so that the whole head goes. A head
    that shares its matrix with the embedding is refused, since the embedding would go as well, and so is one that is frozen (`lora` with
    train_head=false), since it holds nothing of the data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from cl_framework import ConfigurationError, Context, Done, Setting, Strategy, Traits, Unlearn, register


@torch.no_grad()
def reset_rows(head: nn.Linear, rows: list[int], generator: torch.Generator) -> None:
    """Draw these rows (classes) of a linear head anew."""
    bound = head.in_features**-0.5
    drawn = (2 * torch.rand(len(rows), head.in_features, generator=generator) - 1) * bound
    places = torch.tensor(rows, device=head.weight.device)
    head.weight.index_copy_(0, places, drawn.to(head.weight))
    if head.bias is not None:
        head.bias.index_fill_(0, places, 0.0)


@dataclass(frozen=True)
class ResetHeadConfig:
    """There is nothing to set."""


@register("reset_head")
class ResetHead(Strategy):
    """Answers requests for tasks and classes by a fresh head for them; in a language model, by a fresh head."""

    Config = ResetHeadConfig
    traits = Traits(unlearns=frozenset({"task", "class"}), neutral={})

    def check(self, setting: Setting) -> None:
        model = setting.model
        if model is None:
            return
        head = getattr(model, "head", None)
        if not isinstance(head, nn.Linear):
            raise ConfigurationError("head: the model has no linear `head` to draw anew. Choose another model or another control.")
        if not isinstance(head.weight, nn.Parameter):
            raise ConfigurationError(
                "head: it is frozen, so that it holds nothing of what is unlearned. Set strategies.lora.train_head=true, or choose another "
                "control."
            )
        for name, module in model.named_modules():
            if module is not head and any(own is head.weight for own in module.parameters(recurse=False)):
                raise ConfigurationError(
                    f"head: its matrix is that of {name} too, which would be drawn anew with it. Set model.tied=false, or choose another "
                    "control."
                )

    def unlearn(self, event: Unlearn, context: Context) -> Done:
        head = context.model.head
        assert isinstance(head, nn.Linear)
        reset_rows(head, list(event.classes or context.classes_of(event.task)), context.random("head").generator())
        return Done()
