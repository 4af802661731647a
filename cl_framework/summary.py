"""What summary.json holds: the figures of a run, made from its configuration and rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cl_framework.errors import FrameworkError
from cl_framework.metrics import looks_at_losses, stream_of, summarise
from cl_framework.records import RunDirectory, atomic_write
from cl_framework.retention import kept_figures, living_figures
from cl_framework.rows import check_ended
from cl_framework.unlearning.deletion import DeletionLog, check_complete
from cl_framework.unlearning.fast import audit_seconds, unlearning_entries


def read_config(directory: RunDirectory) -> dict[str, Any]:
    """The resolved configuration of a run, as it stands. FrameworkError if it cannot be read or is damaged."""
    remedy = "Restore it, or start the run anew with again=true."
    try:
        config = yaml.safe_load(directory.config.read_text())
    except OSError as error:
        raise FrameworkError(f"{directory.config} cannot be read: {error.strerror}. {remedy}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise FrameworkError(f"{directory.config} is damaged: it is no valid YAML. {remedy}") from error
    if not isinstance(config, dict):
        raise FrameworkError(f"{directory.config} is damaged: it holds no configuration. {remedy}")
    return config


def summary_of(directory: RunDirectory) -> dict[str, Any]:
    """The figures of a run made from its configuration and rows; nothing is written. FrameworkError names a damaged file.

    BrokenChain, which is one, if the deletion record does not hold what was unlearned.
    """
    config, events, records = read_config(directory), directory.events(whole=True), directory.records()
    check_complete(directory)
    check_ended(directory)
    try:
        figures = summarise(config, events, records)
        stream = stream_of(events, records)
        figures |= living_figures(events, figures["accuracy_matrix"], stream)
        figures |= kept_figures(looks_at_losses(records, figures["scenario"]), stream)
        if stream.unlearns:
            done = DeletionLog(directory.path / "deletion").done()
            figures["unlearning"] = unlearning_entries(records, events, done, figures["scenario"])
            figures["audit_seconds"] = audit_seconds(events, done)
    except FrameworkError as error:
        raise FrameworkError(f"{directory.path}: {error}") from error
    return {"fingerprint": directory.path.resolve().name.partition("-s")[0], **figures}


def rebuild_summary(path: Path) -> dict[str, Any]:
    """Make summary.json again from the configuration and the rows of a run, and return it."""
    directory = RunDirectory(path)
    summary = summary_of(directory)
    atomic_write(directory.summary, text_of_summary(summary))
    return summary


def text_of_summary(summary: Mapping[str, Any]) -> str:
    """What summary.json holds."""
    return json.dumps(summary, indent=2) + "\n"
