"""GDumb: store greedily and balanced by class, learn nothing from the stream, and train a fresh model on the memory alone.

Source: Prabhu et al. 2020 "GDumb: A Simple Approach that Questions Our Progress in Continual Learning", algorithm 1 (sampler) and
    section 4 (learner); CutMix: Yun et al. 2019, eq. 1; warm restarts: Loshchilov & Hutter 2017, eq. 5 with T_0 = 1, T_mult = 2.
Uses: check, plan, rate, draw, loss, step, commit, end, forget, state_dict, load_state_dict
Cost: a forward pass a step of the stream, which nobody needs unless another strategy keeps logits; at the end `epochs` passes over the
    memory, forward and backward; memory of `capacity` raw samples.
Differs: trains at the end of every event, since every event is evaluated; the released code in Mammoth trains once, after the last task
    (when=last), on a plain reservoir (policy=reservoir) and for 250 to 256 epochs (epochs=255); its rates, cycles and CutMix are the
    defaults here, without its first epoch at a tenth of the rate. The fork used for online settings balances greedily and trains 70
    epochs with gradients clipped at 10 (clip=10); the default of 63 ends where a cosine cycle does (split digits, 200 samples, 3 seeds:
    93.0 %, with 255 epochs 94.4 %). CutMix mixes every batch, there one of two, and pastes before the benchmark's own augmentation, not
    after it. A stream of several epochs is read once, and a sample that is stored already is not offered again. Momentum and weight
    decay are the run's.
Interacts: no step of the stream is applied and in its own phase it is alone, so that others with a part in a step (a loss, draws, a mask,
    a rate) are refused. What changes the plan before it changes what it is offered. It trains after an Unlearn too, from fresh weights on
    what is left, whatever the answering strategy made of the model: do_nothing is answer enough, rewind an exact one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cl_framework import (
    Batch,
    ConfigurationError,
    Context,
    Draw,
    Forgotten,
    Memory,
    Output,
    Phase,
    Plan,
    Rows,
    Setting,
    StepFn,
    Strategy,
    Term,
    Traits,
    check_choice,
    check_no_part_is_lost,
    check_range,
    register,
)


def warm_restarts(epoch: int, high: float, low: float) -> float:
    """The learning rate of an epoch: cosine cycles of 1, 2, 4, ... epochs, each from `high` towards `low`."""
    length = 1 << (epoch + 1).bit_length() - 1
    return low + (high - low) * (1 + math.cos(math.pi * (epoch + 1 - length) / length)) / 2


def cut_box(size: Sequence[int], kept: float, centre: Sequence[float]) -> tuple[slice, slice]:
    """A box of a share 1 - `kept` of an image of `size` (height, width) around `centre` in [0, 1), cut off at the image's edges."""
    half = math.sqrt(1 - kept) / 2
    rows, columns = (
        slice(max(0, round(side * (at - half))), min(side, round(side * (at + half)))) for side, at in zip(size, centre, strict=True)
    )
    return rows, columns


def cut_and_paste(images: Tensor, partner: Tensor, box: tuple[slice, slice]) -> tuple[Tensor, float]:
    """Images (B, C, H, W) with the box of their partners' (B,) in place of their own, and the share of each that is kept."""
    mixed = images.clone()
    pasted = mixed[:, :, box[0], box[1]]
    pasted.copy_(images[partner][:, :, box[0], box[1]])
    return mixed, 1 - math.prod(pasted.shape[2:]) / math.prod(images.shape[2:])


def first_pass(plan: Plan, stored: Tensor) -> Plan:
    """The first of the passes that a plan makes, without the samples `stored` (N,) already."""
    steps = plan.steps // max(1, plan.epochs)
    early = torch.arange(plan.visits) < plan.offsets[steps]
    kept = plan.keep(early & ~torch.isin(plan.ids, stored))
    return replace(kept, offsets=kept.offsets[: steps + 1], epochs=min(1, plan.epochs))


@dataclass(frozen=True)
class GDumbConfig:
    capacity: int = 500  # samples in memory, >= 1, at least one a class
    policy: str = "greedy"  # greedy or reservoir
    when: str = "every"  # train at the end of every event, or of the last Learn and what follows it: every or last
    epochs: int = 63  # passes over the memory, >= 1; cosine cycles end after 1, 3, 7, ..., 63, 127, 255
    minibatch: int | None = None  # memory rows a step, >= 1; default: the batch size
    lr: float = 0.05  # at the start of each cosine cycle, > 0
    min_lr: float = 0.0005  # towards its end, [0, lr]
    clip: float | None = None  # largest norm of all gradients together, > 0; default: the run's
    cutmix: float = 1.0  # the share of an image that is kept is drawn from Beta(cutmix, cutmix), >= 0; 0: images are not mixed

    def __post_init__(self) -> None:
        check_range("capacity", self.capacity, low=1)
        check_choice("policy", self.policy, ("greedy", "reservoir"))
        check_choice("when", self.when, ("every", "last"))
        check_range("epochs", self.epochs, low=1)
        if self.minibatch is not None:
            check_range("minibatch", self.minibatch, low=1)
        check_range("lr", self.lr, above=0)
        check_range("min_lr", self.min_lr, low=0, high=self.lr)
        if self.clip is not None:
            check_range("clip", self.clip, above=0)
        check_range("cutmix", self.cutmix, low=0)


@register("gdumb")
class GDumb(Strategy):
    """Greedy class-balanced memory; a fresh model is trained on it alone at the end of an event."""

    Config = GDumbConfig
    traits = Traits(
        looks_ahead=True,
        stores_data=True,
        inner_calls="never",
        no_neutral="the model is trained anew, on the memory alone",
        objectives=("classification",),
    )

    def __init__(self, config: GDumbConfig) -> None:
        super().__init__(config)
        self.memory = Memory(config.capacity, config.policy)
        self._visits: Sequence[Tensor] = ()  # in its own phase: which memory rows each step shows

    def check(self, setting: Setting) -> None:
        check_no_part_is_lost(setting, "a fresh model is trained on the memory alone")
        capacity, classes, shape = self.config.capacity, setting.classes_shown, setting.input_shape
        if self.config.policy == "greedy" and classes is not None and capacity < classes:
            raise ConfigurationError(
                f"capacity={capacity} cannot hold one sample of each of {classes} classes, which policy=greedy balances. "
                "Raise it to at least that."
            )
        again = [slot for slot in setting.slots_after if setting.slots[slot].reads_past_data]
        if again:
            raise ConfigurationError(f"plan: {again[0]} would offer samples to the memory again. Put this slot after {again[0]}.")
        if self.config.cutmix and shape is not None and len(shape) != 3:
            raise ConfigurationError(
                f"cutmix={self.config.cutmix:g} mixes images, but an input of this benchmark has shape {tuple(shape)}. Set cutmix=0."
            )

    # --- the sampler ---

    def plan(self, plan: Plan, context: Context) -> Plan:
        return first_pass(plan, self.memory.ids.cpu())

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        self.memory.add(batch, context.random("insert"))

    def forget(self, forgotten: Forgotten, context: Context) -> None:
        self.memory.forget(forgotten.ids, context.random("forget"))

    # --- the learner ---

    def end(self, context: Context) -> Sequence[Phase]:
        if not context.is_last_learn and self.config.when == "last":
            return ()
        steps = self.config.epochs * -(-len(self.memory) // (self.config.minibatch or context.batch_size))
        optimizer: dict[str, Any] = {"name": "sgd", "lr": self.config.lr}
        if self.config.clip is not None:
            optimizer["clip"] = self.config.clip
        return [Phase("train", steps, optimizer=optimizer, fresh_model=True)]  # without samples: a fresh model

    def rate(self, step: int, steps: int, context: Context) -> float:
        if not _own(context):
            return 1.0
        return warm_restarts(step // (steps // self.config.epochs), self.config.lr, self.config.min_lr) / self.config.lr

    def step(self, inner: StepFn, context: Context) -> StepFn:
        if not _own(context):
            return lambda closure: closure.values()
        self._visits = self._passes(context) if len(self.memory) else ()
        return inner

    def _passes(self, context: Context) -> Sequence[Tensor]:
        """Shuffled passes over the memory; in terms of sample ids, so that the order in which they were stored does not count."""
        size = self.config.minibatch or context.batch_size
        plan = Plan.over(torch.arange(len(self.memory)), size, self.config.epochs, context.random("shuffle").generator())
        rows = self.memory.ids.argsort()
        return rows[plan.ids.to(rows.device)].split(plan.offsets.diff().tolist())

    def draw(self, batch: Batch, context: Context) -> Mapping[str, Draw]:
        if not _own(context):
            return {}
        rows = self.memory.rows(self._visits[context.position.step])
        return {"memory": Draw.separate(self._mixed(rows, context) if self.config.cutmix else rows)}

    def _mixed(self, rows: Rows, context: Context) -> Rows:
        generator = context.random("cutmix").at_step()
        chance = random.Random(generator.initial_seed())
        partner = torch.randperm(len(rows), generator=generator).to(rows.targets.device, non_blocking=True)
        assert isinstance(rows.items, Tensor)  # see `check`
        kept = chance.betavariate(self.config.cutmix, self.config.cutmix)
        items, kept = cut_and_paste(rows.items, partner, cut_box(rows.items.shape[2:], kept, (chance.random(), chance.random())))
        share = torch.full(partner.shape, kept, device=partner.device)
        return replace(rows, items=items, extras={"partner": partner, "share": share})

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        draw = batch.draws.get(context.slot, {}).get("memory")
        return {} if draw is None else {"memory": Term(lambda: mixed_loss(output.of(draw).logits, draw.rows, context))}

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.memory.load_state_dict(state["memory"])


def mixed_loss(logits: Tensor, rows: Rows, context: Context) -> Tensor:
    """The mean loss; of mixed rows each label's by the share of the image that is its own."""
    own = context.criterion(logits, rows)
    if "partner" not in rows.extras:
        return own.mean()
    share = rows.extras["share"]
    return (share * own + (1 - share) * context.criterion(logits, rows.take(rows.extras["partner"]))).mean()


def _own(context: Context) -> bool:
    """Whether the phase under way is this slot's, not the stream's."""
    phase = context.position.phase
    return phase is not None and phase.owner == context.slot
