"""Analytic: a ridge-regression head over frozen features, learned and unlearned in closed form; exact to rounding.

Source: Tang et al. 2025 "ACU: Analytic Continual Unlearning" (its learner: Zhuang et al. 2022 "ACIL"). W = argmin |X W - Y|^2 +
    ridge |W|^2 over the live data, X features with a constant, Y one-hot labels. What is kept is A = X'X and C = X'Y in float64: a Learn
    adds a sample's share, an Unlearn takes it away, and (A + ridge I) W = C is solved when answers are asked for.
Uses: check, build, plan, step, end, predict, unlearn, state_dict, load_state_dict
Cost: two forward passes over a task's data, without gradients (the stream's steps, of which one pass is shown and none is applied,
    and one in evaluation mode), and D^2 a sample; to unlearn, one over the data that are named alone. An evaluation solves once, D^3.
    State: D^2 + D C numbers, whatever the length of the stream.
Differs: the sums stand in for the published recursion of (A + ridge I)^-1, to which they are equal, and gather no error through an
    inverse. No random expansion of its own: the features are the model's, so a wide untrained MLP is one, and a pretrained backbone the
    published one; in float64, since the features of a row in float32 differ with the rows beside it by more than is allowed. A class
    without samples cannot be answered. Unlearning a class reads its data; statistics a class would save that.
Interacts: nothing of the model is trained, so that others with a part in a step (a loss, draws, a mask, a rate) are refused, and the
    exactness is that of a backbone that never saw the data. A task shown again adds nothing. Augmentation is not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_framework import (
    ConfigurationError,
    Context,
    ContractError,
    Done,
    Learn,
    Phase,
    Plan,
    Rows,
    Setting,
    StepFn,
    Strategy,
    TaskId,
    Traits,
    Unlearn,
    check_no_part_is_lost,
    check_range,
    give_up_training,
    register,
)

FAR = 1e9  # below any score: a class that cannot be answered
CHUNK = 1000  # samples a forward pass


def statistics(features: Tensor, targets: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of features (N, D), a constant put behind, and labels (N,): X'X (D + 1, D + 1), X'Y (D + 1, C), samples a class (C,); float64."""
    x = functional.pad(features.double(), (0, 1), value=1.0)
    y = functional.one_hot(targets, num_classes).double()
    return x.T @ x, x.T @ y, y.sum(0)


def solved(gram: Tensor, moment: Tensor, ridge: float) -> Tensor:
    """W (D, C) of (A + ridge I) W = C. ContractError if A is no sum of squares any more: what was never learned was taken away."""
    factor, failed = torch.linalg.cholesky_ex(gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    if int(failed):
        raise ContractError("analytic: the statistics have lost samples that they never held.")
    return torch.cholesky_solve(moment, factor)


@dataclass(frozen=True)
class AnalyticConfig:
    ridge: float = 1.0  # of the squared weights, > 0

    def __post_init__(self) -> None:
        check_range("ridge", self.ridge, above=0)


@register("analytic")
class Analytic(Strategy):
    """A ridge head over frozen features, updated and downdated in closed form."""

    Config = AnalyticConfig
    traits = Traits(
        unlearns=frozenset({"task", "class", "sample"}),
        unlearning_reads=frozenset({"forget"}),
        inner_calls="never",
        exact=True,
        rounding=1e-8,
        no_neutral="answers come from a head of its own, and nothing of the model is trained",
        objectives=("classification",),
    )

    def __init__(self, config: AnalyticConfig) -> None:
        super().__init__(config)
        self.gram: Tensor | None = None
        self.moment: Tensor | None = None
        self.counts: Tensor | None = None
        self.tasks: list[TaskId] = []  # whose samples are in the sums
        self._head: Tensor | None = None  # solved from the sums when first asked for

    def check(self, setting: Setting) -> None:
        check_no_part_is_lost(setting, "nothing of the model is trained")
        model = setting.model
        if model is not None and not (hasattr(model, "features") and hasattr(model, "head")):
            raise ConfigurationError("ridge: the head is fitted on features, but the model has no `features` and `head`.")

    def build(self, model: nn.Module, context: Context) -> nn.Module:
        give_up_training(model)  # a mask would not reach phases of other strategies
        return model

    def plan(self, plan: Plan, context: Context) -> Plan:
        once = plan.head(plan.steps // max(1, plan.epochs))
        return replace(once, epochs=min(1, plan.epochs))

    def step(self, inner: StepFn, context: Context) -> StepFn:
        return lambda closure: closure.values()

    def end(self, context: Context) -> Sequence[Phase]:
        event = context.position.event
        if isinstance(event, Learn) and event.task not in self.tasks:
            self._move(context.ids_of(event.task), 1.0, context)
            self.tasks.append(event.task)
        return ()

    def unlearn(self, event: Unlearn, context: Context) -> Done:
        self._move(context.requested_ids, -1.0, context)
        if event.granularity == "task":
            self.tasks.remove(event.task)
        if self.counts is not None and not bool((self.counts >= 0.5).any()):  # what is left of the sums is their rounding
            self.gram = self.moment = self.counts = None
        return Done()

    def _move(self, ids: Tensor, sign: float, context: Context) -> None:
        """Add the samples' shares to the sums, or take them away."""
        self._head = None
        for chunk in ids.split(CHUNK) if len(ids) else ():  # of no samples there are no sums
            rows = context.read(chunk)
            parts = statistics(context.features(rows, exact=True), rows.targets, context.num_classes)
            held = (self.gram, self.moment, self.counts)
            self.gram, self.moment, self.counts = (
                sign * part if own is None else own + sign * part for own, part in zip(held, parts, strict=True)
            )

    def predict(self, features: Tensor | None, logits: Tensor, rows: Rows, context: Context) -> Tensor:
        if features is None or self.gram is None or self.moment is None or self.counts is None:
            return logits
        if self._head is None:
            self._head = solved(self.gram, self.moment, self.config.ridge)
        scores = functional.pad(features.double(), (0, 1), value=1.0) @ self._head
        return scores.masked_fill(self.counts < 0.5, -FAR).to(logits.dtype)

    def state_dict(self) -> dict[str, Any]:
        return {"gram": self.gram, "moment": self.moment, "counts": self.counts, "tasks": list(self.tasks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.gram, self.moment, self.counts = state["gram"], state["moment"], state["counts"]
        self.tasks, self._head = list(state["tasks"]), None
