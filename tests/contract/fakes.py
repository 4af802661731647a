"""Small strategies in every seam, in the shape of published ones: they show that the contract holds them, not that they score well.

Importing this module registers them and those of `fakes_that_keep_data`, under names that start with `fake_`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cl_framework.checks import check_range
from cl_framework.plan import Plan
from cl_framework.registry import register
from cl_framework.strategy import Batch, Closure, Context, Done, Evaluation, Forgotten, Output, Phase, StepFn, Strategy, Term, Traits
from cl_framework.stream import Unlearn
from cl_framework.testing.neighbours import NoOptions
from tests.contract.fakes_that_keep_data import Weight, in_own_phase


@dataclass(frozen=True)
class Count:
    count: int = 3  # steps or views, [1, 1000]

    def __post_init__(self) -> None:
        check_range("count", self.count, low=1, high=1000)


@register("fake_data_free_unlearner")
class DataFree(Strategy):
    """Unlearns a task without its data: steps without rows that shrink the head's rows of its classes.

    Source: made up for the tests
    Uses: loss, unlearn
    Cost: a few steps without data
    Differs: nothing to differ from
    Interacts: nobody else's terms act in its phase
    """

    Config = Count
    traits = Traits(unlearns=frozenset({"task"}), neutral={})

    def unlearn(self, event: Unlearn, context: Context) -> Sequence[Phase] | Done:
        return [Phase("shrink", self.config.count, optimizer={"lr": 0.1})]

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        if not in_own_phase(context):
            return {}
        rows = list(context.classes_of(context.position.event.task))
        head = context.model.head
        assert isinstance(head, nn.Linear)
        return {"shrink": Term(lambda: head.weight[rows].square().sum() + head.bias[rows].sum())}


@register("fake_half")
class Half(Strategy):
    """Freezes a random half of the tensors, and every other entry of one that moves, anew for each event.

    Source: Hui et al. 2024, section 3
    Uses: begin, mask, state_dict, load_state_dict
    Cost: less than fine-tuning
    Differs: halves tensors by count, not by block
    Interacts: what it freezes stays as it is whatever others do
    """

    Config = Count
    traits = Traits(no_neutral="a half is always frozen")

    def __init__(self, config: Count) -> None:
        super().__init__(config)
        self._frozen: list[str] = []

    def begin(self, context: Context) -> Sequence[Phase]:
        names = [name for name, _ in context.model.named_parameters()]
        order = torch.randperm(len(names), generator=context.random("half").generator()).tolist()
        self._frozen = [names[index] for index in order[: len(names) // 2]]
        return ()

    def mask(self, context: Context) -> Mapping[str, bool | Tensor]:
        masks: dict[str, bool | Tensor] = dict.fromkeys(self._frozen, False)
        name, free = next((name, p) for name, p in context.model.named_parameters() if name not in self._frozen)
        masks[name] = torch.arange(free.numel()).reshape(free.shape) % self.config.count != 0
        return masks

    def state_dict(self) -> dict[str, Any]:
        return {"frozen": list(self._frozen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._frozen = list(state["frozen"])


@register("fake_warm_up")
class WarmUp(Strategy):
    """The learning rate rises over the first steps of a phase.

    Source: Goyal et al. 2017, section 2.2
    Uses: rate
    Cost: none
    Differs: nothing
    Interacts: rates multiply
    """

    Config = Count
    traits = Traits(neutral={"count": 1})

    def rate(self, step: int, steps: int, context: Context) -> float:
        return min(1.0, (step + 1) / self.config.count)


@register("fake_views")
class Views(Strategy):
    """Shows each sample several times within its step, and pulls its answers together.

    Source: Liu et al. 2024, equation 4
    Uses: plan, loss
    Cost: as many times the rows
    Differs: no further augmentation
    Interacts: a memory takes a sample once
    """

    Config = Count
    traits = Traits(keeps="steps", neutral={"count": 1})

    def plan(self, plan: Plan, context: Context) -> Plan:
        count = self.config.count
        if count == 1:
            return plan
        group = torch.arange(plan.visits).repeat_interleave(count)
        views = torch.arange(count).repeat(plan.visits)
        return Plan(plan.ids.repeat_interleave(count), plan.offsets * count, views, group, epochs=plan.epochs)

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        if batch.view is None or not len(batch):
            return {}
        count = self.config.count
        return {"together": Term(lambda: output.logits.unflatten(0, (-1, count)).var(1).mean(), 0.1)}


@register("fake_three_calls")
class ThreeCalls(Strategy):
    """Takes the mean of three looks at the same gradient, which is that gradient.

    Source: made up for the tests
    Uses: step
    Cost: three evaluations
    Differs: nothing to differ from
    Interacts: none
    """

    Config = NoOptions
    traits = Traits(neutral={})

    def step(self, inner: StepFn, context: Context) -> StepFn:
        def looked_at(closure: Closure) -> Evaluation:
            losses = [float(closure.values().loss), float(closure.gradients().loss), float(closure.values().loss)]
            assert len(set(losses)) == 1, losses
            return inner(closure)

        return looked_at


@register("fake_adapter")
class Adapter(Strategy):
    """Puts a learned shift before the head.

    Source: made up for the tests
    Uses: build
    Cost: one vector
    Differs: nothing to differ from
    Interacts: one structural strategy a stack
    """

    Config = NoOptions
    traits = Traits(no_neutral="the model has further parameters")

    def build(self, model: nn.Module, context: Context) -> nn.Module:
        return Shifted(model)


class Shifted(nn.Module):
    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        assert isinstance(base.head, nn.Linear)
        self.base = base
        self.shift = nn.Parameter(torch.zeros(base.head.in_features))
        self.head = base.head

    def features(self, inputs: Tensor) -> Tensor:
        return self.base.features(inputs) + self.shift  # type: ignore[operator]

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.features(inputs))


@register("fake_pull")
class Pull(Strategy):
    """Pulls the weights towards those at the beginning of the event.

    Source: Kirkpatrick et al. 2017, equation 3, with equal weights
    Uses: begin, loss, forget, state_dict, load_state_dict
    Cost: a copy of the weights
    Differs: no Fisher information
    Interacts: none
    """

    Config = Weight
    traits = Traits(neutral={"weight": 0.0})

    def __init__(self, config: Weight) -> None:
        super().__init__(config)
        self._anchor: dict[str, Tensor] = {}

    def begin(self, context: Context) -> Sequence[Phase]:
        self._anchor = {name: p.detach().clone() for name, p in context.model.named_parameters()}
        return ()

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        pairs = list(zip(context.parameter_names, context.parameters, strict=True))
        return {"pull": Term(lambda: torch.stack([(p - self._anchor[n]).square().sum() for n, p in pairs]).sum() / 2, self.config.weight)}

    def forget(self, forgotten: Forgotten, context: Context) -> None:
        self._anchor = {}

    def state_dict(self) -> dict[str, Any]:
        return dict(self._anchor)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._anchor = dict(state)


@register("fake_path_integral")
class PathIntegral(Strategy):
    """Adds up how much each weight's movement lowered the loss, and holds on to those that mattered.

    Source: Zenke et al. 2017, equations 3 to 5
    Uses: step, loss, end, forget, state_dict, load_state_dict
    Cost: two copies of the weights
    Differs: gradients are not clipped
    Interacts: sees what the steps inside of it have moved
    """

    Config = Weight
    traits = Traits(neutral={"weight": 0.0})

    def __init__(self, config: Weight) -> None:
        super().__init__(config)
        self._path: dict[str, Tensor] = {}
        self._importance: dict[str, Tensor] = {}
        self._anchor: dict[str, Tensor] = {}

    def step(self, inner: StepFn, context: Context) -> StepFn:
        def followed(closure: Closure) -> Evaluation:
            before = [parameter.detach().clone() for parameter in context.parameters]
            evaluation = inner(closure)
            gradients = evaluation.gradients or (None,) * len(before)
            for name, was, parameter, gradient in zip(context.parameter_names, before, context.parameters, gradients, strict=True):
                if gradient is not None:
                    part = -gradient * (parameter.detach() - was)
                    self._path[name] = self._path[name] + part if name in self._path else part
            return evaluation

        return followed

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        held = [(p, n) for n, p in zip(context.parameter_names, context.parameters, strict=True) if n in self._importance]
        if not held:
            return {}
        terms = [(self._importance[n], p, self._anchor[n]) for p, n in held]
        return {"hold": Term(lambda: torch.stack([(i * (p - a).square()).sum() for i, p, a in terms]).sum(), self.config.weight)}

    def end(self, context: Context) -> Sequence[Phase]:
        for name, parameter in context.model.named_parameters():
            if name in self._path:
                moved = parameter.detach() - self._anchor.get(name, torch.zeros(()))
                gained = self._path[name].clamp(min=0) / (moved.square() + 1.0)
                self._importance[name] = self._importance.get(name, torch.zeros(())) + gained
                self._anchor[name] = parameter.detach().clone()
        self._path = {}
        return ()

    def forget(self, forgotten: Forgotten, context: Context) -> None:
        self._path, self._importance, self._anchor = {}, {}, {}

    def state_dict(self) -> dict[str, Any]:
        return {"path": dict(self._path), "importance": dict(self._importance), "anchor": dict(self._anchor)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._path, self._importance, self._anchor = (dict(state[part]) for part in ("path", "importance", "anchor"))


FAKES = (
    "fake_gdumb",
    "fake_agem",
    "fake_icarl",
    "fake_mir",
    "fake_closed_form",
    "fake_data_free_unlearner",
    "fake_half",
    "fake_warm_up",
    "fake_views",
    "fake_three_calls",
    "fake_adapter",
    "fake_pull",
    "fake_path_integral",
)
