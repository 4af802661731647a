"""Selective synaptic dampening: shrink the weights that matter far more to what is forgotten than to what is known.

Source: Foster et al. 2024 "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening", algorithm 1, from the
    authors' code: selected where I_f > alpha I_D, then multiplied by min(lambda I_D / I_f, 1). I is the squared gradient of a batch's
    mean loss, averaged over batches, of the evaluated model.
Uses: check, step, commit, unlearn, end, forget, state_dict, load_state_dict
Cost: no further pass while learning; a pass over a task when its Learn ends (over all live tasks when the last one does, with
    `measured: last_learn`), one over the data named at a request. One copy of the weights a live task.
Differs: I_D is kept by task and weighted by its samples. `reference: retained` (the default) leaves the task of the request out of it;
    `all` is as published, and then alpha >= tasks selects hardly anything, because I_f is itself a part of I_D. In both cases the
    batches are those of the run: the size of a batch scales I. The importances of earlier tasks were taken at earlier weights; with
    `measured: last_learn` they are all taken at the same ones, as published, from the data of all live tasks.
    The authors have alpha 10, lambda 1 for images. Seen here (split digits, class-incremental, "L0-4 U1", ER beside it, seeds 0 and 1):
    the task falls to 0 %, the others lose 2.3 and 5.0 points at alpha 20, 6.2 and 10.4 at 10, 25.7 and 35.8 at 2 (lambda 0.5).
Interacts: replay changes what the weights are, not how importance is measured. Joint training teaches nothing before the last Learn:
    importances of earlier ones would be those of untrained weights, so that it asks for `measured: last_learn`. After a request for a
    task its importance is dropped; after one for classes or samples, too, since what the rest of the task contributes cannot be told
    apart without its data. Nothing would then hold that rest in a further request for classes or samples of the task (nor for all of it,
    where `reference: all` counts it), and nothing at all where no other importance is left: such streams are refused, unless the task is
    learned again in between. Seen (split digits, "L0 U0:fraction=0.1@seed1 U0:fraction=0.1@seed2"): from 100 % to 39.3 % on all that is
    retained. Importances of tasks learned later were measured while the task was known, and cannot be measured again without their data:
    they stay, and the deletion record names them as artefacts (M11).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from cl_framework import (
    LATER,
    Batch,
    Closure,
    ConfigurationError,
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
    Stream,
    Traits,
    Unlearn,
    check_choice,
    check_range,
    register,
)


@torch.no_grad()
def dampen(parameter: Tensor, forget: Tensor, known: Tensor, alpha: float, strength: float) -> Tensor:
    """`parameter` with its selected entries shrunk; `forget` and `known` are importances of its shape."""
    factor = (strength * known / forget).clamp(max=1)
    return torch.where(forget > alpha * known, parameter * factor, parameter)


def weighted_mean(importances: Mapping[int, Mapping[str, Tensor]], counts: Mapping[int, int], name: str) -> Tensor | None:
    """The mean importance of one tensor over tasks, each weighted by its samples; None if no task has one."""
    held = {task: part[name] for task, part in importances.items() if name in part}
    if not held:
        return None
    total = sum(counts[task] for task in held)
    return torch.stack([part * (counts[task] / total) for task, part in held.items()]).sum(0)


def unheld(stream: Stream, reference: str) -> tuple[int, int] | None:
    """The first request in which importance is missing of a task that lost it to a request for a part of it: the places of both."""
    held: set[int] = set()  # tasks whose importance is kept
    lost: dict[int, int] = {}  # task -> the request that took its importance along, where a rest of the task is known
    for index, event in enumerate(stream):
        task = event.task
        if isinstance(event, Learn):
            held.add(task)
            lost.pop(task, None)
            continue
        whole = event.granularity == "task"
        if task in lost and (not whole or reference == "all"):
            return index, lost[task]
        spared = [other for other in lost if other in stream.learned_after[index]]
        if spared and not (held - {task} if whole and reference == "retained" else held):
            return index, lost[spared[0]]
        held.discard(task)
        lost.pop(task, None)
        if not whole:
            lost[task] = index
    return None


def _check_all_learned_first(stream: Stream) -> None:
    """Raise ConfigurationError for a request that would meet no importances yet."""
    learns, requests = ([index for index, event in enumerate(stream) if isinstance(event, kind)] for kind in (Learn, Unlearn))
    if learns and requests and requests[0] < learns[-1]:
        raise ConfigurationError(
            f"measured=last_learn: {stream.events[requests[0]]} (event {requests[0]}) comes before the last Learn (event {learns[-1]}), "
            "when importances are taken. Set measured=each_learn, or ask for it later."
        )


def _remedy(event: Unlearn, earlier: Unlearn) -> str:
    if event.task != earlier.task:
        return f"Ask for {event} before {earlier}"
    return f"Ask for {event} alone" if event.granularity == "task" else "Ask for both at once, in one request"


@dataclass(frozen=True)
class SSDConfig:
    alpha: float = 20.0  # selects where I_f > alpha I_D, > 0
    strength: float = 1.0  # lambda, > 0
    reference: str = "retained"  # retained or all: whose importance I_D is
    measured: str = field(default="each_learn", metadata=LATER)  # each_learn, of its task, or last_learn, of all live tasks, at its weights

    def __post_init__(self) -> None:
        check_range("alpha", self.alpha, above=0)
        check_range("strength", self.strength, above=0)
        check_choice("reference", self.reference, ("retained", "all"))
        check_choice("measured", self.measured, ("each_learn", "last_learn"))


@register("ssd")
class SSD(Strategy):
    """Unlearns by dampening weights, with importances that were stored while learning."""

    Config = SSDConfig
    traits = Traits(
        needs_boundaries=True,
        consolidates=True,
        unlearns=frozenset({"task", "class", "sample"}),
        unlearning_reads=frozenset({"forget"}),
        no_neutral="importances are taken in a phase after every event, whatever the settings",
    )

    def __init__(self, config: SSDConfig) -> None:
        super().__init__(config)
        self._pass = FisherPass("batch")
        self._importances: dict[int, dict[str, Tensor]] = {}
        self._counts: dict[int, int] = {}
        self._awaited: list[int] = []  # tasks whose pass has not ended, in the order of their phases
        if config.measured == "last_learn":
            self.traits = replace(self.traits, consolidates=False, reads_past_data=True, looks_ahead=True)

    def check(self, setting: Setting) -> None:
        if self.config.measured == "last_learn":
            _check_all_learned_first(setting.stream)
        refused = unheld(setting.stream, self.config.reference)
        if refused is None:
            return
        index, lost = refused
        event, earlier = setting.stream.events[index], setting.stream.events[lost]
        assert isinstance(event, Unlearn) and isinstance(earlier, Unlearn)
        raise ConfigurationError(
            f"reference: {event} (event {index}) would spare nothing of task {earlier.task}, whose importance went with {earlier} (event "
            f"{lost}). {_remedy(event, earlier)}, learn task {earlier.task} again between them, or choose another unlearner, such as npo."
        )

    def end(self, context: Context) -> Sequence[Phase]:
        event = context.position.event
        if isinstance(event, Unlearn):
            return []
        if self.config.measured == "each_learn":
            self._awaited = [event.task]
        else:
            self._awaited = list(context.live_tasks) if context.is_last_learn else []
        return [self._pass.phase(context, context.ids_of(task)) for task in self._awaited]

    def unlearn(self, event: Unlearn, context: Context) -> Sequence[Phase]:
        return [self._pass.phase(context, context.requested_ids)]

    def step(self, inner: StepFn, context: Context) -> StepFn:
        def looked_at(closure: Closure) -> Evaluation:
            return closure.values()

        return looked_at if self._pass.under_way(context) else inner

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        if not self._pass.under_way(context):
            return
        found = self._pass.add(batch, context)
        if found is None:
            return
        event = context.position.event
        if isinstance(event, Unlearn):
            self._dampen(found, event, context)
        else:
            task = self._awaited.pop(0)
            self._importances[task] = found
            self._counts[task] = len(context.ids_of(task))

    def _dampen(self, forget: Mapping[str, Tensor], event: Unlearn, context: Context) -> None:
        whole = event.granularity == "task" and self.config.reference == "retained"
        known = {task: part for task, part in self._importances.items() if not (whole and task == event.task)}
        for name, parameter in zip(context.parameter_names, context.parameters, strict=True):
            mean = weighted_mean(known, self._counts, name)
            if name in forget:
                kept = torch.zeros_like(parameter) if mean is None else mean  # nobody else needs it
                parameter.data.copy_(dampen(parameter, forget[name], kept, self.config.alpha, self.config.strength))

    def forget(self, forgotten: Forgotten, context: Context) -> None:
        self._importances.pop(forgotten.event.task, None)
        self._counts.pop(forgotten.event.task, None)

    def state_dict(self) -> dict[str, Any]:
        return {"importances": {task: dict(part) for task, part in self._importances.items()}, "counts": dict(self._counts)} | {
            "pass": self._pass.state_dict(),
            "awaited": list(self._awaited),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._importances = {task: dict(part) for task, part in state["importances"].items()}
        self._counts = dict(state["counts"])
        self._pass.load_state_dict(state["pass"])
        self._awaited = list(state["awaited"])
