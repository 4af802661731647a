"""Image files in a folder or in archives lying there, decoded once into one tensor that is kept for later runs.

The tensor is kept as a .pt file in the folder if that can be written to, else under the user's cache directory; its name holds what the
files looked like, so that other files make another one.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from cl_framework.benchmarks.damaged import readable
from cl_framework.benchmarks.sources import DatasetSource, TensorSource, as_tensor, fits_in_memory
from cl_framework.errors import ConfigurationError

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".zip")
_VERSION = 2  # of what decoding does: another one makes other tensors


@dataclass(frozen=True)
class Images:
    """Decoded images in the order of their names, and the text files beside them."""

    names: list[str]  # paths in the folder or archive, ascending
    items: Tensor  # (N, C, size, size) uint8
    texts: dict[str, str]  # of the text files asked for, by their file names
    sides: tuple[int, int]  # the smallest and the largest height or width of the files, in pixels

    def parts(self, row: int, count: int) -> tuple[str, ...]:
        """The last parts of an image's path: `("train", "cat", "1.png")` of three."""
        return PurePosixPath(self.names[row]).parts[-count:]


def load_images(folder: Path, size: int, channels: int, *, texts: Sequence[str] = (), layout: str, remedy: str) -> Images:
    """All images under a folder, or else in its archives: resized to size x size pixels, grey (1 channel) or colour (3).

    `layout` describes what is expected and `remedy` how to get it, for the ConfigurationError where there are no images.
    """
    files, notes = _files(folder, texts)
    if not files:
        raise ConfigurationError(
            f"{folder} holds no images. Expected {layout}, unpacked or as an archive ({', '.join(ARCHIVES)}). {remedy}"
        )
    name = f"decoded-{size}px-{channels}-{_fingerprint(folder, [*files, *notes], texts)}.pt"
    places = [_cache_folder() / f"{folder.name}-{name}"]
    if os.access(folder, os.W_OK) and folder.stat().st_mode & 0o222:  # root may write where nobody is meant to
        places.insert(0, folder / name)
    for place in places:
        kept = _load(place)
        if kept is not None:
            return kept
    images = _decode(folder, files, notes, size, channels, texts)
    for place in places:
        if _keep(images, place):
            return _load(place) or images
    return images


def source_of(images: Images, rows: Tensor, targets: Tensor, in_memory: str) -> TensorSource | DatasetSource:
    """Some rows as a source: held as a tensor, or left in the kept file and read by workers (`never`, and `auto` where they do not fit)."""
    size = images.items[:1].numel() * len(rows)
    if in_memory == "never" or (in_memory == "auto" and not fits_in_memory(size)):
        return DatasetSource(TensorDataset(images.items), targets, rows)
    return TensorSource(images.items[rows], targets)


# --- decoding ---


def _files(folder: Path, texts: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """The images under a folder and the text files asked for, or, if there are no images, its archives."""
    found = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    images = [path for path in found if path.suffix.lower() in IMAGES]
    if images:
        return images, [path for path in found if path.name in texts]
    return [path for path in found if path.parent == folder and path.name.lower().endswith(ARCHIVES)], []


def _decode(folder: Path, files: list[Path], notes: list[Path], size: int, channels: int, texts: Sequence[str]) -> Images:
    names = sorted(name for name, _ in _members(folder, files, notes, texts, read=False) if name.lower().endswith(IMAGES))
    if not names:
        raise ConfigurationError(f"{', '.join(map(str, files))} holds no images.")
    place_of = {name: place for place, name in enumerate(names)}
    items = torch.empty(len(names), channels, size, size, dtype=torch.uint8)
    found = {}
    smallest, largest = 1 << 30, 0
    for name, data in _members(folder, files, notes, texts, read=True):
        if name in place_of:
            items[place_of[name]], sides = pixels(name, BytesIO(data), size, channels)
            smallest, largest = min(smallest, *sides), max(largest, *sides)
        else:
            found[PurePosixPath(name).name] = data.decode(errors="replace")
    return Images(names, items, found, (smallest, largest))


def _members(folder: Path, files: list[Path], notes: list[Path], texts: Sequence[str], read: bool) -> Iterator[tuple[str, bytes]]:
    """Name and content (empty unless `read`) of each image and each text file asked for."""

    def wanted(name: str) -> bool:
        return name.lower().endswith(IMAGES) or PurePosixPath(name).name in texts

    if not files[0].name.lower().endswith(ARCHIVES):
        for path in [*files, *notes]:
            yield path.relative_to(folder).as_posix(), path.read_bytes() if read else b""
        return
    for archive in files:
        with readable(archive, "Replace it."):
            if archive.suffix.lower() == ".zip":
                with zipfile.ZipFile(archive) as opened:
                    for name in filter(wanted, opened.namelist()):
                        yield name, opened.read(name) if read else b""
            else:
                with tarfile.open(archive) as packed:
                    for member in packed:
                        if member.isfile() and wanted(member.name):
                            content = packed.extractfile(member) if read else None
                            yield member.name, content.read() if content else b""


def pixels(name: object, file: Path | BytesIO, size: int, channels: int) -> tuple[Tensor, tuple[int, int]]:
    """An image as (channels, size, size) uint8, and the width and height of its file. Raises ConfigurationError that names a broken one."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            plain = image.convert("L" if channels == 1 else "RGB")
            resized = plain if plain.size == (size, size) else plain.resize((size, size), Image.Resampling.BILINEAR)
            return as_tensor(resized), plain.size
    # What Pillow's decoders raise on broken files, by trial: not all of it is an OSError.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigurationError(f"{name} is no readable image ({error}). Remove or replace it.") from error


# --- keeping ---


def _fingerprint(folder: Path, files: list[Path], texts: Sequence[str]) -> str:
    """Of names, sizes and times of change."""
    digest = hashlib.sha256(repr((_VERSION, tuple(texts))).encode())
    for path in files:
        state = path.stat()
        digest.update(f"{path.relative_to(folder).as_posix()} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cl_framework"


def _load(place: Path) -> Images | None:
    """What was kept, left on disk until read; None if there is nothing or it is broken."""
    if not place.is_file():
        return None
    try:
        kept = torch.load(place, mmap=True, weights_only=True)
        return Images(kept["names"], kept["items"], kept["texts"], kept["sides"])
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError):  # it can be made again
        return None


def _keep(images: Images, place: Path) -> bool:
    """Write it whole or not at all."""
    part = place.with_suffix(f".{os.getpid()}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"names": images.names, "items": images.items, "texts": images.texts, "sides": images.sides}, part)
        part.replace(place)
    except (OSError, RuntimeError):  # torch reports a folder it cannot write to as a RuntimeError
        part.unlink(missing_ok=True)
        return False
    return True
