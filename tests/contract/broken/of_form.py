"""Mistakes in what a strategy says of itself: options, card, constructor, declared needs, calls inward, plan, scenarios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from cl_framework.checks import check_range
from cl_framework.plan import Plan
from cl_framework.strategy import Batch, Closure, Context, Evaluation, Output, Phase, StepFn, Traits
from cl_framework.testing.neighbours import NoOptions
from tests.contract.broken import Mistake, Plain


@dataclass(frozen=True)
class Share:
    share: float = 50.0  # percent, [0, 100]

    def __post_init__(self) -> None:
        check_range("share", self.share, low=0, high=100)


@dataclass(frozen=True)
class Converted:
    share: float = 50.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "share", self.share / 100)  # and once more when the options are read back


@dataclass(frozen=True)
class AnyShare:
    share: float = 50.0


@dataclass(frozen=True)
class Nameless:
    share: float = 50.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 100:
            raise ValueError("percent are between 0 and 100")


class WithShare(Plain):
    Config = Share


class ConvertsItsOption(Plain):
    Config = Converted


class TakesAnyShare(Plain):
    Config = AnyShare


class RefusesNamelessly(Plain):
    Config = Nameless


class Carded(Plain):
    """Keeps the rate.

    Source: made up for the tests
    Uses: rate
    Cost: none
    Differs: nothing to differ from
    Interacts: rates multiply
    """

    def rate(self, step: int, steps: int, context: Context) -> float:
        return 1.0


class NotCarded(Carded):
    """Keeps the rate."""


class SaysLoss(Carded):
    """Keeps the rate.

    Source: made up for the tests
    Uses: loss
    Cost: none
    Differs: nothing to differ from
    Interacts: rates multiply
    """


class Seeds(Plain):
    def __init__(self, config: NoOptions) -> None:
        super().__init__(config)
        torch.manual_seed(0)


class SetsTorchUp(Plain):
    def __init__(self, config: NoOptions) -> None:
        super().__init__(config)
        torch.backends.cudnn.benchmark = True


class ReadsTasks(Plain):
    traits = Traits(needs_task_id=True, neutral={})

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        batch.tasks.unique()


class ReadsNoTasks(Plain):
    traits = ReadsTasks.traits


class LooksAhead(Plain):
    traits = Traits(looks_ahead=True, neutral={})

    def begin(self, context: Context) -> Sequence[Phase]:
        return [] if context.is_last_learn else ()


class LooksNowhere(Plain):
    traits = LooksAhead.traits


class Evaluates(Plain):
    """Looks at the loss before each step."""

    traits = Traits(inner_calls="once", neutral={})

    def step(self, inner: StepFn, context: Context) -> StepFn:
        def looked_at(closure: Closure) -> Evaluation:
            closure.values()
            return inner(closure)

        return looked_at


class NeverSteps(Evaluates):
    def step(self, inner: StepFn, context: Context) -> StepFn:
        return lambda closure: closure.values()


class StepsEverySecondTime(Evaluates):
    def step(self, inner: StepFn, context: Context) -> StepFn:
        return lambda closure: closure.values() if context.position.step % 2 else inner(closure)


class StepsTwice(Evaluates):
    def step(self, inner: StepFn, context: Context) -> StepFn:
        def twice(closure: Closure) -> Evaluation:
            inner(closure)
            return inner(closure)

        return twice


class SaysMany(Evaluates):
    traits = Traits(inner_calls="many", no_neutral="as a wrapper that corrects a trial step")


class StepsTwiceAndSaysSo(StepsTwice):
    traits = SaysMany.traits


class Turned(Plain):
    """Shows the samples in reverse."""

    traits = Traits(keeps="steps", no_neutral="another order")

    def plan(self, plan: Plan, context: Context) -> Plan:
        return replace(plan, ids=plan.ids.flip(0))


class DropsItsLastStep(Turned):
    def plan(self, plan: Plan, context: Context) -> Plan:
        return plan.head(plan.steps - 1)


class TurnedEpochs(Turned):
    traits = Traits(keeps="epochs", no_neutral="another order")


class OneEpochOnly(TurnedEpochs):
    def plan(self, plan: Plan, context: Context) -> Plan:
        generator = context.random("order").generator()
        return replace(Plan.over(plan.ids.unique(), context.batch_size, 1, generator), epochs=plan.epochs)


class TaskIncremental(Plain):
    traits = Traits(scenarios=("task_il",), neutral={})

    def __init__(self, config: NoOptions) -> None:
        super().__init__(config)
        self.traits = replace(self.traits, stores_data=True)  # a claim that an option brings with it


class LosesItsScenarios(TaskIncremental):
    def __init__(self, config: NoOptions) -> None:
        super().__init__(config)
        self.traits = Traits(stores_data=True, neutral={})


MISTAKES = (
    Mistake("constructs_from_defaults_and_survives_yaml", ConvertsItsOption, WithShare, "read back from YAML differ"),
    Mistake("rejects_bad_values_by_name", TakesAnyShare, WithShare, "share accepts all of .*: give it a range"),
    Mistake("rejects_bad_values_by_name", RefusesNamelessly, WithShare, "refusal of share=.* does not name it"),
    Mistake("has_its_card", NotCarded, Carded, "the card lacks: Source, Uses, Cost, Differs, Interacts"),
    Mistake("has_its_card", SaysLoss, Carded, r"only said \['loss'\], only done \['rate'\]"),
    Mistake("constructor_touches_nothing_global", Seeds, Plain, "changed: torch's random state"),
    Mistake("constructor_touches_nothing_global", SetsTorchUp, Plain, "changed: torch's choice of kernels"),
    Mistake("declared_needs_are_real_needs", ReadsNoTasks, ReadsTasks, "needs_task_id=True is declared, but .* not refused"),
    Mistake("declared_needs_are_real_needs", LooksNowhere, LooksAhead, "looks_ahead=True is declared, but .* not refused"),
    Mistake("calls_inward_as_often_as_it_says", NeverSteps, Evaluates, "inner_calls='once', but some step called inward 0 times"),
    Mistake("calls_inward_as_often_as_it_says", StepsEverySecondTime, Evaluates, "inner_calls='once', but some step called inward 0 times"),
    Mistake("calls_inward_as_often_as_it_says", StepsTwice, Evaluates, "inner_calls='once', but some step called inward 2 times"),
    Mistake("calls_inward_as_often_as_it_says", SaysMany, StepsTwiceAndSaysSo, "inner_calls='many', but .* more than once"),
    Mistake("its_plan_keeps_what_it_says", DropsItsLastStep, Turned, "keeps='steps', but 10 became 9"),
    Mistake("its_plan_keeps_what_it_says", OneEpochOnly, TurnedEpochs, "keeps='epochs', but"),
    Mistake("other_scenarios_are_refused", LosesItsScenarios, TaskIncremental, "scenario=.*_il ran, though the traits do not list it"),
)
