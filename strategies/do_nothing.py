"""A control of unlearning: do nothing, and say so. What other strategies hold of the data is forgotten all the same.

Source: EVALUATION's controls: "do nothing and keep learning".
Uses: unlearn
Cost: none.
Differs: nothing to differ from.
Interacts: memories let go of what was named, so that later replay no longer holds it.
"""

from __future__ import annotations

from dataclasses import dataclass

from cl_framework import Context, Done, Strategy, Traits, Unlearn, register


@dataclass(frozen=True)
class DoNothingConfig:
    """There is nothing to set."""


@register("do_nothing")
class DoNothing(Strategy):
    """Answers every request by leaving the model as it is."""

    Config = DoNothingConfig
    traits = Traits(unlearns=frozenset({"task", "class", "sample"}), neutral={})

    def unlearn(self, event: Unlearn, context: Context) -> Done:
        return Done()
