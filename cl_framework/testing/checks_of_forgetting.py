"""Checks of unlearning: what is left in a strategy's state, who answers, and what an exact claim means."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from cl_framework.closure import StepOutput
from cl_framework.digests import digest_of
from cl_framework.errors import ConfigurationError, ContractError
from cl_framework.records import RunDirectory
from cl_framework.requests import requested_ids
from cl_framework.strategy import Batch, Context, Forgotten, Output, Strategy
from cl_framework.stream import Stream
from cl_framework.testing.canary import Traces, canary_benchmark
from cl_framework.testing.contract import Subject, check, raises
from cl_framework.testing.laboratory import (
    Outcome,
    assert_different_weights,
    beside,
    finish,
    first_difference,
    in_place_of,
)
from cl_framework.testing.neighbours import Oblivious, slot, snapshot

GRANULARITIES = {"task": "U0", "class": "U0:class=0", "sample": "U0:fraction=0.25@seed1"}


class Witness:
    """Notes, beside a strategy, the logits that it saw for each sample and its states until it is told to forget."""

    def __init__(self) -> None:
        self.logits: dict[int, list[Tensor]] = {}
        self.states: list[Any] = []  # each that differs from the one before
        self.forgotten: list[Forgotten] = []

    def note(self, state: Any) -> None:
        if not self.states or digest_of(state) != digest_of(self.states[-1]):
            self.states.append(snapshot(state))

    def beside(self, strategy: type[Strategy]) -> type[Strategy]:
        witness = self

        def commit(self: Strategy, batch: Batch, output: Output, context: Context) -> None:
            if len(batch) and isinstance(output, StepOutput) and output.live.was_run:
                for sample, row in zip(batch.ids.tolist(), output.logits, strict=True):
                    witness.logits.setdefault(sample, []).append(row.clone())
            strategy.commit(self, batch, output, context)
            if not witness.forgotten:
                witness.note(self.state_dict())

        def forget(self: Strategy, forgotten: Forgotten, context: Context) -> None:
            witness.note(self.state_dict())
            witness.forgotten.append(forgotten)
            strategy.forget(self, forgotten, context)

        return type(strategy.__name__, (strategy,), {"commit": commit, "forget": forget})


def unlearn_canaries(subject: Subject, folder: Path, event: str) -> tuple[Outcome, Traces, list[Any]]:
    """Run "L1 L2 <event>" on the canaries: the outcome, what must be gone, and the strategy's states until it forgot."""
    scenario = subject.traits.scenarios[0]
    benchmark = canary_benchmark(scenario)
    witness = Witness()
    options, stream = subject.traits.stores_with, f"L1 L2 {event}"
    experiment = in_place_of(subject.experiment(folder, options, stream=stream, evaluate="seen"), witness.beside(subject.strategy))
    granularity = "sample" if ":" in event else "task"
    able = granularity in subject.traits.unlearns
    outcome = finish(experiment if able else beside(experiment, after=[slot(Oblivious)]), benchmark)
    if able and subject.traits.replays:  # then nothing is left to forget, and nobody is told to
        (request,) = Stream.parse(f"L2 {event}").unlearns
        ids = requested_ids(request, benchmark, benchmark.ids_of(2))
    else:
        (forgotten,) = witness.forgotten
        ids = forgotten.ids
    return outcome, Traces.of(benchmark, 2, ids, witness.logits, whole=granularity == "task"), witness.states


@check(slow=True)
def nothing_of_a_forgotten_task_is_left(subject: Subject, folder: Path) -> None:
    """After `forget` neither its state nor any checkpoint holds a sample, label, logit or id of what was unlearned."""
    for event in ("U2", "U2:fraction=0.5@seed3"):
        outcome, traces, states = unlearn_canaries(subject, folder / event.replace(":", "-"), event)
        if subject.traits.stores_data and event == "U2":
            assert list(traces.found_in(states[-1])), "nothing of the task was there before it was forgotten: this check shows nothing"
        left = list(traces.found_in(outcome.learner["strategies"][subject.name]))
        assert not left, f"after {event} {left[0]}"
        for file in RunDirectory(outcome.path).checkpoints.rglob("*.pt"):
            data = file.read_bytes()
            assert not any(item.numpy().tobytes() in data for item in traces.items), (
                f"after {event} the checkpoint {file.name} holds a sample"
            )


@check(lambda subject: "" if not subject.traits.stores_data else "stores_data=True")
def stores_no_data_as_it_says(subject: Subject, folder: Path) -> None:
    """A strategy that does not declare `stores_data` holds no sample, logit or id at any time."""
    _, traces, states = unlearn_canaries(subject, folder, "U2")
    kept = [trace for trace in traces.found_in(states) if not trace.endswith("a label")]
    assert not kept, f"stores_data=False, but {kept[0]}"


@check(slow=True)
def unlearns_or_is_refused(subject: Subject, folder: Path) -> None:
    """An Unlearn at a granularity it claims is done; at any other it is refused before anything is written."""
    for granularity, event in GRANULARITIES.items():
        place = folder / granularity
        stream = f"L0 L1 {event}"
        if granularity in subject.traits.unlearns:
            outcome = finish(subject.experiment(place, stream=stream))
            events = RunDirectory(outcome.path).events()
            assert [row["kind"] for row in events] == ["learn", "learn", "unlearn"]
            continue
        text = raises(
            ConfigurationError,
            f"{event} ran, though unlearning at {granularity} level is not claimed",
            partial(finish, subject.experiment(place, stream=stream)),
        )
        assert event in text and f"at {granularity} level" in text, f"the refusal of {event} does not explain itself: {text}"
        written = [path for path in place.rglob("*") if path.is_file()]
        assert not written, f"{event} was refused, but {written[0]} was written"


@check(lambda subject: "" if subject.traits.unlearning_reads else "unlearning_reads is empty: it reads no data, and would be refused")
def unlearning_reads_what_it_says(subject: Subject, folder: Path) -> None:
    """Without its declaration of the data named or of retained data it is refused; without memories to borrow from it acts otherwise."""

    def run_with(reads: frozenset[str], place: str) -> Outcome:
        traits = replace(subject.traits, unlearning_reads=reads)
        stripped = type(subject.strategy.__name__, (subject.strategy,), {"traits": traits})
        granularity = min(subject.traits.unlearns)
        experiment = subject.experiment(folder / place, stream=f"L0 L1 {GRANULARITIES[granularity]}")
        return finish(in_place_of(experiment, stripped))

    declared = subject.traits.unlearning_reads
    unknown = declared - {"forget", "memory", "past"}
    assert not unknown, f"unlearning_reads has {sorted(unknown)}; it may have forget, memory, past"
    for need in declared - {"memory"}:
        without = partial(run_with, declared - {need}, need)
        raises(ContractError, f"unlearning_reads has {need!r}, but a run without it is not refused", without)
    if "memory" in declared:
        lent = run_with(declared, "lent")
        alone = run_with(declared - {"memory"}, "alone")
        assert_different_weights(lent, alone, "unlearning_reads has 'memory': with and without memories to borrow from")


@check(lambda subject: "" if subject.traits.exact and "task" in subject.traits.unlearns else "exact=False, or it unlearns no task")
def an_exact_claim_equals_never_learned(subject: Subject, folder: Path) -> None:
    """After unlearning a task, weights and state are those of a run that never saw it, now and after what is learned next."""
    for index, (with_task, without, learned) in enumerate((("L1 L0 U0", "L1", "L1 L0"), ("L0 L1 U0 L2", "L1 L2", "L0 L1 L2"))):
        unlearned = finish(subject.experiment(folder / f"unlearned-{index}", stream=with_task))
        never = finish(subject.experiment(folder / f"never-{index}", stream=without))
        learning = subject.experiment(folder / f"learned-{index}", stream=learned)
        one, other, third = (_model_and_state(outcome) for outcome in (unlearned, never, finish(learning)))
        difference = first_difference(one, other, rounding=subject.traits.rounding)
        assert difference is None, f"exact=True, but after {with_task!r} and after {without!r} {difference}"
        control = first_difference(third, other, rounding=subject.traits.rounding)
        assert control is not None, f"{learned!r} leads where {without!r} does, so that this check shows nothing"


def _model_and_state(outcome: Outcome) -> dict[str, Any]:
    return {"weights": outcome.learner["model"], "state": outcome.learner["strategies"]}
