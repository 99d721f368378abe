"""Typed configuration: frozen models, YAML presets, overrides, and errors that name the line.

Precedence is defaults < YAML < ``KEY=VALUE`` and nothing else. Every problem of a config is
reported at once, with ``file:line`` and a suggestion for a misspelt key.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ft2.errors import UsageError

PRESETS_DIR = Path(__file__).parent / "presets"

Location = tuple[str | int, ...]


class Config(BaseModel):
    """Base of all configs: immutable, no unknown keys, no NaN, documented attributes."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class ClipFormat(Config):
    """The one format of a clip: what generator, critic and dataset exchange."""

    width: int = Field(64, ge=16, multiple_of=8)
    """Width in pixels, a multiple of 8 (the codec's spatial stride)."""
    height: int = Field(64, ge=16, multiple_of=8)
    """Height in pixels, a multiple of 8."""
    num_frames: int = Field(21, ge=1)
    """Frames in a clip; 1 + 4k, because the codec keeps the first frame and groups four after."""
    fps: float = Field(12.5, gt=0)
    """Frames per second."""
    sample_rate: int = Field(16000, gt=0)
    """Audio samples per second, mono."""

    @model_validator(mode="after")
    def _check_frames(self) -> "ClipFormat":
        if self.num_frames % 4 != 1:
            below = self.num_frames - (self.num_frames - 1) % 4
            raise ValueError(
                f"num_frames must be 1 + 4k, got {self.num_frames}; use {below} or {below + 4}"
            )
        return self

    @property
    def seconds(self) -> float:
        """Duration in seconds: ``num_frames / fps``."""
        return self.num_frames / self.fps

    @property
    def num_samples(self) -> int:
        """Audio samples of a clip, rounded to the nearest whole sample."""
        return round(self.seconds * self.sample_rate)

    @property
    def num_latent_frames(self) -> int:
        """Latent frames of a clip: ``(num_frames - 1) // 4 + 1``."""
        return (self.num_frames - 1) // 4 + 1


class EngineConfig(Config):
    """The optimiser and how it is run; the one source of every number DeepSpeed gets."""

    kind: Literal["torch", "deepspeed"] = "torch"
    """``torch``: one process, plain PyTorch; ``deepspeed``: ZeRO, one process or many."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's two moments, each in [0, 1)."""
    eps: float = Field(1e-8, gt=0)
    """AdamW's denominator offset."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Clip the global gradient norm to this; 0 switches clipping off."""
    warmup_steps: int = Field(0, ge=0)
    """Optimiser steps of linear warm-up from 0."""
    decay_steps: int = Field(0, ge=0)
    """Steps after which the rate has fallen to a twentieth, as a cosine; 0 keeps it constant."""
    micro_batch_size: int = Field(1, ge=1)
    """Samples a process handles in one forward pass."""
    accumulation_steps: int = Field(1, ge=1)
    """Forward passes summed into one optimiser step."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage; only with ``kind: deepspeed``."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the forward and backward pass."""

    @model_validator(mode="after")
    def _check(self) -> "EngineConfig":
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {list(self.betas)}")
        if self.kind == "torch" and self.zero_stage:
            raise ValueError(f"zero_stage {self.zero_stage} needs kind: deepspeed, got kind: torch")
        return self


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def preset_names() -> list[str]:
    """Return the names of the packaged presets, such as ``nano/critic``, sorted."""
    files = PRESETS_DIR.glob("*/*.yaml")
    return sorted(f"{file.parent.name}/{file.stem}" for file in files)


def preset_path(name: str) -> Path:
    """Return the YAML file of a packaged preset.

    Raises:
        UsageError: There is no preset of that name; the hint has the nearest names.
    """
    names = preset_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UsageError(
            f"unknown preset or missing config file: '{name}'",
            f"{hint}`ft2 config list` prints all presets",
        )
    return PRESETS_DIR / f"{name}.yaml"


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
        data = _read_yaml(_source_path(source), origins)
    data = _merge_defaults(cls, data)
    problems: list[str] = []
    for text in overrides:
        _apply_override(cls, data, text, origins, problems)
    try:
        config = cls.model_validate(data)
    except ValidationError as error:
        problems += [_describe(cls, item, origins) for item in error.errors()]
    if problems:
        where = f" in {source}" if source is not None else ""
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UsageError(
            f"{count} with the {cls.__name__}{where}:\n" + "\n".join(f"  {p}" for p in problems),
            "`ft2 config show PRESET` prints every key of a preset with its value",
        )
    return config


def dump_yaml(config: BaseModel) -> str:
    """Return the whole config as YAML, in field order; `load_config` reads it back unchanged."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one mapping with dotted keys; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _source_path(source: str | Path) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        raise UsageError(f"the config '{path}' is a directory", "give a YAML file or a preset name")
    if path.suffix in {".yaml", ".yml"} or isinstance(source, Path):
        raise UsageError(
            f"the config file '{path}' does not exist",
            "`ft2 config list` prints the presets",
        )
    return preset_path(str(source))


def _read_yaml(path: Path, origins: dict[Location, str]) -> dict[str, Any]:
    """Return the mapping in a YAML file; note the line of every key in ``origins``."""
    try:
        text = path.read_text(encoding="utf-8")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return {}
        problems = list(_note_lines(node, path, (), origins, ()))
        data = None if problems else loader.construct_document(node)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or str(error)
        raise UsageError(f"{path}{line}: not valid YAML: {reason}") from error
    if problems:
        raise UsageError("\n".join(problems))
    if not isinstance(data, dict):
        raise UsageError(f"{path}:1: a config is a mapping of keys, got {type(data).__name__}")
    return data


def _note_lines(
    node: yaml.Node,
    path: Path,
    at: Location,
    origins: dict[Location, str],
    parents: tuple[int, ...],
) -> Iterator[str]:
    """Fill ``origins`` with ``file:line`` of each key; yield duplicates and circles."""
    if id(node) in parents:
        yield f"{path}:{node.start_mark.line + 1}: an alias points at its own parent"
        return
    parents += (id(node),)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = f"{path}:{key.start_mark.line + 1}"
            if key.value in seen and key.value != "<<":
                yield f"{line}: the key '{key.value}' is given twice"
            seen.add(str(key.value))
            origins[(*at, str(key.value))] = line
            yield from _note_lines(value, path, (*at, str(key.value)), origins, parents)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            origins[(*at, index)] = f"{path}:{value.start_mark.line + 1}"
            yield from _note_lines(value, path, (*at, index), origins, parents)


def _merge_defaults(cls: type[BaseModel], data: dict[str, Any]) -> dict[str, Any]:
    """Lay ``data`` over the defaults of nested models, so that one given key keeps the others."""
    merged = dict(data)
    for name, value in data.items():
        field = cls.model_fields.get(name)
        if field is None or not isinstance(value, dict):
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            default = field.get_default(call_default_factory=True, validated_data={})
            inner = _merge_defaults(field.annotation, value)
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


def _apply_override(
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
        model = _model_of(model, part)
    target[parts[-1]] = value
    origins[tuple(parts)] = f"argument '{text}'"


def _default_of(model: type[BaseModel] | None, name: str) -> Any:
    field = model.model_fields.get(name) if model is not None else None
    if field is None or field.is_required():
        return {}
    default = field.get_default(call_default_factory=True, validated_data={})
    return default.model_dump() if isinstance(default, BaseModel) else (default or {})


def _model_of(model: type[BaseModel] | None, name: str) -> type[BaseModel] | None:
    """Return the nested model behind a field, also through Optional; None when there is none."""
    field = model.model_fields.get(name) if model is not None else None
    if field is None:
        return None
    annotation = field.annotation
    for option in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def _describe(
    cls: type[BaseModel], item: Mapping[str, Any], origins: Mapping[Location, str]
) -> str:
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
            model = _model_of(model, str(part))
    siblings = {} if model is None else {name: name for name in model.model_fields}
    prefix = ".".join(str(part) for part in loc[:-1])
    dotted = {name: f"{prefix}.{name}" if prefix else name for name in siblings}
    near = [dotted[n] for n in difflib.get_close_matches(str(loc[-1]), siblings, n=2, cutoff=0.6)]
    if not near:
        deep = [key for key in _all_keys(cls) if key.split(".")[-1] == str(loc[-1])]
        near = deep[:2]
    return f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def _all_keys(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all keys that can be written as one, not those inside lists."""
    for name, field in cls.model_fields.items():
        yield f"{prefix}{name}"
        inner = _model_of(cls, name)
        listed = get_origin(field.annotation) in (list, tuple, dict)
        if inner is not None and inner is not cls and not listed:
            yield from _all_keys(inner, f"{prefix}{name}.")


def _suggest_value(item: Mapping[str, Any]) -> str:
    expected = str(item.get("ctx", {}).get("expected", "")).replace(" or ", ", ").split(", ")
    names = [name.strip("'") for name in expected]
    near = difflib.get_close_matches(str(item["input"]), names, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""
