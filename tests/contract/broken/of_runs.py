"""Mistakes that show in whole runs: neutral settings, randomness, state that is not saved or grows, nothing learned."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cl_framework.checks import check_range
from cl_framework.strategy import Batch, Closure, Context, Evaluation, Output, Phase, StepFn, Strategy, Traits
from cl_framework.testing.neighbours import NoOptions
from tests.contract.broken import Fading, Mistake, Plain


@dataclass(frozen=True)
class Steps:
    steps: int = 3  # [1, 1000]

    def __post_init__(self) -> None:
        check_range("steps", self.steps, low=1, high=1000)


class WarmUp(Plain):
    Config = Steps
    traits = Traits(neutral={"steps": 1})

    def rate(self, step: int, steps: int, context: Context) -> float:
        return min(1.0, (step + 1) / self.config.steps)


class WarmsUpFromZero(WarmUp):
    def rate(self, step: int, steps: int, context: Context) -> float:
        return min(1.0, step / self.config.steps)


class SaysWhy(Plain):
    traits = Traits(no_neutral="it has no options")


class SaysNothing(Plain):
    traits = Traits()


class NamesNoTraits(Strategy):
    Config = NoOptions


class RandomRate(Plain):
    traits = Traits(no_neutral="the rate is random")

    def rate(self, step: int, steps: int, context: Context) -> float:
        return float(context.random("rate").uniform(1))


class GlobalRandomRate(RandomRate):
    def rate(self, step: int, steps: int, context: Context) -> float:
        return random.random()


class RandomRateNoted(RandomRate):
    """Notes in `commit` the rate of the next step."""

    def __init__(self, config: NoOptions) -> None:
        super().__init__(config)
        self._rate = 1.0

    def rate(self, step: int, steps: int, context: Context) -> float:
        return self._rate

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        self._rate = float(context.random("rate").uniform(1))

    def state_dict(self) -> dict[str, Any]:
        return {"rate": self._rate}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._rate = state["rate"]


class TorchRandomRateNoted(RandomRateNoted):
    """As the step's last pass has seeded torch, this repeats in every run, until a neighbour uses torch's numbers too."""

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        self._rate = float(torch.rand(()))


class FadingUnsaved(Fading):
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing was kept."""


class FadingByEvent(Fading):
    """The same, counting events."""

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        """Events are counted, not steps."""

    def end(self, context: Context) -> Sequence[Phase]:
        self._count += 1
        return ()


class FadingByEventUnsaved(FadingByEvent):
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores nothing."""


class LogsLosses(Plain):
    """Keeps the losses of the last 20 steps."""

    def __init__(self, config: NoOptions) -> None:
        super().__init__(config)
        self._losses: list[float] = []

    def step(self, inner: StepFn, context: Context) -> StepFn:
        def logged(closure: Closure) -> Evaluation:
            evaluation = inner(closure)
            self._losses = [*self._losses, float(evaluation.loss)][-20:]
            return evaluation

        return logged

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self._losses)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._losses = list(state["losses"])


class LogsAllLosses(LogsLosses):
    def step(self, inner: StepFn, context: Context) -> StepFn:
        def logged(closure: Closure) -> Evaluation:
            evaluation = inner(closure)
            self._losses.append(float(evaluation.loss))
            return evaluation

        return logged


class FullRate(Plain):
    def rate(self, step: int, steps: int, context: Context) -> float:
        return 1.0


class DecaysTooSoon(FullRate):
    def rate(self, step: int, steps: int, context: Context) -> float:
        return 0.1 ** (step + 1)


MISTAKES = (
    Mistake("equals_fine_tuning_at_its_neutral_setting", WarmsUpFromZero, WarmUp, "it differs from fine-tuning: state.model"),
    Mistake("says_why_it_has_no_neutral_setting", SaysNothing, SaysWhy, "no_neutral='why'"),
    Mistake("says_why_it_has_no_neutral_setting", NamesNoTraits, SaysWhy, "no_neutral='why'"),
    Mistake("deterministic_whatever_stands_beside_it", GlobalRandomRate, RandomRate, "not deterministic when run again"),
    Mistake("deterministic_whatever_stands_beside_it", TorchRandomRateNoted, RandomRateNoted, "not deterministic with Quiet"),
    Mistake("resumes_exactly_after_a_stop_at_any_step", FadingUnsaved, Fading, "stopped at every step and resumed it ends elsewhere"),
    Mistake("resumes_exactly_between_events", FadingByEventUnsaved, FadingByEvent, "ended between events .* it ends elsewhere"),
    Mistake("memory_is_bounded", LogsAllLosses, LogsLosses, "its state grew from .* to .* bytes"),
    Mistake("learns_above_a_floor", DecaysTooSoon, FullRate, "below the floor of 75 %"),
)
