"""Who answers an Unlearn, and what a stack refuses before any data is read."""

from __future__ import annotations

from typing import Any

import pytest

from cl_framework.errors import ConfigurationError
from cl_framework.stack import Stack
from cl_framework.strategy import Done, Phase, Setting, Strategy, Traits
from cl_framework.stream import Stream
from tests.unit.small_stacks import Building, Predicting, Replacing, stack_of


class Unlearning(Strategy):
    def __init__(self, *granularities: str, answer: Any = None) -> None:
        super().__init__(None)
        self.traits = Traits(unlearns=frozenset(granularities), no_neutral="a fixture")
        self.answer = answer

    def unlearn(self, event: Any, context: Any) -> Any:
        return self.answer


# --- who answers an Unlearn ---


def test_exactly_one_strategy_answers_an_unlearn() -> None:
    event = Stream.parse("L0 U0").unlearns[0]
    stack = stack_of(sample=Unlearning("sample"), task=Unlearning("task", answer=[Phase("burn", 3)]))
    assert [(phase.name, phase.owner) for phase in stack.unlearn(event)] == [("task/burn", "task")]
    assert stack_of(done=Unlearning("task", answer=Done())).unlearn(event) == []


def test_an_unlearn_that_nobody_can_answer_is_refused() -> None:
    event = Stream.parse("L0 U0:class=1").unlearns[0]
    with pytest.raises(ConfigurationError) as caught:
        stack_of(task=Unlearning("task")).unlearner_of(event)
    text = str(caught.value)
    assert text.startswith(
        "stream: event U0:class=1 unlearns at class level, but no strategy of this stack can do that (strategies: task)."
    )
    assert "Remove U0:class=1 from the stream or add a strategy that can" in text
    with pytest.raises(ConfigurationError, match=r"strategies: none \(plain fine-tuning\)"):
        stack_of().unlearner_of(event)


def test_an_unlearn_that_two_could_answer_is_refused() -> None:
    event = Stream.parse("L0 U0").unlearns[0]
    with pytest.raises(ConfigurationError, match=r"event U0 could be answered by strategies\.a and strategies\.b; keep one of them"):
        stack_of(a=Unlearning("task"), b=Unlearning("task", "class")).unlearner_of(event)


# --- what can be refused before any data is read ---


class Narrow(Strategy):
    traits = Traits(
        needs_boundaries=True, scenarios=("task_il",), modalities=("text",), objectives=("classification",), no_neutral="a fixture"
    )


def setting_of(stack: Stack, scenario: str = "class_il", blurry: float = 0.0, **known: Any) -> Setting:
    return Setting(scenario, 8, 1, blurry, 1, stack.traits, **known)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (
            Building,
            "at most one strategy of a stack changes the model's structure, but strategies.a and strategies.b do; remove all but one.",
        ),
        (Predicting, "at most one strategy of a stack answers predictions, but strategies.a and strategies.b do; remove all but one."),
        (Replacing, "at most one strategy of a stack replaces the task term, but strategies.a and strategies.b do; remove all but one."),
    ],
)
def test_seams_for_one_strategy_refuse_a_second(kind: type[Strategy], text: str) -> None:
    stream, one, two = Stream.parse("L0"), stack_of(a=kind(None)), stack_of(a=kind(None), b=kind(None))
    one.check(setting_of(one), stream)
    with pytest.raises(ConfigurationError) as caught:
        two.check(setting_of(two), stream)
    assert str(caught.value) == text


FITTING: dict[str, Any] = {"scenario": "task_il", "modality": "text", "objective": "classification", "blurry": 0.0}


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"scenario": "class_il"}, "strategies.narrow does not work with scenario=class_il; it allows: task_il. Set scenario=task_il."),
        (
            {"scenario": "domain_il", "benchmark": "book", "benchmark_scenarios": ("domain_il",)},
            "strategies.narrow cannot be used with benchmark 'book': it needs task_il, and the benchmark has domain_il alone. Remove it.",
        ),
        (
            {"scenario": "class_il", "benchmark": "book", "benchmark_scenarios": ("class_il", "task_il")},
            "strategies.narrow does not work with scenario=class_il; it allows: task_il. Set scenario=task_il.",
        ),
        ({"modality": "vision"}, "strategies.narrow does not work on vision benchmarks; it allows: text."),
        (
            {"objective": "language_modelling"},
            "strategies.narrow needs one class a sample, which benchmarks of language modelling do not have. "
            "Remove it, or choose a benchmark of classification.",
        ),
        (
            {"blurry": 0.2},
            "strategies.narrow must know when a task ends, which a blurry stream does not tell. Set blurry=0 or remove it.",
        ),
    ],
)
def test_traits_that_do_not_fit_the_run_are_refused(changed: dict[str, Any], text: str) -> None:
    stack, stream = stack_of(narrow=Narrow(None)), Stream.parse("L0")
    unknown = {"scenario": "", "modality": None, "objective": None}
    for fitting in (FITTING, FITTING | unknown):  # what the benchmark has not told yet is no conflict
        stack.check(setting_of(stack, **fitting), stream)
    for known in (FITTING, FITTING | unknown):
        with pytest.raises(ConfigurationError) as caught:
            stack.check(setting_of(stack, **known | changed), stream)
        assert str(caught.value) == text


def test_the_check_reads_the_streams_unlearns() -> None:
    with pytest.raises(ConfigurationError, match="no strategy of this stack can do that"):
        stack_of().check(setting_of(stack_of()), Stream.parse("L0 U0"))
