"""Checks of what a strategy says of itself: options, card, constructor, declared needs."""

from __future__ import annotations

import dataclasses
import os
import random
import re
import sys
import typing
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cl_framework.config import load_experiment
from cl_framework.errors import ConfigurationError, ContractError
from cl_framework.testing.contract import Subject, check, raises
from cl_framework.testing.laboratory import beside, finish, in_place_of
from cl_framework.testing.neighbours import Counting, slot

CARD = ("Source", "Uses", "Cost", "Differs", "Interacts")
_NUMBERS = (-1e9, 1e9, float("nan"))


@check()
def constructs_from_defaults_and_survives_yaml(subject: Subject, folder: Path) -> None:
    """Default options make a strategy, and written to YAML and read again they are the same."""
    experiment = Subject(subject.name, subject.strategy).experiment(folder)
    file = folder / "contract.yaml"
    file.write_text(experiment.to_yaml())
    again = load_experiment(file)
    assert again.strategies[0].options == experiment.strategies[0].options, "the options read back from YAML differ"
    assert again.fingerprint == experiment.fingerprint
    subject.strategy(again.strategies[0].options)


@check()
def rejects_bad_values_by_name(subject: Subject, folder: Path) -> None:
    """An unknown key, a wrong type and a number out of range are refused, by name, before any data is read."""
    refused(subject, folder, "no_such_option", 1)
    hints = typing.get_type_hints(subject.strategy.Config)
    for option in dataclasses.fields(subject.strategy.Config):
        kinds = {hints[option.name], *typing.get_args(hints[option.name])}
        if kinds & {int, float}:
            refused(subject, folder, option.name, "not a number")
            refused_one_of(subject, folder, option.name, kinds)
        elif bool in kinds:
            refused(subject, folder, option.name, "perhaps")


def refused(subject: Subject, folder: Path, option: str, value: Any) -> None:
    text = raises(ConfigurationError, f"{option}={value!r} was accepted", lambda: subject.experiment(folder, {option: value}))
    assert option in text, f"the refusal of {option}={value!r} does not name it: {text}"


def refused_one_of(subject: Subject, folder: Path, option: str, kinds: set[Any]) -> None:
    """A number has a range: at least one absurd value must lie outside it."""
    values = [value if float in kinds else int(value) for value in _NUMBERS if float in kinds or value == value]
    accepted = []
    for value in values:
        try:
            refused(subject, folder, option, value)
        except AssertionError as error:
            if "accepted" not in str(error):
                raise
            accepted.append(value)
    assert len(accepted) < len(values), f"{option} accepts all of {values}: give it a range in __post_init__ (cl_framework.check_range)"


@check()
def has_its_card(subject: Subject, folder: Path) -> None:
    """The docstring names source, cost, differences and interactions, and exactly the seams that are overridden."""
    card = card_of(subject.strategy)
    missing = [head for head in CARD if not card.get(head)]
    assert not missing, f"the card lacks: {', '.join(missing)}"
    said = set(re.findall(r"[a-z_]+", re.sub(r"\(.*?\)", "", card["Uses"])))
    done = set(subject.seams)
    assert said == done, f"the card's Uses and the class differ: only said {sorted(said - done)}, only done {sorted(done - said)}"


def card_of(strategy: type) -> dict[str, str]:
    """The headed paragraphs of a strategy's docstring, or else of its module's."""
    text = strategy.__doc__ or ""
    if "Source:" not in text:
        text = sys.modules[strategy.__module__].__doc__ or ""
    parts = re.split(rf"^\s*({'|'.join(CARD)}):", text, flags=re.MULTILINE)
    return {head: body.strip() for head, body in zip(parts[1::2], parts[2::2], strict=True)}


@check()
def constructor_touches_nothing_global(subject: Subject, folder: Path) -> None:
    """Constructing draws no random number and changes no setting of Python or torch."""
    options = subject.experiment(folder).strategies[0].options
    draw_from_global_generators()  # one that stands where a seed puts it would not show that it was seeded so again
    before = global_state()
    subject.strategy(options)
    changed = [name for name, value in global_state().items() if value != before[name]]
    assert not changed, f"the constructor changed: {', '.join(changed)}"


def draw_from_global_generators() -> None:
    import numpy

    torch.rand(1), numpy.random.rand(), random.random()


def global_state() -> dict[str, Any]:
    import numpy

    cudnn = torch.backends.cudnn
    return {
        "torch's random state": torch.get_rng_state().tolist(),
        "numpy's random state": str(numpy.random.get_state()),
        "python's random state": random.getstate(),
        "the environment": dict(os.environ),
        "the working directory": os.getcwd(),
        "sys.path": list(sys.path),
        "torch's default dtype": torch.get_default_dtype(),
        "torch's threads": torch.get_num_threads(),
        "torch's deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch's gradient mode": torch.is_grad_enabled(),
        "torch's precision": (torch.get_float32_matmul_precision(), cudnn.allow_tf32),
        "torch's choice of kernels": (cudnn.benchmark, cudnn.deterministic),
    }


NEEDS = ("needs_task_id", "reads_past_data", "replaces_task_term", "looks_ahead")


def _declares_nothing(subject: Subject) -> str:
    traits = subject.traits
    return (
        "" if any(getattr(traits, need) for need in NEEDS) else f"{', '.join(NEEDS)} are all False: undeclared use fails every other check"
    )


@check(_declares_nothing)
def declared_needs_are_real_needs(subject: Subject, folder: Path) -> None:
    """Without its declaration of task ids, past data, a task term of its own or a look ahead, it is refused: so it does use them."""

    def run_without(need: str) -> None:
        undeclared: dict[str, Any] = {need: False}
        traits = dataclasses.replace(subject.traits, **undeclared)
        stripped = type(subject.strategy.__name__, (subject.strategy,), {"traits": traits})
        finish(in_place_of(subject.experiment(folder / need, stream="L0 L1 L0"), stripped))

    for need in NEEDS:
        if not getattr(subject.traits, need):
            continue
        raises(ContractError, f"{need}=True is declared, but a run without it is not refused", partial(run_without, need))


@check()
def calls_inward_as_often_as_it_says(subject: Subject, folder: Path) -> None:
    """In the stream's own phases the inner step runs once, several times or never, as the traits say."""
    outermost, innermost = slot(Counting, "outermost"), slot(Counting, "innermost")
    finish(beside(subject.experiment(folder), before=[outermost], after=[innermost]))
    calls = Counter(innermost.strategy_class.journal)
    counts = [calls[place] for place in outermost.strategy_class.journal]  # of each step, 0 where it did not call inward
    said = subject.traits.inner_calls
    if said == "never":
        assert not calls, f"inner_calls='never', but the inner step ran {calls.total()} times"
    elif said == "once":
        others = set(counts) - {1}
        assert counts and not others, f"inner_calls='once', but some step called inward {max(others, default=0)} times"
    else:
        assert said == "many", f"inner_calls must be once, many or never, not {said!r}"
        assert max(counts, default=0) > 1, f"inner_calls='many', but in {len(counts)} steps none called inward more than once"


@check(lambda subject: "" if "plan" in subject.seams and subject.traits.keeps else "keeps=None, or no plan of its own")
def its_plan_keeps_what_it_says(subject: Subject, folder: Path) -> None:
    """A plan that says it keeps steps or epochs leaves their number as it was: in each epoch a sample is shown as often."""
    seen = []

    class Noting(subject.strategy):  # type: ignore[name-defined]
        def plan(self, plan: Any, context: Any) -> Any:
            changed = super().plan(plan, context)
            seen.append((plan, changed))
            return changed

    finish(in_place_of(subject.experiment(folder, epochs=2), Noting))
    kept = subject.traits.keeps
    assert kept in ("steps", "epochs"), f"keeps must be steps, epochs or None, not {kept!r}"
    for before, after in seen:
        assert getattr(before, kept) == getattr(after, kept), f"keeps={kept!r}, but {getattr(before, kept)} became {getattr(after, kept)}"
        was, now = ((plan.ids[:, None] == before.ids).sum(0) for plan in (before, after))
        differ = (was != now).nonzero().flatten().tolist() if kept == "epochs" else []
        assert not differ, f"keeps='epochs', but a sample shown {was[differ[0]]} times is shown {now[differ[0]]} times"


@check(lambda subject: "" if len(subject.traits.scenarios) < 3 else "every scenario is allowed")
def other_scenarios_are_refused(subject: Subject, folder: Path) -> None:
    """A scenario that the traits do not list is refused with the list of those they do."""
    for scenario in {"class_il", "task_il", "domain_il"} - set(subject.traits.scenarios):
        text = raises(
            ConfigurationError,
            f"scenario={scenario} ran, though the traits do not list it",
            partial(finish, subject.experiment(folder, scenario=scenario)),
        )
        assert scenario in text and subject.traits.scenarios[0] in text, text
