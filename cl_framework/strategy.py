"""The contract between the framework and a strategy. One sitting to read.

The life of a stream, with the seams in capitals::

    CHECK(setting)                                        # what cannot work is refused before anything is written
    model = BUILD(model)                                  # at most one structural strategy
    for event in stream:                                  # Learn(task) or Unlearn(task)
        run(BEGIN(event))                                 # phases before it, first slot first
        run([learn] or UNLEARN(event))                    # exactly one strategy answers an Unlearn
        if Unlearn: FORGET(what was unlearned)            # everyone drops what it derived from that data
        run(END(event))                                   # phases after it, last slot first
        evaluate (PREDICT gives the scores), record, checkpoint (STATE_DICT)

    def run(phases):
        for phase in phases:
            plan = PLAN(plan)                             # pipe; which samples at which step, decided here once
            optimizer = configured(MASK())                # intersection of what may move
            for step, ids in enumerate(plan):
                batch = load(ids)                         # one indexed read
                batch.draws = DRAW(batch)                 # the only reads of memories and of randomness; ARRANGE may make views of rows
                closure = Closure(task term + LOSS terms) # pure: call it any number of times
                evaluation = STEP(closure) * RATE(step)   # onion, first slot outermost; innermost evaluates and applies
                COMMIT(batch, evaluation.output)          # the only writes to memories, once a step

Memories are read once, the objective is a closure, memories are written once. That is why a wrapper may call the closure as often as
it likes (refresh, MIR, a line search) without any other strategy noticing, and why a run resumes exactly at any step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from cl_framework.batch import Batch, Draw, Rows
from cl_framework.errors import ContractError
from cl_framework.plan import Plan
from cl_framework.stream import Event, TaskId, Unlearn
from cl_framework.traits import Setting, Traits

# --- what a strategy is given of a step ---


class Pass(Protocol):
    """The result of one forward pass over some rows, run when first read."""

    @property
    def logits(self) -> Tensor: ...  # (B, num_classes)

    @property
    def features(self) -> Tensor: ...  # (B, D); ContractError if the model has none


class Output(Pass, Protocol):
    """What the model says of a batch within one evaluation: its own pass, and that of each draw through `of`."""

    def of(self, draw: Draw) -> Pass: ...


Gradients = tuple[Tensor | None, ...]  # one for each of `Context.parameters`, None where a parameter is not reached


@dataclass(frozen=True, slots=True)
class Term:
    """A named part of the objective. `value` runs only when the term is asked for and its weight is not 0.

    A term whose gradient is known in closed form may say so by `plus_gradient`, and is then not differentiated: that saves the backward
    pass, and the value where nobody reads it. `value` runs after the step then, if at all, and must tell what it was where
    `plus_gradient` ran: keep what both need, as `WeightedSquares` does.
    """

    value: Callable[[], Tensor]  # -> scalar
    weight: float = 1.0
    plus_gradient: Callable[[Gradients, float], Gradients] | None = None  # (gradients, factor) -> gradients + factor * value's, all new


class Evaluation(Protocol):
    """The result of calling a closure: everything in it is detached."""

    @property
    def loss(self) -> Tensor: ...  # weighted sum of all terms, or the plain sum of those asked for by name

    @property
    def gradients(self) -> Gradients | None: ...

    @property
    def output(self) -> Output: ...

    @property
    def terms(self) -> dict[str, Tensor]: ...  # unweighted values by name


class Closure(Protocol):
    """The objective of one step at the current parameters: pure, callable any number of times.

    Terms are named `task` (mean loss of the stream's rows), "slot/name" for joined and reference draws and for what `loss` returns.
    Without names, all terms with a weight are meant. Calls leave BatchNorm statistics, named random streams and `.grad` as they found
    them; torch's global generator belongs to the model's dropout, which starts each pass with the same numbers.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    def values(self, *names: str) -> Evaluation: ...

    def gradients(self, *names: str) -> Evaluation: ...

    def gradients_by_term(self, *names: str) -> dict[str, Gradients]: ...

    def with_gradients(self, transform: Callable[[Gradients], Gradients]) -> Closure:
        """The same objective whose live gradients pass through `transform` before they are applied (A-GEM, clipping)."""
        ...


StepFn = Callable[[Closure], Evaluation]


@dataclass(frozen=True)
class Phase:
    """A part of an event: a plan, or a number of steps without data, under one optimizer.

    A phase that a strategy asks for belongs to its slot alone: only that strategy's terms, draws, step, mask and commit act, and the
    `task` term where there are rows, unless `task_term` is False. A closed form is a phase whose step never calls inward.
    """

    name: str
    plan: Plan | int  # int: that many steps without stream rows
    owner: str | None = None  # slot; None: the whole stack acts. Set by the stack
    optimizer: Mapping[str, Any] = field(default_factory=dict)  # changes to the configured optimizer, e.g. {"lr": 0.01}
    fresh_model: bool = False  # start from newly initialised weights
    task_term: bool = True  # False: the objective is what its owner's `loss` returns, rows or not

    @property
    def steps(self) -> int:
        return self.plan if isinstance(self.plan, int) else self.plan.steps


@dataclass(frozen=True)
class Done:
    """The answer of an unlearner that needed no training."""


@dataclass(frozen=True)
class Replay:
    """The answer of an unlearner that has the framework train again, without the data: from the last state that never knew them.

    Only where its traits say so are such states kept. Everything comes back as if the data had never been shown, so that after a replay
    there is nothing to `forget`, and no `end` either.
    """


@dataclass(frozen=True)
class Forgotten:
    """What an Unlearn removed: the ids of all training samples concerned, sorted."""

    event: Unlearn
    ids: Tensor  # (N,) int64


# --- what a strategy may look at ---


@dataclass
class Position:
    """Where a run is; one object shared by all contexts, moved by the runner and the host."""

    event: Event
    event_index: int = 0
    phase: Phase | None = None
    step: int = 0  # in the phase
    stream_step: int = 0  # optimizer steps since the stream began


class StepRandom(Protocol):
    """A random stream seen from the current step."""

    @property
    def step(self) -> int: ...

    def generator(self) -> torch.Generator: ...  # of the phase's start

    def at_step(self) -> torch.Generator: ...  # of this step's start

    def uniform(self, count: int) -> Tensor: ...  # (count,) float64 in [0, 1), this step's

    def block(self, count: int) -> Tensor: ...  # (BLOCK, count): this step's is row `step % BLOCK`


class Context(Protocol):
    """What a strategy sees of the run, from its slot. The framework passes one to every seam."""

    @property
    def slot(self) -> str: ...

    @property
    def position(self) -> Position: ...

    @property
    def model(self) -> nn.Module: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def num_tasks(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def epochs(self) -> int: ...

    @property
    def learning_rate(self) -> float: ...  # of the step under way, what the `rate` seam makes of it included

    @property
    def strongly_augments(self) -> bool: ...  # whether the benchmark has a strong augmentation for views

    @property
    def parameters(self) -> list[nn.Parameter]: ...  # trainable in this phase, in the order of every Gradients tuple

    @property
    def parameter_names(self) -> list[str]: ...

    @property
    def movable(self) -> list[Tensor | None]:
        """Of each of `parameters` the entries that may move, a bool tensor of its shape; None where all may."""
        ...

    @property
    def live_tasks(self) -> tuple[TaskId, ...]: ...  # learned and not unlearned, the current one included, in order of learning

    @property
    def is_last_learn(self) -> bool: ...  # no Learn follows the current event

    def classes_of(self, task: TaskId) -> tuple[int, ...]: ...

    def random(self, purpose: str) -> StepRandom:
        """This slot's own random stream for `purpose`, keyed by seed, task and its occurrence."""
        ...

    @property
    def requested_ids(self) -> Tensor:
        """Training sample ids that the Unlearn under way names and that are not gone yet, sorted. ContractError during a Learn."""
        ...

    def ids_of(self, task: TaskId) -> Tensor:
        """Training sample ids of a live task, sorted. Raises ContractError for past tasks unless `reads_past_data` is declared."""
        ...

    def read(self, ids: Tensor) -> Rows:
        """The samples with these ids, inputs included (without augmentation). The same rule as for `ids_of`."""
        ...

    def scaled(self, rows: Rows) -> Rows:
        """The same rows with inputs that are only scaled to [0, 1]: neither augmented nor normalised. Only where `Setting.scaled`."""
        ...

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the model's present weights and statistics by name, detached: a teacher for `forward`."""
        ...

    def forward(self, rows: Rows, at: Sequence[Tensor] | Mapping[str, Tensor] | None = None) -> Tensor:
        """Logits (B, C) without a trace: no gradient, no BatchNorm update, no random number used.

        `at` other parameters, in the order of `parameters` and the model's mode; or `at` a snapshot, in evaluation mode.
        """
        ...

    def count_pass(self, rows: int) -> None:
        """Note a forward pass over so many rows that a strategy runs by itself; with gradients if they are enabled now.

        Passes of the closure and of the context are counted as they run.
        """
        ...

    def features(self, rows: Rows, at: Mapping[str, Tensor] | None = None, *, exact: bool = False) -> Tensor:
        """Features (B, D) in evaluation mode, without a trace; `at` a snapshot, if given.

        `exact`: in float64, where a row's features are the same to rounding whichever rows stand beside it; for sums that are taken back.
        """
        ...

    def gradient(self, rows: Rows, *, evaluating: bool = False) -> Gradients:
        """Gradient of the mean loss on `rows`, without a trace; in the model's mode (draws that look ahead) or in evaluation mode."""
        ...

    def squared_gradients(self, rows: Rows, labels: str = "given") -> tuple[Tensor, ...]:
        """The squared gradient of each row's log-likelihood, summed over the rows: one tensor for each of `parameters`.

        In evaluation mode, without a trace. `labels`: given (empirical Fisher), expected (over the model's own answers: the Fisher
        information), weighted (given, each square times the probability of its label). Divided by the number of rows it is the
        diagonal of the Fisher information on them.
        """
        ...

    def criterion(self, logits: Tensor, rows: Rows) -> Tensor:
        """The benchmark's loss a row, (B,), under the scenario's masking of logits."""
        ...


# --- a strategy ---


class Strategy:
    """Base of all strategies. Override the seams you need; what you do not override costs nothing.

    A subclass names its frozen dataclass of options in `Config` and receives an instance of it. Its constructor reads and writes
    nothing global. A public method that is no seam is an error when the class is registered, so a misspelt seam cannot be silent.
    """

    Config: ClassVar[type] = object
    traits: Traits = Traits(no_neutral="the base class does nothing")  # of the class; a constructor may change them by its options

    def __init__(self, config: Any) -> None:
        self.config = config

    def check(self, setting: Setting) -> None:
        """Raise ConfigurationError, naming an option of this strategy, if it cannot work in this run. All are asked."""

    def build(self, model: nn.Module, context: Context) -> nn.Module:
        """Change the model's structure. At most one strategy of a stack."""
        return model

    def plan(self, plan: Plan, context: Context) -> Plan:
        """Transform which samples are shown at which step. Piped in slot order."""
        return plan

    def mask(self, context: Context) -> Mapping[str, bool | Tensor]:
        """What may move in this phase, by parameter name; names left out may. Combined by intersection."""
        return {}

    def rate(self, step: int, steps: int, context: Context) -> float:
        """A factor on the learning rate. Combined by product."""
        return 1.0

    def draw(self, batch: Batch, context: Context) -> Mapping[str, Draw]:
        """Read memories and randomness for this step: draws by name."""
        return {}

    def arrange(self, draw: Draw, batch: Batch, context: Context) -> Draw:
        """Arrange anew what some strategy drew, say as views of fewer samples; the rows stay rows of that draw. Piped in slot order."""
        return draw

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        """Terms of the objective by name. Pure: reads the batch and the output and nothing that moves.

        It may be evaluated several times in a step and must give the same each time; random numbers are those of the position
        (`context.random(...)` at this step) and of nothing else.
        """
        return {}

    def step(self, inner: StepFn, context: Context) -> StepFn:
        """Wrap the step. Called once a phase; the first slot is outermost."""
        return inner

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        """Write memories, once a step, from the output whose gradient was applied (detached, made before the update)."""

    def begin(self, context: Context) -> Sequence[Phase]:
        """Before an event: snapshots, choices; further phases to run before it."""
        return ()

    def end(self, context: Context) -> Sequence[Phase]:
        """After an event's own phases, and after an Unlearn's `forget`: consolidation, further phases. Called in reverse slot order."""
        return ()

    def predict(self, features: Tensor | None, logits: Tensor, rows: Rows, context: Context) -> Tensor:
        """Scores (B, C) for evaluation in place of the logits. At most one strategy of a stack."""
        return logits

    def unlearn(self, event: Unlearn, context: Context) -> Sequence[Phase] | Done | Replay:
        """Answer an Unlearn of a granularity that the traits claim."""
        raise ContractError(f"{type(self).__name__} claims no unlearning")

    def forget(self, forgotten: Forgotten, context: Context) -> None:
        """Drop or recompute all that was derived from the forgotten samples. Broadcast after the phases of every Unlearn, before `end`."""

    def state_dict(self) -> dict[str, Any]:
        """All that must survive a resume: nested dicts and lists of tensors, numbers and strings."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
