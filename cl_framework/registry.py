"""What can be named in a configuration: strategies, benchmarks and models, from entry points and from `@register`.

Built-ins arrive through the same entry points as a stranger's plug-in. Each is loaded only when its name is used; a broken one is
listed as broken and stops nobody else, and two distributions that claim one name are both named.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from functools import lru_cache, partial
from importlib import metadata
from typing import Any, TypeVar

from cl_framework.errors import ConfigurationError, FrameworkError, nearest

Registered = TypeVar("Registered")


@dataclass(frozen=True)
class Entry:
    """One name of a registry. `load` gives the object or raises FrameworkError with the reason it cannot."""

    name: str
    kind: str  # "strategy", "benchmark" or "model"
    origins: tuple[str, ...]  # distributions or modules that claim the name; more than one is a clash
    load: Callable[[], Any]

    @property
    def origin(self) -> str:
        return " and ".join(self.origins)

    @property
    def status(self) -> str:
        """`ok`, or `broken: <reason>`, or `clash: <who>`."""
        if len(self.origins) > 1:
            return f"clash: {self.origin}"
        try:
            self.load()
        except FrameworkError as error:
            return f"broken: {error}"
        return "ok"

    @property
    def summary(self) -> str:
        """The first line of the object's card."""
        if self.status != "ok":
            return ""
        loaded = self.load()
        text = loaded.__doc__ or sys.modules[loaded.__module__].__doc__ or ""
        return text.strip().partition("\n")[0]


class Registry:
    """Names of one kind."""

    def __init__(self, kind: str, group: str, check: Callable[[str, Any], None]) -> None:
        self.kind = kind
        self.group = group
        self._check = check
        self._in_process: dict[str, Any] = {}

    def add(self, name: str, registered: Any) -> None:
        """Register an object in this process; the same object twice is fine, another one under its name is refused."""
        self._check(name, registered)
        known = self._in_process.get(name)
        if known is not None and _place(known) != _place(registered):
            raise ConfigurationError(
                f"{self.kind} {name!r} is registered twice: by {_place(known)} and by {_place(registered)}. Rename one of them."
            )
        self._in_process[name] = registered

    def remove(self, name: str) -> None:
        """Take back what `add` registered in this process."""
        self._in_process.pop(name, None)

    def get(self, name: str) -> Any:
        """The object registered as `name`, loaded. Raises ConfigurationError for unknown and clashing names."""
        entry = self._entries().get(name)
        if entry is None:
            raise ConfigurationError(
                f"there is no {self.kind} named {name!r}. {nearest(name, self._entries())} If it is a plug-in's, install that again."
            )
        if len(entry.origins) > 1:
            raise ConfigurationError(f"{self.kind} {name!r} is claimed by {entry.origin}. Uninstall one of them.")
        return entry.load()

    def entries(self) -> list[Entry]:
        """All names, sorted, broken and clashing ones included."""
        return [entry for _, entry in sorted(self._entries().items())]

    def _entries(self) -> dict[str, Entry]:
        found = _installed(self.group, tuple(sys.path))
        entries = {name: self._entry_from_points(name, points) for name, points in found.items()}
        for name, registered in self._in_process.items():
            known = found.get(name, {})
            same = any(point.value == _place(registered) for point in known.values())
            origins = tuple(known) if same else (*known, f"registered in {registered.__module__}")
            entries[name] = Entry(name, self.kind, origins, partial(_itself, registered))
        return entries

    def _entry_from_points(self, name: str, points: dict[str, metadata.EntryPoint]) -> Entry:
        return Entry(name, self.kind, tuple(sorted(points)), lambda: self._load(name, next(iter(points.values()))))

    def _load(self, name: str, point: metadata.EntryPoint) -> Any:
        distribution = point.dist.name if point.dist is not None else "an unknown distribution"
        try:
            loaded = point.load()
            self._check(name, loaded)
        except (Exception, SystemExit) as error:  # whatever a stranger's module does at import, it must not stop the others
            raise FrameworkError(
                f"{self.kind} {name!r} of {distribution} cannot be loaded ({point.value}): "
                f"{type(error).__name__}: {str(error).rstrip('.')}. Mend it, or uninstall {distribution}."
            ) from error
        return loaded


@lru_cache(maxsize=16)
def _installed(group: str, path: tuple[str, ...]) -> dict[str, dict[str, metadata.EntryPoint]]:
    """Entry points by name and distribution. Every distribution's files are read for that, so once for each import path."""
    found: dict[str, dict[str, metadata.EntryPoint]] = {}
    for point in metadata.entry_points(group=group):
        distribution = point.dist
        origin = f"{distribution.name} {distribution.version}" if distribution is not None else "an unknown distribution"
        found.setdefault(point.name, {})[origin] = point
    return found


def _itself(registered: Any) -> Any:
    return registered


def _place(registered: Any) -> str:
    return f"{registered.__module__}:{registered.__qualname__}"


def _check_strategy(name: str, registered: Any) -> None:
    from cl_framework.seams import SEAMS, misspelt_seams
    from cl_framework.strategy import Strategy

    if not (isinstance(registered, type) and issubclass(registered, Strategy)):
        raise ConfigurationError(f"strategy {name!r} is no subclass of cl_framework.Strategy.")
    for seam in misspelt_seams(registered):
        raise ConfigurationError(
            f"strategy {name!r} has a public method {seam!r}, which is no seam. {nearest(seam, SEAMS)} "
            "Private methods start with an underscore."
        )
    _check_options(f"strategy {name!r}", registered.Config)


def _check_builder(name: str, registered: Any) -> None:
    if not callable(registered) or not hasattr(registered, "Options"):
        raise ConfigurationError(f"{name!r} is no builder: decorate a function with @register_benchmark or @register_model.")
    _check_options(repr(name), registered.Options)


def _check_options(who: str, options: Any) -> None:
    if not is_dataclass(options) or not getattr(options, "__dataclass_params__").frozen:  # noqa: B009
        raise ConfigurationError(f"the options of {who} ({options!r}) are no frozen dataclass.")


strategies = Registry("strategy", "cl_framework.strategies", _check_strategy)
benchmarks = Registry("benchmark", "cl_framework.benchmarks", _check_builder)
models = Registry("model", "cl_framework.models", _check_builder)


def register(name: str) -> Callable[[type[Registered]], type[Registered]]:
    """Class decorator: make a Strategy available as `name`."""

    def decorate(strategy: type[Registered]) -> type[Registered]:
        strategies.add(name, strategy)
        return strategy

    return decorate


def register_benchmark(name: str, options: type) -> Callable[[Registered], Registered]:
    """Decorator of a builder `(options, context) -> Benchmark`; `options` is its frozen dataclass."""
    return _register_builder(benchmarks, name, options)


def register_model(name: str, options: type) -> Callable[[Registered], Registered]:
    """Decorator of a builder `(options, benchmark) -> nn.Module`; `options` is its frozen dataclass."""
    return _register_builder(models, name, options)


def _register_builder(registry: Registry, name: str, options: type) -> Callable[[Registered], Registered]:
    def decorate(builder: Registered) -> Registered:
        builder.Options = options  # type: ignore[attr-defined]
        registry.add(name, builder)
        return builder

    return decorate
