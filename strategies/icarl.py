"""iCaRL: exemplars of each class, chosen by herding, train beside the new data and answer as the nearest mean of their features.

Source: Rebuffi et al. 2017 "iCaRL: Incremental Classifier and Representation Learning", algorithms 1 to 5: sigmoid cross-entropy of every
    class so far, for the task's own classes to their labels, for older ones to the answers of the model as it was before the task.
Uses: check, plan, draw, loss, begin, end, predict, forget, state_dict, load_state_dict
Cost: the steps of the exemplars beside those of the new data, each with one more forward pass of the old model; when a task ends a forward
    pass over its data, when any event does one over the exemplars. A copy of the weights while a task is learned. Of the exemplars
    ids alone are kept, `capacity` at most: the benchmark still holds the data, as a list of samples would.
Differs: variant=paper (the default) has features of unit length, and class means normalised again; the running means of herding are not.
    variant=older_code does as Mammoth did in 2022 (its fork in the code of refresh learning): features are not normalised, neither for
    herding nor for means and distances, and a class mean is taken batch by batch (of batch_size), each counting as much as all before it.
    reduction=sum adds the classes' terms up, mean averages over them, with either. Rates, schedule and weight decay are the run's. Classes
    that nobody has taught yet, for which the head has outputs from the start, have no term. A class learned again is learned from labels,
    and its exemplars are chosen anew from its data and them. When single samples are unlearned, the other exemplars of their class stay,
    though the mean that chose them knew the samples.
Interacts: replaces the task term and the prediction, so at most one such strategy a stack. Makes the plan anew from the samples it
    finds in it: a strategy that arranges views comes after it. Means are taken when an event ends, before the further phases that
    other strategies ask for: one that moves weights in them leaves the means behind. In task-incremental runs the loss is the same,
    and the nearest mean is sought among the task's own classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cl_framework import (
    LATER,
    Batch,
    ConfigurationError,
    Context,
    Draw,
    Forgotten,
    Learn,
    Output,
    Phase,
    Plan,
    Rows,
    Setting,
    Strategy,
    Term,
    Traits,
    check_choice,
    check_first_to_plan,
    check_range,
    has_features,
    herding,
    register,
)

CHUNK = 512  # rows that features are taken of at once
FAR = 3.0  # in place of a distance where a class has no mean: beyond any two points of the unit sphere
BEYOND = 1e9  # the same for features of any length


# --- the objective ---


def sigmoid_targets(labels: Tensor, teacher: Tensor | None, old: Tensor, num_classes: int) -> Tensor:
    """What each output should say, (B, C) in [0, 1]: the teacher's probabilities for `old` classes (K,), for the others the label."""
    targets = functional.one_hot(labels, num_classes).float()
    return targets if teacher is None else targets.index_copy(1, old, teacher.index_select(1, old).sigmoid().to(targets.dtype))


def sigmoid_loss(logits: Tensor, targets: Tensor, reduction: str = "sum") -> Tensor:
    """Binary cross-entropy of (B, K) outputs: the mean over rows of the sum or the mean over classes, a scalar."""
    of_all = functional.binary_cross_entropy_with_logits(logits, targets)
    return of_all * logits.shape[1] if reduction == "sum" else of_all


# --- the classifier ---


def mean_direction(features: Tensor) -> Tensor:
    """The mean of the rows of (N, D), each at unit length, at unit length again: (D,)."""
    return functional.normalize(functional.normalize(features).mean(0), dim=0)


def halving_mean(features: Tensor, size: int) -> Tensor:
    """The mean of the first `size` rows of (N, D), then halfway from there to the mean of the next ones, and so on: (D,)."""
    mean, *others = (part.mean(0) for part in features.split(size))
    for other in others:
        mean = (mean + other) / 2
    return mean


def negative_distances(features: Tensor, means: Tensor, unit: bool = True) -> Tensor:
    """Of features (B, D), brought to unit length if `unit`, to each of the means (K, D): (B, K), the largest is the nearest."""
    return -torch.cdist(functional.normalize(features) if unit else features, means)


@dataclass(frozen=True)
class ICaRLConfig:
    capacity: int = 500  # exemplars of all classes together, >= 1, at least one a class
    reduction: str = "sum"  # of the classes' terms: sum or mean
    variant: str = field(default="paper", metadata=LATER)  # of features and class means: paper or older_code

    def __post_init__(self) -> None:
        check_range("capacity", self.capacity, low=1)
        check_choice("reduction", self.reduction, ("sum", "mean"))
        check_choice("variant", self.variant, ("paper", "older_code"))


@register("icarl")
class ICaRL(Strategy):
    """Sigmoid distillation with herded exemplars, and the nearest mean of their features as the answer."""

    Config = ICaRLConfig
    traits = Traits(
        needs_boundaries=True,
        consolidates=True,
        reads_past_data=True,
        stores_data=True,
        keeps="epochs",
        replaces_task_term=True,
        no_neutral="its loss and its classifier are not the framework's",
        scenarios=("class_il", "task_il"),
        objectives=("classification",),
    )

    def __init__(self, config: ICaRLConfig) -> None:
        super().__init__(config)
        self._unit = config.variant == "paper"  # whether features have unit length
        self.exemplars: dict[int, Tensor] = {}  # by class: ids on the host, the most telling first
        self.means: dict[int, Tensor] = {}  # by class: (D,)
        self.known: list[int] = []  # classes learned before this event
        self.teacher: dict[str, Tensor] = {}  # only while a task is learned, where there are older classes
        self.old: Tensor | None = None  # classes that the teacher answers for, and
        self.taught: Tensor | None = None  # all that have a term; (K,) int64, only while a task is learned

    def check(self, setting: Setting) -> None:
        check_first_to_plan(setting)
        capacity, classes, model = self.config.capacity, setting.classes_shown, setting.model
        if classes is not None and capacity < classes:
            raise ConfigurationError(
                f"capacity={capacity} cannot hold an exemplar of each of {classes} classes. Raise it to at least that."
            )
        if model is not None and not has_features(model):
            raise ConfigurationError(
                f"capacity={capacity}: exemplars are chosen and compared by features, but this model has no `features` and `head`."
            )

    # --- learning ---

    def begin(self, context: Context) -> Sequence[Phase]:
        event = context.position.event
        if isinstance(event, Learn):
            own = context.classes_of(event.task)
            old = [label for label in self.known if label not in own]
            self.teacher = context.snapshot() if old else {}
            self.old, self.taught = (torch.tensor(labels, device=context.device) for labels in (old, sorted({*old, *own})))
        return ()

    def plan(self, plan: Plan, context: Context) -> Plan:
        kept = [ids for ids in self.exemplars.values() if len(ids)]
        if not kept or not plan.visits:
            return plan
        union = torch.cat([plan.ids, *kept]).unique()
        return Plan.over(union, context.batch_size, plan.epochs, context.random("shuffle").generator())

    def draw(self, batch: Batch, context: Context) -> Mapping[str, Draw]:
        if self.teacher and len(batch):
            batch.extras[context.slot] = context.forward(batch, self.teacher)
        return {}

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        if self.taught is None or self.old is None or not len(batch):
            return {}
        taught, old, teacher = self.taught, self.old, batch.extras.get(context.slot)

        def value() -> Tensor:
            logits = output.logits
            targets = sigmoid_targets(batch.targets, teacher, old, logits.shape[1])
            return sigmoid_loss(logits.index_select(1, taught), targets.index_select(1, taught), self.config.reduction)

        return {"task": Term(value)}

    # --- exemplars ---

    def end(self, context: Context) -> Sequence[Phase]:
        event = context.position.event
        if isinstance(event, Learn):
            self.teacher, self.old, self.taught = {}, None, None
            own = context.classes_of(event.task)
            self.known = sorted({*self.known, *own})
            quota = self.config.capacity // len(self.known)
            self._choose(own, quota, context)
            self.exemplars = {label: ids[:quota] for label, ids in self.exemplars.items()}
        self.means = {label: self._mean(_features(ids, context)[0], context) for label, ids in self.exemplars.items()}
        return ()

    def _mean(self, features: Tensor, context: Context) -> Tensor:
        return mean_direction(features) if self._unit else halving_mean(features, context.batch_size)

    def _choose(self, labels: Sequence[int], quota: int, context: Context) -> None:
        """Exemplars of the task's classes, from its data and those they have already."""
        before = [self.exemplars[label] for label in labels if label in self.exemplars]
        candidates = torch.cat([context.ids_of(context.position.event.task), *before]).unique()
        features, targets = _features(candidates, context)
        for label in labels:
            own = (targets == label).nonzero().flatten()
            if len(own):
                order = herding(functional.normalize(features[own]) if self._unit else features[own], quota)
                self.exemplars[label] = candidates[own[order].cpu()]

    # --- answering ---

    def predict(self, features: Tensor | None, logits: Tensor, rows: Rows, context: Context) -> Tensor:
        if features is None or not self.means:
            return logits
        labels = torch.tensor(list(self.means), device=logits.device)
        scores = torch.full_like(logits, -(FAR if self._unit else BEYOND))
        found = negative_distances(features, torch.stack(list(self.means.values())), self._unit)
        return scores.index_copy(1, labels, found.to(scores.dtype))

    # --- forgetting and state ---

    def forget(self, forgotten: Forgotten, context: Context) -> None:
        """Exemplars go; means are taken anew when the event ends. The teacher went when its own event ended."""
        event = forgotten.event
        kept = {label: ids[~torch.isin(ids, forgotten.ids)] for label, ids in self.exemplars.items()}
        self.exemplars = {label: ids for label, ids in kept.items() if len(ids)}
        self.means = {}
        if event.granularity != "sample":
            gone = set(event.classes or context.classes_of(event.task))
            elsewhere = {label for task in context.live_tasks if task != event.task for label in context.classes_of(task)}
            self.known = [label for label in self.known if label not in gone - elsewhere]

    def state_dict(self) -> dict[str, Any]:
        return {
            "exemplars": dict(self.exemplars),
            "means": dict(self.means),
            "known": list(self.known),
            "teacher": dict(self.teacher),
            "old": self.old,
            "taught": self.taught,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.exemplars = {label: ids.cpu() for label, ids in state["exemplars"].items()}
        self.means, self.known, self.teacher = dict(state["means"]), list(state["known"]), dict(state["teacher"])
        self.old, self.taught = state["old"], state["taught"]


def _features(ids: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """Features (N, D) in evaluation mode, and labels (N,)."""
    parts = []
    for chunk in ids.split(CHUNK):
        rows = context.read(chunk)
        parts.append((context.features(rows), rows.targets))
    features, targets = zip(*parts, strict=True)
    return torch.cat(features), torch.cat(targets)
