"""Phases as checkpoints keep them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cl_framework.plan import Plan
from cl_framework.strategy import Phase


def phase_state(phase: Phase, *, recomputable: bool) -> dict[str, Any]:
    """A phase as tensors, numbers and text; a plan that follows from the event alone is not stored."""
    return {
        "name": phase.name,
        "owner": phase.owner,
        "optimizer": dict(phase.optimizer),
        "fresh_model": phase.fresh_model,
        "task_term": phase.task_term,
        "plan": None if recomputable else plan_state(phase.plan),
    }


def phase_from_state(state: Mapping[str, Any], recompute: Callable[[], Phase]) -> Phase:
    """The phase that `phase_state` stored; `recompute` gives the event's own phase."""
    plan = recompute().plan if state["plan"] is None else plan_from_state(state["plan"])
    return Phase(state["name"], plan, state["owner"], state["optimizer"], state["fresh_model"], state["task_term"])


def plan_state(plan: Plan | int) -> int | dict[str, Any]:
    if isinstance(plan, int):
        return plan
    columns = {"ids": plan.ids, "offsets": plan.offsets, "view": plan.view, "group": plan.group, "strong": plan.strong}
    return {**columns, "epochs": plan.epochs}


def plan_from_state(state: int | Mapping[str, Any]) -> Plan | int:
    return state if isinstance(state, int) else Plan(**state)
