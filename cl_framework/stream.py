"""A stream of events: learn a task, unlearn it, learn it again.

Grammar, events separated by blanks::

    L0        learn task 0               U1                  unlearn task 1
    L0-4      learn tasks 0, 1, 2, 3, 4  U1:class=3,4        unlearn two classes of task 1
    L0 L0     learn task 0 twice         U2:ids=forget.txt   unlearn the sample ids listed in a file
                                         U2:fraction=0.1@seed7   unlearn a seeded tenth of task 2
    U0-1      unlearn 0, then 1          U2!                 unlearn task 2 for good
    L0!       learn task 0 for good

Classes and samples that were unlearned stay out when their task is learned again; a whole task may be, unless it was unlearned for good.
What was learned for good cannot be unlearned any more, nor can a part of it: the permanent tasks of Liu et al. 2022, "Continual Learning
and Private Unlearning", whose temporary ones are all others.

A whole stream may also be named: see `stream_presets`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cached_property

from cl_framework.errors import ConfigurationError
from cl_framework.stream_presets import spelled_out

TaskId = int

_EVENT = re.compile(r"^(?P<kind>[LU])(?P<first>\d+)(?:-(?P<last>\d+))?(?P<final>!)?(?::(?P<what>[a-z]+)=(?P<value>.+))?$", re.ASCII)
_MOST_TASKS = 10_000  # more than any benchmark has: beyond it a stream is a slip of the hand, and takes memory before it is refused
_EXAMPLES = 'Write events like "L0 L1 U0 L2", "L0-4", "U1:class=3,4", "U2:ids=forget.txt" or "U2:fraction=0.1@seed7".'


@dataclass(frozen=True)
class Learn:
    """Learn a task; `occurrence` counts how often it was learned before (0, 1, ...) since it was last unknown."""

    task: TaskId
    occurrence: int = 0
    permanent: bool = False

    def __str__(self) -> str:
        return f"L{self.task}" + ("!" if self.permanent else "")


@dataclass(frozen=True)
class Unlearn:
    """Unlearn a whole task, or the classes or the samples of it that are named.

    At most one of `classes`, `ids_file` and `fraction` is set; none means the whole task.
    """

    task: TaskId
    occurrence: int = 0
    classes: tuple[int, ...] = ()
    ids_file: str | None = None
    fraction: float | None = None  # in (0, 1)
    fraction_seed: int = 0
    permanent: bool = False  # of a whole task: what is unlearned of a part of one never comes back anyway

    @property
    def granularity(self) -> str:
        """`task`, `class` or `sample`."""
        if self.classes:
            return "class"
        return "sample" if self.ids_file or self.fraction is not None else "task"

    def __str__(self) -> str:
        head = f"U{self.task}" + ("!" if self.permanent else "")
        if self.classes:
            return f"{head}:class={','.join(map(str, self.classes))}"
        if self.ids_file:
            return f"{head}:ids={self.ids_file}"
        if self.fraction is not None:
            return f"{head}:fraction={Decimal(repr(self.fraction)):f}@seed{self.fraction_seed}"  # all digits: it reads back as it was
        return head


Event = Learn | Unlearn


@dataclass(frozen=True)
class Stream:
    """A checked sequence of events over tasks 0 .. num_tasks - 1."""

    events: tuple[Event, ...]
    num_tasks: int | None = None
    emptied: Mapping[TaskId, int] = field(default_factory=dict, hash=False)  # task without a class left: since which event; see `knowing`

    @classmethod
    def parse(cls, text: str, num_tasks: int | None = None) -> Stream:
        """Parse and check `text`; an empty text learns every task once.

        Without `num_tasks` (the benchmark is not known yet) task numbers are not checked, and an empty text gives no events.

        Raises ConfigurationError for bad grammar, unknown tasks and impossible histories.
        """
        text = spelled_out(text)
        if not text.strip() and num_tasks:
            text = f"L0-{num_tasks - 1}"
        events: list[Event] = []
        counts: dict[tuple[str, TaskId], int] = {}
        for token in text.split():
            for event in _parse_token(token):
                key = (type(event).__name__, event.task)
                events.append(_with_occurrence(event, counts.get(key, 0)))
                counts[key] = counts.get(key, 0) + 1
                if isinstance(event, Unlearn) and event.granularity == "task":
                    counts["Learn", event.task] = 0  # as if it had never been learned: so is the random stream when it comes again
        stream = cls(tuple(events), num_tasks)
        stream._check()
        return stream

    def _check(self) -> None:
        live: set[TaskId] = set()
        left: set[TaskId] = set()
        gone: set[TaskId] = set()
        kept: set[TaskId] = set()
        for position, event in enumerate(self.events):
            if fault := self._fault(event, live, left, gone, kept):
                raise ConfigurationError(f"event {position} ({event}) of stream {str(self)!r} {fault}")
            if isinstance(event, Learn):
                live.add(event.task)
                kept |= {event.task} if event.permanent else set()
            elif event.granularity == "task":
                live.discard(event.task)
                left.add(event.task)
                if event.permanent:
                    gone.add(event.task)

    def _fault(self, event: Event, live: set[TaskId], left: set[TaskId], gone: set[TaskId], kept: set[TaskId]) -> str:
        """What is impossible about an event after a history; "" if nothing is.

        live: tasks that are known; left: that were unlearned as a whole at some time, of these `gone` for good; kept: known for good.
        """
        if self.num_tasks is not None and event.task >= self.num_tasks:
            return f"names task {event.task}, but the benchmark has tasks 0 to {self.num_tasks - 1}."
        if isinstance(event, Learn):
            return f"learns task {event.task} again after it was unlearned for good (U{event.task}!)." if event.task in gone else ""
        if event.task in kept:
            return f"unlearns of task {event.task}, which was learned for good (L{event.task}!). Learn it as L{event.task}."
        if event.task in live:
            return ""
        if event.task in gone:
            return f"unlearns task {event.task}, which was unlearned for good before (U{event.task}!). Remove that event."
        was = "unlearned already" if event.task in left else "not known"
        there = "" if self.num_tasks is not None else ", if the benchmark has that task"
        return f"unlearns task {event.task}, which is {was} then. Learn it before: add L{event.task}{there}."

    @property
    def tasks(self) -> tuple[TaskId, ...]:
        """The tasks the stream names, ascending."""
        return tuple(sorted({event.task for event in self.events}))

    @cached_property
    def learned_after(self) -> tuple[tuple[TaskId, ...], ...]:
        """For each event, the live tasks after it in the order in which they were first learned."""
        live: list[TaskId] = []
        history = []
        for event in self.events:
            if isinstance(event, Learn) and event.task not in live:
                live.append(event.task)
            elif isinstance(event, Unlearn) and event.granularity == "task":
                live.remove(event.task)
            history.append(tuple(live))
        return tuple(history)

    def knowing(self, is_left: Callable[[TaskId, Sequence[int]], bool]) -> Stream:
        """This stream, which then knows of which tasks requests for classes have left none; `is_left` says whether any is without some."""
        emptied: dict[TaskId, int] = {}
        for index, gone in enumerate(self.classes_gone):
            for task in [task for task, classes in gone.items() if not is_left(task, classes)]:
                emptied.setdefault(task, index)
        return replace(self, emptied=emptied)

    @cached_property
    def live_after(self) -> tuple[tuple[TaskId, ...], ...]:
        """For each event, the tasks that count after it: those of `learned_after` of which a class is left, as far as the stream knows.

        Classes that were unlearned one by one stay among the candidates of an answer, and so do those of a task that has no other.
        """
        never = len(self.events)
        history = enumerate(self.learned_after)
        return tuple(tuple(task for task in live if index < self.emptied.get(task, never)) for index, live in history)

    def without_unlearned(self, index: int) -> tuple[Stream, int]:
        """The stream of a model that never saw what the events up to `index` unlearned, and how many of its events those are.

        Learn events of tasks that were unlearned as a whole are taken out, and so are the Unlearn events; what comes after `index` stays.
        """
        kept: list[Event] = []
        for event in self.events[: index + 1]:
            if isinstance(event, Learn):
                kept.append(event)
            elif event.granularity == "task":
                kept = [learn for learn in kept if learn.task != event.task]
        return Stream((*kept, *self.events[index + 1 :]), self.num_tasks), len(kept)

    @cached_property
    def classes_gone(self) -> tuple[dict[TaskId, tuple[int, ...]], ...]:
        """For each event, the classes of each task that were unlearned one by one up to there; they stay gone for good."""
        gone: dict[TaskId, tuple[int, ...]] = {}
        history = []
        for event in self.events:
            if isinstance(event, Unlearn) and event.classes:
                gone[event.task] = tuple(sorted({*gone.get(event.task, ()), *event.classes}))
            history.append(dict(gone))
        return tuple(history)

    @property
    def unlearns(self) -> tuple[Unlearn, ...]:
        return tuple(event for event in self.events if isinstance(event, Unlearn))

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def __str__(self) -> str:
        return " ".join(map(str, self.events))


def parse_requests(text: str, num_tasks: int | None = None) -> tuple[Unlearn, ...]:
    """Requests for classes or samples, such as "U1:class=3 U2:fraction=0.1@seed7". ConfigurationError for anything else."""
    events = [event for token in text.split() for event in _parse_token(token, "without")]
    for event in events:
        if isinstance(event, Learn) or event.granularity == "task":
            raise ConfigurationError(
                f"without: {event} names a whole task; to leave it out, take L{event.task} out of the stream. "
                'Write requests like "U1:class=3" or "U2:fraction=0.1@seed7".'
            )
        if num_tasks is not None and event.task >= num_tasks:
            raise ConfigurationError(f"without: {event} names task {event.task}, but the benchmark has tasks 0 to {num_tasks - 1}.")
    return tuple(event for event in events if isinstance(event, Unlearn))


def ids_files_in(text: str) -> list[str]:
    """The files of sample ids that a stream's or a request's text names, as they stand in it."""
    matches = [match for token in text.split() if (match := _EVENT.match(token))]
    return [match["value"] for match in matches if match["what"] == "ids"]


def _parse_token(token: str, setting: str = "stream") -> Sequence[Event]:
    match = _EVENT.match(token)
    if match is None:
        raise ConfigurationError(f"{setting}: cannot read event {token!r}. {_EXAMPLES}")
    first = int(match["first"])
    last = int(match["last"]) if match["last"] else first
    if last < first:
        raise ConfigurationError(f"{setting}: the range in {token!r} runs backwards. {_EXAMPLES}")
    if last >= _MOST_TASKS:
        raise ConfigurationError(f"{setting}: {token!r} names task {last}; a stream has tasks 0 to {_MOST_TASKS - 1}. {_EXAMPLES}")
    tasks = range(first, last + 1)
    if match["kind"] == "L":
        if match["what"]:
            raise ConfigurationError(f"{setting}: {token!r} has options, but a learn event takes none. {_EXAMPLES}")
        return [Learn(task, permanent=bool(match["final"])) for task in tasks]
    return [_unlearn(token, task, bool(match["final"]), match["what"], match["value"], setting) for task in tasks]


def _unlearn(token: str, task: TaskId, permanent: bool, what: str | None, value: str | None, setting: str) -> Unlearn:
    allowed = " A fraction lies between 0 and 1." if what == "fraction" else ""
    bad = ConfigurationError(f"{setting}: cannot read the request in {token!r}.{allowed} {_EXAMPLES}")
    if what is None:
        return Unlearn(task, permanent=permanent)
    if permanent:
        raise ConfigurationError(
            f"{setting}: {token!r} has a !, which is for whole tasks: classes and samples that were unlearned never come back anyway. "
            f"Write {token.replace('!', '', 1)!r}."
        )
    assert value is not None
    if what == "class" and re.fullmatch(r"\d+(,\d+)*", value, re.ASCII):
        classes = tuple(int(part) for part in value.split(","))
        once = tuple(dict.fromkeys(classes))
        if len(once) < len(classes):
            twice = next(label for label in once if classes.count(label) > 1)
            raise ConfigurationError(
                f"{setting}: {token!r} names class {twice} more than once. Name each class once: U{task}:class={','.join(map(str, once))}."
            )
        return Unlearn(task, classes=classes)
    if what == "ids":
        return Unlearn(task, ids_file=value)
    fraction = re.fullmatch(r"(0?\.\d+)(?:@seed(\d+))?", value, re.ASCII) if what == "fraction" else None
    if fraction is None or float(fraction[1]) == 0:
        raise bad
    return Unlearn(task, fraction=float(fraction[1]), fraction_seed=int(fraction[2] or 0))


def _with_occurrence(event: Event, occurrence: int) -> Event:
    values = {**event.__dict__, "occurrence": occurrence}
    return type(event)(**values)
