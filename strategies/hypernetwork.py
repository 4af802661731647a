"""Hypernetwork: the weights of every task are written by one network from the task's embedding, and held where they were.

Source: von Oswald et al. 2020 "Continual learning with hypernetworks", the loss with output regularisation, over a random subset of the
old tasks a step as their longest stream has it; Adhikari et al. 2025 "An Unlearning Framework for Continual Learning", R_learn.
Uses: build, mask, loss, begin, forget, state_dict, load_state_dict
Cost: writing the weights of the batch's task, and forward and backward those of `sampled_tasks` old ones, once more forward for where
they were; no pass over data. The same for a stream of any length. State: one copy of the shared parameters.
Differs: no look-ahead, which the authors' later code drops, too. Old weights are written anew from a copy of the shared parameters, not
stored. Weights start with the target's own mean and variance a tensor, and what the last chunk writes beyond them is cut off and
not held. Normalisation statistics belong to a task; a task's only row in a pass is normalised by them. Chunk embeddings are
trained. The regulariser is the mean over the sampled tasks, whichever number of them there is.
Interacts: needs the task of every row, in evaluation as well, so scenario=task_il: on permuted and rotated digits that is knowing which
permutation it is. Replay of old tasks trains what is shared, never their embeddings. joint and cumulative show old tasks again while
the regulariser holds them: use beta=0 there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn, no_grad

from cl_framework import (
    Batch,
    Context,
    Forgotten,
    Learn,
    Output,
    Phase,
    Strategy,
    TaskConditionedModel,
    TaskId,
    Term,
    Traits,
    check_choice,
    check_range,
    mean_squared_distance,
    random_subset,
    register,
)


@dataclass(frozen=True)
class HypernetworkConfig:
    beta: float = 0.1  # weight of the distance between old tasks' weights now and before this event, >= 0
    sampled_tasks: int = 2  # old tasks held in each step, chosen at random, >= 1
    reduction: str = "sum"  # of squared differences over the weights of a task: sum or mean
    embedding: int = 32  # numbers a task, >= 1
    chunk_embedding: int = 32  # numbers a chunk, >= 1
    hidden: tuple[int, ...] = (128, 128)  # units of each hidden layer of the hypernetwork, each >= 1
    chunk_size: int = 9000  # weights written at once, >= 1

    def __post_init__(self) -> None:
        check_range("beta", self.beta, low=0)
        check_choice("reduction", self.reduction, ("sum", "mean"))
        for name in ("sampled_tasks", "embedding", "chunk_embedding", "chunk_size"):
            check_range(name, getattr(self, name), low=1)
        for units in self.hidden:
            check_range("hidden", units, low=1)


@register("hypernetwork")
class Hypernetwork(Strategy):
    """A task-conditioned hypernetwork writes the model's weights; those of old tasks are held by output regularisation."""

    Config = HypernetworkConfig
    traits = Traits(
        needs_task_id=True,
        needs_boundaries=True,
        no_neutral="the model's weights are written by another network, whatever the settings",
        modalities=("vision",),
        scenarios=("task_il",),
    )

    def __init__(self, config: HypernetworkConfig) -> None:
        super().__init__(config)
        self.before: dict[str, Tensor] = {}  # the shared parameters when the event began; empty where nothing is to be held

    def build(self, model: nn.Module, context: Context) -> nn.Module:
        options = self.config
        return TaskConditionedModel(
            model, context.num_tasks, options.embedding, options.chunk_embedding, options.hidden, options.chunk_size
        )

    def mask(self, context: Context) -> Mapping[str, bool]:
        event = context.position.event
        moving = event.task if isinstance(event, Learn) else None
        return {f"embeddings.{task}": task == moving for task in range(context.num_tasks)}

    def begin(self, context: Context) -> Sequence[Phase]:
        self.before = _model(context).shared_parameters() if held_tasks(context) else {}
        return ()

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        held = held_tasks(context) if self.before else ()
        if not held:
            return {}
        model, options = _model(context), self.config
        count = min(options.sampled_tasks, len(held))
        sampled = [held[index] for index in random_subset(context.random("tasks").uniform(count).tolist(), len(held))]

        def distance() -> Tensor:
            with no_grad():
                then = model.weights_of(sampled, self.before)
            return mean_squared_distance(model.weights_of(sampled), then, options.reduction)

        return {"held": Term(distance, options.beta)}

    def forget(self, forgotten: Forgotten, context: Context) -> None:
        self.before = {}  # it knew the forgotten data; the next event takes its own
        if forgotten.event.granularity == "task":
            _model(context).reset_statistics(forgotten.event.task)

    def state_dict(self) -> dict[str, Any]:
        return {"before": dict(self.before)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.before = dict(state["before"])


def held_tasks(context: Context) -> tuple[TaskId, ...]:
    """The tasks whose weights must stay where they are: learned, not unlearned, and not the one of this event."""
    return tuple(task for task in context.live_tasks if task != context.position.event.task)


def _model(context: Context) -> TaskConditionedModel:
    model = context.model
    assert isinstance(model, TaskConditionedModel)
    return model
