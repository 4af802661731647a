"""Fakes that keep what they have seen, as rows in a memory or as sums, and learn from it later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_framework.checks import check_range
from cl_framework.registry import register
from cl_framework.strategy import (
    Batch,
    Closure,
    Context,
    Draw,
    Evaluation,
    Forgotten,
    Gradients,
    Output,
    Phase,
    Rows,
    StepFn,
    Strategy,
    Term,
    Traits,
)
from cl_framework.stream import Unlearn
from tests.contract.shelf import Shelf, Shelved, take


@dataclass(frozen=True)
class Capacity:
    capacity: int = 20  # rows, [0, 1000]
    minibatch: int = 6  # rows drawn a step, [1, 1000]

    def __post_init__(self) -> None:
        check_range("capacity", self.capacity, low=0, high=1000)
        check_range("minibatch", self.minibatch, low=1, high=1000)


@dataclass(frozen=True)
class Weight:
    weight: float = 0.1  # of its term, [0, 100]

    def __post_init__(self) -> None:
        check_range("weight", self.weight, low=0, high=100)


class Sized(Shelved):
    """What the fakes with a memory share."""

    Config = Capacity
    traits = Traits(stores_data=True, no_neutral="an abstract base")

    def __init__(self, config: Capacity) -> None:
        super().__init__(config)
        self._shelf = Shelf(config.capacity, balanced=True)

    def _sample(self, context: Context, count: int) -> Rows | None:
        return self._shelf.sample(count, context.random("sample").uniform(self.config.capacity))


@register("fake_gdumb")
class GDumb(Sized):
    """Greedy balanced memory; a fresh model is trained on it alone when an event ends.

    Source: Prabhu et al. 2020, algorithm 1
    Uses: draw, step, commit, end, forget, state_dict, load_state_dict
    Cost: 15 steps an event
    Differs: no cosine schedule, no CutMix
    Interacts: wrappers of the stream's steps never reach its own phase
    """

    traits = Traits(stores_data=True, inner_calls="never", no_neutral="the model is always trained anew")

    def draw(self, batch: Batch, context: Context) -> Mapping[str, Draw]:
        rows = self._sample(context, self.config.minibatch * 2) if in_own_phase(context) else None
        return {} if rows is None else {"memory": Draw.joined(rows)}

    def step(self, inner: StepFn, context: Context) -> StepFn:
        return inner if in_own_phase(context) else lambda closure: closure.values()

    def end(self, context: Context) -> Sequence[Phase]:
        return [Phase("train", 15, fresh_model=True, optimizer={"lr": 0.2})] if len(self._shelf) else []


def in_own_phase(context: Context) -> bool:
    return context.position.phase is not None and context.position.phase.owner == context.slot


@register("fake_agem")
class AGEM(Sized):
    """The gradient is projected where it would raise the loss on a draw from memory.

    Source: Chaudhry et al. 2019, equation 11
    Uses: draw, step, commit, forget, state_dict, load_state_dict
    Cost: one pass over the draw
    Differs: the memory is balanced by class
    Interacts: projects the gradient of all terms, and last those outside of it
    """

    traits = Traits(stores_data=True, neutral={"capacity": 0})

    def draw(self, batch: Batch, context: Context) -> Mapping[str, Draw]:
        rows = self._sample(context, self.config.minibatch)
        return {} if rows is None else {"memory": Draw.reference(rows)}

    def step(self, inner: StepFn, context: Context) -> StepFn:
        name = f"{context.slot}/memory"

        def projected(closure: Closure) -> Evaluation:
            if name not in closure.names:
                return inner(closure)
            reference = closure.gradients(name).gradients
            assert reference is not None
            return inner(closure.with_gradients(lambda gradients: project(gradients, reference)))

        return projected


def project(gradients: Gradients, reference: Gradients) -> Gradients:
    """`gradients` without the part that points against `reference`."""
    pairs = [(g, r) for g, r in zip(gradients, reference, strict=True) if g is not None and r is not None]
    product = sum((g * r).sum() for g, r in pairs)
    if not pairs or product >= 0:
        return gradients
    share = product / sum(r.square().sum() for _, r in pairs)
    return tuple(g if g is None or r is None else g - share * r for g, r in zip(gradients, reference, strict=True))


@register("fake_icarl")
class ICaRL(Sized):
    """Sigmoid loss, herded exemplars, and the nearest mean of their features as the answer.

    Source: Rebuffi et al. 2017, algorithms 1 to 4
    Uses: draw, loss, end, predict, commit, forget, state_dict, load_state_dict
    Cost: a pass over the draw, and one over a task's data when it ends
    Differs: no distillation
    Interacts: replaces the task term
    """

    traits = Traits(
        needs_boundaries=True, stores_data=True, replaces_task_term=True, no_neutral="its loss and its classifier are not the framework's"
    )

    def __init__(self, config: Capacity) -> None:
        super().__init__(config)
        self._means: dict[str, Tensor] = {}  # by class

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        """Exemplars are chosen when a task ends."""

    def draw(self, batch: Batch, context: Context) -> Mapping[str, Draw]:
        rows = self._sample(context, self.config.minibatch)
        return {} if rows is None else {"exemplars": Draw.separate(rows)}

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        terms = {"task": Term(lambda: sigmoid_loss(output.logits, batch.targets))} if len(batch) else {}
        draw = batch.draws.get(context.slot, {}).get("exemplars")
        if draw is not None:
            terms["exemplars"] = Term(lambda: sigmoid_loss(output.of(draw).logits, draw.rows.targets))
        return terms

    def end(self, context: Context) -> Sequence[Phase]:
        task = context.position.event.task
        if not isinstance(context.position.event, Unlearn) and self.config.capacity:
            rows = context.read(context.ids_of(task))
            quota = max(1, self.config.capacity // context.num_classes)
            features = functional.normalize(context.features(rows))
            for label in context.classes_of(task):
                own = (rows.targets == label).nonzero().flatten()
                self._shelf.add(take(rows, own[herding(features[own], quota)]))
        self._find_means(context)
        return ()

    def _find_means(self, context: Context) -> None:
        self._means = {}
        rows = self._shelf.rows
        if rows is not None:
            features = functional.normalize(context.features(rows))
            self._means = {str(label): features[rows.targets == label].mean(0) for label in rows.targets.unique().tolist()}

    def predict(self, features: Tensor | None, logits: Tensor, rows: Rows, context: Context) -> Tensor:
        if not self._means or features is None:
            return logits
        scores = torch.full_like(logits, -1e9)
        for label, mean in self._means.items():
            scores[:, int(label)] = -(functional.normalize(features) - functional.normalize(mean, dim=0)).square().sum(1)
        return scores

    def forget(self, forgotten: Forgotten, context: Context) -> None:
        super().forget(forgotten, context)
        self._find_means(context)

    def state_dict(self) -> dict[str, Any]:
        return {"shelf": super().state_dict(), "means": dict(self._means)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state["shelf"])
        self._means = dict(state["means"])


def sigmoid_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, functional.one_hot(targets, logits.shape[1]).float()) * logits.shape[1]


def herding(features: Tensor, count: int) -> Tensor:
    """Rows whose running mean follows the mean of all: the order in which they are picked."""
    picked: list[int] = []
    total = torch.zeros_like(features[0])
    for _ in range(min(count, len(features))):
        distance = (features.mean(0) - (total + features) / (len(picked) + 1)).norm(dim=1)
        distance[picked] = float("inf")
        picked.append(int(distance.argmin()))
        total = total + features[picked[-1]]
    return torch.tensor(picked)


@register("fake_mir")
class MIR(Sized):
    """Replays the rows whose loss a virtual step would raise most.

    Source: Aljundi et al. 2019, algorithm 1
    Uses: draw, commit, forget, state_dict, load_state_dict
    Cost: a gradient of the batch and two passes over the candidates
    Differs: the memory is balanced by class
    Interacts: looks at the task's gradient alone
    """

    traits = Traits(stores_data=True, neutral={"capacity": 0})

    def draw(self, batch: Batch, context: Context) -> Mapping[str, Draw]:
        candidates = self._sample(context, self.config.capacity)
        if candidates is None or not len(batch):
            return {}
        gradients = context.gradient(batch)
        ahead = [p.detach() if g is None else p.detach() - 0.1 * g for p, g in zip(context.parameters, gradients, strict=True)]
        rise = context.criterion(context.forward(candidates, ahead), candidates) - context.criterion(
            context.forward(candidates), candidates
        )
        return {"worst": Draw.joined(take(candidates, rise.argsort(descending=True, stable=True)[: self.config.minibatch]))}


@register("fake_closed_form")
class ClosedForm(Strategy):
    """Ridge regression on fixed features: statistics are added up, the head is solved for, no step ever calls inward.

    Source: Zhuang et al. 2022, equation 7
    Uses: step, commit, end, forget, state_dict, load_state_dict
    Cost: a pass a step and one solution an event
    Differs: no expansion of the features
    Interacts: nobody else's terms have an effect
    """

    Config = Weight
    traits = Traits(inner_calls="never", no_neutral="the head is never trained by gradients")

    def __init__(self, config: Weight) -> None:
        super().__init__(config)
        self._products: Tensor | None = None  # (D + 1, D + 1)
        self._answers: Tensor | None = None  # (D + 1, C)

    def step(self, inner: StepFn, context: Context) -> StepFn:
        def accumulate(closure: Closure) -> Evaluation:
            evaluation = closure.values()
            if in_own_phase(context):
                self._solve(context.model)
            return evaluation

        return accumulate

    @torch.no_grad()
    def _solve(self, model: nn.Module) -> None:
        assert self._products is not None and self._answers is not None and isinstance(model.head, nn.Linear)
        ridge = self._products + (self.config.weight + 1e-3) * torch.eye(len(self._products))
        solution = torch.linalg.solve(ridge, self._answers)
        model.head.weight.copy_(solution[:-1].T)
        model.head.bias.copy_(solution[-1])

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        if len(batch):
            features = functional.pad(output.features, (0, 1), value=1.0)
            answers = functional.one_hot(batch.targets, context.num_classes).float()
            products = features.T @ features
            self._products = products if self._products is None else self._products + products
            self._answers = features.T @ answers if self._answers is None else self._answers + features.T @ answers

    def end(self, context: Context) -> Sequence[Phase]:
        return [] if self._products is None else [Phase("solve", 1)]

    def forget(self, forgotten: Forgotten, context: Context) -> None:
        self._products = self._answers = None

    def state_dict(self) -> dict[str, Any]:
        return {"products": self._products, "answers": self._answers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._products, self._answers = state["products"], state["answers"]
