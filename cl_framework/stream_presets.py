"""Streams by name: published request sequences, and random ones from a seed.

stream=uncle_10b                                one of the nine sequences of Adhikari et al. 2025
stream=random:tasks=10,unlearn=5,seed=3         every task learned once, five unlearned at random moments
stream=random:tasks=10,unlearn=5,seed=3,fraction=0.1   as before, but of each of the five a tenth of its samples
"""

from __future__ import annotations

import re

import torch

from cl_framework.errors import ConfigurationError, nearest
from cl_framework.rng import RandomStream

# Adhikari et al. 2025, "An Unlearning Framework for Continual Learning": the sequences of the released configurations.
PRESETS = {
    "uncle_5a": "L0 L1 U0 L2 L3 L4 U1",
    "uncle_5b": "L3 L4 L2 L0 L1 U3 U0",
    "uncle_5c": "L0 L2 U0 L4 L3 U2 U4",
    "uncle_10a": "L1 L0 U1 L5 L8 L9 L7 U0 L2 L3 L4 U8 U3 U5 L6",
    "uncle_10b": "L6 L7 L2 L1 L0 U1 L9 U7 U2 U0 L4 U4 L8 U6 L5",
    "uncle_10c": "L7 L1 L2 L8 L0 U1 L3 L6 U3 U2 L4 L5 U8 L9 U7",
    "uncle_20a": "L3 L0 U3 L9 L5 L17 L1 L7 L14 L15 L19 U17 U7 L6 U15 U9 L12 L4 U5 U4 U6 U0 U1 U14 U12 L13 L18 L2 L11 L8",
    "uncle_20b": "L12 L13 L5 L8 L2 U8 L14 U13 U5 U2 L3 U3 L16 U12 L11 U16 L7 L15 L10 L19 L9 U14 U7 L18 L6 L1 L0 L4 U6 L17",
    "uncle_20c": "L2 L7 U2 L18 L12 U7 U18 L16 L0 U16 U0 L13 L4 U12 U13 L9 L19 U19 U4 L10 L14 L5 U5 U10 L11 L1 U1 L17 L6 L3",
}
_NAME = re.compile(r"^[a-z]{2}\w*(?::|$)")
_RANDOM = re.compile(r"^random:tasks=(\d+),unlearn=(\d+)(?:,seed=(\d+))?(?:,fraction=(0?\.\d+))?$", re.ASCII)


def spelled_out(text: str) -> str:
    """The events that `text` stands for; text that names no preset is given back. ConfigurationError for unknown names."""
    text = text.strip()
    if not _NAME.match(text):
        return text
    if text in PRESETS:
        return PRESETS[text]
    if text.partition(":")[0] != "random":
        raise ConfigurationError(f"stream: there is no preset {text!r}. {nearest(text, [*PRESETS, 'random'])}")
    match = _RANDOM.match(text)
    if match is None:
        raise ConfigurationError(
            f"stream: cannot read {text!r}. Write random:tasks=10,unlearn=5,seed=3,fraction=0.1; the last two may be left out."
        )
    return random_requests(int(match[1]), int(match[2]), int(match[3] or 0), match[4])


def random_requests(tasks: int, unlearn: int, seed: int, fraction: str | None = None) -> str:
    """Every task learned once in random order, and `unlearn` of them unlearned at random later moments: whole, or a `fraction`, in (0, 1).

    One task at least is known at any time after the first event, so that retained accuracy means something; tasks > unlearn.
    """
    if not 0 <= unlearn < tasks:
        raise ConfigurationError(f"stream: of {tasks} tasks at most {max(0, tasks - 1)} can be unlearned, got unlearn={unlearn}.")
    generator = RandomStream(seed, "requests").generator()

    def pick(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    waiting = torch.randperm(tasks, generator=generator).tolist()
    live: list[int] = []
    events: list[str] = []
    while waiting or unlearn:
        may_unlearn = unlearn > 0 and len(live) > 1
        if waiting and not (may_unlearn and pick(len(waiting) + unlearn) < unlearn):
            live.append(waiting.pop(0))
            events.append(f"L{live[-1]}")
        else:
            task = live.pop(pick(len(live)))
            events.append(f"U{task}" if fraction is None else f"U{task}:fraction={fraction}@seed{seed}")
            unlearn -= 1
    return " ".join(events)
