"""What a strategy says of itself, and what it is told of a run when it is asked whether it can work there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from cl_framework.errors import ConfigurationError
from cl_framework.stream import Stream

_READS = {"forget": "forget data", "memory": "retained data from the buffer", "past": "all retained data"}


@dataclass(frozen=True)
class Traits:
    """Claims about a strategy. Tests and the stack read every one of them."""

    needs_task_id: bool = False  # reads the task of a row, in training or at prediction
    needs_boundaries: bool = False  # must know when a task ends; refused on blurry streams
    reads_past_data: bool = False  # visits data of earlier tasks through the plan or `Context.read`
    consolidates: bool = False  # when a Learn ends it keeps what was learned, to hold the next one to it or to answer requests by it
    looks_ahead: bool = False  # asks whether a Learn is the stream's last
    stores_data: bool = False  # keeps samples or what is derived from single samples
    stores_with: Mapping[str, Any] | None = None  # settings at which it does, where it does not at its defaults
    steady_rate: bool = False  # its `rate` is the same whatever was learned before, though it keeps a state
    keeps: str | None = None  # what its plan keeps: "steps", "epochs" or None
    inner_calls: str = "once"  # how often its step calls inward: "once", "many" or "never"
    replaces_task_term: bool = False  # `loss` returns a term named "task" in place of the framework's
    unlearns: frozenset[str] = frozenset()  # granularities it can unlearn: "task", "class", "sample"
    unlearning_reads: frozenset[str] = frozenset()  # to unlearn: "forget" (the data named), "memory" (samples lent by the stack), "past"
    replays: bool = False  # answers an Unlearn by `Replay`: the run keeps its state after every event
    exact: bool = False  # the state after unlearning equals that of a model which never saw the data
    rounding: float = 0.0  # relative difference up to which it does; 0: bit for bit
    neutral: Mapping[str, Any] | None = None  # settings at which it equals plain fine-tuning bit for bit
    no_neutral: str = ""  # why there are none
    modalities: tuple[str, ...] = ("vision", "text")
    objectives: tuple[str, ...] = ("classification", "language_modelling")  # classification only: it needs one class a sample
    scenarios: tuple[str, ...] = ("class_il", "task_il", "domain_il")

    @property
    def unlearning_needs(self) -> str:
        """What it reads to unlearn, in words; "" if it unlearns nothing."""
        reads = [words for word, words in _READS.items() if word in self.unlearning_reads]
        return (" and ".join(reads) or "nothing") if self.unlearns else ""


@dataclass(frozen=True)
class Setting:
    """What is known of a run when a strategy is asked whether it can work in it.

    It is asked before the benchmark is there (then what it would say is None) and with it, and once more where another strategy of the
    stack has built the model that it will work on; all before any training.
    """

    scenario: str  # class_il, task_il, domain_il, or "" before the benchmark has chosen its default
    batch_size: int
    epochs: int
    blurry: float
    learns: int  # Learn events of the stream; 0 if the benchmark decides
    slots: Mapping[str, Traits]  # every strategy of the stack, itself included
    benchmark: str | None = None  # its name
    benchmark_scenarios: tuple[str, ...] | None = None  # those that it allows
    modality: str | None = None  # vision or text
    objective: str | None = None  # classification or language_modelling
    num_classes: int | None = None  # of the whole benchmark
    classes_shown: int | None = None  # how many of them the stream shows
    num_tasks: int | None = None
    input_shape: tuple[int, ...] | None = None  # of one model input
    model: nn.Module | None = None  # as configured; at last as another strategy has built it
    augmented: bool | None = None  # whether the benchmark augments training batches
    strongly: bool | None = None  # whether it has a strong augmentation for views
    scaled: bool | None = None  # whether it can give inputs that are only scaled to [0, 1]
    slot: str = ""  # of the strategy that is asked
    seams: Mapping[str, frozenset[str]] = field(default_factory=dict)  # those that every strategy of the stack occupies
    stream: Stream = field(default_factory=lambda: Stream(()))  # no events if the benchmark decides

    @property
    def slots_before(self) -> list[str]:
        """The slots before the own one."""
        slots = list(self.slots)
        return slots[: slots.index(self.slot)] if self.slot in slots else []

    @property
    def slots_after(self) -> list[str]:
        """The slots after the own one."""
        slots = list(self.slots)
        return slots[slots.index(self.slot) + 1 :] if self.slot in slots else []


def check_scenario(slot: str, traits: Traits, by_default: Traits, setting: Setting) -> None:
    """Refuse, as ConfigurationError, a strategy in a scenario that it does not work in; `by_default` are its traits without options."""
    if not setting.scenario or setting.scenario in traits.scenarios:
        return
    allowed = ", ".join(traits.scenarios)
    had = setting.benchmark_scenarios
    if had is None or set(had) & set(traits.scenarios):
        fitting = next(one for one in traits.scenarios if had is None or one in had)
        raise ConfigurationError(
            f"strategies.{slot} does not work with scenario={setting.scenario}; it allows: {allowed}. Set scenario={fitting}."
        )
    fits = setting.scenario in by_default.scenarios
    remedy = f"With its options at their defaults it allows {setting.scenario}: keep those, or remove it" if fits else "Remove it"
    raise ConfigurationError(
        f"strategies.{slot} cannot be used with benchmark {setting.benchmark!r}: it needs {allowed}, and the benchmark has "
        f"{', '.join(had)} alone. {remedy}."
    )


def check_first_to_plan(setting: Setting) -> None:
    """Refuse, as ConfigurationError, a strategy that plans anew in a slot after one whose transformation of the plan would be lost."""
    lost = [slot for slot in setting.slots_before if setting.slots[slot].keeps]
    if lost:
        raise ConfigurationError(
            f"plan: all steps are planned anew, and what {lost[0]} makes of them would be lost. Put this slot before {lost[0]}."
        )


_IN_A_STEP = ("mask", "rate", "draw", "arrange", "loss", "step")  # not commit: what it keeps may be used elsewhere


def check_no_part_is_lost(setting: Setting, why: str) -> None:
    """Refuse, as ConfigurationError, others with a part in the stream's steps, of which this strategy applies none; `why` says so.

    What leaves fine-tuning as it is, and answers no Unlearn, only watches: there is nothing to lose.
    """
    for slot, traits in setting.slots.items():
        parts = [seam for seam in _IN_A_STEP if seam in setting.seams.get(slot, ())]
        watches = traits.neutral == {} and not traits.unlearns
        if parts and not watches and slot != setting.slot:
            raise ConfigurationError(f"step: {why}, so what {slot} does in steps ({', '.join(parts)}) would have no effect. Remove {slot}.")
