"""Made-up data in the formats of the real ones."""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from torch import Tensor


def write_idx(path: Path, values: Tensor) -> None:
    """A tensor of bytes in the idx format of MNIST."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(header + values.to(torch.uint8).numpy().tobytes())


def write_mnist(root: Path, name: str = "MNIST", train: int = 60, test: int = 20) -> None:
    """Images and labels in torchvision's layout; every class appears."""
    generator = torch.Generator().manual_seed(len(name))
    for part, count in (("train", train), ("t10k", test)):
        folder = root / name / "raw"
        write_idx(folder / f"{part}-images-idx3-ubyte", torch.randint(0, 256, (count, 28, 28), generator=generator))
        write_idx(folder / f"{part}-labels-idx1-ubyte", torch.arange(count) % 10)


def write_images(root: Path, names: list[str], count: int, size: int = 9) -> None:
    """PNG files in a folder a class."""
    from PIL import Image

    generator = torch.Generator().manual_seed(count)
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = torch.randint(0, 256, (size, size, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(root / name / f"{number}.png")
