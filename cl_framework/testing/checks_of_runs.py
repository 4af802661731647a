"""Checks of whole runs: neutral settings, determinism, exact resume, bounded memory, and that something is learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from cl_framework.config import Experiment
from cl_framework.listeners import Listener
from cl_framework.runner import resume, run
from cl_framework.strategy import Strategy
from cl_framework.testing.contract import Subject, check
from cl_framework.testing.laboratory import (
    ROUGH,
    Outcome,
    assert_different_weights,
    assert_equal_outcomes,
    augmented,
    beside,
    finish,
    finish_in_pieces,
    outcome_of,
)
from cl_framework.testing.neighbours import Quiet, Thrice, slot

FLOOR = 75.0  # percent, the best accuracy of each task over the events, on average: chance is 50 on tasks of two classes
_MOST_STOPS = 40  # at every step up to so many steps; a longer run is stopped at as many places
_MANY = 2500  # samples a class: more than a default memory holds


@check(lambda subject: "" if subject.traits.neutral is not None else f"neutral=None: {subject.traits.no_neutral}", slow=True)
def equals_fine_tuning_at_its_neutral_setting(subject: Subject, folder: Path) -> None:
    """At the settings that the traits call neutral, weights and figures are those of an empty stack, bit for bit."""
    assert subject.traits.neutral is not None
    neutral = finish(subject.experiment(folder / "neutral", subject.traits.neutral, model=ROUGH))
    plain = finish(subject.without_any(folder / "plain", model=ROUGH))
    assert_equal_outcomes(neutral, plain, "at its neutral setting it differs from fine-tuning", slot="")
    assert_different_weights(plain, finish(subject.without_any(folder / "plain", model=ROUGH, seed=1)), "another seed")


@check(lambda subject: "" if subject.traits.neutral is None else "the traits name a neutral setting")
def says_why_it_has_no_neutral_setting(subject: Subject, folder: Path) -> None:
    """Where no setting equals fine-tuning, the traits say why."""
    why = subject.traits.no_neutral
    assert why.strip() and why != Strategy.traits.no_neutral, "neutral=None needs Traits(no_neutral='why')"


@check(slow=True)
def deterministic_whatever_stands_beside_it(subject: Subject, folder: Path) -> None:
    """The same seed gives the same bits: again, read by workers, and beside neighbours that draw or call the closure for themselves."""
    experiment = subject.experiment(folder / "first", model=ROUGH)
    first = finish(experiment, augmented(experiment))

    def same(what: str, outcome: Outcome) -> None:
        assert_equal_outcomes(first, outcome, f"not deterministic {what}", slot=subject.name)

    def place(name: str, **settings: Any) -> Experiment:
        return subject.experiment(folder / name, model=ROUGH, **settings)

    data = augmented(experiment)
    same("when run again", finish(place("again"), data))
    same("when read by two workers", finish(place("workers", data={"workers": 2}), augmented(experiment, through_workers=True)))
    for kind in (Quiet, Thrice):
        name = kind.__name__
        same(f"with {name} outside of it", finish(beside(place(f"{name}-outside"), before=[slot(kind)]), data))
        same(f"with {name} inside of it", finish(beside(place(f"{name}-inside"), after=[slot(kind)]), data))
    assert_different_weights(first, finish(place("seed", seed=1), data), "another seed")


@check(slow=True)
def resumes_exactly_after_a_stop_at_any_step(subject: Subject, folder: Path) -> None:
    """Stopped before every step of the stream and resumed each time, weights, state and records are those of an undisturbed run."""
    adam = {"name": "adam", "lr": 0.01, "reset": "never"}
    settings: dict[str, Any] = {"stream": _stream_with_unlearning(subject), "model": ROUGH, "optimizer": adam}
    experiment = subject.experiment(folder / "undisturbed", **settings)
    data = augmented(experiment)
    undisturbed = finish(experiment, data)
    steps = undisturbed.summary["steps"]
    stride = 1 + steps // _MOST_STOPS
    pieces, stops = finish_in_pieces(subject.experiment(folder / "pieces", **settings), lambda step: step % stride == 0, data)
    assert stops == -(-steps // stride), f"{steps} steps, but {stops} stops"
    assert_equal_outcomes(undisturbed, pieces, "stopped at every step and resumed it ends elsewhere")
    assert undisturbed.bytes_of_records == pieces.bytes_of_records
    third = 3 * stride
    every_third, _ = finish_in_pieces(subject.experiment(folder / "thirds", **settings), lambda step: step % third == third - 1, data)
    assert_equal_outcomes(undisturbed, every_third, "stopped at every third of these places it ends elsewhere")
    assert_different_weights(undisturbed, finish(subject.experiment(folder / "seed", seed=1, **settings), data), "another seed")


class CutShort(Exception):
    """Ends a run between two events."""


class _EndsAt(Listener):
    def __init__(self, index: int) -> None:
        self.index = index

    def on_event_start(self, index: int) -> None:
        if index == self.index:
            raise CutShort


@check(slow=True)
def resumes_exactly_between_events(subject: Subject, folder: Path) -> None:
    """Ended between two events, also right after an Unlearn, and resumed, it ends as an undisturbed run does."""
    settings: dict[str, Any] = {"stream": _stream_with_unlearning(subject), "model": ROUGH}
    undisturbed = finish(subject.experiment(folder / "undisturbed", **settings))
    cut = subject.experiment(folder / "cut", **settings)
    events = len(str(settings["stream"]).split())
    path = None
    for index in range(1, events):
        try:
            _ = resume(path, listeners=[_EndsAt(index)]) if path else run(cut, listeners=[_EndsAt(index)])
        except CutShort:
            path = next((folder / "cut").glob("*/*"))
    assert path is not None
    resume(path)
    assert_equal_outcomes(undisturbed, outcome_of(path), "ended between events and resumed it ends elsewhere")


def _stream_with_unlearning(subject: Subject) -> str:
    return "L0 L1 U0 L2" if "task" in subject.traits.unlearns else "L0 L1 L0"


@check(slow=True)
def memory_is_bounded(subject: Subject, folder: Path) -> None:
    """Its state is no larger after 20,000 samples than after 10,000."""
    sizes = []
    for count in (_MANY, 2 * _MANY):
        benchmark = {"name": "synthetic", "tasks": 2, "classes_per_task": 2, "train_per_class": count, "test_per_class": 10}
        experiment = subject.experiment(folder / str(count), subject.traits.stores_with, benchmark=benchmark, batch_size=400)
        outcome = finish(experiment)
        sizes.append(size_of(outcome.learner["strategies"][subject.name]))
    assert sizes[1] <= sizes[0], f"its state grew from {sizes[0]} to {sizes[1]} bytes when the samples doubled"


def size_of(state: Any) -> int:
    """Bytes of the tensors in a nested state, and 8 for everything else."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(size_of(value) for value in state.values())
    if isinstance(state, list | tuple):
        return sum(size_of(value) for value in state)
    return 8


@check()
def learns_above_a_floor(subject: Subject, folder: Path) -> None:
    """Each of three synthetic tasks is known at some event, well above chance; whether it is kept is the method's own matter."""
    experiment = subject.experiment(folder, stream="L0-2", epochs=5)
    matrix = finish(experiment).summary["accuracy_matrix"]
    best = [max(row[task] for row in matrix) for task in range(3)]
    accuracy = sum(best) / 3
    assert accuracy >= FLOOR, f"the best accuracies of three tasks, {accuracy:.1f} % on average, are below the floor of {FLOOR:g} %"
