"""A control of unlearning: draw the head's rows of the classes concerned anew, and leave everything below as it is.

Source: EVALUATION's controls: "a reset head always looks perfect", to accuracy alone; probes and relearning tell.
Uses: check, unlearn
Cost: none.
Differs: nothing to differ from. Rows are drawn as torch.nn.Linear draws them, uniform within 1 / sqrt(inputs); biases are 0, where it
    draws them as well.
Interacts: in a domain-incremental run all tasks share the classes, so that the whole head goes.
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
    """Answers requests for tasks and classes by a fresh head for them."""

    Config = ResetHeadConfig
    traits = Traits(unlearns=frozenset({"task", "class"}), neutral={}, objectives=("classification",))

    def check(self, setting: Setting) -> None:
        if setting.model is not None and not isinstance(getattr(setting.model, "head", None), nn.Linear):
            raise ConfigurationError("head: the model has no linear `head` to draw anew. Choose another model or another control.")

    def unlearn(self, event: Unlearn, context: Context) -> Done:
        head = context.model.head
        assert isinstance(head, nn.Linear)
        reset_rows(head, list(event.classes or context.classes_of(event.task)), context.random("head").generator())
        return Done()
