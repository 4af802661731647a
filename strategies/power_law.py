"""Rehearsal environments: tasks come back, with a frequency that falls with the time since they were met.

An environment, not an algorithm: it decides what a phase shows beside the new task, and any method can learn inside it.

Source: Gandhi, Shah, Marupudi, Varma, arXiv 2401.10393: the chance of meeting a task again falls as a power law of the time since it
    was last performed. Only abstracts were read and no code is public: every formula, option and default below is our own reading,
    none is the authors' setting, and no published number belongs to it.
Uses: plan, forget, state_dict, load_state_dict
Cost: the steps of the rehearsed samples beside those of the new task (keeps=epochs), or larger batches (keeps=steps).
Differs: both readings of "time since" are here, as `lag`. By default any sample of a past task can come back, as from the world around
    the learner: that is not like with like beside a method with a bounded memory. With source=buffer at most `capacity` samples a task
    can; it keeps their ids alone, the benchmark still holds the data.
Interacts: rehearsed samples are rows of the stream, so a memory stores them too and regularisers see them in their passes; one whose
    "data of the task" is the new part alone must ask for that task's ids. A strategy that arranges views of the plan (view_batch) comes
    after it, to view rehearsed samples as well: those that it adds to a plan with views have one view each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cl_framework import Context, Forgotten, Plan, Strategy, TaskId, Traits, check_choice, check_range, register

ENVIRONMENTS = ("power_law", "exponential", "uniform", "recency", "none", "joint")
_COUNTED = ("power_law", "exponential", "uniform", "recency")
_SHOWN = (*_COUNTED, "joint")
# Option -> {other option: its values with which the first is read}; with others it would change nothing.
READ_WITH: dict[str, dict[str, tuple[str, ...]]] = {
    "lag": {"environment": ("power_law", "exponential", "recency")},
    "exponent": {"environment": ("power_law",)},
    "rate": {"environment": ("exponential",)},
    "recency": {"environment": ("recency",)},
    "counts": {"environment": _COUNTED},
    "budget": {"environment": _COUNTED, "counts": ("budget",)},
    "fraction": {"environment": _COUNTED, "counts": ("absolute", "encounter")},
    "encounter_samples": {"environment": _COUNTED, "counts": ("encounter",)},
    "rounding": {"environment": _COUNTED, "counts": ("budget", "absolute")},
    "source": {"environment": _SHOWN},
    "capacity": {"environment": _SHOWN, "source": ("buffer",)},
    "keeps": {"environment": _SHOWN},
}


# --- how often: pure functions of lags ---


def weights(environment: str, lags: Tensor, *, exponent: float = 1.0, rate: float = 0.33, recency: int = 1) -> Tensor:
    """w(lag) of an environment, (T,) float64 in [0, 1]; 1 at lag 1 wherever anything comes back. Lags are >= 1."""
    if bool((lags < 1).any()):
        raise ValueError(f"lags must be >= 1, got {int(lags.min())}: the task of the phase itself is always shown whole")
    lags = lags.double()
    if environment == "power_law":
        return lags**-exponent
    if environment == "exponential":
        return torch.exp(-rate * (lags - 1))
    if environment == "recency":
        return (lags <= recency).double()
    return torch.zeros_like(lags) if environment == "none" else torch.ones_like(lags)


def apportioned(total: float, weight: Tensor, sizes: Tensor) -> Tensor:
    """Shares of `total` in proportion to the weights, (T,) float64, none above its size: what one cannot give the others do."""
    shares = torch.zeros_like(weight)
    open_ = weight > 0
    while bool(open_.any()):
        wanted = total * weight / weight[open_].sum()
        full = open_ & (wanted >= sizes)
        if not bool(full.any()):
            return torch.where(open_, wanted, shares)
        shares = torch.where(full, sizes.double(), shares)
        total -= float(sizes[full].sum())
        open_ &= ~full
    return shares


def largest_remainder(shares: Tensor) -> Tensor:
    """Whole numbers (T,) int64 whose sum is the rounded sum: the largest fractions are rounded up, of equal ones the first."""
    whole = shares.floor()
    missing = round(float(shares.sum())) - int(whole.sum())
    whole[(shares - whole).argsort(descending=True, stable=True)[:missing]] += 1
    return whole.long()


def randomised(shares: Tensor, generator: torch.Generator) -> Tensor:
    """Whole numbers (T,) int64 whose mean is `shares` and whose sum is theirs, where that is whole: systematic sampling."""
    ends = shares.cumsum(0)
    ends = torch.where((ends - ends.round()).abs() < 1e-9, ends.round(), ends)
    steps = (ends + torch.rand((), dtype=torch.float64, generator=generator)).floor().long()
    return steps.diff(prepend=steps.new_zeros(1))


# --- what: samples mixed into a phase ---


def mixed(plan: Plan, rehearsed: Tensor, generator: torch.Generator, keeps: str = "epochs") -> Plan:
    """The plan with each epoch mixed with the samples `rehearsed` (M,), at random places; all that it showed stays, in its order.

    keeps=epochs cuts the longer epochs into steps of the former size; keeps=steps deals the samples over the steps there are.
    Rows of one group stay in one step.
    """
    rounds = plan.epochs if plan.steps % plan.epochs == 0 else 1
    again = rehearsed.repeat(plan.epochs // rounds)
    step_of_row = torch.arange(plan.steps).repeat_interleave(plan.offsets.diff())
    unit_of_row = torch.arange(plan.visits)  # what is moved as one: a row, or the rows of a group in a step
    if plan.group is not None:
        unit_of_row = torch.stack([step_of_row, plan.group], 1).unique(dim=0, return_inverse=True)[1]
    step_of_unit = torch.zeros(int(unit_of_row.max()) + 1, dtype=torch.int64).scatter_(0, unit_of_row, step_of_row)
    size, length, first = int(step_of_unit.bincount().max()), plan.steps // rounds, 0
    old, new = [], []  # the step of every unit there was, and of every sample that comes in
    for epoch in range(rounds):
        mine = step_of_unit[(step_of_unit >= epoch * length) & (step_of_unit < (epoch + 1) * length)]
        if keeps == "steps":
            order = torch.randperm(len(again), generator=generator)
            old.append(mine)
            new.append(epoch * length + order * length // max(1, len(again)))
            continue
        order = torch.randperm(len(mine) + len(again), generator=generator)
        old.append(first + order[len(again) :].sort().values // size)
        new.append(first + order[: len(again)] // size)
        first += -(-len(order) // size)
    added = again.repeat(rounds)
    step = torch.cat([torch.cat(old)[unit_of_row], *new])
    rows = step.argsort(stable=True)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), step.bincount(minlength=plan.steps if keeps == "steps" else first).cumsum(0)])

    def column(values: Tensor | None, beside: Tensor) -> Tensor | None:
        return None if values is None else torch.cat([values, beside.to(values.dtype)])[rows]

    group = column(plan.group, torch.arange(len(added)) + (0 if plan.group is None else int(plan.group.max()) + 1))
    nothing = torch.zeros_like(added)
    return Plan(torch.cat([plan.ids, added])[rows], offsets, column(plan.view, nothing), group, column(plan.strong, nothing), plan.epochs)


# --- when ---


@dataclass(frozen=True)
class PowerLawConfig:
    environment: str = "power_law"  # power_law, exponential, uniform, recency, none (fine-tuning) or joint (all there is)
    lag: str = "since_introduced"  # or since_last_performed: rehearsal sets the clock back. In Learn events
    exponent: float = 1.0  # power_law: weight lag^-exponent, >= 0
    rate: float = 0.33  # exponential: weight exp(-rate (lag - 1)), >= 0; 0.33 weighs 20 tasks together as power_law with exponent 1 does
    recency: int = 1  # recency: the tasks of the last so many Learn events, >= 1
    counts: str = "budget"  # budget (the same for every environment), absolute or encounter; joint counts nothing
    budget: float = 0.1  # budget: samples rehearsed in a phase, in sizes of the new task, >= 0
    fraction: float = 0.1  # absolute: samples of a task at lag 1, in sizes of the new task; encounter: chance of a task at lag 1; [0, 1]
    encounter_samples: int = 50  # encounter: samples of a task that is met, >= 1
    rounding: str = "largest_remainder"  # or randomised: right in the mean for each task, where small shares are 0 otherwise
    source: str = "whole"  # where samples come from: whole past tasks, or a buffer of ids
    capacity: int = 200  # buffer: ids kept a task, >= 1
    keeps: str = "epochs"  # epochs: batches stay as large and steps are added; steps: as many steps with larger batches

    def __post_init__(self) -> None:
        check_choice("environment", self.environment, ENVIRONMENTS)
        check_choice("lag", self.lag, ("since_introduced", "since_last_performed"))
        check_choice("counts", self.counts, ("budget", "absolute", "encounter"))
        check_choice("rounding", self.rounding, ("largest_remainder", "randomised"))
        check_choice("source", self.source, ("whole", "buffer"))
        check_choice("keeps", self.keeps, ("epochs", "steps"))
        check_range("exponent", self.exponent, low=0)
        check_range("rate", self.rate, low=0)
        check_range("recency", self.recency, low=1)
        check_range("budget", self.budget, low=0)
        check_range("fraction", self.fraction, low=0, high=1)
        check_range("encounter_samples", self.encounter_samples, low=1)
        check_range("capacity", self.capacity, low=1)
        for name, wanted in READ_WITH.items():
            value = getattr(self, name)
            for other, values in wanted.items():
                if value != getattr(type(self), name) and getattr(self, other) not in values:
                    allowed = " or ".join(filter(None, (", ".join(values[:-1]), values[-1])))
                    raise ValueError(
                        f"{name}={value} would change nothing with {other}={getattr(self, other)}; leave it out, or set {other}={allowed}"
                    )


def rehearsal_counts(config: PowerLawConfig, lags: Tensor, sizes: Tensor, new: int, generator: torch.Generator) -> Tensor:
    """Samples of each past task in a phase with `new` samples of its own: (T,) int64, none above what the task has.

    lags: (T,) int64 >= 1, sizes: (T,) int64. One number is drawn for each task where tasks are met by chance, else at most one in all.
    """
    weight = weights(config.environment, lags, exponent=config.exponent, rate=config.rate, recency=config.recency)
    if config.environment == "joint":
        return sizes.clone()
    if config.counts == "encounter":
        met = torch.rand(len(lags), dtype=torch.float64, generator=generator) < config.fraction * weight
        return torch.where(met, sizes.clamp(max=config.encounter_samples), 0)
    if config.counts == "budget":
        shares = apportioned(round(config.budget * new), weight, sizes)
    else:
        shares = torch.minimum(config.fraction * new * weight, sizes.double())
    return randomised(shares, generator) if config.rounding == "randomised" else largest_remainder(shares)


@register("power_law")
class PowerLaw(Strategy):
    """A rehearsal environment: power law, exponential, uniform, recency, joint or none."""

    Config = PowerLawConfig
    traits = Traits(
        reads_past_data=True,
        stores_data=True,
        stores_with={"source": "buffer"},
        keeps="epochs",
        neutral={"environment": "none"},
    )

    def __init__(self, config: PowerLawConfig) -> None:
        super().__init__(config)
        self._phase = 0  # Learn events so far
        self._met: dict[TaskId, int] = {}  # the phase from which a task's lag counts
        self._kept: dict[TaskId, Tensor] = {}  # source=buffer: ids, on the host

    def plan(self, plan: Plan, context: Context) -> Plan:
        """Called once in a Learn event; moves the clocks, which is why a resume finds the plan in the checkpoint."""
        if not plan.visits:
            return plan
        self._phase += 1
        task = context.position.event.task
        past = [other for other in context.live_tasks if other != task and other in self._met]
        found = {other: self._rehearsed_from(other, context) for other in past}
        new = len(context.ids_of(task))
        lags = torch.tensor([self._phase - self._met[other] for other in past], dtype=torch.int64)
        sizes = torch.tensor([len(found[other]) for other in past], dtype=torch.int64)
        counts = rehearsal_counts(self.config, lags, sizes, new, context.random("counts").generator())
        wanted = {other: count for other, count in zip(past, counts.tolist(), strict=True) if count}
        self._perform(task, wanted)
        if self.config.source == "buffer":
            self._kept[task] = chosen(context.ids_of(task), self.config.capacity, context.random("keep").generator()).sort().values
        if not wanted:
            return plan
        # A random stream for each task: one that is taken out of the stream moves no other's samples.
        picks = [chosen(found[other], count, context.random(f"task {other}").generator()) for other, count in wanted.items()]
        return mixed(plan, torch.cat(picks), context.random("mix").generator(), self.config.keeps)

    def _rehearsed_from(self, task: TaskId, context: Context) -> Tensor:
        return context.ids_of(task) if self.config.source == "whole" else self._kept.get(task, torch.empty(0, dtype=torch.int64))

    def _perform(self, task: TaskId, rehearsed: Iterable[TaskId]) -> None:
        if self.config.lag == "since_introduced":
            self._met.setdefault(task, self._phase)
        else:
            self._met.update(dict.fromkeys([task, *rehearsed], self._phase))

    def forget(self, forgotten: Forgotten, context: Context) -> None:
        kept = {task: ids[~torch.isin(ids, forgotten.ids)] for task, ids in self._kept.items()}
        self._kept = {task: ids for task, ids in kept.items() if len(ids)}
        if forgotten.event.granularity == "task":
            self._met.pop(forgotten.event.task, None)

    def state_dict(self) -> dict[str, Any]:
        return {"phase": self._phase, "met": dict(self._met), "kept": dict(self._kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._phase, self._met = state["phase"], dict(state["met"])
        self._kept = {task: ids.cpu() for task, ids in state["kept"].items()}


def chosen(ids: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the ids, uniformly without replacement; all if there are fewer."""
    return ids[torch.randperm(len(ids), generator=generator)[:count]]
