"""Commands of `ft2 critic` that bring ratings in: import and split."""

from pathlib import Path
from typing import Annotated

import typer

from ft2.cli.options import Json, emit, say
from ft2.errors import UsageError

OutputFile = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Where to write; must not exist yet."),
]
RatingsFile = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="FILE", help="The ratings.jsonl to write."),
]


def refuse_existing(path: Path) -> None:
    """Refuse to write over a file.

    Raises:
        UsageError: It is there.
    """
    if path.exists():
        raise UsageError(f"the output '{path}' already exists", "choose another --output")


def import_ratings(
    format_name: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="ft2, videoalign, genai-bench, mj-bench-video, visionreward, hpdv3 or trl.",
        ),
    ],
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="CSV, JSON, JSONL, Parquet or an HF dataset.")
    ],
    output: OutputFile = None,
    json: Json = False,
) -> None:
    """Read a collection's ratings strictly, print the counts, and write them as ft2's records."""
    from ft2.critic.answers import write_answers
    from ft2.critic.importers import import_file

    if output is not None:
        refuse_existing(output)
    found = import_file(format_name, path)
    for line in found.lines():
        say(line)
    if not found.answers:
        raise UsageError(
            f"no row of {path} is a rating of format '{format_name}'",
            "is it the right FORMAT? The rows above say what is wrong",
        )
    if output is not None:
        write_answers(output, found.answers)
    rejects = {"rejects": [vars(r) for r in found.rejects]} if json else {}
    emit({**found.counts(), "output": str(output) if output else None, **rejects}, json=json)


def split(
    path: Annotated[
        Path, typer.Argument(metavar="ANSWERS", help="Records that `ft2 critic import` wrote.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="shares=[0.7,0.1,0.2], seed=0.", show_default=False
        ),
    ] = None,
    media: Annotated[
        Path | None,
        typer.Option(
            "--media",
            metavar="DIR",
            help="What the clips' paths are relative to; without it ANSWERS' folder.",
            show_default=False,
        ),
    ] = None,
    output: RatingsFile = Path("ratings.jsonl"),
    json: Json = False,
) -> None:
    """Merge raters and deal clips into train, dev and test that share no face, voice or clip."""
    from ft2.config import load_config
    from ft2.critic.config import SplitConfig
    from ft2.critic.importers import import_answers
    from ft2.critic.splits import pairs_file, write_ratings

    config = load_config(SplitConfig, None, settings or [])
    refuse_existing(output)
    refuse_existing(pairs_file(output))
    found = import_answers(path)
    emit(write_ratings(found, media or path.parent, output, config.shares, config.seed), json=json)
