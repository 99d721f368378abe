"""The command `ft2 generate`."""

from collections.abc import Callable, Sequence
from functools import cache
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ft2.cli.options import (
    ConfigArgs,
    DryRun,
    Json,
    Quiet,
    Resume,
    Verbose,
    emit,
    make_progress,
    say,
    split_config_args,
)
from ft2.cli.serving import Token
from ft2.errors import RunError, UsageError

if TYPE_CHECKING:
    from ft2.generator.best import Judge
    from ft2.generator.config import GenerateConfig

_SHOWN = ("video", "videos", "video_sha256", "seconds", "windows", "candidates", "remarks")


def generate(
    args: ConfigArgs = None,
    portrait: Annotated[
        Path | None, typer.Option("--portrait", metavar="IMAGE", help="A picture with a face.")
    ] = None,
    audio: Annotated[
        Path | None, typer.Option("--audio", metavar="SOUND", help="A sound or video file.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="TEXT", help="What is seen, in words.")
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", metavar="DIR", help="An expert or fusion run; default: the base."),
    ] = None,
    critic: Annotated[
        Path | None,
        typer.Option("--critic", metavar="DIR", help="Keep the best of num_seeds by this critic."),
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option("--batch", metavar="JSONL", help="Many videos: one JSON object a line."),
    ] = None,
    again: Annotated[
        Path | None,
        typer.Option("--from", metavar="JSON", help="Make a video again from its record."),
    ] = None,
    ui: Annotated[
        bool, typer.Option("--ui", help="Open a page on this machine that makes videos.")
    ] = False,
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, help="Of the page: 7860; 0 takes a free one."),
    ] = None,
    token: Token = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="MP4",
            help="The video: talking.mp4; with --batch and --ui a directory.",
        ),
    ] = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make a portrait speak: an mp4 with sound, and a JSON record of how it was made."""
    from ft2.config import load_config
    from ft2.generator.config import GenerateConfig

    source, overrides = split_config_args(args)
    if prompt is not None:
        overrides.append(f"prompt={dumps(prompt)}")
    _check_together(portrait, audio, policy, rows, again, source)
    _check_page(ui, portrait or audio or rows or again or resume, port, token)
    source = source or "nano/generate"
    if again is not None:
        from ft2.generator.record import read_record

        recorded, portrait, audio, policy = read_record(again)
        source, overrides = None, [*recorded, *overrides]
    _check_paths(portrait, audio, policy, critic)
    if rows is not None:
        _batch(rows, source, overrides, policy, critic, output, resume, dry_run, json, quiet)
        return
    config = load_config(GenerateConfig, source, overrides)
    if ui and not dry_run:
        from ft2.cli.generate_page import open_page

        assert source is not None
        judge = _judge(critic, config, several=False)
        place = output or Path("talking")
        open_page(
            source, overrides, policy, judge, place, port=port, token=token, json=json, quiet=quiet
        )
        return
    output = output or Path("talking.mp4")
    if dry_run:
        _plan(config, portrait, audio, output, json)
        return
    if portrait is None or audio is None:
        raise UsageError("nothing to speak with", "give --portrait IMAGE and --audio SOUND")
    if _complete(config, output, resume):
        emit({"video": str(output), "remarks": ["already complete"]}, json)
        return
    from ft2.cli.critic_use import refuse_short
    from ft2.generator.checks import check_inputs
    from ft2.generator.run import generate_one
    from ft2.tlpo.policy import load_policy

    judge = _judge(critic, config)
    if critic is not None:
        inputs = check_inputs(config, portrait, audio, output)
        refuse_short(critic, inputs.frames, inputs.clip.fps)
    result = generate_one(
        config,
        portrait,
        audio,
        output,
        policy_path=policy,
        make_policy=load_policy,
        progress=make_progress(quiet),
        say=say,
        resume=resume,
        judge=judge,
    )
    emit({name: result[name] for name in _SHOWN if name in result}, json)


def _check_together(
    portrait: Path | None,
    audio: Path | None,
    policy: Path | None,
    rows: Path | None,
    again: Path | None,
    source: str | None,
) -> None:
    """Refuse options that exclude one another."""
    if rows is not None and (portrait or audio or again):
        raise UsageError(
            "--batch takes portraits and sounds from its rows", "leave the other options out"
        )
    if again is not None and (portrait or audio or policy or source):
        raise UsageError(
            "--from takes portrait, sound, policy and config from the record",
            "leave the other options out; single values may be given as KEY=VALUE",
        )


def _check_page(ui: bool, others: object, port: int | None, token: str | None) -> None:
    """Refuse options that do not go with the page, or only with it."""
    if ui and others:
        raise UsageError(
            "--ui takes portraits and sounds from its page",
            "leave --portrait, --audio, --batch, --from and --resume out",
        )
    if not ui and (port is not None or token is not None):
        raise UsageError("--port and --token are for the page", "add --ui, or leave them out")


def _check_paths(
    portrait: Path | None, audio: Path | None, policy: Path | None, critic: Path | None
) -> None:
    """Refuse missing inputs before anything is loaded."""
    for option, path in (("--portrait", portrait), ("--audio", audio)):
        if path is not None and not path.is_file():
            raise UsageError(f"{option}: there is no file '{path}'", "check the path")
    for name, path, command in (("policy", policy, "tlpo"), ("critic", critic, "critic")):
        if path is not None and not path.is_dir():
            raise UsageError(
                f"the {name} '{path}' is not a directory", f"give a run of ft2 {command} train"
            )
    if policy is not None:
        from ft2.tlpo.policy import find_policy

        find_policy(policy)


def _complete(config: "GenerateConfig", output: Path, resume: bool) -> bool:
    """Say whether the video is there already.

    Raises:
        UsageError: an output exists without --resume.
    """
    from ft2.generator.record import kept_latents, seed_path

    done = output.is_file() and output.with_suffix(".json").is_file()
    if done and resume:
        return True
    seeds = range(config.seed, config.seed + config.num_seeds)
    files = [output] + [seed_path(output, seed) for seed in seeds if config.num_seeds > 1]
    kept = [kept_latents(path) for path in files if kept_latents(path).exists()]
    there = [path for path in files if path.exists()] + kept
    if there and not resume:
        raise UsageError(
            f"the output '{there[0]}' already exists",
            "choose another -o NAME.mp4, or go on with it: --resume",
        )
    return False


def _judge(critic: Path | None, config: "GenerateConfig", several: bool = True) -> "Judge | None":
    """Return the critic as a judge that loads once, when it is first asked."""
    if critic is None:
        return None
    if several and config.num_seeds < 2:
        raise UsageError("--critic chooses among several videos", "set num_seeds, such as 8")
    from ft2.critic.adapter import read_card

    folder = critic / "adapter" if (critic / "adapter").is_dir() else critic
    read_card(folder)

    @cache
    def scorer() -> Any:
        from ft2.critic.score import CriticScorer

        return CriticScorer(folder, device=config.device)

    def score(paths: Sequence[Path]) -> Any:
        return scorer().score(paths)

    return score


def _plan(
    config: "GenerateConfig",
    portrait: Path | None,
    audio: Path | None,
    output: Path,
    json: bool,
) -> None:
    """Print what one video would take; inputs that are given are checked."""
    from ft2.generator.checks import check_asked, check_inputs
    from ft2.generator.plan import plan_generation

    inputs = None
    check_asked(config)
    if portrait is not None and audio is not None:
        inputs = check_inputs(config, portrait, audio, output)
    emit(plan_generation(config, inputs), json)


def _batch(
    rows: Path,
    source: str | None,
    overrides: list[str],
    policy: Path | None,
    critic: Path | None,
    output: Path | None,
    resume: bool,
    dry_run: bool,
    json: bool,
    quiet: bool,
) -> None:
    """Make the videos of a list."""
    from ft2.config import load_config
    from ft2.generator.batch import check_rows, generate_rows, read_rows
    from ft2.generator.config import GenerateConfig
    from ft2.generator.record import Job

    config = load_config(GenerateConfig, source, overrides)
    if output is None or output.is_file():
        raise UsageError("with --batch the output is a directory", "write -o DIR")
    jobs = []
    for row in read_rows(rows):
        own = load_config(GenerateConfig, source, [*overrides, *row.overrides])
        jobs.append((row, Job(own, row.portrait, row.audio, output / f"{row.name}.mp4", policy)))
    if dry_run:
        good, failed = check_rows(jobs)
        windows = sum(len(inputs.starts) * job.config.num_seeds for _, job, inputs in good)
        emit({"rows": len(jobs), "windows": windows, "refused": failed}, json)
        return
    if output.exists() and not resume:
        raise UsageError(
            f"the output '{output}' already exists", "choose another -o DIR, or add --resume"
        )
    result = generate_rows(
        jobs, output, _talker(config, policy, quiet), say,
        resume=resume, judge=_judge(critic, config),
    )  # fmt: skip
    emit(result, json)
    if result["failed"]:
        raise RunError(
            f"{len(result['failed'])} of {result['rows']} rows failed: "
            f"{', '.join(result['failed'])}",
            f"see {output / 'results.json'}; --resume tries them again",
        )


def _talker(config: "GenerateConfig", policy: Path | None, quiet: bool) -> Callable[[], Any]:
    def load() -> Any:
        from ft2.generator.run import Talker
        from ft2.tlpo.policy import load_policy

        return Talker(config, policy, load_policy, make_progress(quiet))

    return load
