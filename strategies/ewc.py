"""Online elastic weight consolidation: hold each weight where it was, as firmly as it mattered to the tasks so far.

Source: Kirkpatrick et al. 2017 "Overcoming catastrophic forgetting in neural networks", eq. 3; online form: Schwarz et al. 2018
    "Progress & Compress", section 3. L = task + weight / 2 * sum F (theta - theta*)^2; at a task's end F <- gamma F + F_task.
Uses: check, step, loss, commit, end, forget, state_dict, load_state_dict
Cost: no further pass a step; when a Learn event ends, one pass over its task with a gradient a sample (and a forward pass
    without one, which the step takes). Two copies of the weights.
Differs: `paper` takes squared gradients at the true labels (the empirical Fisher, as commonly done), `fisher_labels=expected` those of
    the model's own answers, the Fisher information itself, at one backward pass a class. `released` is the code of Buzzega et al. 2020:
    without the 1/2, and each square weighted by the probability of its label. Gradients are of the evaluated model, un-augmented.
    The default weight is ours and careful: gradient descent diverges where rate * weight * F exceeds 2. The released code has 0.7 for
    Permuted-MNIST, 90 for Split-MNIST, 10 for CIFAR-10. Seen here, 3 seeds: five permutations of 10,000 digits at rate 0.2, 76.3 %
    without, 76.2 at 0.1, 75.1 at 1, chance at 10 (`released` at 0.7: 76.4); split digits, task-incremental, 95.8 % without, 95.8 at 1,
    97.2 at 100, 98.7 at 1,000; class-incremental it helps at no weight.
Interacts: what another strategy replays is not part of F, which is of the event's own task and of all weights, masked or not; refresh
    makes a pass of its own. Rows of the head for classes to come have some F where logits compete, none in task-incremental runs.
    After an Unlearn nothing is held: F and theta* are sums over tasks that cannot be taken apart, and weights that knew the unlearned
    task would be pulled back to. The next Learn begins anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cl_framework import (
    Batch,
    Closure,
    Context,
    Evaluation,
    FisherPass,
    Forgotten,
    Learn,
    Output,
    Phase,
    Setting,
    StepFn,
    Strategy,
    Term,
    Traits,
    WeightedSquares,
    check_choice,
    check_range,
    register,
)

HALF = {"paper": 0.5, "released": 1.0}
LABELS = {"paper": "given", "released": "weighted"}


def accumulated(old: Mapping[str, Tensor], new: Mapping[str, Tensor], decay: float) -> dict[str, Tensor]:
    """decay * old + new by name; what is in one of them only counts with the other at 0."""
    both = {name: decay * old[name] + value if name in old else value for name, value in new.items()}
    return {name: decay * value for name, value in old.items() if name not in new} | both


@dataclass(frozen=True)
class EWCConfig:
    weight: float = 1.0  # lambda, >= 0; 0 is fine-tuning
    gamma: float = 1.0  # decay of F from task to task, [0, 1]
    variant: str = "paper"  # paper or released
    fisher_labels: str | None = None  # of the squared gradients: given, expected or weighted; default: the variant's
    fisher_samples: int | None = None  # of a task that F is taken from, >= 1; default: all

    def __post_init__(self) -> None:
        check_range("weight", self.weight, low=0)
        check_range("gamma", self.gamma, low=0, high=1)
        check_choice("variant", self.variant, tuple(HALF))
        if self.fisher_labels is not None:
            check_choice("fisher_labels", self.fisher_labels, ("given", "expected", "weighted"))
        if self.fisher_samples is not None:
            check_range("fisher_samples", self.fisher_samples, low=1)


@register("ewc")
class EWC(Strategy):
    """Online elastic weight consolidation with a diagonal Fisher information."""

    Config = EWCConfig
    traits = Traits(needs_boundaries=True, consolidates=True, neutral={"weight": 0.0})

    def __init__(self, config: EWCConfig) -> None:
        super().__init__(config)
        self._pass = FisherPass(config.fisher_labels or LABELS[config.variant], config.fisher_samples)
        self._fisher: dict[str, Tensor] = {}
        self._anchors: dict[str, Tensor] = {}  # theta*

    def check(self, setting: Setting) -> None:
        self._pass.check(setting, "fisher_labels", "Set fisher_labels=given.")

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        if not self._fisher:
            return {}
        importances = [self._fisher[name] for name in context.parameter_names]
        anchors = [self._anchors[name] for name in context.parameter_names]
        weight = HALF[self.config.variant] * self.config.weight
        return {"penalty": WeightedSquares(context.parameters, anchors, importances).term(weight)}

    def end(self, context: Context) -> Sequence[Phase]:
        learned = isinstance(context.position.event, Learn)
        return [self._pass.phase(context)] if learned and self.config.weight else []

    def step(self, inner: StepFn, context: Context) -> StepFn:
        def looked_at(closure: Closure) -> Evaluation:
            return closure.values("task")

        return looked_at if self._pass.under_way(context) else inner

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        if not self._pass.under_way(context):
            return
        found = self._pass.add(batch, context)
        if found is not None:
            self._fisher = accumulated(self._fisher, found, self.config.gamma)
            now = context.snapshot()
            self._anchors = {name: now[name] for name in self._fisher}

    def forget(self, forgotten: Forgotten, context: Context) -> None:
        self._fisher, self._anchors = {}, {}

    def state_dict(self) -> dict[str, Any]:
        return {"fisher": dict(self._fisher), "anchors": dict(self._anchors), "pass": self._pass.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._fisher, self._anchors = dict(state["fisher"]), dict(state["anchors"])
        self._pass.load_state_dict(state["pass"])
