"""Streams by name: the published ones stand as published, random ones are possible histories, and wrong names are named."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cl_framework import ConfigurationError, load_experiment
from cl_framework.stream import Stream, Unlearn
from cl_framework.stream_presets import PRESETS, random_requests, spelled_out


@pytest.mark.parametrize("name", PRESETS)
def test_a_published_sequence_is_a_possible_history(name: str) -> None:
    tasks = int(re.findall(r"\d+", name)[0])
    stream = Stream.parse(name, tasks)
    assert str(stream) == PRESETS[name]
    learned = [event.task for event in stream if not isinstance(event, Unlearn)]
    assert len(set(learned)) == len(learned) and set(learned) <= set(range(tasks))  # four of them leave a task out
    assert len(stream.learned_after[-1]) == len(learned) - len(stream.unlearns) > 0


def test_there_are_nine_and_they_differ() -> None:
    assert len(set(PRESETS.values())) == len(PRESETS) == 9
    assert [len(Stream.parse(name).unlearns) for name in PRESETS] == [2, 2, 3, 5, 6, 5, 12, 10, 12]


@given(st.integers(2, 12), st.data(), st.integers(0, 10**6))
def test_random_requests_learn_every_task_once_and_keep_one(tasks: int, data: st.DataObject, seed: int) -> None:
    unlearn = data.draw(st.integers(0, tasks - 1))
    stream = Stream.parse(f"random:tasks={tasks},unlearn={unlearn},seed={seed}", tasks)
    assert sorted(event.task for event in stream if not isinstance(event, Unlearn)) == list(range(tasks))
    assert len(stream.unlearns) == unlearn
    assert all(live for live in stream.learned_after)
    assert random_requests(tasks, unlearn, seed) == str(stream)


def test_seeds_give_other_sequences_and_moments() -> None:
    drawn = [random_requests(8, 4, seed).split() for seed in range(30)]
    assert len({" ".join(events) for events in drawn}) > 25
    first = {next(place for place, event in enumerate(events) if event.startswith("U")) for events in drawn}
    assert len(first) > 3


def test_a_fraction_asks_for_samples_of_the_same_tasks_at_the_same_moments() -> None:
    whole, part = (str(Stream.parse(f"random:tasks=8,unlearn=4,seed=5{more}", 8)) for more in ("", ",fraction=0.25"))
    assert part != whole and part.replace(":fraction=0.25@seed5", "") == whole
    assert all(event.granularity == "sample" for event in Stream.parse(part, 8).unlearns)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("uncle_10d", "stream: there is no preset 'uncle_10d'. Did you mean 'uncle_10"),
        ("random", "stream: cannot read 'random'. Write random:tasks=10,unlearn=5,seed=3,fraction=0.1; the last two may be left out."),
        ("random:tasks=3,unlearn=1,fraction=1.5", "stream: cannot read 'random:tasks=3,unlearn=1,fraction=1.5'"),
        ("random:tasks=3", "stream: cannot read 'random:tasks=3'"),
        ("random:tasks=3,unlearn=3", "stream: of 3 tasks at most 2 can be unlearned, got unlearn=3."),
    ],
)
def test_wrong_names_are_named(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        spelled_out(text)


def test_events_are_left_as_they_are_and_a_configuration_keeps_the_name() -> None:
    for text in ("", "L0 U0", "L0-4 U2:class=3", "  L0 "):
        assert spelled_out(text) == text.strip()
    base = {"benchmark": {"name": "synthetic", "tasks": 5}}
    named, written = load_experiment(base, ["stream=uncle_5a"]), load_experiment(base, [f"stream={PRESETS['uncle_5a']}"])
    assert named.run.stream == "uncle_5a"
    assert Stream.parse(named.run.stream, 5) == Stream.parse(written.run.stream, 5)
