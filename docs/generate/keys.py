"""The pages of config keys, from the config models and the packaged presets."""

import re
import types
from collections.abc import Iterator
from importlib import import_module
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from ft2.cli.config import KINDS, config_class
from ft2.config import flatten, load_config, preset_names

MODELS = {
    "critic": ("Critic training", "ft2 critic train", KINDS["critic"]),
    "nsq": ("Preference data", "ft2 nsq build", KINDS["nsq"]),
    "expert": ("Experts", "ft2 tlpo train", KINDS["expert-lip"]),
    "fusion": ("Fusion gate", "ft2 tlpo train", KINDS["fusion"]),
    "generate": ("Generating", "ft2 generate", KINDS["generate"]),
    "generator": ("Base generator", "ft2 generator train", KINDS["generator-clip"]),
    "demo": ("Demo", "ft2 demo", KINDS["demo"]),
    "compare": ("Comparing methods", "ft2 tlpo compare", "ft2.cli.compare_config:CompareConfig"),
    "ablate": (
        "Ablating base training",
        "ft2 generator ablate",
        "ft2.cli.ablate_config:AblationConfig",
    ),
    "evaluate": ("Evaluation", "ft2 evaluate", "ft2.metrics.config:EvaluateConfig"),
    "study": ("User study", "ft2 study serve", "ft2.metrics.config:StudyConfig"),
    "plan": ("Conditions from lists", "ft2 nsq plan", "ft2.nsq.plan:PlanConfig"),
    "prepare": ("Training clips", "ft2 generator prepare", "ft2.generator.config:VideosConfig"),
    "split": ("Splitting ratings", "ft2 critic split", "ft2.critic.config:SplitConfig"),
    "annotate": ("Annotation page", "ft2 critic annotate", "ft2.critic.config:AnnotationConfig"),
    "pretrain": ("Critic base", "ft2 critic pretrain", "ft2.critic.base:PretrainConfig"),
    "weights": ("Shipped weights", "ft2 weights build", "ft2.cli.weights_config:WeightsConfig"),
    "architecture": ("Talking model", "model.architecture", "ft2.wan.spec:Architecture"),
    "streams": ("Streams of a critic", "model.streams", "ft2.qwen.spec:StreamSpec"),
}
"""Page name -> title, command or key, config model."""

ELSEWHERE = {"Architecture": "architecture", "StreamSpec": "streams"}
"""Nested model -> the page that has its keys."""

INDEX = """# Config keys

A value comes from the model's defaults, then the preset or YAML file, then `KEY=VALUE`; the last
wins. Unknown keys are errors. `ft2 config show nano/critic` prints every key with its value;
`ft2 config copy full/critic -o mine.yaml` gives a file to edit; `ft2 config check mine.yaml`
names all problems at once. Nested keys have dots on the command line: `engine.learning_rate=1e-4`.

| page | command | presets |
|---|---|---|
"""


def pages() -> dict[str, str]:
    """Return Markdown by file name: one page a config model, and their index."""
    found, index = {}, INDEX
    for name, (title, command, where) in MODELS.items():
        presets = _presets(name, where)
        names = ", ".join(f"`{preset}`" for preset in presets) or "-"
        index += f"| [{title}]({name}.md) | `{command}` | {names} |\n"
        found[f"{name}.md"] = _page(title, command, _model(where), presets)
    return {"index.md": index, **found}


def _model(where: str) -> type[BaseModel]:
    module, _, name = where.partition(":")
    model: type[BaseModel] = getattr(import_module(module), name)
    return model


def _presets(page: str, where: str) -> dict[str, dict[str, Any]]:
    """Return the values of every preset of a model, by dotted key."""
    found = {}
    for preset in preset_names():
        kind = preset.partition("/")[2]
        if KINDS[kind] == where and page == kind.partition("-")[0]:
            model = config_class(kind)
            found[preset] = flatten(load_config(model, preset).model_dump(mode="json"))
    return found


def _page(
    title: str, command: str, model: type[BaseModel], presets: dict[str, dict[str, Any]]
) -> str:
    lead = f"# {title}\n\n`{command}` · {_sentence(model.__doc__)}\n\n"
    if presets:
        lead += f"Presets: {', '.join(f'`{p}`' for p in presets)}.\n\n"
    head = "| key | values | default | presets |\n|---|---|---|---|\n"
    parts = [lead]
    for heading, rows in _groups(model):
        if heading:
            parts.append(f"\n## `{heading}`\n\n")
        parts.append(head + "".join(_row(*row, presets) for row in rows))
    return "".join(parts)


Row = tuple[str, FieldInfo, Any]
"""Dotted key, field, default (the parent's where it sets one)."""


def _groups(
    model: type[BaseModel], prefix: str = "", given: Any = None
) -> Iterator[tuple[str, list[Row]]]:
    """Yield (dotted prefix, its own keys), then those of nested models."""
    fields = [
        (name, field, getattr(given, name) if given is not None else _default(field))
        for name, field in model.model_fields.items()
    ]
    own = [(prefix + name, field, value) for name, field, value in fields if not _nested(field)]
    if own:
        yield prefix.rstrip("."), own
    for name, field, value in fields:
        if nested := _nested(field):
            inner = value if isinstance(value, BaseModel) else None
            yield from _groups(nested, f"{prefix}{name}.", inner)


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True)  # type: ignore[call-arg]


def _nested(field: FieldInfo) -> type[BaseModel] | None:
    options = get_args(field.annotation) if _is_union(field.annotation) else (field.annotation,)
    models = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
    return models[0] if models and models[0].__name__ not in ELSEWHERE else None


def _row(key: str, field: FieldInfo, default: Any, presets: dict[str, dict[str, Any]]) -> str:
    differing: dict[str, list[str]] = {}
    for preset, values in presets.items():
        if key in values and _code(values[key]) != _code(default):
            differing.setdefault(_code(values[key]), []).append(preset)
    shown = "<br>".join(f"{value} in {', '.join(names)}" for value, names in differing.items())
    text = f"`{key}`<br>{_sentence(field.description)}"
    return f"| {text} | {_values(field)} | {_code(default)} | {shown} |\n"


def _code(value: Any) -> str:
    """Return a value as it is typed in YAML, shortened."""
    if value is PydanticUndefined:
        return "required"
    if type(value).__name__ in ELSEWHERE:
        return "Wan2.1-I2V-14B's"
    value = to_jsonable_python(value)
    if isinstance(value, float):
        text = f"{value:g}"
    else:
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
        text = text.removesuffix("\n...\n").strip()
    if len(text) > 70:
        text = text[:64].rstrip() + " …"
    return "`" + text.replace("|", "\\|") + "`"


def _sentence(text: str | None) -> str:
    """Return a docstring as one line of Markdown."""
    line = " ".join((text or "").split()).replace("``", "`").replace("|", "\\|")
    return re.sub(r"<(\w+)>", r"&lt;\1&gt;", line)


def _values(field: FieldInfo) -> str:
    """Return what may be written: the type with its bounds."""
    signs = {Ge: "≥", Gt: ">", Le: "≤", Lt: "<"}
    bounds = []
    for item in field.metadata:
        for kind, sign in signs.items():
            if isinstance(item, kind):
                bounds.append(f"{sign} {getattr(item, kind.__name__.lower()):g}")
    return " ".join([_type(field.annotation), ", ".join(bounds)]).strip()


def _type(kind: Any) -> str:
    """Return a type in words."""
    words = {int: "integer", float: "number", str: "text", bool: "true, false", None: "null"}
    words[type(None)] = "null"
    if kind in words:
        return words[kind]
    if (page := ELSEWHERE.get(getattr(kind, "__name__", ""))) is not None:
        return f"[keys of {page}]({page}.md)"
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        words = [str(v).lower() if isinstance(v, bool) else v for v in arguments]
        return ", ".join(f"`{word}`" for word in words)
    if _is_union(kind):
        return " or ".join(_type(option) for option in arguments)
    if get_origin(kind) in (list, tuple):
        inner = [a for a in arguments if a is not Ellipsis]
        if len(inner) == len(arguments) > 1:
            return f"list of {len(inner)}"
        return f"list of {_type(inner[0])}"
    if get_origin(kind) is dict:
        return f"{_type(arguments[0])}: {_type(arguments[1])}"
    return (
        "path" if getattr(kind, "__name__", "") == "Path" else str(getattr(kind, "__name__", kind))
    )


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)
