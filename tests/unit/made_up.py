"""Made-up data in the formats of the real ones."""

from __future__ import annotations

import hashlib
import pickle
import struct
import tarfile
import zipfile
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


def write_cifar(root: Path, classes: int, train: int, test: int) -> dict[str, str]:
    """CIFAR-10 or -100 in torchvision's layout; every class appears. Returns the md5 of each file, which torchvision compares."""
    hundred = classes == 100
    folder = root / ("cifar-100-python" if hundred else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(classes)
    parts = (
        {"train": train, "test": test} if hundred else {**{f"data_batch_{part}": train // 5 for part in range(1, 6)}, "test_batch": test}
    )
    for name, count in parts.items():
        labels = (torch.arange(count) % classes).tolist()
        pixels = torch.randint(0, 256, (count, 3 * 32 * 32), dtype=torch.uint8, generator=generator).numpy()
        coarse = {"coarse_labels": [label // 5 for label in labels]} if hundred else {}
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "fine_labels" if hundred else "labels": labels, **coarse}))
    names = [f"class {label}" for label in range(classes)]
    meta = folder / ("meta" if hundred else "batches.meta")
    meta.write_bytes(pickle.dumps({"fine_label_names" if hundred else "label_names": names}))
    return {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def write_image(path: Path, size: int, seed: int, mode: str = "RGB") -> None:
    """One image of random pixels, in the format its ending says."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size, size, 3) if mode == "RGB" else (size, size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    Image.fromarray(pixels.numpy()).convert(mode).save(path)


def pack(folder: Path, archive: Path) -> None:
    """A folder's content as a tar.xz or zip."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as opened:
            for path in sorted(folder.rglob("*")):
                opened.write(path, path.relative_to(folder))
    else:
        with tarfile.open(archive, "w:xz") as packed:
            packed.add(folder, ".")
