"""Digests of nested states: equal exactly when every tensor, number and text in them is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def digest_of(state: Any) -> str:
    """SHA-256 of nested mappings, lists, tensors, numbers and text; the order of a mapping's keys does not count."""
    digest = hashlib.sha256()
    _feed(digest, state)
    return digest.hexdigest()


def _feed(digest: Any, state: Any) -> None:
    if isinstance(state, Tensor):
        digest.update(f"tensor {state.dtype} {tuple(state.shape)}:".encode())
        digest.update(bytes_of(state))
    elif isinstance(state, Mapping):
        digest.update(f"mapping {len(state)}:".encode())
        for key in sorted(state, key=lambda key: (str(type(key)), str(key))):
            _feed(digest, key)
            _feed(digest, state[key])
    elif isinstance(state, list | tuple):
        digest.update(f"list {len(state)}:".encode())
        for part in state:
            _feed(digest, part)
    else:
        text = f"{type(state).__name__} {state!r}"
        digest.update(f"{len(text)} {text}:".encode())


def bytes_of(tensor: Tensor) -> bytes:
    """The values of a tensor as they lie in memory, whatever its dtype."""
    import torch

    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
