"""Rewind: exact unlearning by training again, from the last state that never knew the data, without them.

Source: retraining the suffix is what any exact unlearner is compared with, e.g. Bourtoule et al. 2021 "Machine Unlearning", section 2.
Uses: unlearn
Cost: nothing while learning, but for a copy of the state (weights and all memories) after every event, on disk: it grows with the
    stream. An Unlearn costs the events since the data were first shown, without them; reports count these as the answer's seconds and
    samples, not as training and replay.
Differs: nothing to differ from. Equal to the run that never saw the data bit for bit on the same machine, because random streams belong
    to a task and its occurrence and not to a place in the stream, and samples taken out leave gaps that move nothing else.
Interacts: with all strategies: their state is rewound with the weights. It must be the only one of a stack that unlearns at all
    granularities. The data of all retained tasks must still be at hand.
"""

from __future__ import annotations

from dataclasses import dataclass

from cl_framework import Context, Replay, Strategy, Traits, Unlearn, register


@dataclass(frozen=True)
class RewindConfig:
    """There is nothing to set."""


@register("rewind")
class Rewind(Strategy):
    """Unlearns tasks, classes and samples exactly: trains again without them."""

    Config = RewindConfig
    traits = Traits(
        unlearns=frozenset({"task", "class", "sample"}),
        unlearning_reads=frozenset({"past"}),
        replays=True,
        exact=True,
        neutral={},
    )

    def unlearn(self, event: Unlearn, context: Context) -> Replay:
        return Replay()
