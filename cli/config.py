"""Commands of `ft2 config`: look at, check and copy presets and config files."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ft2.cli.options import ConfigArgs, Json, emit, say, split_config_args
from ft2.errors import UsageError

if TYPE_CHECKING:
    from ft2.config import Config

KINDS = {
    "critic": "ft2.critic.config:CriticConfig",
    "critic-3b": "ft2.critic.config:CriticConfig",
    "nsq": "ft2.nsq.config:NsqConfig",
    "expert-motion": "ft2.tlpo.config:ExpertConfig",
    "expert-lip": "ft2.tlpo.config:ExpertConfig",
    "expert-quality": "ft2.tlpo.config:ExpertConfig",
    "fusion": "ft2.tlpo.config:FusionConfig",
    "generator-clip": "ft2.generator.config:TrainConfig",
    "generator-frame": "ft2.generator.config:TrainConfig",
    "generator-branches": "ft2.generator.config:TrainConfig",
    "generator-ablation": "ft2.cli.ablate_config:AblationConfig",
    "generate": "ft2.generator.config:GenerateConfig",
    "demo": "ft2.cli.demo_config:DemoConfig",
}
"""Preset name without its family -> the model that its YAML is checked against."""

app = typer.Typer(help="Look at, check and copy presets and config files.", no_args_is_help=True)


@app.command("list")
def list_presets(json: Json = False) -> None:
    """Print all packaged presets, each with what it is for."""
    from ft2.config import preset_names

    about = {name: _about(name) for name in preset_names()}
    if json:
        emit({"presets": about}, json=True)
        return
    width = max(map(len, about))
    for name, text in about.items():
        typer.echo(f"{name:{width}}  {text}")


def _about(preset: str) -> str:
    """Return the first clause of the comment that a preset begins with, for one line."""
    import re
    import textwrap
    from itertools import takewhile

    from ft2.config import preset_path

    lines = preset_path(preset).read_text(encoding="utf-8").splitlines()
    comment = " ".join(line[1:].strip() for line in takewhile(lambda x: x.startswith("#"), lines))
    return textwrap.shorten(re.split(r"[.;] |\.$", comment)[0], 74, placeholder=" ...")


@app.command()
def show(config: ConfigArgs = None, json: Json = False) -> None:
    """Print a config with every key and value, as YAML."""
    from ft2.config import dump_yaml

    loaded = _load(config)
    if json:
        emit(loaded.model_dump(mode="json"), json=True)
    else:
        typer.echo(dump_yaml(loaded), nl=False)


@app.command()
def check(config: ConfigArgs = None, json: Json = False) -> None:
    """Check a config; print all its problems at once, with file and line."""
    loaded = _load(config)
    emit({"valid": True, "kind": type(loaded).__name__}, json=json)


@app.command()
def copy(
    preset: Annotated[str, typer.Argument(help="Name of a preset.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The YAML file to write.")
    ],
) -> None:
    """Copy a preset to a file of your own, with its comments."""
    from ft2.config import preset_path
    from ft2.runs import write_atomic

    source = preset_path(preset)
    if output.exists():
        raise UsageError(f"'{output}' already exists", "choose another --output")
    write_atomic(output, source.read_bytes())
    say(f"wrote {output}")


def config_class(kind: str) -> "type[Config]":
    """Return the config model of a kind of preset, such as ``critic``."""
    module, _, name = KINDS[kind].partition(":")
    found: type[Config] = getattr(import_module(module), name)
    return found


def _load(args: list[str] | None) -> "Config":
    """Load the config that the arguments name, as the model it is meant for."""
    from ft2.config import load_config

    source, overrides = split_config_args(args)
    if source is None:
        raise UsageError("no config given", "name a preset (`ft2 config list`) or a YAML file")
    return load_config(config_class(_kind_of(source)), source, overrides)


def _kind_of(source: str) -> str:
    """Return the kind of a preset by its name, of a file by its name or else by its keys."""
    from ft2.config import preset_path

    path = Path(source)
    if not path.is_file():
        if path.suffix in {".yaml", ".yml"}:
            raise UsageError(
                f"the config file '{path}' does not exist", "`ft2 config list` prints the presets"
            )
        path = preset_path(source)
    if path.stem in KINDS:
        return path.stem
    keys = _top_keys(path)
    scores = {kind: len(keys & set(config_class(kind).model_fields)) for kind in KINDS}
    return max(scores, key=lambda kind: scores[kind])


def _top_keys(path: Path) -> set[str]:
    """Return the names before a colon in the first column, also of a file that is not valid."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read '{path}': {error}") from error
    return {line.partition(":")[0].strip() for line in lines if line[:1].isalpha()}
