"""Tables and plots from records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from cl_framework.metrics import summarise
from cl_framework.records import RunDirectory, atomic_write


def rebuild_summary(path: Path) -> dict[str, Any]:
    """Make summary.json again from the configuration and the rows, and return it."""
    directory = RunDirectory(path)
    config = yaml.safe_load(directory.config.read_text())
    summary = summarise(config, directory.events(), directory.records())
    atomic_write(directory.summary, json.dumps(summary, indent=2) + "\n")
    return summary
