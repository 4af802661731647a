"""The diagonal of the Fisher information: squared gradients of the log-likelihood, sample by sample, in a phase of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from cl_framework.batch import Batch
from cl_framework.criterion import asked
from cl_framework.errors import ConfigurationError
from cl_framework.inputs import Inputs, device_of, each, parted
from cl_framework.plan import Plan
from cl_framework.strategy import Context, Phase
from cl_framework.traits import Setting

LABELS = ("given", "expected", "weighted")
_LARGEST = 1 << 22  # gradient entries held at once on the host: 16 MiB in float32; more leave its cache and take three times as long
_LARGEST_ON_DEVICE = 1 << 28  # on an accelerator: 1 GiB

# Of parameters, one input (1, ...) and its task (1,): (1, C) or (1, C, L).
LogProbabilities = Callable[[tuple[Tensor, ...], Inputs, Tensor], Tensor]


def squared_gradients(
    log_probabilities: LogProbabilities, parameters: Sequence[Tensor], inputs: Inputs, targets: Tensor, task: Tensor, labels: str
) -> tuple[Tensor, ...]:
    """The sum over rows of (d log p(y|x) / d theta)^2, one tensor for each of `parameters`.

    `inputs` (B, ...), `targets` (B,) or (B, L), `task` (1,) the task of all rows. `labels`:
    given: y is the row's label, the empirical Fisher (Kirkpatrick et al. 2017 as commonly implemented);
    expected: the mean over y ~ p(y|x), the Fisher information itself (one backward pass a class);
    weighted: y is the label and each square is multiplied by p(y|x), as in the released code of Buzzega et al. 2020.
    """
    if labels not in LABELS:
        raise ValueError(f"labels must be one of {', '.join(LABELS)}, got {labels!r}")
    if labels == "expected" and targets.ndim > 1:
        raise ValueError("labels=expected runs over all answers of a row, which are too many where a row has several places")
    held = tuple(parameter.detach() for parameter in parameters)

    def of_label(values: tuple[Tensor, ...], row: Inputs, label: Tensor) -> tuple[Tensor, Tensor]:
        """log p(label | row), and the same as an auxiliary value."""
        found = log_probabilities(values, each(lambda part: part.unsqueeze(0), row), task)[0]
        chosen = found.gather(0, label.clamp(min=0).unsqueeze(0))[0]
        chosen = (chosen * asked(label)).sum()  # of several places: the logarithm of the probability of all answers
        return chosen, chosen

    def of_row(row: Inputs, label: Tensor) -> tuple[Tensor, ...]:
        gradients, log_p = grad(of_label, has_aux=True)(held, row, label)
        squares = tuple(gradient.square() for gradient in gradients)
        return squares if labels == "given" else tuple(log_p.exp() * square for square in squares)

    entries = sum(parameter.numel() for parameter in held)
    chunk = max(1, (_LARGEST if device_of(inputs).type == "cpu" else _LARGEST_ON_DEVICE) // max(1, entries))
    if labels != "expected":
        return _summed(of_row, inputs, targets, chunk)
    classes = log_probabilities(held, each(lambda part: part[:1], inputs), task).shape[1]
    parts = [_summed(of_row, inputs, torch.full_like(targets, label), chunk) for label in range(classes)]
    return tuple(torch.stack(part).sum(0) for part in zip(*parts, strict=True))


def _summed(of_row: Callable[[Inputs, Tensor], tuple[Tensor, ...]], inputs: Inputs, targets: Tensor, chunk: int) -> tuple[Tensor, ...]:
    """The sum of `of_row` over rows, at most `chunk` of them held at once."""
    total: tuple[Tensor, ...] | None = None
    chunks = targets.split(chunk)
    for some, labels in zip(parted(inputs, [len(part) for part in chunks]), chunks, strict=True):
        part = tuple(found.sum(0) for found in vmap(of_row)(some, labels))
        total = part if total is None else tuple(one + other for one, other in zip(total, part, strict=True))
    assert total is not None
    return total


PHASE = "fisher"


class FisherPass:
    """The mean of squared gradients over the data of the task just learned, as a phase that a strategy asks for when an event ends.

    With `labels` as in `squared_gradients`, or "batch": the squared gradient of the mean loss of each batch, averaged over batches.

    The strategy's `end` returns `phase`; its `step` never calls inward while `under_way`; its `commit` calls `add`. What was summed
    so far is state, so that a pass resumes where it stopped.
    """

    def __init__(self, labels: str = "given", samples: int | None = None) -> None:
        self.labels = labels
        self.samples = samples  # how many of the task's, chosen at random; None: all
        self._sums: dict[str, Tensor] = {}
        self._count = 0  # rows, or batches

    def check(self, setting: Setting, option: str, remedy: str) -> None:
        """Refuse, as ConfigurationError, to weigh whole texts by their probability; `option` is the strategy's, that decides `labels`."""
        if self.labels in ("expected", "weighted") and setting.objective == "language_modelling":
            raise ConfigurationError(
                f"{option}: squared gradients ({self.labels}) would be weighted by the probability of the answer, which is nearly 0 for "
                f"a whole text. {remedy}"
            )

    def phase(self, context: Context, ids: Tensor | None = None) -> Phase:
        """One pass over the event's task, or over these samples of it, without augmentation."""
        generator = context.random(PHASE).generator()
        ids = context.ids_of(context.position.event.task) if ids is None else ids
        plan = Plan.over(ids, context.batch_size, 1, generator)
        if self.samples is not None and plan.visits > self.samples:
            plan = Plan.over(plan.ids[: self.samples], context.batch_size, 1, generator)
        return Phase(PHASE, plan, task_term=self.labels != "batch")  # a gradient of its own tells all

    @staticmethod
    def under_way(context: Context) -> bool:
        """Whether the phase that runs is this strategy's pass."""
        phase = context.position.phase
        return phase is not None and phase.owner == context.slot and phase.name.endswith(f"/{PHASE}")

    def add(self, batch: Batch, context: Context) -> dict[str, Tensor] | None:
        """Add a step's rows; after the last step of the pass, the mean over all of them by parameter name."""
        rows = replace(batch, inputs=None)
        if self.labels == "batch":
            found = [None if part is None else part.square() for part in context.gradient(rows, evaluating=True)]
        else:
            found = list(context.squared_gradients(rows, self.labels))
        for name, part in zip(context.parameter_names, found, strict=True):
            if part is not None:
                self._sums[name] = self._sums[name] + part if name in self._sums else part
        self._count += 1 if self.labels == "batch" else len(batch)
        phase = context.position.phase
        assert phase is not None
        if context.position.step < phase.steps - 1:
            return None
        mean = {name: total / self._count for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        return mean

    def state_dict(self) -> dict[str, Any]:
        return {"sums": dict(self._sums), "rows": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sums, self._count = dict(state["sums"]), state["rows"]
