"""Configuration: a run schema, then each slot's own dataclass of options. What is wrong is named before any data is read.

Only this module and the command line know OmegaConf. What leaves here are plain dataclasses.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from cl_framework import registry
from cl_framework.checks import check_choice, check_range
from cl_framework.errors import ConfigurationError, nearest
from cl_framework.metrics import PROBES
from cl_framework.schema import LATER, RunConfig
from cl_framework.settings import flat
from cl_framework.stream import ids_files_in, parse_requests
from cl_framework.structured import first_line, structured

GIVEN = "given"  # key of a benchmark that was given as an object

# What does not change numbers: not part of the fingerprint.
_OUTSIDE = ("experiment", "seed", "logger", "wandb", "data", "out", "again", "device", "threads", "checkpoint", "expected")

_MOST = 10**9  # samples in a batch, or epochs: beyond it numbers overflow
_MOST_THREADS = 512  # more than any machine has processors: each is a real one, and they get in each other's way
NOT_RESUMED = ("out", "experiment", "again")  # where a run is and how it starts: a resume takes none of them


@dataclass(frozen=True)
class Named:
    """A registered benchmark or model with its options."""

    name: str
    options: Any
    builder: Any


@dataclass(frozen=True)
class GivenOptions:
    """What stands in a configuration for a benchmark that was given as an object."""

    given: str  # digest of its samples


@dataclass(frozen=True)
class Slot:
    """A strategy in its slot."""

    slot: str
    name: str
    strategy_class: Any
    options: Any


@dataclass(frozen=True)
class Experiment:
    """A checked configuration."""

    run: RunConfig  # benchmark, model and strategies in it are resolved: every default is written out
    benchmark: Named
    model: Named
    strategies: tuple[Slot, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything resolved, defaults written out; `load_experiment` of it gives the same experiment."""
        return asdict(self.run)

    def to_yaml(self) -> str:
        return OmegaConf.to_yaml(OmegaConf.create(self.to_dict()))

    @property
    def numbers(self) -> dict[str, Any]:
        """What changes numbers, apart from the seed."""
        values = self.to_dict()
        strategies = {slot.slot: _without_later(slot.options, values["strategies"][slot.slot]) for slot in self.strategies}
        values |= {
            "benchmark": _without_later(self.benchmark.options, values["benchmark"]),
            "model": _without_later(self.model.options, values["model"]),
            "strategies": strategies,
        }
        files = {"ids_files": digests} if (digests := _ids_files(self.run)) else {}
        return {key: value for key, value in _without_later(self.run, values).items() if key not in _OUTSIDE} | files

    @property
    def fingerprint(self) -> str:
        """Hex digest of `numbers`; the order of strategies counts, that of other keys does not."""
        numbers = dict(self.numbers)
        numbers["strategies"] = list(numbers["strategies"].items())
        return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()

    def with_benchmark(self, given: Named) -> Experiment:
        """The same experiment on a benchmark that is an object in this process."""
        return replace(self, benchmark=given, run=replace(self.run, benchmark={"name": given.name, **_plain(given.options)}))

    def differing_keys(self, other: Experiment) -> list[str]:
        """Sentences "key is X, was Y" for the values in the fingerprint that differ from `other`'s."""
        mine, theirs = flat(self.numbers), flat(other.numbers)
        absent = "absent"
        keys = [key for key in (mine | theirs) if mine.get(key, absent) != theirs.get(key, absent)]
        found = [f"{key} is {mine.get(key, absent)!r}, was {theirs.get(key, absent)!r}" for key in keys]
        if not found and self.fingerprint != other.fingerprint:
            found = ["the order of strategies differs"]
        return found


def load_experiment(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), *, given: Named | None = None) -> Experiment:
    """Read a YAML file (or a mapping), apply overrides `a.b=c`, `~a.b`, and check everything.

    `given` stands for a benchmark that is an object in this process and not one that the file can name.
    Raises ConfigurationError naming the key, the value got, and what is allowed.
    """
    raw = OmegaConf.create(dict(source)) if isinstance(source, Mapping) else _read(Path(source))
    for override in overrides:
        _override(raw, override)
    if not _named_by_user(raw):
        raw["experiment"] = "unnamed" if isinstance(source, Mapping) else Path(source).stem
    run = structured(RunConfig, raw, "")
    _check_run(run)
    benchmark = given or _named(registry.benchmarks, "benchmark", run.benchmark)
    model = _named(registry.models, "model", run.model)
    strategies = tuple(_slot(slot, options) for slot, options in run.strategies.items())
    resolved = replace(
        run,
        benchmark={"name": benchmark.name, **_plain(benchmark.options)},
        model={"name": model.name, **_plain(model.options)},
        strategies={slot.slot: {"use": slot.name, **_plain(slot.options)} for slot in strategies},
    )
    return Experiment(resolved, benchmark, model, strategies)


def _named_by_user(raw: DictConfig) -> bool:
    try:
        return bool(raw.get("experiment"))
    except OmegaConfBaseException as error:
        raise ConfigurationError(f"experiment: {first_line(error)}.") from error


def _ids_files(run: RunConfig) -> dict[str, str]:
    """Digests of the files whose ids the stream unlearns; one that cannot be read is refused when the stream is checked."""
    paths = sorted({*ids_files_in(run.stream), *ids_files_in(run.without)})
    return {path: hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] for path in paths if Path(path).is_file()}


def _without_later(options: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` less the options that came `LATER` and say how it was before: such a run is the run it was when there was no such option."""
    later = [option for option in fields(options) if LATER.items() <= option.metadata.items()] if is_dataclass(options) else []
    before = {option.name: option.metadata.get("before", _default(option)) for option in later}
    return {name: value for name, value in values.items() if name not in before or value != before[name]}


def _default(option: Field[Any]) -> Any:
    return option.default if option.default_factory is MISSING else option.default_factory()


def _read(path: Path) -> DictConfig:
    try:
        raw = OmegaConf.load(path)
    except FileNotFoundError as error:
        raise ConfigurationError(f"there is no experiment file {path}. `clu list experiments` shows what there is.") from error
    except OSError as error:
        raise ConfigurationError(f"the experiment file {path} cannot be read: {error.strerror}. Name a YAML file.") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"the experiment file {path} cannot be read: {error}. Write it in UTF-8.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark is not None else ""
        raise ConfigurationError(f"{path} is no valid YAML{where}: {getattr(error, 'problem', None) or error}.") from error
    except OmegaConfBaseException as error:
        raise ConfigurationError(f"{path}: {first_line(error)}. Put quotes around a key that YAML takes for something else.") from error
    if not isinstance(raw, DictConfig):
        raise ConfigurationError(f"{path} must hold keys and values, not a {'list' if isinstance(raw, ListConfig) else 'single value'}.")
    return raw


def _override(raw: DictConfig, text: str) -> None:
    if text.startswith("~"):
        _remove(raw, text[1:])
        return
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigurationError(
            f"cannot read the override {text!r}. Write key=value, for example seed=3, or ~strategies.er to remove one."
        )
    try:
        parsed = value if key in ("stream", "without", "experiment") else OmegaConf.create(f"value: {value}").value
    except InterpolationResolutionError as error:
        raise ConfigurationError(f"{text!r} refers to something that is not there: {first_line(error)}.") from error
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigurationError(f"cannot read the value of {text!r}. Put quotes around text with special characters.") from error
    *parents, last = key.split(".")
    if not all((*parents, last)):
        raise ConfigurationError(f"{text!r}: a name is missing in {key!r}. Write key=value, for example optimizer.lr=0.1.")
    node = raw
    for parent in parents:
        if parent not in node or node[parent] is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, DictConfig):
            raise ConfigurationError(f"{text!r}: {parent!r} holds a value and no options.")
    node[last] = parsed


def _remove(raw: DictConfig, key: str) -> None:
    *parents, last = key.split(".")
    node: Any = raw
    for parent in parents:
        node = node.get(parent) if isinstance(node, DictConfig) else None
    if not isinstance(node, DictConfig) or last not in node:
        known = node.keys() if isinstance(node, DictConfig) else []
        raise ConfigurationError(f"~{key}: there is nothing to remove. {nearest(last, map(str, known))}")
    del node[last]


def _named(known: registry.Registry, kind: str, given: Mapping[str, Any]) -> Named:
    options = dict(given)
    name = options.pop("name", None)
    if not name:
        raise ConfigurationError(f"{kind}.name is missing. `clu list {kind}s` shows what there is.")
    if GIVEN in options:
        raise ConfigurationError(
            f"benchmark {name!r} was given as an object, which a file cannot hold. Continue from Python: resume(RUN_DIR, benchmark=...)."
        )
    builder = known.get(str(name))
    return Named(str(name), _options(builder.Options, options, kind, str(name)), builder)


def _options(schema: type, given: Mapping[str, Any], path: str, name: str) -> Any:
    known = {option.name for option in fields(schema)}
    unknown = [key for key in given if key not in known]
    if unknown:
        raise ConfigurationError(
            f"{path}.{unknown[0]}: unknown option of {name!r}. {nearest(unknown[0], known)} "
            f"If the file sets it for another {'strategy' if path.startswith('strategies') else path}, remove it with ~{path}.{unknown[0]}."
        )
    return structured(schema, given, path)


def _slot(slot: str, given: Any) -> Slot:
    if given is None:
        given = {}
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"strategies.{slot} must be options such as {{}} or {{capacity: 500}}, got {given!r}.")
    options = dict(given)
    name = str(options.pop("use", slot))
    strategy_class = registry.strategies.get(name)
    return Slot(slot, name, strategy_class, _options(strategy_class.Config, options, f"strategies.{slot}", name))


def _check_run(run: RunConfig) -> None:
    if Path(run.experiment).name != run.experiment or run.experiment == "..":
        raise ConfigurationError(f"experiment must be the name of one folder, got {run.experiment!r}. Set out=DIR for where it lies.")
    try:
        check_choice("scenario", run.scenario, ("", "class_il", "task_il", "domain_il"))
        check_choice("evaluate", run.evaluate, ("all", "seen"))
        check_choice("logger", run.logger, ("none", "wandb"))
        check_choice("device", run.device, ("auto", "cpu", "cuda"))
        check_choice("precision", run.precision, ("32-true", "bf16-mixed"))
        check_choice("wandb.mode", run.wandb.mode, ("offline", "online"))
        check_choice("data.in_memory", run.data.in_memory, ("auto", "always", "never"))
        check_choice("optimizer.name", run.optimizer.name, ("sgd", "adam", "adamw"))
        check_choice("optimizer.reset", run.optimizer.reset, ("event", "never"))
        check_range("optimizer.lr", run.optimizer.lr, above=0)
        check_range("optimizer.momentum", run.optimizer.momentum, low=0, below=1)
        check_range("optimizer.weight_decay", run.optimizer.weight_decay, low=0)
        if run.optimizer.clip is not None:
            check_range("optimizer.clip", run.optimizer.clip, above=0)
        check_range("seed", run.seed, low=0)
        check_range("batch_size", run.batch_size, low=1, high=_MOST)
        check_range("epochs", run.epochs, low=1, high=_MOST)
        check_range("blurry", run.blurry, low=0, high=1)
        check_range("evaluation_batch_size", run.evaluation_batch_size, low=1, high=_MOST)
        check_range("evaluate_every", run.evaluate_every, low=0)
        for probe in run.probes:
            check_choice("probes", probe, PROBES)
        check_range("data.workers", run.data.workers, low=0, high=_MOST_THREADS)
        check_range("threads", run.threads, low=0, high=_MOST_THREADS)
        check_range("checkpoint.every_seconds", run.checkpoint.every_seconds, low=0)
    except ValueError as error:
        raise ConfigurationError(f"{error}.") from error
    parse_requests(run.without)
    for figure, given in run.expected.items():
        for part in given if isinstance(given, list) else [given]:
            if not isinstance(part, Mapping) or "source" not in part or not {"value", "deviation", "source"}.issuperset(part):
                raise ConfigurationError(
                    f"expected.{figure} must be {{value: …, deviation: …, source: …}}, or a list of those, got {part!r}."
                )
    if run.online and run.epochs != 1:
        raise ConfigurationError(f"online=true shows every sample once, but epochs is {run.epochs}. Set epochs=1 or online=false.")
    if run.optimizer.name != "sgd" and run.optimizer.momentum:
        raise ConfigurationError(f"optimizer.momentum is an option of sgd; optimizer.name is {run.optimizer.name!r}.")


def _plain(options: Any) -> dict[str, Any]:
    return {option.name: list(value) if isinstance(value := getattr(options, option.name), tuple) else value for option in fields(options)}
