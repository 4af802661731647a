"""Parameters that nothing trains: no strategy, no phase, no optimizer sees them, since they are parameters no more."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

_GIVEN_UP = "_given_up"  # of a module: the names of its buffers that were parameters


def give_up_training(module: nn.Module, kept: Iterable[nn.Parameter] = ()) -> None:
    """Turn every parameter, but those that are kept, into a buffer of the same name: the state dict stays what it was."""
    trained = {id(parameter) for parameter in kept}
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if id(parameter) not in trained:
                del part._parameters[name]
                part.register_buffer(name, parameter.detach())
                setattr(part, _GIVEN_UP, getattr(part, _GIVEN_UP, frozenset()) | {name})


def take_up_training(module: nn.Module) -> None:
    """The reverse: all that was given up is parameters again."""
    for part in module.modules():
        for name in getattr(part, _GIVEN_UP, ()):
            value = part.get_buffer(name)
            delattr(part, name)
            part.register_parameter(name, nn.Parameter(value))
        setattr(part, _GIVEN_UP, frozenset())


def moving_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that a forward pass may write, such as statistics, by name; not what `give_up_training` made of parameters."""
    return {
        f"{path}.{name}" if path else name: buffer
        for path, module in model.named_modules()
        if module._buffers  # to ask each of a small model's modules takes as long as a layer
        for name, buffer in module.named_buffers(recurse=False)
        if name not in getattr(module, _GIVEN_UP, ())
    }
