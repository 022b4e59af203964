"""Strict, frozen configuration records, and their way through presets, YAML and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from auricle.errors import ConfigError, unknown


class Config(BaseModel):
    """Base of every configuration: frozen, unknown keys refused, a docstring under every field."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "config") -> Self:
        """Validate `values`; raises `ConfigError`, one line for all that is wrong."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigError(f"{where}: {_one_line(cls, error)}") from None


C = TypeVar("C", bound=Config)


def edit(config: C, **nested: Any) -> C:
    """A copy with some values changed, validated whole: `edit(run, train={"steps": 100}, encoder={"layers": 3})`.

    Mappings merge into nested configs; anything else replaces. Raises `ConfigError`.
    """
    return type(config).parse(_merge(config.model_dump(), nested))


def read_yaml(path: Path | str) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `ConfigError` when it is missing or is no mapping."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a YAML mapping of options, found {type(values).__name__}")
    return values


def to_yaml(values: Mapping[str, Any]) -> str:
    """YAML text of plain values, keys in their order of definition."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def differences(old: Any, new: Any, place: str = "") -> list[tuple[str, Any, Any]]:
    """Where two trees of plain values differ, in order: (`encoder.dim`, old, new); None stands for what is missing."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return [] if old == new else [(place, old, new)]
    return [
        difference
        for key in {**old, **new}
        for difference in differences(old.get(key), new.get(key), f"{place}.{key}" if place else key)
    ]


def _merge(base: Any, changes: Any) -> Any:
    if not (isinstance(base, Mapping) and isinstance(changes, Mapping)):
        return changes
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = _merge(merged[key], value) if key in merged else value
    return merged


def _one_line(cls: type[Config], error: ValidationError) -> str:
    parts = []
    for item in error.errors():
        place = ".".join(str(step) for step in item["loc"])
        if item["type"] == "extra_forbidden":
            parts.append(unknown("option", place, _field_names(cls)))
        else:
            message = item["msg"].removeprefix("Value error, ")
            parts.append(f"{place}: {message}" if place else message)
    return "; ".join(parts)


def _field_names(cls: type[Config], prefix: str = "") -> list[str]:
    names = []
    for name, field in cls.model_fields.items():
        names.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            names += _field_names(field.annotation, f"{prefix}{name}.")
    return names
