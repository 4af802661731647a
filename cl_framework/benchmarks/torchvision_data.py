"""Data sets that torchvision loads, as tensors, with errors that say how to mend them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from cl_framework.benchmarks.base import BenchmarkContext
from cl_framework.benchmarks.sources import TensorSource
from cl_framework.errors import ConfigurationError


def import_torchvision() -> ModuleType:
    """torchvision, or one sentence about a torch that does not match it."""
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:
        raise ConfigurationError(
            f"torchvision does not work with torch {torch.__version__} ({str(error).splitlines()[0]}). "
            "Install a matching pair: pip install torch==2.12.1 torchvision==0.27.1."
        ) from error
    return torchvision


def load_mnist(name: str, context: BenchmarkContext) -> tuple[TensorSource, TensorSource]:
    """MNIST or FashionMNIST: training and test images (N, 1, 28, 28) uint8 from `<root>/<name>/raw`, downloaded if allowed."""
    train, test = (TensorSource(part.data.unsqueeze(1), part.targets) for part in open_data(name, context))
    return train, test


def open_data(name: str, context: BenchmarkContext) -> list[Any]:
    """torchvision's training and test set of this name, downloaded if allowed. Raises ConfigurationError where they cannot be read."""
    kind = getattr(import_torchvision().datasets, name)
    folder = context.root / getattr(kind, "base_folder", f"{name}/raw")
    try:
        return [kind(str(context.root), train=train, download=context.download) for train in (True, False)]
    except (RuntimeError, OSError, ValueError, AssertionError) as error:  # the last of a file that is no such file
        raise ConfigurationError(_remedy(name, folder, context, error)) from error


def _remedy(name: str, folder: Path, context: BenchmarkContext, error: Exception) -> str:
    unpacked = folder.is_dir() and any(path.suffix != ".gz" for path in folder.iterdir())
    if folder.is_dir() and not unpacked and any(folder.glob("*.gz")):
        return f"{name} in {folder} is still packed. Unpack it: gunzip -k {folder}/*.gz."
    if context.download:
        return f"{name} could not be downloaded to {context.root}: {error}."
    if unpacked:
        return f"{name} in {folder} cannot be read: {str(error) or 'a file is damaged'}. Remove it and load it again."
    where = folder.relative_to(context.root)
    return f"{name} is not in {folder}. Set data.download=true to fetch it, or data.root=DIR (or CL_DATA) to where {where} lies."
