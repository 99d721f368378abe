"""Typed configuration: frozen models, YAML presets, overrides, and errors that name the line.

Precedence is defaults < YAML < ``KEY=VALUE`` and nothing else. Every problem of a config is
reported at once, with ``file:line`` and a suggestion for a misspelt key.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ft2.config.models import ClipFormat, Config, DeviceName, EngineConfig
from ft2.config.overrides import Location, apply_override, merge_defaults
from ft2.config.problems import describe
from ft2.config.source import preset_names, preset_path, read_yaml, source_path
from ft2.errors import UsageError

__all__ = [
    "ClipFormat",
    "Config",
    "DeviceName",
    "EngineConfig",
    "dump_yaml",
    "flatten",
    "load_config",
    "preset_names",
    "preset_path",
]

ConfigT = TypeVar("ConfigT", bound=BaseModel)


def load_config(
    cls: type[ConfigT], source: str | Path | None, overrides: Sequence[str] = ()
) -> ConfigT:
    """Return a validated config from a preset or YAML file and ``KEY.SUB=VALUE`` overrides.

    Args:
        cls: The config model.
        source: Preset name, YAML path, or None for the defaults.
        overrides: Assignments whose right-hand side is read as YAML; later ones win.

    Raises:
        UsageError: With every problem found, one a line, each with its file and line.
    """
    data: dict[str, Any] = {}
    origins: dict[Location, str] = {}
    if source is not None:
        data = read_yaml(source_path(source), origins)
    _refuse_other_kind(cls, source, data)
    data = merge_defaults(cls, data)
    problems: list[str] = []
    for text in overrides:
        apply_override(cls, data, text, origins, problems)
    try:
        config = cls.model_validate(data)
    except ValidationError as error:
        problems += [describe(cls, item, origins) for item in error.errors()]
    if problems:
        where = f" in {source}" if source is not None else ""
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UsageError(
            f"{count} with the {cls.__name__}{where}:\n" + "\n".join(f"  {p}" for p in problems),
            _where_keys_are(cls),
        )
    return config


def _refuse_other_kind(
    cls: type[BaseModel], source: str | Path | None, data: Mapping[str, Any]
) -> None:
    """Refuse a file that was written for another command: most of its keys are unknown."""
    unknown = [key for key in data if key not in cls.model_fields]
    if len(unknown) > 3 and 2 * len(unknown) > len(data):
        fitting = _fitting_presets(cls)
        raise UsageError(
            f"'{source}' is no {cls.__name__}; it has other keys: {', '.join(unknown)}",
            f"presets that fit: {', '.join(fitting)}" if fitting else _where_keys_are(cls),
        )


def _where_keys_are(cls: type[BaseModel]) -> str:
    fitting = _fitting_presets(cls)
    if fitting:
        return f"`ft2 config show {fitting[0]}` prints every key with its value"
    return f"its keys are {', '.join(cls.model_fields)}"


def _fitting_presets(cls: type[BaseModel]) -> list[str]:
    """Return the packaged presets that have only keys of this model, the smaller family first."""
    names = sorted(preset_names(), key=lambda name: not name.startswith("nano/"))
    return [n for n in names if set(read_yaml(preset_path(n), {})) <= set(cls.model_fields)]


def dump_yaml(config: BaseModel) -> str:
    """Return the whole config as YAML, in field order; `load_config` reads it back unchanged."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one mapping with dotted keys; lists stay whole.

    >>> flatten({"engine": {"learning_rate": 0.1, "betas": [0.9, 0.98]}, "steps": 5})
    {'engine.learning_rate': 0.1, 'engine.betas': [0.9, 0.98], 'steps': 5}
    """
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
