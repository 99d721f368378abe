"""Presets and YAML files, read with the line of every key."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ft2.config.overrides import Location
from ft2.errors import UsageError

PRESETS_DIR = Path(__file__).parents[1] / "presets"


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


def source_path(source: str | Path) -> Path:
    """Return the file of a preset name or path, or raise a UsageError that says what is there."""
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


def read_yaml(path: Path, origins: dict[Location, str]) -> dict[str, Any]:
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
