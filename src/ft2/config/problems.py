"""What is wrong with a config, in words: where, which key, and what was probably meant."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, get_origin

from pydantic import BaseModel

from ft2.config.overrides import Location, model_of


def describe(cls: type[BaseModel], item: Mapping[str, Any], origins: Mapping[Location, str]) -> str:
    """Return one pydantic error as ``file:line: key: what is wrong; did you mean``."""
    loc: Location = item["loc"]
    where = next((origins[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in origins), "")
    key = ".".join(str(part) for part in loc)
    if item["type"] == "extra_forbidden":
        reason = f"unknown key '{key}'{_suggest_key(cls, loc)}"
    elif item["type"] == "missing":
        reason = f"the key '{key}' is required"
    else:
        message = item["msg"].removeprefix("Value error, ")
        reason = f"{key}: {message}" if key else message
        if item["type"] != "value_error":
            reason += f", got {item['input']!r}"
        if item["type"] == "literal_error":
            reason += _suggest_value(item)
    return f"{where}: {reason}" if where else reason


def _suggest_key(cls: type[BaseModel], loc: Location) -> str:
    model: type[BaseModel] | None = cls
    for part in loc[:-1]:  # indices of lists and keys of mappings stay within the same model
        if model is not None and str(part) in model.model_fields:
            model = model_of(model, str(part))
    siblings = {} if model is None else {name: name for name in model.model_fields}
    prefix = ".".join(str(part) for part in loc[:-1])
    dotted = {name: f"{prefix}.{name}" if prefix else name for name in siblings}
    near = [dotted[n] for n in difflib.get_close_matches(str(loc[-1]), siblings, n=2, cutoff=0.6)]
    last = {key: key.split(".")[-1] for key in _all_keys(cls)}
    exact = [key for key, name in last.items() if name == loc[-1]]
    near += exact or [key for key, name in last.items() if name.endswith(f"_{loc[-1]}")]
    near = list(dict.fromkeys(near))[:3]
    return f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def _all_keys(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all keys that can be written as one, not those inside lists."""
    for name, field in cls.model_fields.items():
        yield f"{prefix}{name}"
        inner = model_of(cls, name)
        listed = get_origin(field.annotation) in (list, tuple, dict)
        if inner is not None and inner is not cls and not listed:
            yield from _all_keys(inner, f"{prefix}{name}.")


def _suggest_value(item: Mapping[str, Any]) -> str:
    expected = str(item.get("ctx", {}).get("expected", "")).replace(" or ", ", ").split(", ")
    names = [name.strip("'") for name in expected]
    near = difflib.get_close_matches(str(item["input"]), names, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""
