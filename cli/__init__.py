"""The command line: the only place that wires the packages together.

Modules here import only typer, `ft2.cli.options` and `ft2.errors` at the top; whatever is heavy
is imported inside the command that needs it, so that ``ft2 --help`` stays quick.
"""

if not __name__.startswith("ft2."):
    raise ImportError("import ft2.cli, not cli")

from collections.abc import Callable
from typing import Annotated

import typer

from ft2 import __version__
from ft2.cli import (
    config,
    critic,
    demo,
    evaluate,
    generate,
    generator,
    info,
    nsq,
    puppet,
    study,
    tlpo,
    weights,
)

NOUNS = {
    "critic": critic.app,
    "nsq": nsq.app,
    "tlpo": tlpo.app,
    "generator": generator.app,
    "study": study.app,
    "puppet": puppet.app,
    "weights": weights.app,
    "config": config.app,
}
"""The groups of commands: ``ft2 NOUN VERB``."""

COMMANDS: dict[str, Callable[..., None]] = {
    "generate": generate.generate,
    "evaluate": evaluate.evaluate,
    "demo": demo.demo,
    "info": info.info,
}
"""The commands that stand alone: ``ft2 COMMAND``."""

app = typer.Typer(
    name="ft2",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
for _name, _group in NOUNS.items():
    app.add_typer(_group, name=_name)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"ft2 {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    local_rank: Annotated[
        int, typer.Option("--local_rank", "--local-rank", hidden=True, help="Set by launchers.")
    ] = -1,
) -> None:
    """Align audio-driven portrait video with human preferences.

    Train a critic on ratings, build preference pairs with it, tune the generator on them, and
    generate talking video. `ft2 demo` does all of it at a small scale.
    """
    del version, local_rank
