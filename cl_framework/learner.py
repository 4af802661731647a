"""One model living through a stream: the step, its phases, and the state that must survive a resume. No Lightning, no files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cl_framework.benchmarks.base import Benchmark, strong_of
from cl_framework.calls import run_model
from cl_framework.checkpoint import state_on
from cl_framework.closure import StepClosure, StepEvaluation
from cl_framework.context import SlotContext, stream_key
from cl_framework.cost import Cost, stored_bytes
from cl_framework.criterion import Criterion
from cl_framework.errors import ContractError
from cl_framework.fisher_by_module import modules_apart
from cl_framework.inputs import Inputs, combined, each
from cl_framework.learning_curve import LearningCurve
from cl_framework.models.freezing import give_up_training
from cl_framework.optimizers import apply_plain_sgd, build_optimizer, is_plain_sgd, laid_out_as, optimizer_state_by_name
from cl_framework.plan import Plan, training_partition
from cl_framework.requests import requested_ids
from cl_framework.rng import RandomStream, global_generators, global_randomness_kept
from cl_framework.schema import RunConfig
from cl_framework.stack import PhaseStack, Stack
from cl_framework.strategy import Batch, Closure, Evaluation, Forgotten, Phase, Position, Rows
from cl_framework.stream import Learn, Stream, TaskId, Unlearn, parse_requests


class Learner:
    """Runs steps. `begin_phase` decides plan, mask and optimizer; `step` is the loop of `strategy.py`, once."""

    def __init__(
        self,
        run: RunConfig,
        benchmark: Benchmark,
        model: nn.Module,
        stack: Stack,
        stream: Stream,
        device: torch.device,
        *,
        dealt_by: int | None = None,
    ) -> None:
        """dealt_by: the seed by which a blurry stream deals samples to tasks; the run's by default."""
        self.run = run
        self.benchmark = benchmark
        self.stack = stack
        self.stream = stream
        self.device = device
        self.position = Position(stream.events[0])
        self.cost = Cost()  # of the event under way
        self.curve = LearningCurve()  # of the event under way
        self.deleted = torch.empty(0, dtype=torch.int64)  # ids unlearned one by one: they stay deleted when their task is learned again
        self.parameters_in_play: list[nn.Parameter] = []
        self.names_in_play: list[str] = []
        self.optimizer: torch.optim.Optimizer | None = None
        self._optimizer_memory: dict[str, Any] = {}  # state by parameter name, where it outlives an event
        self._base_rates: list[float] = []  # of the optimizer's groups, before the `rate` seam
        self._clip: float | None = None
        self._plain_sgd = False
        self._partial_masks: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        self._without: Tensor | None = None  # ids that the Unlearn under way names
        self._phase_stack: PhaseStack | None = None
        self._applied: StepEvaluation | None = None
        self._modules_apart: dict[tuple[str, ...], list[nn.Module] | None] = {}
        self._dropout: dict[str, RandomStream] = {}
        self._augmentations: dict[str, RandomStream] = {}
        seed = run.seed if dealt_by is None else dealt_by
        self._training_ids = training_partition([benchmark.ids_of(task) for task in range(benchmark.num_tasks)], run.blurry, seed)
        for request in parse_requests(run.without, benchmark.num_tasks):
            self.deleted = torch.cat([self.deleted, self.forgotten(request).ids]).unique()
        self.model = model
        self.criterion = Criterion(self._class_mask())
        self._contexts = {member.slot: SlotContext(member.slot, member.strategy.traits, self) for member in stack.members}
        stack.bind(self._contexts)
        give_up_training(model, kept=[parameter for parameter in model.parameters() if parameter.requires_grad])
        self.model = stack.build(model).to(device)
        self.initial_weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    # --- data ---

    def _class_mask(self) -> Tensor | None:
        if self.run.scenario != "task_il":
            return None
        mask = torch.zeros(self.benchmark.num_tasks, self.benchmark.num_classes, dtype=torch.bool)
        for task, classes in enumerate(self.benchmark.classes):
            mask[task, list(classes)] = True
        return mask.to(self.device)

    @property
    def looks_ahead(self) -> bool:
        return any(member.strategy.traits.looks_ahead for member in self.stack.members)

    def planned_ids(self, task: TaskId) -> Tensor:
        """Ids over which a Learn of `task` is planned: all of its training set, the deleted ones included."""
        return self._training_ids[task]

    def training_ids(self, task: TaskId) -> Tensor:
        """Ids that a Learn of `task` shows, without those deleted one by one."""
        ids = self._training_ids[task]
        return ids[~torch.isin(ids, self.deleted)] if len(self.deleted) else ids

    def read(self, ids: Tensor) -> Rows:
        """Samples by id, with inputs as in evaluation."""
        items, targets, tasks = self.benchmark.read(ids)
        rows = Rows(each(lambda part: part.to(self.device), items), targets.to(self.device), ids.to(self.device), tasks.to(self.device))
        rows.inputs = self.benchmark.transform(rows.items, None)
        return rows

    def forgotten(self, event: Unlearn) -> Forgotten:
        """The samples that an Unlearn names."""
        return Forgotten(event, requested_ids(event, self.benchmark, self._training_ids[event.task]))

    def is_exact(self, event: Unlearn) -> bool:
        """Whether the stack unlearns `event` exactly in this run."""
        optimizer = self.run.optimizer
        has_moments = optimizer.name != "sgd" or optimizer.momentum > 0
        return self.stack.is_exact(event, keeps_moments=optimizer.reset == "never" and has_moments)

    # --- phases ---

    def learn_phase(self, event: Learn) -> Phase:
        """The phase of a Learn event before any strategy changed its plan: deleted samples leave gaps, and all others stay in place."""
        plan = Plan.over(self.planned_ids(event.task), self.run.batch_size, self.run.epochs, self._generator("plan"))
        if len(self.deleted):
            plan = plan.keep(~torch.isin(plan.ids, self.deleted))
        return Phase("learn", plan)

    def plan_phase(self, phase: Phase) -> Phase:
        """Pipe a whole-stack phase's plan through the strategies, and check what they, or its owner, made of it."""
        if isinstance(phase.plan, int):
            return phase
        if phase.owner is not None:
            traits = self.stack.traits[phase.owner]
            if isinstance(self.position.event, Unlearn):
                self._check_plan(phase.plan, "past" in traits.unlearning_reads, "forget" in traits.unlearning_reads)
            else:
                self._check_plan(phase.plan, traits.reads_past_data)
            return phase
        if not self.stack.transforms_plan():
            return phase
        plan = self.stack.plan(phase.plan)
        planners = [member.strategy.traits for member in self.stack.members if "plan" in member.seams]
        self._check_plan(plan, any(traits.reads_past_data for traits in planners))
        return replace(phase, plan=plan)

    def _check_plan(self, plan: Plan, reads_past: bool, reads_own: bool = True) -> None:
        """Refuse samples of the future or unlearned before this event, and past ones, or those to be forgotten, where undeclared."""
        event = self.position.event
        own = self.training_ids(event.task) if isinstance(event, Learn) else self.forgotten(event).ids
        live = (*self.stream.learned_after[self.position.event_index], event.task)
        allowed = torch.zeros(int(self.benchmark.offsets[-1]), dtype=torch.bool)
        for task in live:
            allowed[self.training_ids(task)] = True
        bad = plan.ids[~allowed[plan.ids]]
        if len(bad):
            task = int(self.benchmark.locate(bad[:1])[0])
            raise ContractError(
                f"the plan of {event} shows sample {int(bad[0])} of task {task}, which is not learned then or was unlearned."
            )
        mine = torch.zeros_like(allowed)
        mine[own] = True
        if not reads_own and bool(mine[plan.ids].any()):
            raise ContractError(f"the plan of {event} shows what it unlearns, which needs Traits(unlearning_reads={{'forget'}}).")
        if not reads_past and not bool(mine[plan.ids].all()):
            need = "reads_past_data=True" if isinstance(event, Learn) else "unlearning_reads={'past'}"
            raise ContractError(f"the plan of {event} shows past data, but no strategy with a plan declares Traits({need}).")

    def begin_phase(self, phase: Phase) -> None:
        """Decide mask and optimizer and bind the step. `position.phase` is set; the plan was decided by `plan_phase`."""
        if phase.fresh_model:
            self.model.load_state_dict(self.initial_weights)
            self._optimizer_memory = {}  # moments of other weights
        named = dict(self.model.named_parameters())
        mask = self.stack.mask(phase, list(named))
        self.names_in_play = [name for name in named if mask.get(name, True) is not False]
        self.parameters_in_play = [named[name] for name in self.names_in_play]
        for name, parameter in named.items():
            parameter.requires_grad_(mask.get(name, True) is not False)
        self._partial_masks = [
            (named[name], part.to(self.device), named[name].detach().clone()) for name, part in mask.items() if isinstance(part, Tensor)
        ]
        remembered = self._optimizer_memory if phase.owner is None else {}
        self.optimizer = build_optimizer(self.run.optimizer, phase.optimizer, self.parameters_in_play, self.names_in_play, remembered)
        self._base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self._clip = phase.optimizer.get("clip", self.run.optimizer.clip)
        self._plain_sgd = is_plain_sgd(self.optimizer) and not self._partial_masks and self._clip is None
        unlearning = isinstance(self.position.event, Unlearn)
        self._phase_stack = self.stack.compile(phase, self._apply, unlearning=unlearning)
        self._without = self.forgotten(self.position.event).ids.to(self.device) if isinstance(self.position.event, Unlearn) else None
        if phase.owner is None and isinstance(phase.plan, Plan):
            self.curve.begin(phase.steps, phase.plan.visits)
        else:
            self.curve.rest()
        self.model.train()

    def end_phase(self, phase: Phase) -> None:
        """Let go of the optimizer; keep its state by name where it outlives the event."""
        if phase.owner is None and self.run.optimizer.reset == "never" and self.optimizer is not None:
            self._optimizer_memory |= optimizer_state_by_name(self.optimizer, self.names_in_play)
        self.optimizer = None
        self._phase_stack = None
        self._partial_masks = []
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)

    @property
    def optimizer_bytes(self) -> int:
        """Of the optimizer's state in the phase under way, and of what waits until its tensor learns again."""
        assert self.optimizer is not None
        waiting = [state for name, state in self._optimizer_memory.items() if name not in self.names_in_play]
        return stored_bytes(self.optimizer.state) + stored_bytes(waiting)

    def drop_optimizer_memory(self) -> None:
        """After an Unlearn: moments are derived from the data."""
        self._optimizer_memory = {}

    # --- one step ---

    def step(self, batch: Batch) -> Evaluation:
        """Draw, evaluate and apply, commit: see the head of `strategy.py`. The rate is set first: a draw may look a step ahead (MIR)."""
        stack, position = self._phase_stack, self.position
        assert stack is not None and position.phase is not None and self.optimizer is not None
        if stack.has_rate:
            factor = self.stack.rate(position.phase, position.step, position.phase.steps)
            for group, base in zip(self.optimizer.param_groups, self._base_rates, strict=True):
                group["lr"] = base * factor
        if stack.draws:
            stack.draw(batch)
        if stack.lenders:
            stack.lend(batch, self._without)
        if batch.draws:
            self._make_inputs(batch)
        evaluation = stack.step(StepClosure(self, batch, stack.losses, stack.without_task_term))
        if self._partial_masks:
            self._restore_masked()
        if self._applied is not None:
            evaluation = self._applied
            if self.curve.wants(position.step):
                self._note_answers(batch, self._applied)
        if stack.commits:
            stack.commit(batch, evaluation.output)
        if self._applied is not None:
            self._applied.gradients = None  # they are applied, and the next step's can take their memory, which is in the cache
            self._applied = None
        position.step += 1
        position.stream_step += 1
        return evaluation

    def _note_answers(self, batch: Batch, evaluation: StepEvaluation) -> None:
        if not evaluation.output.live.was_run:  # no term has asked the model about these rows
            return
        logits = self.criterion.masked(evaluation.output.logits, batch.task_of_row)
        own = batch.task_of_row == self.position.event.task
        self.curve.note(self.position.step, logits, batch.targets, own, self.benchmark.whole_rows)

    @property
    def movable(self) -> list[Tensor | None]:
        """Of each parameter in play the entries that may move; None where all may."""
        parts = {id(parameter): part for parameter, part, _ in self._partial_masks}
        return [parts.get(id(parameter)) for parameter in self.parameters_in_play]

    @property
    def learning_rate(self) -> float:
        """The rate of the step under way."""
        if self.optimizer is None:
            raise ContractError("the learning rate was read outside of a phase: there is no optimizer.")
        rate: float = self.optimizer.param_groups[0]["lr"]
        return rate

    def _apply(self, closure: Closure) -> StepEvaluation:
        """The innermost step: evaluate, clip, apply. Only this evaluation is live."""
        assert isinstance(closure, StepClosure) and self.optimizer is not None
        evaluation = closure.live()
        self._applied = evaluation
        parameters = self.parameters_in_play
        gradients = evaluation.gradients or ()
        if self._plain_sgd:
            apply_plain_sgd(self.optimizer.param_groups[0]["lr"], parameters, gradients)
            return evaluation
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = laid_out_as(parameter, gradient)
        for parameter, part, _ in self._partial_masks:
            if parameter.grad is not None:
                parameter.grad = parameter.grad * part
        if self._clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self._clip)
        self.optimizer.step()
        for parameter in parameters:
            parameter.grad = None
        return evaluation

    @torch.no_grad()
    def _restore_masked(self) -> None:
        """Frozen entries are bit-identical after any step, whatever momentum, weight decay or a wrapper did to them."""
        for parameter, part, frozen in self._partial_masks:
            parameter.copy_(torch.where(part, parameter, frozen))

    def _make_inputs(self, batch: Batch) -> None:
        readable = self.stack.reads_tasks
        for named in batch.draws.values():
            for draw in named.values():
                rows = draw.rows
                self.cost.drawn_rows += len(rows)
                rows.tasks_readable = readable
                if rows.inputs is None:
                    rows.inputs = self.inputs_of(rows.items, draw.key, rows.strong)

    def inputs_of(self, items: Inputs, purpose: str, strong: Tensor | None) -> Inputs:
        """What the model reads of these items in training, augmented as the benchmark does it, strongly where `strong` (B,) says so."""
        transform = self.benchmark.transform
        inputs = transform(items, self.augmentation(purpose) if transform.random else None)
        if strong is None:
            return inputs
        strengthen = strong_of(transform)
        if strengthen is None:
            raise ContractError("strongly augmented rows were asked for, but this benchmark has no strong augmentation.")
        # Of all rows, so that no step waits to learn which they are; what a row gets must not depend on which others are strong.
        strengthened = strengthen(items, self.augmentation(f"{purpose}/strong"))
        return combined(lambda one, other: torch.where(strong.view(-1, *([1] * (one.ndim - 1))), other, one), inputs, strengthened)

    def augmentation(self, purpose: str) -> torch.Generator:
        """The generator of this step's augmentations for one set of rows."""
        stream = self._augmentations.get(purpose)
        if stream is None:
            stream = RandomStream(*stream_key(self.run.seed, self.position, "augment", purpose))
            self._augmentations[purpose] = stream
        return stream.at(self.position.step)

    def new_streams(self) -> None:
        """Whenever the event or the phase changes: random streams have other keys then, whichever of them were used before."""
        for context in self._contexts.values():
            context.forget_randoms()
        self._dropout.clear()
        self._augmentations.clear()

    def restart_randomness(self, purpose: str = "") -> None:
        """Set the model's own randomness (dropout) to the current step's for one pass: what others run or do not run moves nothing.

        A microsecond; torch.manual_seed costs far more.
        """
        stream = self._dropout.get(purpose)
        if stream is None:
            stream = self._dropout[purpose] = RandomStream(*stream_key(self.run.seed, self.position, "model", purpose))
        seed = stream.seed_at(self.position.step)
        for generator in global_generators(self.device):
            generator.manual_seed(seed)

    @contextmanager
    def own_randomness(self, purpose: str) -> Iterator[None]:
        """A look at the model between or within evaluations: with its own numbers; those around it go on as if not interrupted."""
        with global_randomness_kept(self.device):
            self.restart_randomness(purpose)
            yield

    def _generator(self, purpose: str) -> torch.Generator:
        return RandomStream(*stream_key(self.run.seed, self.position, purpose)).generator()

    def modules_apart(self, rows: Rows) -> list[nn.Module] | None:
        """The modules of the parameters in play, if their squared gradients can be had at once; asked in evaluation mode, of any rows."""
        names = tuple(self.names_in_play)
        if names not in self._modules_apart:
            told = getattr(self.model, "task_conditioned", False)

            def run(count: int) -> object:
                some = rows.take(torch.arange(count, device=rows.targets.device) % len(rows))
                return run_model(self.model, replace(some, inputs=self.benchmark.transform(some.items, None)))

            self._modules_apart[names] = None if told else modules_apart(self.model, names, run)
        return self._modules_apart[names]

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer, which exists only within a phase."""
        return {
            "model": self.model.state_dict(),
            "optimizer_memory": self._optimizer_memory,
            "strategies": self.stack.state_dict(),
            "deleted": self.deleted,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave; the optimizer comes back by `load_optimizer`."""
        self.model.load_state_dict(state["model"])
        self._optimizer_memory = state_on(dict(state["optimizer_memory"]), self.device)
        self.stack.load_state_dict(state_on(state["strategies"], self.device))
        self.deleted = state["deleted"]

    def load_optimizer(self, state: Mapping[str, Any]) -> None:
        assert self.optimizer is not None
        self.optimizer.load_state_dict(dict(state))
