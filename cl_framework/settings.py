"""In what the settings of runs differ, in the words one types to set them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

# Keys of a configuration in which two runs may differ without being of different settings; a test holds them to the fingerprint's.
# Reports are made without the plug-ins that a run needed, so configurations are read as they stand.
OUTSIDE_SETTINGS = frozenset(
    {"experiment", "seed", "logger", "wandb", "data", "out", "again", "device", "threads", "checkpoint", "expected"}
)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by their whole names, such as "optimizer.lr"."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def name_settings(summaries: Sequence[dict[str, Any]], configs: Sequence[Mapping[str, Any]]) -> None:
    """Write into each summary in which options its configuration differs from others of the same experiment and strategies.

    Runs read from a CSV have no configuration and bring their settings: options that those name are named of the others too.
    """
    alike: dict[tuple[str, ...], list[tuple[dict[str, Any], dict[str, str]]]] = {}
    named: dict[tuple[str, ...], set[str]] = {}
    for summary, config in zip(summaries, configs, strict=True):
        kind = (summary["experiment"], *summary["strategies"])
        if config:
            options = {key: _shown(value) for key, value in flat(config).items() if key.split(".")[0] not in OUTSIDE_SETTINGS}
            alike.setdefault(kind, []).append((summary, options))
        else:
            named.setdefault(kind, set()).update(re.findall(r"(?:^| )([\w.]+)=", summary["settings"]))
    for kind, runs in alike.items():
        _fill_in(runs)
        keys = dict.fromkeys(key for _, options in runs for key in options)
        differing = [key for key in keys if key in named.get(kind, ()) or len({options.get(key) for _, options in runs}) > 1]
        for summary, options in runs:
            summary["settings"] = " ".join(f"{key}={options[key]}" for key in differing if key in options)


def _fill_in(runs: Sequence[tuple[Mapping[str, Any], dict[str, str]]]) -> None:
    """Give runs from before there was an option the value that says how it was then.

    It is the value of a run with the same fingerprint that has the option: such options came `LATER`.
    """
    sets: dict[str, list[dict[str, str]]] = {}
    for summary, options in runs:
        sets.setdefault(summary["fingerprint"], []).append(options)
    before: dict[str, str] = {}
    for same in sets.values():
        united = {key: value for options in same for key, value in options.items()}
        before |= {key: value for key, value in united.items() if any(key not in options for options in same)}
    for _, options in runs:
        options |= {key: value for key, value in before.items() if key not in options}


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
