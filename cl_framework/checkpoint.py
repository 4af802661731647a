"""Checkpoints that are whole or not there: written aside, named by their digest, and checked before use."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_framework.errors import FrameworkError
from cl_framework.records import atomic_write

KEPT = 2  # so that a damaged one leaves the one before


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one run: `ckpt/<serial>-<stream step>-<digest>.pt`, plain torch files with tensors, numbers and text."""

    folder: Path

    def paths(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.folder.glob("*-*-*.pt"))

    def save(self, state: Mapping[str, Any], stream_step: int, *, replace_all: bool = False) -> list[str]:
        """Write a checkpoint and drop those beyond the last two; the names of the dropped ones.

        `replace_all` writes two copies and then drops every older one: after an Unlearn nothing older may remain.
        """
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        data = buffer.getvalue()
        digest = hashlib.sha256(data).hexdigest()[:16]
        copies = KEPT if replace_all else 1
        for _ in range(copies):
            atomic_write(self.folder / f"{self._next_serial():06d}-{stream_step:09d}-{digest}.pt", data)
        dropped = self.paths()[:-KEPT]
        for old in dropped:
            old.unlink()
        return [old.name for old in dropped]

    def _next_serial(self) -> int:
        paths = self.paths()
        return int(paths[-1].name.split("-")[0]) + 1 if paths else 0

    def load_latest(self, warn: Callable[[str], None]) -> dict[str, Any] | None:
        """The newest whole checkpoint, or None if there is none. A damaged one is named through `warn` and passed over."""
        damaged: list[str] = []
        whole = None
        for path in reversed(self.paths()):
            problem = damage(path)
            if problem is None:
                whole = path
                break
            damaged.append(f"checkpoint {path} is damaged ({problem})")
        instead = "the run is repeated from its beginning" if whole is None else "the one before is used"
        for place, text in enumerate(damaged):
            warn(f"{text}; {instead}." if place == len(damaged) - 1 else f"{text}.")
        return None if whole is None else torch.load(whole, map_location="cpu", weights_only=True)


def load_state(path: Path) -> dict[str, Any]:
    """The state in a file, its tensors on the host. FrameworkError if it holds none."""
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # what torch raises of other content has no common kind
        raise FrameworkError(f"{path} holds no state: {str(error).partition(chr(10))[0]}") from error


_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")  # what files of weights are called
_STARTS = (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"PK\x03\x04")  # of torch's files: the old form, and an archive
_INSIDE = b"/data.pkl"  # the name of such an archive's first member ends so


def files_of_states(folder: Path) -> list[Path]:
    """The files below `folder` that may hold a model, by their name or by how they begin, and all that lie where checkpoints do."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path in files if path.suffix.lower() in _SUFFIXES or folder / "ckpt" in path.parents or _begins_like_one(path)]


def _begins_like_one(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError:
        return False
    return start.startswith(_STARTS[0]) or (start.startswith(_STARTS[1]) and _INSIDE in start)


def write_state(folder: Path, name: str, state: Mapping[str, Any]) -> None:
    """Write a state to `<name>-<digest>.pt`, whole or not at all: see `damage`."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    data = buffer.getvalue()
    atomic_write(folder / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}.pt", data)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, or None."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    digest = hashlib.sha256(data).hexdigest()[:16]
    return None if path.stem.split("-")[-1] == digest else f"{os.path.getsize(path)} bytes whose digest is not the one in its name"


def state_on(state: Any, device: torch.device) -> Any:
    """A nested state with its tensors on `device`: checkpoints are read to the host."""
    if isinstance(state, Tensor):
        return state.to(device)
    if isinstance(state, Mapping):
        return {name: state_on(part, device) for name, part in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(state_on(part, device) for part in state)
    return state
