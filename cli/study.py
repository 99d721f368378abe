"""Commands of `ft2 study`: people compare methods, blind, on the critic's annotation page."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ft2.cli.options import Json, emit
from ft2.cli.serving import Port, Token, serve_questions
from ft2.errors import UsageError

if TYPE_CHECKING:
    from ft2.metrics.config import StudyConfig

app = typer.Typer(help="Ask people to compare methods, blind.", no_args_is_help=True)

Study = Annotated[Path, typer.Option("--study", metavar="DIR", help="Where the study is kept.")]


@app.command()
def serve(
    args: Annotated[
        list[str],
        typer.Argument(
            metavar="METHOD=FOLDER... [KEY=VALUE]...",
            help="Folders of clips, each with a name; mode=pairs, raters_per_clip=5.",
            show_default=False,
        ),
    ],
    study: Study = Path("runs/study"),
    port: Port = 7860,
    token: Token = None,
) -> None:
    """Open the page where people rate the clips; the same command goes on with it later."""
    from ft2.cli.study_report import build, open_store
    from ft2.config import load_config
    from ft2.metrics.config import StudyConfig

    settings = [arg for arg in args if _key(arg) in StudyConfig.model_fields]
    config = load_config(StudyConfig, None, settings)
    made = build(_folders([arg for arg in args if arg not in settings]), config, study)
    raters = f"at least {config.raters_per_clip} raters each"
    serve_questions(
        open_store(study, made), _questions(config), port=port, token=token,
        remark=f"{len(made['items'])} items, {raters}: {study}",
    )  # fmt: skip


def _key(arg: str) -> str:
    """Return the config key that ``KEY=VALUE`` or ``KEY.PART=VALUE`` names."""
    return arg.partition("=")[0].partition(".")[0]


def _questions(config: "StudyConfig") -> dict[str, str]:
    if config.mode == "pairs":
        return config.questions
    return {name: f"{text} 0 worst, 10 best." for name, text in config.questions.items()}


def _folders(methods: Sequence[str]) -> dict[str, Path]:
    """Return folders by the name of their method.

    Raises:
        UsageError: An argument is not METHOD=FOLDER, a name comes twice, or there is one only.
    """
    found: dict[str, Path] = {}
    for text in methods:
        name, _, folder = text.partition("=")
        if not name or not folder:
            raise UsageError(f"'{text}' is not METHOD=FOLDER", "write base=runs/base policy=runs/p")
        if name in found:
            raise UsageError(f"the method '{name}' comes twice", "give each folder its own name")
        found[name] = Path(folder)
    if len(found) < 2:
        raise UsageError("a study compares two methods or more", "write base=DIR policy=DIR")
    return found


@app.command()
def report(
    study: Annotated[Path, typer.Argument(metavar="DIR", help="The study.")] = Path("runs/study"),
    base: Annotated[
        str | None, typer.Option("--base", help="Gains are over this method; default: the first.")
    ] = None,
    json: Json = False,
) -> None:
    """Print means, relative gains or win rates with intervals; write them and a page beside."""
    from ft2.cli.study_report import summarise, write_report

    result: dict[str, Any] = summarise(study, base)
    write_report(study, result)
    if json:
        emit(result, json=True)
        return
    from ft2.cli.study_report import table_text

    typer.echo(table_text(result))
    typer.echo(f"page: {study / 'report.html'}")
