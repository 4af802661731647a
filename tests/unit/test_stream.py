"""The grammar of streams, the histories they may have, and what is said about those they may not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cl_framework.assembly import assemble
from cl_framework.errors import ConfigurationError
from cl_framework.stream import Event, Learn, Stream, Unlearn
from cl_framework.testing.laboratory import experiment_of

TASKS = 6


@pytest.mark.parametrize(
    ("text", "events"),
    [
        ("L0", (Learn(0),)),
        ("L0 L1 L2", (Learn(0), Learn(1), Learn(2))),
        ("  L2\n L0\t", (Learn(2), Learn(0))),
        ("L0-3", (Learn(0), Learn(1), Learn(2), Learn(3))),
        ("L4-4", (Learn(4),)),
        ("L0 L0", (Learn(0), Learn(0, occurrence=1))),
        ("L0 U0", (Learn(0), Unlearn(0))),
        ("L0 L0 U0 L0 L0 U0", (Learn(0), Learn(0, 1), Unlearn(0), Learn(0), Learn(0, 1), Unlearn(0, 1))),
        ("L0 U0:class=1 L0", (Learn(0), Unlearn(0, classes=(1,)), Learn(0, 1))),
        ("L0-1 U0-1", (Learn(0), Learn(1), Unlearn(0), Unlearn(1))),
        ("L1 U1:class=3,4", (Learn(1), Unlearn(1, classes=(3, 4)))),
        ("L2 U2:ids=some/forget.txt", (Learn(2), Unlearn(2, ids_file="some/forget.txt"))),
        ("L2 U2:fraction=0.1@seed7", (Learn(2), Unlearn(2, fraction=0.1, fraction_seed=7))),
        ("L2 U2:fraction=.25", (Learn(2), Unlearn(2, fraction=0.25))),
        ("L2 U2!", (Learn(2), Unlearn(2, permanent=True))),
        ("L0-1! L1", (Learn(0, permanent=True), Learn(1, permanent=True), Learn(1, occurrence=1))),
    ],
)
def test_grammar(text: str, events: tuple[Event, ...]) -> None:
    assert Stream.parse(text, TASKS).events == events


def test_an_empty_text_learns_every_task_once() -> None:
    assert Stream.parse("", 3).events == (Learn(0), Learn(1), Learn(2))
    assert Stream.parse("  ", 1).events == (Learn(0),)
    assert Stream.parse("").events == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("X0", "cannot read event 'X0'"),
        ("l0", "cannot read event 'l0'"),
        ("L", "cannot read event 'L'"),
        ("L-1", "cannot read event 'L-1'"),
        ("L0,L1", "cannot read event 'L0,L1'"),
        ("L\u0663", "cannot read event 'L\u0663'"),  # a digit, but none that the stream would be written with again
        ("L3-1", "the range in 'L3-1' runs backwards"),
        ("L0-99999999999", "'L0-99999999999' names task 99999999999; a stream has tasks 0 to 9999"),
        ("L0!:class=1", "'L0!:class=1' has options, but a learn event takes none"),
        ("L0:class=1", "'L0:class=1' has options, but a learn event takes none"),
        ("L0 U0:class=a", "cannot read the request in 'U0:class=a'"),
        ("L0 U0:class=1,", "cannot read the request in 'U0:class=1,'"),
        ("L0 U0:klass=1", "cannot read the request in 'U0:klass=1'"),
        ("L0 U0:fraction=0", "cannot read the request in 'U0:fraction=0'"),
        ("L0 U0:fraction=0.0", "cannot read the request in 'U0:fraction=0.0'"),
        ("L0 U0:fraction=1.0", "cannot read the request in 'U0:fraction=1.0'. A fraction lies between 0 and 1."),
        ("L0 U0:fraction=0.1@7", "cannot read the request in 'U0:fraction=0.1@7'"),
    ],
)
def test_bad_grammar_is_quoted_with_examples(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)) as caught:
        Stream.parse(text, TASKS)
    assert '"L0 L1 U0 L2"' in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("L0 L6", "event 1 (L6) of stream 'L0 L6' names task 6, but the benchmark has tasks 0 to 5."),
        ("U0", "event 0 (U0) of stream 'U0' unlearns task 0, which is not known then. Learn it before: add L0."),
        ("L0 U1 L1", "event 1 (U1) of stream 'L0 U1 L1' unlearns task 1, which is not known then. Learn it before: add L1."),
        ("L0 U0 U0", "event 2 (U0) of stream 'L0 U0 U0' unlearns task 0, which is unlearned already then. Learn it before: add L0."),
        ("L0 U0! U0", "event 2 (U0) of stream 'L0 U0! U0' unlearns task 0, which was unlearned for good before (U0!). Remove that event."),
        ("L0! L1 L0 U0", "event 3 (U0) of stream 'L0! L1 L0 U0' unlearns of task 0, which was learned for good (L0!). Learn it as L0."),
        (
            "L0! U0:class=1",
            "event 1 (U0:class=1) of stream 'L0! U0:class=1' unlearns of task 0, which was learned for good (L0!). Learn it as L0.",
        ),
        ("L0 U0! L0", "event 2 (L0) of stream 'L0 U0! L0' learns task 0 again after it was unlearned for good (U0!)."),
    ],
)
def test_impossible_histories_name_the_event_and_the_remedy(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Stream.parse(text, TASKS)
    assert str(caught.value) == message


@pytest.mark.parametrize("text", ["L0 U0 L0", "L0 U0:class=1 U0:class=2 U0", "L0 U0:fraction=0.1@seed0 L0", "L0 L0 U0", "L0 U0:class=1 L0"])
def test_possible_histories_pass(text: str) -> None:
    assert str(Stream.parse(text, TASKS)) == text


@pytest.mark.parametrize("part", ["class=1", "ids=a!.txt", "fraction=0.1@seed7"])
def test_only_a_whole_task_is_unlearned_for_good(part: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Stream.parse(f"L0 U0!:{part}", TASKS)
    assert str(caught.value) == (
        f"stream: 'U0!:{part}' has a !, which is for whole tasks: classes and samples that were unlearned never come back anyway. "
        f"Write 'U0:{part}'."
    )
    assert Stream.parse(f"L0 U0:{part}", TASKS).unlearns[0].permanent is False


@pytest.mark.parametrize(("named", "twice", "once"), [("0,0", 0, "0"), ("3,4,03", 3, "3,4")])
def test_a_class_is_named_once(named: str, twice: int, once: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Stream.parse(f"L0 U0:class={named}", TASKS)
    assert str(caught.value) == f"stream: 'U0:class={named}' names class {twice} more than once. Name each class once: U0:class={once}."
    assert str(Stream.parse(f"L0 U0:class={once}", TASKS)) == f"L0 U0:class={once}"


def test_task_numbers_are_unchecked_only_while_the_benchmark_is_unknown() -> None:
    assert Stream.parse("L99").tasks == (99,)
    with pytest.raises(ConfigurationError, match="task 99"):
        Stream.parse("L99", 99)
    with pytest.raises(ConfigurationError, match="not known then"):
        Stream.parse("U99")


def test_learned_after_follows_learning_unlearning_and_learning_again() -> None:
    stream = Stream.parse("L1 L0 U1 L2 L1 L0 U0:class=0 U2", TASKS)
    assert stream.learned_after == ((1,), (1, 0), (0,), (0, 2), (0, 2, 1), (0, 2, 1), (0, 2, 1), (0, 1))


def test_what_a_stream_says_of_itself() -> None:
    stream = Stream.parse("L4 L1 U4 L4", TASKS)
    assert stream.tasks == (1, 4)
    assert stream.unlearns == (Unlearn(4),)
    assert len(stream) == 4
    assert list(stream) == list(stream.events)


@pytest.mark.parametrize(
    ("request_text", "granularity"),
    [("U0", "task"), ("U0!", "task"), ("U0:class=1", "class"), ("U0:ids=f", "sample"), ("U0:fraction=0.5", "sample")],
)
def test_granularity(request_text: str, granularity: str) -> None:
    (event,) = Stream.parse(f"L0 {request_text}", TASKS).unlearns
    assert event.granularity == granularity


# --- round trip, over every possible history ---

UNLEARN_OPTIONS = st.one_of(
    st.just({}),
    st.builds(lambda classes: {"classes": tuple(classes)}, st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True)),
    st.builds(lambda name: {"ids_file": name}, st.from_regex(r"[A-Za-z0-9_./:=@!-]{1,12}", fullmatch=True)),
    st.builds(
        lambda share, seed: {"fraction": share, "fraction_seed": seed},
        st.floats(0, 1, exclude_min=True, exclude_max=True),
        st.integers(0, 9999),
    ),
)


@st.composite
def histories(draw: st.DrawFn) -> tuple[Event, ...]:
    """A possible history, written without the parser: the live and the buried tasks are tracked event by event."""
    live: set[int] = set()
    buried: set[int] = set()
    kept: set[int] = set()
    counts: dict[tuple[str, int], int] = {}
    events: list[Event] = []
    for _ in range(draw(st.integers(1, 8))):
        learnable = sorted(set(range(TASKS)) - buried)
        kinds = (["learn"] if learnable else []) + (["unlearn"] if live - kept else [])
        if not kinds:
            break
        kind = draw(st.sampled_from(kinds))
        task = draw(st.sampled_from(learnable if kind == "learn" else sorted(live - kept)))
        occurrence = counts.get((kind, task), 0)
        counts[kind, task] = occurrence + 1
        if kind == "learn":
            events.append(Learn(task, occurrence, permanent=draw(st.integers(0, 3)) == 0))
            live.add(task)
            kept |= {task} if events[-1].permanent else set()
            continue
        options = draw(UNLEARN_OPTIONS)
        event = Unlearn(task, occurrence, permanent=not options and draw(st.booleans()), **options)
        events.append(event)
        if event.granularity == "task":
            live.discard(task)
            counts["learn", task] = 0
            buried |= {task} if event.permanent else set()
    return tuple(events)


@given(histories())
def test_a_stream_reads_back_as_it_was_written(events: tuple[Event, ...]) -> None:
    stream = Stream(events, TASKS)
    assert Stream.parse(str(stream), TASKS) == stream


@given(histories())
def test_a_changed_stream_does_not_read_back_as_the_old_one(events: tuple[Event, ...]) -> None:
    text = str(Stream(events, TASKS))
    fresh = next((task for task in range(TASKS) if task not in {event.task for event in events}), None)
    if fresh is not None:
        assert Stream.parse(f"{text} L{fresh}", TASKS).events != events


@pytest.mark.parametrize(
    ("stream", "event"),
    [
        ("L0 L1 U1:class=3 U1:class=3", r"U1:class=3 \(event 3\)"),
        ("L0 U0:fraction=0.2@seed1 L1 U0:fraction=0.2@seed1", r"U0:fraction=0.2@seed1 \(event 3\)"),
        ("L0 L1 U1:class=2 L1 U1:class=2", r"U1:class=2 \(event 4\)"),
    ],
)
def test_what_is_gone_already_cannot_be_unlearned(stream: str, event: str, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"stream: all samples that {event} names are unlearned already by then. Remove that event"
    ):
        assemble(experiment_of({"rewind": {}}, tmp_path, stream=stream))
    assemble(experiment_of({"rewind": {}}, tmp_path, stream="L0 L1 U1:class=3 U1:class=2 U0:fraction=0.2@seed1 U0:fraction=0.2@seed2"))


@pytest.mark.parametrize(
    ("stream", "without", "event", "took"),
    [
        ("L0 U0:class=0,1 L0", "", "L0 (event 2)", "U0:class=0,1"),
        ("L0 L1 U1:class=3 U0:class=1 L1 U1:class=2 L1", "", "L1 (event 6)", "U1:class=3, U1:class=2"),
        ("L0 L1", "U1:class=2 U1:class=3", "L1 (event 1)", "U1:class=2, U1:class=3"),
    ],
)
def test_a_task_of_which_nothing_is_left_cannot_be_learned(stream: str, without: str, event: str, took: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        assemble(experiment_of({"rewind": {}}, tmp_path, stream=stream, without=without))
    assert str(caught.value) == (
        f"stream: {event} has no sample left to learn: {took} took all of task {took[1]}, and classes and samples that were unlearned "
        f"stay out. Remove that event, or ask for U{took[1]} alone: a whole task can be learned again."
    )
    assert caught.value.exit_code == 2
    for possible in ("L0 U0:class=0 L0", "L0 U0 L0", "L0 L1 U0:class=0,1", "L0 L1 U0:fraction=0.9@seed1 L0"):
        assemble(experiment_of({"rewind": {}}, tmp_path, stream=possible))
