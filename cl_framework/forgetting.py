"""The phase of a strategy that unlearns by gradient steps over what is to be forgotten."""

from __future__ import annotations

from cl_framework.plan import Plan
from cl_framework.strategy import Context, Phase


def forget_phase(name: str, context: Context, *, lr: float, steps: int, epochs: int) -> Phase:
    """Plain SGD over the samples that are asked for, shuffled anew in each epoch, without the loss of the task.

    lr > 0, the rate; steps >= 1, at most so many are taken; epochs >= 1. The order is that of the strategy's own random stream `shuffle`.
    """
    plan = Plan.over(context.requested_ids, context.batch_size, epochs, context.random("shuffle").generator())
    sgd = {"name": "sgd", "lr": lr, "momentum": 0.0, "weight_decay": 0.0}
    return Phase(name, plan.head(steps), optimizer=sgd, task_term=False)
