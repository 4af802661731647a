"""A continual-learning framework: models that learn and unlearn in sequence.

The public names, and nothing else. Each is loaded when it is first used, so that `import cl_framework` and `clu --help` stay fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cl_framework.benchmarks.base import Benchmark, BenchmarkContext
    from cl_framework.benchmarks.own_data import from_datasets, from_task_datasets
    from cl_framework.calls import has_features
    from cl_framework.checks import check_choice, check_range
    from cl_framework.config import load_experiment
    from cl_framework.criterion import answers_asked, asked, mean_asked, squared_distance
    from cl_framework.errors import ConfigurationError, ContractError, FrameworkError
    from cl_framework.exemplars import herding
    from cl_framework.fisher import FisherPass
    from cl_framework.forgetting import forget_phase
    from cl_framework.lending import lent, retained_terms
    from cl_framework.memory import Memory
    from cl_framework.models.freezing import give_up_training
    from cl_framework.models.hypernetwork import TaskConditionedModel, mean_squared_distance, random_subset
    from cl_framework.models.isolated import IsolatedModel
    from cl_framework.models.lora import AdaptedModel, TaskAdaptedModel, adaptable_layers
    from cl_framework.parameters import SELECTABLE, Matrix, matrices, trained_share
    from cl_framework.penalty import WeightedSquares, bregman_divergence, weighted_squares
    from cl_framework.plan import Plan
    from cl_framework.recall import best_interval, decay_exponent, first_rows, recall_intervals, retained
    from cl_framework.registry import register, register_benchmark, register_model
    from cl_framework.runner import resume, run
    from cl_framework.schema import LATER
    from cl_framework.strategy import (
        Batch,
        Closure,
        Context,
        Done,
        Draw,
        Evaluation,
        Forgotten,
        Gradients,
        Output,
        Phase,
        Replay,
        Rows,
        StepFn,
        Strategy,
        Term,
    )
    from cl_framework.stream import Event, Learn, Stream, TaskId, Unlearn
    from cl_framework.traits import Setting, Traits, check_first_to_plan, check_no_part_is_lost

_HOMES = {
    "benchmarks.base": ("Benchmark", "BenchmarkContext"),
    "benchmarks.own_data": ("from_datasets", "from_task_datasets"),
    "calls": ("has_features",),
    "checks": ("check_choice", "check_range"),
    "config": ("load_experiment",),
    "criterion": ("answers_asked", "asked", "mean_asked", "squared_distance"),
    "errors": ("ConfigurationError", "ContractError", "FrameworkError"),
    "exemplars": ("herding",),
    "fisher": ("FisherPass",),
    "forgetting": ("forget_phase",),
    "parameters": ("SELECTABLE", "Matrix", "matrices", "trained_share"),
    "penalty": ("WeightedSquares", "bregman_divergence", "weighted_squares"),
    "lending": ("lent", "retained_terms"),
    "memory": ("Memory",),
    "models.freezing": ("give_up_training",),
    "models.hypernetwork": ("TaskConditionedModel", "mean_squared_distance", "random_subset"),
    "models.isolated": ("IsolatedModel",),
    "models.lora": ("AdaptedModel", "TaskAdaptedModel", "adaptable_layers"),
    "plan": ("Plan",),
    "recall": ("best_interval", "decay_exponent", "first_rows", "recall_intervals", "retained"),
    "registry": ("register", "register_benchmark", "register_model"),
    "runner": ("resume", "run"),
    "schema": ("LATER",),
    "strategy": (
        "Batch",
        "Closure",
        "Context",
        "Done",
        "Draw",
        "Evaluation",
        "Forgotten",
        "Gradients",
        "Output",
        "Phase",
        "Replay",
        "Rows",
        "StepFn",
        "Strategy",
        "Term",
    ),
    "stream": ("Event", "Learn", "Stream", "TaskId", "Unlearn"),
    "traits": ("Setting", "Traits", "check_first_to_plan", "check_no_part_is_lost"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "LATER",
    "SELECTABLE",
    "AdaptedModel",
    "Batch",
    "Benchmark",
    "BenchmarkContext",
    "Closure",
    "ConfigurationError",
    "Context",
    "ContractError",
    "Done",
    "Draw",
    "Evaluation",
    "Event",
    "FisherPass",
    "Forgotten",
    "FrameworkError",
    "Gradients",
    "IsolatedModel",
    "Learn",
    "Matrix",
    "Memory",
    "Output",
    "Phase",
    "Plan",
    "Replay",
    "Rows",
    "Setting",
    "StepFn",
    "Strategy",
    "Stream",
    "TaskAdaptedModel",
    "TaskConditionedModel",
    "TaskId",
    "Term",
    "Traits",
    "Unlearn",
    "WeightedSquares",
    "adaptable_layers",
    "answers_asked",
    "asked",
    "best_interval",
    "bregman_divergence",
    "check_choice",
    "check_first_to_plan",
    "check_no_part_is_lost",
    "check_range",
    "decay_exponent",
    "first_rows",
    "forget_phase",
    "from_datasets",
    "from_task_datasets",
    "give_up_training",
    "has_features",
    "herding",
    "lent",
    "load_experiment",
    "matrices",
    "mean_asked",
    "mean_squared_distance",
    "random_subset",
    "recall_intervals",
    "register",
    "register_benchmark",
    "register_model",
    "resume",
    "retained",
    "retained_terms",
    "run",
    "squared_distance",
    "trained_share",
    "weighted_squares",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'cl_framework' has no attribute {name!r}")
    return getattr(import_module(f"cl_framework.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
