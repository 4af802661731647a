"""What an oracle's numbers depend on beside its configuration: code, versions, threads, device. Kept states are found by it, too."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import cl_framework
from cl_framework.config import Experiment
from cl_framework.records import environment

_OWN = cl_framework.__name__
_COMPUTE = (_OWN.replace("_", "-"), "torch", "transformers", "tokenizers", "peft")
_SURROUND = ("device", "threads", *(f"version {name}" for name in _COMPUTE))


def surroundings(experiment: Experiment, device: torch.device) -> dict[str, Any]:
    """Digests of the framework's source and of each strategy's, versions, the number of threads, and the type of device.

    The source of a strategy is that of its class's module and of all it takes functions or classes from in the same package; of a class
    that was typed into a session there is none.
    """
    here = environment(device.type, torch.get_num_threads(), experiment.run.deterministic)
    strategies = {slot.slot: digest_of_files(source_files(slot.strategy_class)) for slot in experiment.strategies}
    return {"framework": _framework(), "strategies": strategies, **{key: here[key] for key in _SURROUND}}


@cache  # the files do not change what was imported of them
def _framework() -> str:
    return digest_of_files(Path(cl_framework.__file__).parent.rglob("*.py"))


def digest_of_files(paths: Iterable[Path]) -> str:
    """SHA-256 of names and contents, in the order of the paths; folders do not count."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def source_files(strategy_class: type) -> set[Path]:
    """The files that a strategy is written in; those of the framework are left out."""
    open_modules = {base.__module__ for base in strategy_class.__mro__}
    seen: set[str] = set()
    files = set()
    while open_modules:
        name = open_modules.pop()
        seen.add(name)
        module = sys.modules.get(name)
        path = Path(getattr(module, "__file__", None) or "")
        if module is None or _package(name) == _OWN or path.suffix != ".py":
            continue
        files.add(path)
        open_modules |= {used for used in _modules_used(module) if _package(used) == _package(name)} - seen
    return files


def _modules_used(module: ModuleType) -> set[str]:
    """Names of modules that stand in a module, or that what stands in it comes from."""
    values = list(vars(module).values())
    names = {value.__name__ for value in values if isinstance(value, ModuleType)}
    return names | {value.__module__ for value in values if isinstance(getattr(value, "__module__", None), str)}


def _package(name: str) -> str:
    return name.partition(".")[0]
