"""The command `ft2 evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ft2.cli.options import (
    DryRun,
    Json,
    Quiet,
    Resume,
    Verbose,
    emit,
    make_progress,
    read_config,
)
from ft2.errors import UsageError

if TYPE_CHECKING:
    from ft2.metrics.critic import CriticScores

Folder = Annotated[
    Path | None,
    typer.Option("--against", metavar="PATH", help="Clips to compare with, such as the base's."),
]


def evaluate(
    run: Annotated[
        Path, typer.Argument(metavar="RUN_OR_FOLDER", help="A folder of videos, or one video.")
    ],
    args: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [KEY=VALUE]...",
            help="A YAML file, then single values: metrics=[lips,sync] weights.syncnet=FILE.",
            show_default=False,
        ),
    ] = None,
    against: Folder = None,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", metavar="PATH", help="Real clips that FID and FVD compare to."),
    ] = None,
    critic: Annotated[
        Path | None,
        typer.Option("--critic", metavar="DIR", help="Also the scores of this trained critic."),
    ] = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Where to write; must not exist yet."),
    ] = Path("runs/evaluate"),
    resume: Resume = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure clips, or compare two folders of them: table, Markdown and an HTML page."""
    from ft2.cli.evaluate_run import Inputs, plan, run_evaluation
    from ft2.metrics.config import EvaluateConfig

    settings = read_config(EvaluateConfig, args)
    inputs = Inputs(run=run, against=against, reference=reference, critic=critic, settings=settings)
    made = plan(inputs, _critic(critic, settings.device))
    if dry_run:
        emit(made.describe(), json)
        return
    result = run_evaluation(inputs, made, output, resume, make_progress(quiet))
    if json:
        emit(result, json=True)
        return
    from ft2.cli.evaluate_page import table_text

    typer.echo(table_text(result))
    typer.echo(f"page: {output / 'report.html'}")


def _critic(folder: Path | None, device: str) -> "CriticScores | None":
    """Return the critic as a metric; it loads when the first clip is scored.

    Raises:
        UsageError: There is no critic in the folder.
    """
    if folder is None:
        return None
    from ft2.cli.critic_use import find_critic
    from ft2.metrics.critic import CriticScores

    adapter = find_critic(folder)
    loaded: list[Any] = []

    def score(path: Path) -> dict[str, float]:
        from ft2.critic.api import TalkingCritic

        if not loaded:
            loaded.append(TalkingCritic.from_pretrained(adapter, device=device))
        found = loaded[0].score(videos=[path])[0]
        if found.error is not None:
            raise UsageError(found.error)
        return dict(found.p)

    return CriticScores(score)
