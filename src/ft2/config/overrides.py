"""Defaults below given keys, and ``KEY.SUB=VALUE`` on top of them."""

from typing import Any

import yaml
from pydantic import BaseModel

Location = tuple[str | int, ...]


def merge_defaults(cls: type[BaseModel], data: dict[str, Any]) -> dict[str, Any]:
    """Lay ``data`` over the defaults of nested models, so that one given key keeps the others."""
    merged = dict(data)
    for name, value in data.items():
        field = cls.model_fields.get(name)
        if field is None or not isinstance(value, dict):
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            default = field.get_default(call_default_factory=True, validated_data={})
            inner = merge_defaults(field.annotation, value)
            base = default.model_dump() if isinstance(default, field.annotation) else {}
            merged[name] = _overlay(base, inner)
    return merged


def _overlay(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in top.items():
        old = out.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        out[key] = _overlay(old, value) if both else value  # type: ignore[arg-type]
    return out


def apply_override(
    cls: type[BaseModel],
    data: dict[str, Any],
    text: str,
    origins: dict[Location, str],
    problems: list[str],
) -> None:
    """Set one ``KEY.SUB=VALUE`` in ``data``, starting from the default of what it is inside of."""
    key, equals, raw = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        problems.append(f"argument '{text}': expected KEY=VALUE or KEY.SUB=VALUE")
        return
    try:
        value = yaml.safe_load(raw) if raw.strip() else None
    except (yaml.YAMLError, ValueError) as error:
        problems.append(f"argument '{text}': not a YAML value: {str(error).splitlines()[0]}")
        return
    target: dict[str, Any] = data
    model: type[BaseModel] | None = cls
    for depth, part in enumerate(parts[:-1]):
        inner = target.get(part)
        if inner is None:
            inner = _default_of(model, part)
        if not isinstance(inner, dict):
            where = ".".join(parts[: depth + 1])
            problems.append(f"argument '{text}': '{where}' is not a group of keys")
            return
        target[part] = dict(inner)
        target = target[part]
        model = model_of(model, part)
    target[parts[-1]] = value
    origins[tuple(parts)] = f"argument '{text}'"


def _default_of(model: type[BaseModel] | None, name: str) -> Any:
    field = model.model_fields.get(name) if model is not None else None
    if field is None or field.is_required():
        return {}
    default = field.get_default(call_default_factory=True, validated_data={})
    return default.model_dump() if isinstance(default, BaseModel) else (default or {})


def model_of(model: type[BaseModel] | None, name: str) -> type[BaseModel] | None:
    """Return the nested model behind a field, also through Optional; None when there is none."""
    field = model.model_fields.get(name) if model is not None else None
    if field is None:
        return None
    annotation = field.annotation
    for option in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None
