"""`ft2 critic eval`: how often a critic, or any judge's scores, agree with raters."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ft2.cli.critic_use import Critic, Device, find_critic
from ft2.cli.options import Json, Quiet, emit, make_progress
from ft2.errors import UsageError


def evaluate(
    ratings: Annotated[
        Path,
        typer.Argument(
            metavar="RATINGS", help="A ratings.jsonl, or answers of `ft2 critic import`."
        ),
    ],
    critic: Critic = None,
    scores: Annotated[
        Path | None,
        typer.Option(
            "--scores",
            metavar="FILE",
            help="For answers about pairs: JSONL of `ft2 critic score`, or of any other judge.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train, dev or test.")] = "test",
    media: Annotated[
        Path | None,
        typer.Option(
            "--media",
            metavar="DIR",
            help="With --scores: where the clips are, for the lip-sync measure beside the scores.",
            show_default=False,
        ),
    ] = None,
    sync: Annotated[
        bool,
        typer.Option(help="The lip-sync measure without SyncNet as a judge of lips, 0.2 s a clip."),
    ] = True,
    device: Device = "cpu",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Also write eval.json and eval.html."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print how often the critic agrees with raters, beside the judges that it must beat."""
    if split not in ("train", "dev", "test"):
        raise UsageError(f"unknown split '{split}'", "choose train, dev or test")
    from ft2.critic.eval_page import check_output, write_evaluation

    if output is not None:
        check_output(output)
    if media is not None and (scores is None or not media.is_dir()):
        raise UsageError(
            f"--media {media} " + ("needs --scores" if scores is None else "is no folder"),
            "clips of a ratings.jsonl are found beside it; --media is for answers about pairs",
        )
    result, lines = (
        _evaluate_clips(ratings, critic, split, device, sync, quiet)
        if scores is None
        else _evaluate_pairs(ratings, scores, media if sync else None, quiet)
    )
    if output is not None:
        write_evaluation(output, result)
    if json:
        emit(result, json=True)
        return
    for line in lines:
        typer.echo(line)


def _evaluate_clips(
    ratings: Path, critic: Path | None, split: str, device: str, sync: bool, quiet: bool
) -> tuple[dict[str, Any], list[str]]:
    folder = find_critic(critic)
    from ft2.critic.data import holds_pairs

    if holds_pairs(ratings):
        from ft2.critic.evaluate_pairs import table_lines
        from ft2.critic.rated_pairs import evaluate_rated_pairs, unreadable_lines

        found = evaluate_rated_pairs(
            ratings, folder, split=split, device=device, progress=make_progress(quiet), sync=sync
        )
        return found, [*table_lines(found), *unreadable_lines(found)]
    from ft2.critic import evaluate as evaluation

    result = evaluation.evaluate(
        ratings,
        folder,
        split=split,  # type: ignore[arg-type]
        device=device,
        progress=make_progress(quiet),
        sync=sync,
    )
    return result, evaluation.table_lines(result)


def _evaluate_pairs(
    answers: Path, scores: Path, media: Path | None, quiet: bool
) -> tuple[dict[str, Any], list[str]]:
    from ft2.critic import evaluate_pairs as evaluation
    from ft2.critic.importers import read_answers

    given, judged = read_answers(answers), evaluation.read_scores(scores)
    found = evaluation.evaluate_pairs(given, judged)
    if media is not None:
        evaluation.add_sync_measure(found, given, media, make_progress(quiet))
    return found, evaluation.table_lines(found)
