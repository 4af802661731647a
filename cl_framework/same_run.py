"""What a run that is continued must share with the one that its checkpoint is of: configuration, seed and data."""

from __future__ import annotations

from typing import Any

from cl_framework.config import GIVEN, Experiment, GivenOptions, load_experiment
from cl_framework.errors import ConfigurationError
from cl_framework.learner import Learner
from cl_framework.records import RunDirectory

_REMEDY = "Undo that, or start a new run."


def check_same_configuration(experiment: Experiment, state: dict[str, Any] | None, directory: RunDirectory) -> None:
    """Refuse to continue under another configuration or seed, and name the key that differs."""
    if state is None:
        here = RunDirectory.create("", "", experiment.fingerprint, experiment.run.seed).path.name
        if directory.path.name != here:
            raise ConfigurationError(
                f"{directory.path} has no checkpoint to compare with, and its configuration belongs in a folder named {here}: "
                f"it was renamed, or started under another configuration than the one asked for now. {_REMEDY}"
            )
        return
    object_given = experiment.benchmark if isinstance(experiment.benchmark.options, GivenOptions) else None
    if object_given is not None and state["config"]["benchmark"].get(GIVEN) != object_given.options.given:
        raise ConfigurationError(f"{directory.path} was started on other data than the benchmark given now. {_REMEDY}")
    if state["fingerprint"] == experiment.fingerprint and state["config"]["seed"] == experiment.run.seed:
        return
    started = load_experiment(state["config"], given=object_given)
    keys = experiment.differing_keys(started)
    if experiment.run.seed != started.run.seed:
        keys.insert(0, f"seed is {experiment.run.seed}, was {started.run.seed}")
    if not keys:  # both read the files as they are now
        keys = ["a file of ids in the stream has changed or is gone, or what the options mean in this version of the package"]
    raise ConfigurationError(f"{directory.path} was started under another configuration: {'; '.join(keys)}. {_REMEDY}")


def check_same_data(state: dict[str, Any] | None, learner: Learner, directory: RunDirectory) -> None:
    """Refuse to continue on other samples: files that a benchmark reads may have changed. Checkpoints of earlier versions do not tell."""
    now, before = learner.benchmark.digests, (state or {}).get("data", {})
    shared = next((kind for kind in now if kind in before), None)  # all samples, where they were in memory then and are now
    if shared is not None and now[shared] != before[shared]:
        name = learner.benchmark.name
        raise ConfigurationError(f"{directory.path} was started on other data than benchmark {name!r} gives now. {_REMEDY}")
