"""The options that every command shares, and what goes to stdout and stderr."""

import json as json_module
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ft2.errors import UsageError

if TYPE_CHECKING:
    from ft2.config import Config
    from ft2.runs import Progress

C = TypeVar("C", bound="Config")

_state = {"quiet": False}


def _set_quiet(value: bool) -> bool:
    _state["quiet"] = value
    return value


def _set_verbose(value: bool) -> bool:
    level = logging.DEBUG if value else logging.WARNING
    logger = logging.getLogger("ft2")
    logger.setLevel(level)
    if value and not logger.handlers:
        logger.addHandler(logging.StreamHandler(sys.stderr))
    return value


ConfigArgs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG] [KEY=VALUE]...",
        help="A preset or YAML file, then single values: `ft2 config list`, `ft2 config show`.",
        show_default=False,
    ),
]
Output = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="DIR", help="Where to write; must not exist yet."),
]
PlannedOutput = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="DIR", show_default=False,
        help="Where to write; must not exist yet. Required but for --dry-run.",
    ),
]  # fmt: skip
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on in an existing output; harmless when complete.")
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", "-n", help="Check the inputs and print the plan; write nothing."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", callback=_set_quiet, help="No progress, no remarks.")
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", callback=_set_verbose, help="Log details to stderr.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Really delete or publish.")]


def split_config_args(args: Sequence[str] | None) -> tuple[str | None, list[str]]:
    """Return the config's name (or None) and the ``KEY=VALUE`` overrides of a command line.

    Raises:
        UsageError: More than one argument is not ``KEY=VALUE``.
    """
    sources = [arg for arg in args or () if _is_source(arg)]
    if len(sources) > 1:
        raise UsageError(
            f"more than one config: {', '.join(repr(s) for s in sources)}",
            "give one preset or YAML file; single values are written KEY=VALUE, without spaces",
        )
    overrides = [arg for arg in args or () if not _is_source(arg)]
    return (sources[0] if sources else None), overrides


def read_config(kind: "type[C]", args: Sequence[str] | None, needed: str = "") -> "C":
    """Return the config that a command line means: a preset or YAML file, then KEY=VALUE.

    Args:
        kind: The config's model.
        args: The command line.
        needed: Where the command has no defaults of its own: the hint when no config is named.

    Raises:
        UsageError: No config is named though one is needed, or it has problems.
    """
    from ft2.config import load_config

    source, overrides = split_config_args(args)
    if source is None and needed:
        raise UsageError("no config given", needed)
    return load_config(kind, source, overrides)


def require_output(output: Path | None) -> Path:
    """Return where a command writes, which only its dry run can do without.

    Raises:
        UsageError: There is no ``--output``.
    """
    if output is None:
        raise UsageError("no --output given", "say where to write: -o DIR (-n writes nothing)")
    return output


def refuse_missing(missing: Mapping[str, str], args: Sequence[str] | None) -> None:
    """Refuse inputs that the user named and that are not there, after the plan was printed.

    What only a preset names may come later: an earlier command makes it, and the plan lists it.

    Args:
        missing: What is wrong, by config key.
        args: The command line: a preset or YAML file, and KEY=VALUE.

    Raises:
        UsageError: An input that a YAML file or KEY=VALUE names is missing.
    """
    import yaml

    source, overrides = split_config_args(args)
    named = {text.partition("=")[0] for text in overrides}
    if source is not None and Path(source).is_file():
        from ft2.config import flatten

        named |= set(flatten(yaml.safe_load(Path(source).read_text(encoding="utf-8")) or {}))
    for key, text in missing.items():
        if any(key == name or key.startswith(f"{name}.") for name in named):
            raise UsageError(text, f"set {key} to what is there; the plan above is without it")


def _is_source(arg: str) -> bool:
    return "=" not in arg or (arg.endswith((".yaml", ".yml")) and Path(arg).is_file())


def emit(result: Mapping[str, Any], json: bool = False) -> None:
    """Print a command's result on stdout: one JSON object, or a ``key: value`` line each."""
    if os.environ.get("RANK", "0") not in {"", "0"}:
        return
    if json:
        typer.echo(json_module.dumps(result, ensure_ascii=False, default=str))
        return
    for line in _lines(result):
        typer.echo(line)


def _lines(result: Mapping[str, Any], indent: str = "") -> list[str]:
    lines: list[str] = []
    for key, value in result.items():
        if isinstance(value, Mapping) and {"value", "low", "high"} <= set(value):
            ends = f"[{_text(value['low'])}, {_text(value['high'])}]"
            count = f" (n {value['n']})" if "n" in value else ""
            lines.append(f"{indent}{key}: {_text(value['value'])} {ends}{count}")
        elif isinstance(value, Mapping) and value:
            lines += [f"{indent}{key}:", *_lines(value, indent + "  ")]
        elif isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value):
            lines.append(f"{indent}{key}:")
            for item in value:
                inner = _lines(item if isinstance(item, Mapping) else {"-": item}, indent + "    ")
                lines += [f"{indent}  - {inner[0].strip()}", *inner[1:]] if inner else []
        elif isinstance(value, list | tuple) and any(", " in str(item) for item in value):
            lines += [f"{indent}{key}:", *(f"{indent}  - {item}" for item in value)]
        else:
            lines.append(f"{indent}{key}: {_text(value)}")
    return lines


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value) or "none"
    return "none" if value is None or value == {} else str(value)


def say(text: str) -> None:
    """Print a remark for people on stderr; nothing under ``-q`` or on ranks above 0."""
    if not _state["quiet"] and os.environ.get("RANK", "0") in {"", "0"}:
        typer.echo(text, err=True)


def make_progress(quiet: bool = False) -> "Progress":
    """Return where progress goes: a live display on a terminal, else lines on stderr."""
    if quiet or _state["quiet"] or os.environ.get("RANK", "0") not in {"", "0"}:
        from ft2.runs import Silent

        return Silent()
    if sys.stderr.isatty():
        from ft2.cli.progress import LiveProgress

        return LiveProgress()
    from ft2.cli.progress import LineProgress

    return LineProgress()
