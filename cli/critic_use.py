"""Commands of `ft2 critic` that use a trained critic: score and doctor."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ft2.cli.critic_ratings import OutputFile, refuse_existing
from ft2.cli.options import Json, Quiet, emit, make_progress, say
from ft2.errors import RunError, UsageError

if TYPE_CHECKING:
    from ft2.critic.api import ClipScore, TalkingCritic

Critic = Annotated[
    Path | None,
    typer.Option(
        "--critic",
        metavar="DIR",
        help="A trained critic: its run, or the adapter in it.",
        show_default="runs/critic",
    ),
]
Device = Annotated[
    str, typer.Option("--device", metavar="NAME", help="Where to run: cpu, cuda, cuda:1.")
]


def find_critic(given: Path | None) -> Path:
    """Return the adapter of a trained critic: the one given, else that of `runs/critic`.

    Raises:
        UsageError: There is none.
    """
    path = given or Path("runs/critic")
    if not (path / "critic.json").is_file():
        inner = path / "adapter"
        if (inner / "critic.json").is_file():
            return inner
        raise UsageError(
            f"there is no trained critic in '{path}'",
            "give --critic RUN (`ft2 demo` leaves one in runs/demo/critic), or train one: "
            "ft2 critic train nano/critic ratings=FILE",
        )
    return path


def score(
    clips: Annotated[
        list[Path],
        typer.Argument(metavar="CLIP...", help="Video files with sound, or JSONL with a `clip`."),
    ],
    critic: Critic = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Leave out the thresholds fitted on the dev split.")
    ] = False,
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            metavar="FILE",
            help="What z and percentile are against; without it the critic's own dev clips.",
            show_default=False,
        ),
    ] = None,
    write_reference: Annotated[
        Path | None,
        typer.Option(
            "--write-reference", metavar="FILE", help="Also make a reference set of these clips."
        ),
    ] = None,
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size", metavar="N", min=1, help="Clips a forward pass; scores stay alike."
        ),
    ] = 16,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Neither read nor keep scores of earlier calls.")
    ] = False,
    device: Device = "cpu",
    output: OutputFile = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print P(yes) per dimension of each clip, and its percentile among reference clips."""
    folder = find_critic(critic)
    paths = _clip_paths(clips)
    for path in (output, write_reference):
        if path is not None:
            refuse_existing(path)
    from ft2.critic.probe import refuse_hopeless

    refuse_hopeless(paths, every=False)
    from ft2.critic.api import TalkingCritic
    from ft2.critic.cache import default_dir
    from ft2.critic.reference import read_reference
    from ft2.critic.reference import write_reference as save

    judge = TalkingCritic.from_pretrained(
        folder,
        device=device,
        batch_size=batch_size,
        reference=None if reference is None else read_reference(reference),
        cache_dir=None if no_cache else default_dir(),
        calibrated=not raw,
        progress=make_progress(quiet),
    )
    scores = judge.score(videos=paths)
    if write_reference is not None:
        save(write_reference, judge.make_reference(write_reference.stem, scores))
    _show(judge, scores, folder, output, json)
    if all(found.error for found in scores):
        raise RunError(f"none of {len(scores)} clips could be scored", "see the reasons above")


def _clip_paths(clips: Sequence[Path]) -> list[Path]:
    """Return the clips that are named, those in JSONL files relative to their file.

    Raises:
        UsageError: A named file is missing, a row names no clip, or there is no row.
    """
    missing = [str(path) for path in clips if not path.is_file()]
    if missing:
        raise UsageError(f"no such clip: {missing[0]}", "give paths of video files")
    paths = []
    for path in clips:
        if path.suffix.lower() != ".jsonl":
            paths.append(path)
            continue
        from ft2.critic.importers import read_rows

        for number, row in read_rows(path):
            name = row.get("clip", row.get("video")) if isinstance(row, dict) else None
            if not isinstance(name, str):
                raise UsageError(f"{path}: row {number} has no clip", 'write {"clip": "a.mp4"}')
            paths.append(path.parent / name)
    if not paths:
        raise UsageError(f"{clips[0]} names no clip", 'write a line {"clip": "a.mp4"} for each')
    return paths


def _show(
    critic: "TalkingCritic",
    scores: "list[ClipScore]",
    adapter: Path,
    output: Path | None,
    json: bool,
) -> None:
    import json as writer

    from ft2.runs import write_atomic

    rows = [found.to_dict() for found in scores]
    if output is not None:
        write_atomic(output, "".join(writer.dumps(row) + "\n" for row in rows))
    scale = None if critic.reference is None else critic.reference.name
    if json:
        facts = {"adapter": str(adapter), "critic": critic.scorer.fingerprint, "reference": scale}
        emit({**facts, "scores": rows}, json=True)
        return
    width = max(len(str(found.path)) for found in scores)
    typer.echo(f"{'clip':{width}}" + "".join(f"{d:>17}" for d in critic.dimensions))
    for found in scores:
        typer.echo(f"{found.path!s:{width}}" + _cells(found, critic.dimensions))
    if scale is not None:
        count = len(next(iter(critic.reference.log_odds.values()))) if critic.reference else 0
        say(f"P(yes), and percentile among {count} clips: {scale}")


def _cells(found: "ClipScore", dimensions: Sequence[str]) -> str:
    if found.error is not None:
        return f"  {found.error}"
    if found.percentile is None:
        return "".join(f"{found.p[d]:17.3f}" for d in dimensions)
    return "".join(f"{found.p[d]:9.3f} ({found.percentile[d]:3.0f} %)" for d in dimensions)


def doctor(
    clips: Annotated[
        list[Path], typer.Argument(metavar="CLIP...", help="Three or more clips, different speech.")
    ],
    critic: Critic = None,
    device: Device = "cpu",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Also write doctor.json and a page."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check that a critic is steady where it must be and hears what it should; 1 when it fails."""
    folder = find_critic(critic)
    paths = _clip_paths(clips)
    from ft2.critic.eval_page import check_output
    from ft2.critic.probe import refuse_hopeless

    if output is not None:
        check_output(output)
    refuse_hopeless(paths, every=True)
    from ft2.critic.api import TalkingCritic
    from ft2.critic.doctor import examine, write_report

    judge = TalkingCritic.from_pretrained(folder, device=device, progress=make_progress(quiet))
    result = examine(judge, paths)
    if output is not None:
        write_report(output, result)
    if json:
        emit(result, json=True)
    else:
        for check in result["checks"]:
            mark = "ok  " if check["passed"] else "FAIL"
            line = f"{mark}  {check['name']:20}{check['value']:12.4g}   {check['limit']:22}"
            typer.echo(line + check["meaning"])
    failed = [check["name"] for check in result["checks"] if not check["passed"]]
    if failed:
        raise RunError(f"the critic failed: {', '.join(failed)}", "train it on more such ratings")
