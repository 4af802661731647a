"""How strategies combine: the only file that knows the laws of composition.

check: all are asked · plan, arrange: pipe · mask: intersection · rate: product · draw: own slot · loss: sum of named terms ·
step: onion, first slot outermost · commit, begin, forget: broadcast in slot order · end: broadcast in reverse ·
build, predict: at most one · unlearn: exactly one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cl_framework.errors import ConfigurationError, ContractError
from cl_framework.plan import Plan
from cl_framework.seams import seams_of
from cl_framework.strategy import (
    Batch,
    Context,
    Done,
    Draw,
    Forgotten,
    Output,
    Phase,
    Replay,
    Rows,
    Setting,
    StepFn,
    Strategy,
    Traits,
)
from cl_framework.stream import Stream, Unlearn
from cl_framework.traits import check_scenario


@dataclass(frozen=True)
class Member:
    """A strategy in its slot."""

    slot: str
    strategy: Strategy
    seams: frozenset[str]

    @classmethod
    def of(cls, slot: str, strategy: Strategy) -> Member:
        return cls(slot, strategy, frozenset(seams_of(type(strategy))))


class Stack:
    """Strategies in slot order, the first outermost. The empty stack is fine-tuning."""

    def __init__(self, strategies: Iterable[tuple[str, Strategy]] = ()) -> None:
        self.members = [Member.of(slot, strategy) for slot, strategy in strategies]
        self._contexts: dict[str, Context] = {}

    # --- what cannot work together ---

    def check(self, setting: Setting, stream: Stream) -> None:
        """Refuse, as ConfigurationError, what cannot work together, in this run, or cannot do what the stream asks.

        Called before the benchmark is there and again with it: what `setting` does not know at first is judged the second time.
        """
        for seam, what in (("build", "changes the model's structure"), ("predict", "answers predictions")):
            self._at_most_one(self._with(seam), what)
        self._at_most_one([m for m in self.members if m.strategy.traits.replaces_task_term], "replaces the task term")
        for member in self.members:
            self._check_traits(member, setting)
        for event in stream.unlearns:
            self._check_unlearner(self.unlearner_of(event), event)
        for member in self._with("check"):
            self._ask(member, setting)

    def check_built(self, setting: Setting) -> None:
        """Ask those once more that work on a model which another strategy has built: `setting` has it now."""
        if self._with("build"):
            for member in self._with("check"):
                if "build" not in member.seams:
                    self._ask(member, setting)

    def _ask(self, member: Member, setting: Setting) -> None:
        try:
            member.strategy.check(replace(setting, slot=member.slot))
        except ConfigurationError as error:
            raise ConfigurationError(f"strategies.{member.slot}.{error}") from error

    def _check_traits(self, member: Member, setting: Setting) -> None:
        traits = member.strategy.traits
        check_scenario(member.slot, traits, type(member.strategy).traits, setting)
        if setting.modality is not None and setting.modality not in traits.modalities:
            allowed = ", ".join(traits.modalities)
            raise ConfigurationError(f"strategies.{member.slot} does not work on {setting.modality} benchmarks; it allows: {allowed}.")
        if setting.objective is not None and setting.objective not in traits.objectives:
            what = setting.objective.replace("_", " ")
            raise ConfigurationError(
                f"strategies.{member.slot} needs one class a sample, which benchmarks of {what} do not have. "
                "Remove it, or choose a benchmark of classification."
            )
        if setting.blurry and traits.needs_boundaries:
            raise ConfigurationError(
                f"strategies.{member.slot} must know when a task ends, which a blurry stream does not tell. Set blurry=0 or remove it."
            )

    @property
    def traits(self) -> dict[str, Traits]:
        return {member.slot: member.strategy.traits for member in self.members}

    @property
    def seams(self) -> dict[str, frozenset[str]]:
        return {member.slot: member.seams for member in self.members}

    def unlearner_of(self, event: Unlearn) -> Member:
        """The one strategy that answers `event`; none or several is a ConfigurationError."""
        able = [member for member in self.members if event.granularity in member.strategy.traits.unlearns]
        if len(able) == 1:
            return able[0]
        if not able:
            have = ", ".join(member.slot for member in self.members) or "none (plain fine-tuning)"
            raise ConfigurationError(
                f"stream: event {event} unlearns at {event.granularity} level, but no strategy of this stack can do that "
                f"(strategies: {have}). Remove {event} from the stream or add a strategy that can; `clu list strategies` shows which."
            )
        names = " and ".join(f"strategies.{member.slot}" for member in able)
        raise ConfigurationError(f"stream: event {event} could be answered by {names}; keep one of them.")

    def is_exact(self, event: Unlearn, *, keeps_moments: bool = False) -> bool:
        """Whether `event` is unlearned exactly in this stack; `keeps_moments`: the optimizer's state lives on from event to event.

        An exact unlearner is so by itself. Beside it, what a memory, a penalty or a plan shows of one task moves how another is learned,
        and so does a rate that goes by what came before, or by what is the last to come; an answer drops the moments of all tasks. That
        stays: unless the unlearner lives through the rest again, or the model is not trained at all.
        """
        own = self.unlearner_of(event)
        traits = own.strategy.traits
        others = [member for member in self.members if member is not own]
        apart = not (keeps_moments or any(_moves_other_tasks(other) for other in others))
        return traits.exact and (traits.replays or traits.inner_calls == "never" or apart)

    def _check_unlearner(self, member: Member, event: Unlearn) -> None:
        lenders = [other for other in self.members if other is not member and other.strategy.traits.stores_data and "draw" in other.seams]
        if "memory" in member.strategy.traits.unlearning_reads and not lenders:
            raise ConfigurationError(
                f"stream: to answer {event}, strategies.{member.slot} needs samples of what is retained, but no strategy of this stack "
                "keeps any. Add one with a memory, such as strategies.er.capacity=500."
            )

    def _at_most_one(self, members: Sequence[Member], what: str) -> None:
        if len(members) > 1:
            names = " and ".join(f"strategies.{member.slot}" for member in members)
            raise ConfigurationError(f"at most one strategy of a stack {what}, but {names} do; remove all but one.")

    @property
    def reads_tasks(self) -> bool:
        return any(member.strategy.traits.needs_task_id for member in self.members)

    @property
    def slots(self) -> tuple[str, ...]:
        return tuple(member.slot for member in self.members)

    def bind(self, contexts: Mapping[str, Context]) -> None:
        """Give each slot its context."""
        self._contexts = dict(contexts)

    def context(self, slot: str) -> Context:
        return self._contexts[slot]

    # --- structure and events ---

    def build(self, model: nn.Module) -> nn.Module:
        for member in self._with("build"):
            model = member.strategy.build(model, self._contexts[member.slot])
        return model

    def begin(self) -> list[Phase]:
        """Further phases before the event's own, owned by the slots that asked for them."""
        return [
            owned(phase, member.slot)
            for member in self._with("begin")
            for phase in member.strategy.begin(self._contexts[member.slot]) or ()
        ]

    def end(self) -> list[Phase]:
        """Further phases after the event's own; the last slot is asked first."""
        return [
            owned(phase, member.slot)
            for member in reversed(self._with("end"))
            for phase in member.strategy.end(self._contexts[member.slot]) or ()
        ]

    def unlearn(self, event: Unlearn) -> list[Phase] | Replay:
        """The phases with which the one able strategy answers, none if it is done; or its wish that events be run again."""
        member = self.unlearner_of(event)
        answer = member.strategy.unlearn(event, self._contexts[member.slot])
        traits = member.strategy.traits
        if isinstance(answer, Replay) and not (traits.replays and "past" in traits.unlearning_reads):
            raise ContractError(
                f"strategy {member.slot!r} answers {event} with a Replay, which needs Traits(replays=True, unlearning_reads={{'past'}})."
            )
        if isinstance(answer, Done | Replay):
            return answer if isinstance(answer, Replay) else []
        return [owned(phase, member.slot) for phase in answer]

    @property
    def replays(self) -> bool:
        return any(member.strategy.traits.replays for member in self.members)

    def forget(self, forgotten: Forgotten) -> None:
        for member in self._with("forget"):
            member.strategy.forget(forgotten, self._contexts[member.slot])

    # --- a phase ---

    def acting(self, phase: Phase) -> list[Member]:
        """Who acts in a phase: everyone, or its owner alone."""
        return [member for member in self.members if phase.owner in (None, member.slot)]

    def plan(self, plan: Plan) -> Plan:
        for member in self._with("plan"):
            plan = member.strategy.plan(plan, self._contexts[member.slot])
        return plan

    def mask(self, phase: Phase, names: Sequence[str]) -> dict[str, bool | Tensor]:
        """What may move, by parameter name: a bool for a whole tensor, or a bool tensor of its shape."""
        combined: dict[str, bool | Tensor] = {}
        for member in self.acting(phase):
            if "mask" not in member.seams:
                continue
            for name, part in member.strategy.mask(self._contexts[member.slot]).items():
                if name not in names:
                    raise ContractError(f"strategy {member.slot!r} masks {name!r}, which is no parameter of the model.")
                combined[name] = intersection(combined.get(name, True), part)
        return combined

    def rate(self, phase: Phase, step: int, steps: int) -> float:
        factor = 1.0
        for member in self.acting(phase):
            if "rate" in member.seams:
                factor *= member.strategy.rate(step, steps, self._contexts[member.slot])
        return factor

    def compile(self, phase: Phase, innermost: StepFn, *, unlearning: bool) -> PhaseStack:
        """The seams of a phase bound to their contexts, so that a step walks short lists.

        In a phase of an Unlearn the strategies that do not act lend their draws to one that reads memories.
        """
        acting = self.acting(phase)
        borrows = unlearning and any("memory" in member.strategy.traits.unlearning_reads for member in acting)

        def bound(seam: str, members: Sequence[Member] = acting) -> list[tuple[str, Strategy, Context]]:
            return [(member.slot, member.strategy, self._contexts[member.slot]) for member in members if seam in member.seams]

        step = innermost
        for _, strategy, context in reversed(bound("step")):
            step = strategy.step(step, context)
        lenders = [member for member in self.members if member not in acting] if borrows else []
        return PhaseStack(
            draws=bound("draw"),
            arrangers=bound("arrange"),
            losses=bound("loss"),
            commits=bound("commit"),
            lenders=bound("draw", lenders),
            step=step,
            has_rate=bool(bound("rate")),
            without_task_term=not phase.task_term or any(member.strategy.traits.replaces_task_term for member in acting),
        )

    @property
    def predictor(self) -> Callable[[Tensor | None, Tensor, Rows], Tensor] | None:
        """The one strategy that gives the scores in evaluation, or None for the logits."""
        for member in self._with("predict"):
            strategy, context = member.strategy, self._contexts[member.slot]
            return lambda features, logits, rows: strategy.predict(features, logits, rows, context)
        return None

    def transforms_plan(self) -> bool:
        return bool(self._with("plan"))

    # --- state ---

    def state_dict(self) -> dict[str, object]:
        return {member.slot: member.strategy.state_dict() for member in self.members}

    def load_state_dict(self, state: Mapping[str, Mapping[str, object]]) -> None:
        for member in self.members:
            member.strategy.load_state_dict(state[member.slot])

    def _with(self, seam: str) -> list[Member]:
        return [member for member in self.members if seam in member.seams]

    # --- how it reads ---

    def describe(self) -> str:
        """The step of this stack as it will run, seam by seam."""

        def users(seam: str) -> str:
            return ", ".join(member.slot for member in self._with(seam))

        lines = []
        if users("build"):
            lines.append(f"model = build(model)                 # {users('build')}")
        if users("begin"):
            lines.append(f"begin(event)                         # {users('begin')}")
        plan = " -> ".join(["shuffle", *(member.slot for member in self._with("plan"))])
        lines.append(f"plan  = {plan}")
        if users("mask"):
            lines.append(f"mask  = intersection                 # {users('mask')}")
        lines.append("for step, ids in plan:")
        lines.append("    batch = load(ids)")
        for member in self._with("draw"):
            lines.append(f"    batch.draws[{member.slot!r}] = {member.slot}.draw(batch)")
        if self._with("draw"):
            lines.extend(f"    batch.draws = {member.slot}.arrange(batch.draws)" for member in self._with("arrange"))
        terms = ["task", *(f"{member.slot}.loss" for member in self._with("loss"))]
        if any(member.strategy.traits.replaces_task_term for member in self.members):
            terms = terms[1:]
        joined = "   # joined draws share the task's mean" if self._with("draw") else ""
        lines.append(f"    closure = {' + '.join(terms)}{joined}")
        onion = "apply"
        for member in reversed(self._with("step")):
            onion = f"{member.slot}.step({onion})"
        rate = f" at lr * {' * '.join(f'{member.slot}.rate' for member in self._with('rate'))}" if users("rate") else ""
        lines.append(f"    {onion}(closure){rate}")
        lines.extend(f"    {member.slot}.commit(batch, output)" for member in self._with("commit"))
        if users("end"):
            lines.append(f"end(event)                           # {', '.join(m.slot for m in reversed(self._with('end')))}")
        answers = [f"{m.slot} ({', '.join(sorted(m.strategy.traits.unlearns))})" for m in self.members if m.strategy.traits.unlearns]
        if answers:
            lines.append(f"an Unlearn: {', '.join(answers)}, then forget(forgotten)   # {users('forget') or 'nobody keeps anything'}")
        lines.append(f"evaluate with {users('predict') or 'the logits'}")
        return "\n".join(lines)


@dataclass(frozen=True)
class PhaseStack:
    """A stack bound for one phase: what a step calls, in order."""

    draws: Sequence[tuple[str, Strategy, Context]]
    arrangers: Sequence[tuple[str, Strategy, Context]]
    losses: Sequence[tuple[str, Strategy, Context]]
    commits: Sequence[tuple[str, Strategy, Context]]
    lenders: Sequence[tuple[str, Strategy, Context]]  # in an owned phase: the others, whose draws can be asked for by name
    step: StepFn
    has_rate: bool
    without_task_term: bool

    def draw(self, batch: Batch) -> None:
        for slot, strategy, context in self.draws:
            named = dict(strategy.draw(batch, context))
            for name in named:
                named[name].key = f"{slot}/{name}"
                for _, arranger, own in self.arrangers:
                    named[name] = arranger.arrange(named[name], batch, own)
                    named[name].key = f"{slot}/{name}"
            if named:
                batch.draws[slot] = named

    def lend(self, batch: Batch, without: Tensor | None) -> None:
        """Draws of strategies that do not act, as references, without the rows to be forgotten."""
        for slot, strategy, context in self.lenders:
            lent = {}
            for name, draw in strategy.draw(batch, context).items():
                rows = draw.rows if without is None else rows_without(draw.rows, without)
                if len(rows) > 1:  # one row alone has no batch statistics
                    lent[name] = Draw(rows, "reference", f"{slot}/{name}")
            if lent:
                batch.draws[slot] = lent

    def commit(self, batch: Batch, output: Output) -> None:
        for _, strategy, context in self.commits:
            strategy.commit(batch, output, context)


def _moves_other_tasks(member: Member) -> bool:
    """Whether what a strategy has met of one task can move how another is learned."""
    traits = member.strategy.traits
    goes_by_the_past = {"rate", "state_dict"} <= member.seams and not traits.steady_rate
    return traits.stores_data or traits.consolidates or traits.reads_past_data or traits.looks_ahead or goes_by_the_past


def owned(phase: Phase, slot: str) -> Phase:
    return replace(phase, owner=slot, name=f"{slot}/{phase.name}")


def intersection(first: bool | Tensor, second: bool | Tensor) -> bool | Tensor:
    """What both masks let move."""
    if isinstance(first, bool):
        return second if first else False
    if isinstance(second, bool):
        return first if second else False
    return first & second


def rows_without(rows: Rows, ids: Tensor) -> Rows:
    """`rows` without those whose sample id is among `ids`."""
    return rows.take(~torch.isin(rows.ids, ids.to(rows.ids.device)))
