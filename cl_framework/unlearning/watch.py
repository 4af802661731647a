"""What an audit asks of a model on its way along a stream: of the run lived through again, and of an oracle, the same questions."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from cl_framework.errors import FrameworkError
from cl_framework.evaluation import evaluate
from cl_framework.learner import Learner
from cl_framework.models.hypernetwork import TaskConditionedModel
from cl_framework.records import Row
from cl_framework.stream import Learn, Stream, Unlearn
from cl_framework.unlearning.ancestry import made_of_data
from cl_framework.unlearning.kept_measurements import KeptMeasurements
from cl_framework.unlearning.measure import Glance, Measured, Question, glance, measure, relearning
from cl_framework.unlearning.oracle import Trained


@dataclass
class Seen:
    """What one walk along the stream has shown of one request."""

    before: Measured | None = None
    after: Measured | None = None
    later: list[Glance] = field(default_factory=list)
    recorded: list[Row] = field(default_factory=list)  # an oracle's accuracies after the request, as a run records its own
    trained: Trained | None = None
    never_seen: tuple[float, ...] = ()
    weights: Mapping[str, Tensor] = field(default_factory=dict)  # just before the request
    moved: float | None = None  # norm of what the request changed, as a share of the norm of the weights before
    untrained_probe: float | None = None  # percent, of a linear probe on the model before the first event
    put_back: float | None = None  # accuracy on the pool with the embedding of the task that was let go, where there is one
    kept: Mapping[str, Tensor] = field(default_factory=dict)  # by strategies and optimizers after a request that claims to be exact
    key: Mapping[str, Tensor] | None = None  # what a hypernetwork knew the task by just before the request


class Watch:
    """Asks each request's questions where a walk stands, whether the run's own or an oracle's."""

    def __init__(
        self,
        questions: Sequence[Question],
        stream: Stream,
        exact: Collection[int],
        measurements: KeptMeasurements,
        *,
        of_run: bool,
        keeps_before: bool = False,
    ) -> None:
        self.questions = questions
        self.measurements = measurements
        self.keeps_before = keeps_before  # whether what is measured of the run before a request, which it knows, may be kept
        self.exact = exact  # events whose answers claim to be exact
        self.of_run = of_run  # and not of an oracle, of which less is asked
        self.stream = stream
        self.seen = {question.index: Seen() for question in questions}
        self.states: list[Row] = []  # of oracles, one a look: seed, event, digest, and whether it was kept from before
        self.kept_know = False  # whether, of oracles, a state is kept that knows what was unlearned since

    def untrained(self, learner: Learner) -> None:
        for question in self.questions:
            self.seen[question.index].untrained_probe = glance(learner, question).linear_probe

    def at(self, index: int, learner: Learner) -> None:
        for question in self.questions:
            mine = self.seen[question.index]
            if index == question.index - 1 and self.of_run:
                mine.before = self.measurements.of(learner, question, keep=self.keeps_before)
                self._again(learner, question, mine.before)
                mine.key = task_key_of(learner, question)
                mine.weights = {name: value.detach().clone() for name, value in learner.model.named_parameters()}
            elif index == question.index:
                mine.after = measure(learner, question) if self.of_run else self.measurements.of(learner, question)
                mine.later.append(self._again(learner, question, mine.after))
                if index in self.exact:
                    mine.kept = made_of_data(learner.state_dict())
                if self.of_run:
                    mine.never_seen = self._never_seen(learner, question)
                    mine.put_back = put_back(learner, question, mine.key)
                    mine.moved = moved(mine.weights, dict(learner.model.named_parameters()))
                    mine.weights = {}
                else:
                    mine.recorded = self._as_recorded(learner, question)
            elif self.open(question, index):
                mine.later.append(glance(learner, question))

    def open(self, question: Question, index: int) -> bool:
        """Whether at an event a request still stands: its task was not learned again since."""
        between = self.stream.events[question.index + 1 : index + 1]
        return index >= question.index and not any(isinstance(event, Learn) and event.task == question.event.task for event in between)

    def _again(self, learner: Learner, question: Question, measured: Measured) -> Glance:
        """The same model asked twice must say the same."""
        again = glance(learner, question)
        if again != measured.glance:
            raise FrameworkError(
                f"a model answers differently about {question.event} when asked again: no figure of it can be trusted. "
                "Audit with --again, which takes nothing that was kept; if it stays so, a strategy or a model answers at random."
            )
        return again

    def _as_recorded(self, learner: Learner, question: Question) -> list[Row]:
        """An oracle's rows after the request, by the splits of the run's own: the oracle's stream has none of the requests they follow."""
        of_oracle, learner.stream = learner.stream, self.stream
        try:
            found = evaluate(learner, sorted({*question.live, question.event.task}), question.live)
        finally:
            learner.stream = of_oracle
        return [
            {
                "event_index": question.index,
                "eval_task": one.task,
                "split": one.split,
                "scenario": one.scenario,
                "metric": "accuracy",
                "value": one.percent,
            }
            for one in found
        ]

    def _never_seen(self, learner: Learner, question: Question) -> tuple[float, ...]:
        """How a task that was never learned up to here is relearned: the control beside M4. Nothing if there is none."""
        if question.event.granularity != "task":
            return ()
        known = {event.task for event in self.stream.events[: question.index + 1]}
        fresh = [task for task in range(learner.benchmark.num_tasks) if task not in known]
        return relearning(learner, Question.of(learner, Unlearn(fresh[0]), question.index, self.stream)) if fresh else ()


def task_key_of(learner: Learner, question: Question) -> Mapping[str, Tensor] | None:
    """A copy of what a hypernetwork knows a task by: its embedding, and its normalisation statistics."""
    model = learner.model
    return model.task_key(question.event.task) if isinstance(model, TaskConditionedModel) else None


def put_back(learner: Learner, question: Question, key: Mapping[str, Tensor] | None) -> float | None:
    """Accuracy with the old embedding and statistics of the task in their place: what is hidden behind others comes back."""
    if key is None or question.event.granularity != "task":
        return None
    assert isinstance(learner.model, TaskConditionedModel)
    with learner.model.with_task_key(question.event.task, key):
        return glance(learner, question).accuracy


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float | None:
    """The norm of the difference over the norm of `before`; None where other weights were put in the place of those there were."""
    if not before or {name: value.shape for name, value in before.items()} != {name: value.shape for name, value in after.items()}:
        return None
    squares = sum(float((after[name].detach() - value).square().sum()) for name, value in before.items())
    return math.sqrt(squares / sum(float(value.square().sum()) for value in before.values()))
