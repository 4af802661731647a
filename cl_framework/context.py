"""What a strategy sees of the run, from its slot: the implementation of `cl_framework.strategy.Context`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cl_framework.benchmarks.base import scaled_of, strong_of
from cl_framework.calls import call_at, conditioning, evaluation_mode, run_model, run_model_at, untouched
from cl_framework.closure import differentiate
from cl_framework.errors import ContractError
from cl_framework.fisher import squared_gradients
from cl_framework.fisher_by_module import squared_gradients_by_module
from cl_framework.inputs import Inputs, at, each, host
from cl_framework.rng import RandomStream
from cl_framework.strategy import Gradients, Position, Rows, Traits
from cl_framework.stream import Learn, TaskId, Unlearn

if TYPE_CHECKING:
    from cl_framework.learner import Learner


def stream_key(seed: int, position: Position, *purpose: object) -> tuple[object, ...]:
    """The key of a random stream: it names the task and its occurrence, never the place in the stream."""
    event = position.event
    phase = position.phase.name if position.phase is not None else ""
    return (seed, type(event).__name__, event.task, event.occurrence, phase, *purpose)


@dataclass(eq=False)
class PositionedRandom:
    """A random stream seen from the current step: the implementation of `StepRandom`."""

    stream: RandomStream
    position: Position

    @property
    def step(self) -> int:
        return self.position.step

    def generator(self) -> torch.Generator:
        return self.stream.generator()

    def at_step(self) -> torch.Generator:
        return self.stream.at(self.position.step)

    def uniform(self, count: int) -> Tensor:
        return self.stream.uniform(self.position.step, count)

    def block(self, count: int) -> Tensor:
        return self.stream.block(self.position.step, count)


@dataclass
class SlotContext:
    """One a slot; all share the learner and its position."""

    slot: str
    traits: Traits
    learner: Learner
    _randoms: dict[str, PositionedRandom] = field(default_factory=dict)

    # --- where the run is ---

    @property
    def position(self) -> Position:
        return self.learner.position

    @property
    def model(self) -> nn.Module:
        return self.learner.model

    @property
    def device(self) -> torch.device:
        return self.learner.device

    @property
    def num_classes(self) -> int:
        return self.learner.benchmark.num_classes

    @property
    def num_tasks(self) -> int:
        return self.learner.benchmark.num_tasks

    @property
    def batch_size(self) -> int:
        return self.learner.run.batch_size

    @property
    def epochs(self) -> int:
        return self.learner.run.epochs

    @property
    def learning_rate(self) -> float:
        return self.learner.learning_rate

    @property
    def strongly_augments(self) -> bool:
        return strong_of(self.learner.benchmark.transform) is not None

    @property
    def parameters(self) -> list[nn.Parameter]:
        return self.learner.parameters_in_play

    @property
    def parameter_names(self) -> list[str]:
        return self.learner.names_in_play

    @property
    def movable(self) -> list[Tensor | None]:
        return self.learner.movable

    @property
    def live_tasks(self) -> tuple[TaskId, ...]:
        return self.learner.stream.learned_after[self.position.event_index]

    @property
    def is_last_learn(self) -> bool:
        if not self.traits.looks_ahead:
            raise ContractError(
                f"strategy {self.slot!r} asks whether {self.position.event} is the last Learn without Traits(looks_ahead=True)."
            )
        later = self.learner.stream.events[self.position.event_index + 1 :]
        return not any(isinstance(event, Learn) for event in later)

    def classes_of(self, task: TaskId) -> tuple[int, ...]:
        return self.learner.benchmark.classes[task]

    # --- randomness ---

    def random(self, purpose: str) -> PositionedRandom:
        known = self._randoms.get(purpose)
        if known is None:
            key = stream_key(self.learner.run.seed, self.position, self.slot, purpose)
            known = self._randoms[purpose] = PositionedRandom(RandomStream(*key), self.position)
        return known

    def forget_randoms(self) -> None:
        """At the start of an event or a phase: its streams have other keys."""
        self._randoms.clear()

    # --- data ---

    @property
    def requested_ids(self) -> Tensor:
        event = self.position.event
        if isinstance(event, Learn):
            raise ContractError(f"strategy {self.slot!r} asks what is to be unlearned during {event}, which unlearns nothing.")
        ids = self.learner.forgotten(event).ids
        return ids[~torch.isin(ids, self.learner.deleted)]

    def ids_of(self, task: TaskId) -> Tensor:
        event = self.position.event
        unlearning = isinstance(event, Unlearn)
        if (task != event.task or unlearning) and not self._reads_past():
            need = "unlearning_reads={'past'}" if unlearning else "reads_past_data=True"
            raise ContractError(
                f"strategy {self.slot!r} asks for the data of task {task} during {event}, but does not declare Traits({need})."
            )
        if task not in self.live_tasks and (task != event.task or unlearning):
            raise ContractError(f"strategy {self.slot!r} asks for the data of task {task}, which is not learned at {event}.")
        ids = self.learner.training_ids(task)
        return ids[~torch.isin(ids, self.requested_ids)] if unlearning else ids

    def read(self, ids: Tensor) -> Rows:
        allowed = self._open_ids()
        refused = ids[~torch.isin(ids, allowed)]
        if len(refused):
            event, sample = self.position.event, int(refused[0])
            if isinstance(event, Unlearn) and bool((self.requested_ids == sample).any()):
                raise ContractError(
                    f"strategy {self.slot!r} reads sample {sample}, which {event} unlearns, but does not declare "
                    "Traits(unlearning_reads={'forget'})."
                )
            self.ids_of(int(self.learner.benchmark.locate(refused[:1])[0]))  # says what is wrong with its task, if that is it
            raise ContractError(f"strategy {self.slot!r} asks for sample {sample}, which {event} does not show.")
        self._count_read(ids)
        return self.learner.read(ids)

    def _count_read(self, ids: Tensor) -> None:
        cost = self.learner.cost
        cost.read_rows += len(ids)
        if isinstance(self.position.event, Unlearn) and "forget" in self.traits.unlearning_reads:
            cost.read_forgotten += int(torch.isin(ids, self.requested_ids).sum()) if self._reads_past() else len(ids)

    def _open_ids(self) -> Tensor:
        """Ids of all samples that this strategy may read now."""
        event, learner = self.position.event, self.learner
        if isinstance(event, Learn):
            tasks = {event.task, *self.live_tasks} if self._reads_past() else {event.task}
            return torch.cat([learner.training_ids(task) for task in sorted(tasks)])
        parts = [self.requested_ids] if "forget" in self.traits.unlearning_reads else []
        if self._reads_past():
            parts += [self.ids_of(task) for task in self.live_tasks]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)

    def _reads_past(self) -> bool:
        if isinstance(self.position.event, Learn):
            return self.traits.reads_past_data
        return self.traits.reads_past_data or "past" in self.traits.unlearning_reads

    def scaled(self, rows: Rows) -> Rows:
        scale = scaled_of(self.learner.benchmark.transform)
        if scale is None:
            raise ContractError(f"strategy {self.slot!r} asks for inputs that are only scaled, but this benchmark's transform has none.")
        return replace(rows, inputs=scale(rows.items))

    # --- the model, without a trace ---

    def snapshot(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def forward(self, rows: Rows, at: Sequence[Tensor] | Mapping[str, Tensor] | None = None) -> Tensor:
        model = self.model
        rows = self._readable(rows)
        mode = evaluation_mode(model) if isinstance(at, Mapping) else nullcontext()
        with torch.no_grad(), mode, untouched(model), self.learner.own_randomness(self.slot):
            self.learner.cost.forward(len(rows))
            if at is None:
                return run_model(model, rows)[1]
            replaced = dict(at) if isinstance(at, Mapping) else dict(zip(self.parameter_names, at, strict=True))
            return call_at(model, replaced, rows.inputs, *conditioning(model, rows))

    def count_pass(self, rows: int) -> None:
        self.learner.cost.forward(rows)

    def features(self, rows: Rows, at: Mapping[str, Tensor] | None = None, *, exact: bool = False) -> Tensor:
        model, rows = self.model, self._readable(rows)
        if exact:
            assert rows.inputs is not None
            model = deepcopy(model).double()
            rows = replace(rows, inputs=each(lambda part: part.double() if part.is_floating_point() else part, rows.inputs))
        with torch.no_grad(), evaluation_mode(model):
            self.learner.cost.forward(len(rows))
            features, _ = run_model(model, rows) if at is None else run_model_at(model, at, rows)
        if features is None:
            raise ContractError(f"strategy {self.slot!r} asks for features, but the model has no `features` method and `head`.")
        return features

    def gradient(self, rows: Rows, *, evaluating: bool = False) -> Gradients:
        mode = evaluation_mode(self.model) if evaluating else nullcontext()
        rows = self._readable(rows)
        with torch.enable_grad(), mode, untouched(self.model), self.learner.own_randomness(self.slot):
            self.learner.cost.forward(len(rows))
            self.learner.cost.backward_passes += 1
            _, logits = run_model(self.model, rows)
            loss = self.learner.criterion.mean(logits, rows)
            return differentiate(loss, self.parameters)

    def squared_gradients(self, rows: Rows, labels: str = "given") -> tuple[Tensor, ...]:
        model = self.model
        rows = self._readable(rows)
        assert rows.inputs is not None
        given = rows.inputs

        def log_probabilities(values: tuple[Tensor, ...], inputs: Inputs, tasks: Tensor) -> Tensor:
            replaced = dict(zip(self.parameter_names, values, strict=True))
            one = replace(rows, inputs=inputs, task_of_row=tasks, host_tasks=None)
            logits = call_at(model, replaced, inputs, *conditioning(model, one))
            return self.learner.criterion.masked(logits, tasks).log_softmax(1)

        totals = tuple(torch.zeros_like(parameter) for parameter in self.parameters)
        on_host = host(rows.host_tasks, rows.task_of_row)
        tasks = on_host.unique().tolist()  # a pass for each: in a pass over one task's data, one
        with evaluation_mode(model), untouched(model):
            modules = self.learner.modules_apart(rows)
            for task in tasks:
                some, targets, one_task = given, rows.targets, rows.task_of_row[:1]
                if len(tasks) > 1:
                    mine = (on_host == task).nonzero().flatten().to(targets.device, non_blocking=True)
                    some, targets, one_task = at(given, mine), targets[mine], rows.task_of_row[mine[:1]]
                if modules is None:
                    part = squared_gradients(log_probabilities, self.parameters, some, targets, one_task, labels)
                else:
                    told = partial(log_probabilities, tuple(self.parameters), some, one_task.expand(len(targets)))
                    part = squared_gradients_by_module(model, self.parameter_names, modules, told, targets, labels)
                totals = tuple(total + found for total, found in zip(totals, part, strict=True))
                backward = self.num_classes if labels == "expected" else 1
                self.learner.cost.forward(len(targets), backward if modules is None else 1)
                self.learner.cost.backward_passes += backward
        return totals

    def _readable(self, rows: Rows) -> Rows:
        """Rows out of a memory hold raw items only: the same rows with inputs as in evaluation; a draw of them is augmented later."""
        if rows.inputs is not None:
            return rows
        return replace(rows, inputs=self.learner.benchmark.transform(rows.items, None))

    def criterion(self, logits: Tensor, rows: Rows) -> Tensor:
        return self.learner.criterion.rows(logits, rows)
