"""Mappings into dataclasses, by OmegaConf; what does not fit is told by key, in words."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from cl_framework.errors import ConfigurationError, nearest


def structured(schema: type, given: Mapping[Any, Any], path: str) -> Any:
    """An instance of the dataclass `schema` with the values given, which stand under the key `path`; or ConfigurationError."""
    _refuse_unknown(schema, given, path)
    _refuse_lists_of_options(schema, given, path)
    try:
        values = OmegaConf.to_object(OmegaConf.merge(_defaults(schema), given))
        if isinstance(values, schema):
            values = {option.name: getattr(values, option.name) for option in fields(schema)}
        return schema(**_tuples(schema, values))
    except ValueError as error:
        if isinstance(error, OmegaConfBaseException):
            raise ConfigurationError(_explain(error, schema, path, given)) from error
        raise ConfigurationError(f"{path}{'.' if path else ''}{error}.") from error
    except OmegaConfBaseException as error:
        raise ConfigurationError(_explain(error, schema, path, given)) from error


_hints = cache(typing.get_type_hints)  # of a dataclass: name -> type


@cache
def _defaults(schema: type) -> DictConfig:
    """The dataclass `schema` for OmegaConf, which takes longer over it than over merging a copy with what is given."""
    config = OmegaConf.structured(schema)
    OmegaConf.set_readonly(config, False)
    return config


def _tuples(schema: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """OmegaConf knows lists only: give tuples where the dataclass says so."""
    hints = _hints(schema)

    def wants_tuple(hint: Any) -> bool:
        return typing.get_origin(hint) is tuple or any(typing.get_origin(part) is tuple for part in typing.get_args(hint))

    return {name: tuple(value) if isinstance(value, list) and wants_tuple(hints[name]) else value for name, value in values.items()}


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}


def _explain(error: OmegaConfBaseException, schema: type, path: str, given: Mapping[Any, Any]) -> str:
    inner = str(getattr(error, "full_key", None) or getattr(error, "key", None) or _unfit(schema, given))
    key = ".".join(part for part in (path, inner) if part)
    kind = _kind_of(schema, inner)
    if isinstance(error, ValidationError) and kind:
        return f"{key} must be {kind}, got {OmegaConf.select(OmegaConf.create(dict(given)), inner)!r}."
    return f"{key}: {first_line(error)}."


def first_line(error: Exception) -> str:
    """What an error of OmegaConf's says, without its lines on types."""
    return str(error).strip().split("\n")[0].rstrip(".")


def _unfit(schema: type, given: Mapping[Any, Any]) -> str:
    """The option whose value does not fit, where OmegaConf does not say which one (it does not for what is in a list)."""
    for option, value in given.items():
        try:
            OmegaConf.merge(_defaults(schema), {option: value})
        except OmegaConfBaseException:
            return str(option)
    return ""


def _kind_of(schema: Any, key: str) -> str:
    """In words what the option `key` of a dataclass holds; "" if there is no such option."""
    for part in key.split("."):
        hints = _hints(schema) if isinstance(schema, type) and is_dataclass(schema) else {}
        if part not in hints:
            return ""
        schema = hints[part]
    return _in_words(schema)


def _in_words(hint: Any) -> str:
    if hint in _KINDS:
        return _KINDS[hint]
    parts = [part for part in typing.get_args(hint) if part is not Ellipsis]
    if typing.get_origin(hint) in (list, tuple):
        return f"a list, each {_in_words(parts[0])}"
    if typing.get_origin(hint) is dict:
        return "options"
    return " or ".join(_in_words(part) for part in parts) if parts else getattr(hint, "__name__", str(hint))


def _refuse_lists_of_options(schema: type, given: Mapping[Any, Any], path: str) -> None:
    hints = _hints(schema)
    for key, value in given.items():
        if isinstance(value, list | ListConfig) and typing.get_origin(hints[key]) is dict:
            where = ".".join(part for part in (path, str(key)) if part)
            raise ConfigurationError(f"{where} must be options, each `name: value`, but got a list.")


def _refuse_unknown(schema: type, given: Mapping[Any, Any], path: str) -> None:
    hints = _hints(schema)
    for key in given:
        where = ".".join(part for part in (path, str(key)) if part)
        if key not in hints:
            sections = {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}
            within = [f"{name}.{key}" for name, section in sections.items() if key in _hints(section)]
            meant = f"Did you mean {' or '.join(within)}?" if within else nearest(str(key), hints)
            raise ConfigurationError(f"{where}: unknown option. {meant}")
        if is_dataclass(hints[key]) and isinstance(given, DictConfig):
            value = given[key]
            if not isinstance(value, DictConfig):
                raise ConfigurationError(f"{where}: expected options, got {value!r}. Known: {', '.join(_hints(hints[key]))}.")
            _refuse_unknown(hints[key], value, where)
