"""A device that is only pretended: tensors say that they lie on `meta`, and their numbers are on the host.

As on a real accelerator an operation refuses tensors that lie apart, a generator of the host draws nothing there, and what the host
must wait for is known. So what an accelerator would refuse shows up on a machine without one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

ELSEWHERE = torch.device("meta")
_OVER = ("aten::_to_copy", "aten::copy_", "aten::set_data")  # between devices
_PLACES = ("aten::index", "aten::index_put_", "aten::_unsafe_index", "aten::index_put")  # places may lie on the host, which waits
_ASKING = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "bincount", "item")
_ASKS = {f"aten::{name}" for name in _ASKING}  # whose result, or the size of it, the host must know


class Apart(RuntimeError):
    """Tensors on two devices met, or in two layouts where a kernel wants one."""


class Waits(AssertionError):
    """The host waited for the device where it must not."""


class Elsewhere(Tensor):
    """A tensor on the pretended device."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        made: Elsewhere = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=ELSEWHERE
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.detach().held.__reduce_ex__(protocol)  # what is saved is read to the host

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **options: Any) -> Any:
        raise TypeError("can't convert a tensor on a device to numpy: copy it to the host first")

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.detach().held!r})"


_watching = [False]
_GENERATORS_THERE: list[torch.Generator] = []  # some of the newest: they take no weak references


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name
    flat = tree_flatten((args, kwargs))[0]
    there = [value for value in flat if isinstance(value, Elsewhere)]
    here = [value for value in flat if isinstance(value, Tensor) and not isinstance(value, Elsewhere) and value.ndim]
    assert all(value.device != ELSEWHERE for value in here), f"{name}: torch made a tensor there that holds nothing, of a list of places"
    asked = kwargs.get("device")
    leaves = bool(there) and asked is not None and torch.device(asked) != ELSEWHERE
    if there and here and name not in _OVER and not (name in _PLACES and isinstance(args[0], Elsewhere)):
        raise Apart(f"{name}: expected all tensors to be on the same device")
    goes = bool(there) or (asked is not None and torch.device(asked) == ELSEWHERE)
    there_too = {made._cdata for made in _GENERATORS_THERE}  # an operation gets another object for the same generator
    drawing = [value for value in flat if isinstance(value, _real_generator) and value._cdata not in there_too]
    if goes and not leaves and drawing:
        raise Apart(f"{name}: expected a generator of the device")
    if name.startswith("aten::_fused_adam") and any(
        gradient.stride() != own.stride() for own, gradient in zip(args[0], args[1], strict=True)
    ):
        raise Apart(f"{name}: params and grads must have the same layout")
    if _watching[0] and (reason := _wait(name, args, kwargs, bool(there), leaves)):
        raise Waits(f"{name} waits for the device: {reason}")
    if asked is not None and torch.device(asked) == ELSEWHERE:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    plain_args, plain_kwargs = tree_map(_held, (args, kwargs))
    result = func(*plain_args, **plain_kwargs)
    if name == "aten::copy_" and not isinstance(args[0], Elsewhere):
        return args[0]
    if not goes or leaves:
        return result
    wrapped = tree_map(lambda value: Elsewhere(value) if isinstance(value, Tensor) else value, result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if there else wrapped


def _wait(name: str, args: Any, kwargs: Any, there: bool, leaves: bool) -> str:
    """Why the host waits for the device in this operation, some of whose tensors lie `there`; "" if it does not."""
    if there and (name in _ASKS or (name == "aten::repeat_interleave" and kwargs.get("output_size") is None)):
        return "its result is needed"
    if leaves or (name == "aten::copy_" and there and not isinstance(args[0], Elsewhere)):
        return "it comes to the host"
    if there and name in _PLACES:
        places = [place for place in args[1] if place is not None]
        if any(place.dtype in (torch.bool, torch.uint8) for place in places):
            return "how many places a mask has is needed"
        if any(not isinstance(place, Elsewhere) and place.ndim for place in places):
            return "its places lie on the host"
    arrives = name == "aten::_to_copy" and not there and kwargs.get("device") is not None and torch.device(kwargs["device"]) == ELSEWHERE
    if arrives and not kwargs.get("non_blocking"):
        return "it is brought there without non_blocking"
    return ""


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Elsewhere) else value


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Factories(TorchFunctionMode):
    """torch makes no numbers for `meta`: they are made on the host and brought there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == ELSEWHERE:
            return func(*args, **{**kwargs, "device": "cpu"}).to(ELSEWHERE)
        return func(*args, **kwargs)


@contextmanager
def a_device_elsewhere() -> Iterator[None]:
    """Within it `torch.device("meta")` is a device on which things are computed."""
    with (
        _Mode(),
        _Factories(),
        patch.object(torch, "autocast", _autocast),
        patch.object(torch, "Generator", _Generator),
        patch("torch.optim.optimizer._get_fused_kernels_supported_devices", lambda: ["cpu", ELSEWHERE.type]),
    ):
        yield


_real_autocast, _real_generator = torch.autocast, torch.Generator


def _autocast(kind: str, **options: Any) -> Any:
    return _real_autocast("cpu" if torch.device(kind) == ELSEWHERE else kind, **options)


class _Generator:
    """One of the pretended device is one of the host that is known to be there."""

    def __new__(cls, device: Any = "cpu") -> Any:
        made = _real_generator()
        if torch.device(device) == ELSEWHERE:
            _GENERATORS_THERE[:] = [*_GENERATORS_THERE[-7:], made]
        return made


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Raises Waits where the host would wait for the device."""
    before, _watching[0] = _watching[0], True
    try:
        yield
    finally:
        _watching[0] = before
