"""Data sets that torchvision loads, as tensors, with errors that say how to mend them."""

from __future__ import annotations

from types import ModuleType

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
    kind = getattr(import_torchvision().datasets, name)
    folder = context.root / name / "raw"
    try:
        parts = [kind(str(context.root), train=train, download=context.download) for train in (True, False)]
    except (RuntimeError, OSError, ValueError) as error:
        if folder.is_dir() and any(folder.glob("*ubyte.gz")) and not any(folder.glob("*ubyte")):
            raise ConfigurationError(f"{name} in {folder} is still packed. Unpack it: gunzip -k {folder}/*.gz.") from error
        if context.download:
            raise ConfigurationError(f"{name} could not be downloaded to {context.root}: {error}.") from error
        if folder.is_dir() and any(folder.glob("*ubyte")):
            raise ConfigurationError(f"{name} in {folder} cannot be read: {error}. Remove it and load it again.") from error
        raise ConfigurationError(
            f"{name} is not in {folder}. Set data.download=true to fetch it, or data.root=DIR (or CL_DATA) to where {name}/raw lies."
        ) from error
    train, test = (TensorSource(part.data.unsqueeze(1), part.targets) for part in parts)
    return train, test
