"""View batches: several views of a sample in one step, and so much longer until it comes back; the first view teaches the others.

Source: Kang, Seifer, Lee, Ryu 2025 "Do Your Best and Get Enough Rest for Continual Learning" (CVPR), arXiv 2503.18371: a sample comes
    back after V N slots in place of N; L = L_host + weight * 1 / (G (V - 1)) sum_g sum_j>=2 KL(p_g^1 || p_g^j). The paper's text could
    be read in part only; what it does not tell is taken from the released code, as named below.
Uses: check, plan, arrange, loss
Cost: with interval = views as many steps and rows as the host has; else views / interval times the rows. No further pass over the
    stream or joined draws; a separate draw whose pass nobody else reads is run for the term. Where there are strong views, a strong
    augmentation of every row.
Differs: groups are explicit; the released code finds them by equal neighbouring labels, and so distils one sample into another of its
    class. Batches are not rounded down to 256 slots. reduction=released divides the term by the number of classes, as its call of
    kl_div does; its term starts after six epochs (warm_up=6), the paper names no start. The softmax is over all classes, in
    task-incremental runs too (released: those seen so far). Whether ER and DER++ view their buffers is not told: replay says.
    Strong views are the benchmark's own (`strong_colour` on photographs), not AutoAugment on CIFAR nor RandAugment with ColorJitter on
    Tiny-ImageNet, as in the released code: torchvision's draw from the global random numbers, and one policy for a whole batch.
Interacts: the order of visits is that of the plan as it comes in, slowed down `interval` times and cut where it ended, so it views
    whatever joint, cumulative or power_law before it show. joint, cumulative and icarl after it would leave no views, and are refused;
    what power_law adds has one view each. In fewer epochs than `interval` a part of the samples is never shown (one epoch, views=4:
    three quarters; `clu show` says how many), nor put in a memory; interval=1 shows every sample as often as the host does, with views
    times the rows a step. What others draw keeps 1 / interval of its rows, views times each; a memory takes a sample once a visit, and
    with it what the weak view gave (the logits of DER++). Where the benchmark augments nothing, the views of a sample are equal.
    Of questions only the places of the answer count, as in the loss of the task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from cl_framework import (
    Batch,
    ConfigurationError,
    Context,
    Draw,
    Output,
    Plan,
    Rows,
    Setting,
    Strategy,
    Term,
    Traits,
    check_choice,
    check_range,
    first_rows,
    mean_asked,
    register,
)


@dataclass(frozen=True)
class ViewBatchConfig:
    views: int = 4  # rows of a sample in a step, the first one weakly augmented, >= 1; 1 is the host alone
    interval: int | None = None  # a sample comes back after so many times the host's steps, >= 1; divides batch_size; default: views
    weight: float = 1.0  # of the consistency term, >= 0
    reduction: str = "paper"  # the term's mean: paper (over the pairs of a teacher and a view) or released (over classes too)
    warm_up: int = 0  # epochs of a phase before the term starts, >= 0; released: 6
    strong: bool | None = None  # strongly augment the views after the first; default: where the benchmark has such an augmentation
    replay: bool = True  # view what other strategies draw, too

    def __post_init__(self) -> None:
        check_range("views", self.views, low=1)
        if self.interval is not None:
            check_range("interval", self.interval, low=1)
        check_range("weight", self.weight, low=0)
        check_choice("reduction", self.reduction, ("paper", "released"))
        check_range("warm_up", self.warm_up, low=0)

    @property
    def stretch(self) -> int:
        """How many times longer than in the host plan it takes until a sample comes back."""
        return self.views if self.interval is None else self.interval


# --- the schedule ---


def viewed_plan(plan: Plan, views: int, interval: int, strong: bool) -> Plan:
    """The plan `interval` times slower: its visits in their order, as many as fit in its steps, each as `views` rows of one step.

    A step of s visits shows s / interval of them, rounded up or down such that the sum over the steps stays right, so that no group
    straddles steps; the number of steps stays, and one of fewer than `interval` visits may be empty then. Groups that the plan has are
    visits, whose views are arranged anew.
    """
    rows = first_rows(plan)
    before = torch.searchsorted(rows, plan.offsets)  # visits before each step
    cuts = (before + interval - 1) // interval
    count = int(cuts[-1])
    ids = plan.ids[rows[:count]]
    if views == 1:
        return Plan(ids, cuts, epochs=plan.epochs)
    view, group = views_and_groups(count, views)
    return Plan(ids.repeat_interleave(views), cuts * views, view, group, view > 0 if strong else None, plan.epochs)


def viewed_rows(rows: Rows, chosen: Tensor, views: int, strong: bool) -> Rows:
    """The rows with the numbers `chosen` (M,), each `views` times in a row, and all that is stored beside them."""
    taken = rows.take(chosen.repeat_interleave(views))
    taken.view, taken.group = views_and_groups(len(chosen), views, chosen.device)
    taken.strong = taken.view > 0 if strong else None
    return taken


def views_and_groups(count: int, views: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """The columns `view` and `group` of `count` samples with so many views each, (count * views,)."""
    return torch.arange(views, device=device).repeat(count), torch.arange(count, device=device).repeat_interleave(views)


# --- the consistency term ---


def divergences(logits: Tensor, group: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """KL(teacher || row) of each row, (B,), 0 for the teachers; and how many rows are none, a scalar.

    The teacher of a row is the first row of its group; no gradient flows through it. group: (B,) int64. logits: (B, C), or (B, C, L):
    the mean over the places at which the row's targets (B, L) ask something, over all of them without targets.
    """
    rows = torch.arange(len(group), device=group.device)
    same = group.unsqueeze(1) == group.unsqueeze(0)
    teacher = torch.where(same, rows, len(group)).amin(1)
    students = teacher != rows
    answers = functional.log_softmax(logits, dim=1)
    taught = answers.detach()[teacher]
    values = (taught.exp() * (taught - answers)).sum(1)
    if values.ndim > 1:
        values = values.mean(1) if targets is None else mean_asked(values, targets)
    return values * students, students.sum()


def consistency(parts: Sequence[tuple[Tensor, ...]], reduction: str = "paper") -> Tensor:
    """The mean divergence over all pairs of a teacher and another view of its sample, 0 if there are none; a scalar.

    parts: what `divergences` takes, of rows that were shown together; groups of different parts have nothing to do with one another.
    released: the mean is over the classes as well.
    """
    pairs = [divergences(*part) for part in parts]
    total = torch.stack([values.sum() for values, _ in pairs]).sum()
    count = torch.stack([number for _, number in pairs]).sum().clamp(min=1)
    return total / count if reduction == "paper" else total / count / parts[0][0].shape[1]


# --- when ---


@register("view_batch")
class ViewBatch(Strategy):
    """View batches: V views of a sample in a step, V times longer until it comes back, and a consistency loss between views."""

    Config = ViewBatchConfig
    traits = Traits(keeps="steps", neutral={"views": 1})

    def check(self, setting: Setting) -> None:
        config, size = self.config, setting.batch_size
        if size % config.stretch:
            name = "views" if config.interval is None else "interval"
            divisors = ", ".join(str(number) for number in range(1, size + 1) if size % number == 0)
            raise ConfigurationError(
                f"{name}: {config.stretch} does not divide batch_size {size}, so that steps would not hold equally many samples; "
                f"set {name} to one of {divisors}, or batch_size to a multiple of {config.stretch}."
            )
        if config.strong and config.views > 1 and setting.strongly is False:
            raise ConfigurationError("strong=true needs a strong augmentation, but this benchmark has none; set strong=false.")
        if config.views > 1 and config.weight and config.warm_up >= setting.epochs:
            raise ConfigurationError(
                f"warm_up={config.warm_up} is not below epochs={setting.epochs}, so that the consistency term would never start. "
                "Lower it, raise epochs, or set weight=0."
            )

    def plan(self, plan: Plan, context: Context) -> Plan:
        if self.config.views == self.config.stretch == 1:
            return plan
        return viewed_plan(plan, self.config.views, self.config.stretch, self._strong(context))

    def arrange(self, draw: Draw, batch: Batch, context: Context) -> Draw:
        count = len(draw.rows)
        if not self.config.replay or self.config.views == 1 or draw.rows.group is not None or not count:
            return draw
        # Not the first ones: the rows of a draw are a random set, but need not be in a random order.
        order = context.random(f"views of {draw.key}").uniform(count).argsort()
        chosen = order[: -(-count // self.config.stretch)].to(draw.rows.targets.device, non_blocking=True)
        return replace(draw, rows=viewed_rows(draw.rows, chosen, self.config.views, self._strong(context)))

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        shown = [] if self.config.views == 1 else groups_of(batch, self.config.replay)
        if not shown:
            return {}

        def value() -> Tensor:
            parts = [
                (output.logits, group, batch.targets) if draw is None else (output.of(draw).logits, group, draw.rows.targets)
                for draw, group in shown
            ]
            return consistency(parts, self.config.reduction)

        return {"consistency": Term(value, self.config.weight if started(context, self.config.warm_up) else 0.0)}

    def _strong(self, context: Context) -> bool:
        return context.strongly_augments if self.config.strong is None else self.config.strong


def groups_of(batch: Batch, replay: bool) -> list[tuple[Draw | None, Tensor]]:
    """What a step shows as views, with its groups: the stream's rows (None) and, with `replay`, those of draws that have a term."""
    shown: list[tuple[Draw | None, Tensor]] = [] if batch.group is None or not len(batch) else [(None, batch.group)]
    if replay:
        draws = [draw for named in batch.draws.values() for draw in named.values() if draw.kind != "reference"]
        shown.extend((draw, draw.rows.group) for draw in draws if draw.rows.group is not None)
    return shown


def started(context: Context, warm_up: int) -> bool:
    """Whether `warm_up` epochs of the phase are over."""
    phase = context.position.phase
    if phase is None or isinstance(phase.plan, int):
        return warm_up == 0
    return context.position.step * phase.plan.epochs >= warm_up * phase.steps
