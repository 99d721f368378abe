"""The command `ft2 generate`."""

from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from ft2.cli.options import (
    ConfigArgs,
    DryRun,
    Json,
    Quiet,
    Resume,
    Verbose,
    split_config_args,
)
from ft2.cli.serving import Token
from ft2.errors import UsageError


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
        typer.Option(
            "--port", metavar="N", min=0, max=65535, help="Of the page: 7860; 0 takes a free one."
        ),
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
    from ft2.cli.generate_run import (
        TALKING,
        check_policy,
        find_judge,
        make_batch,
        make_one,
        plan_one,
    )
    from ft2.config import load_config
    from ft2.generator.config import GenerateConfig
    from ft2.generator.record import Job

    if rows is not None:
        make_batch(rows, source, overrides, policy, critic, output, resume, dry_run, json, quiet)
        return
    config = load_config(GenerateConfig, source, overrides)
    judge = find_judge(critic, config, several=not ui)
    check_policy(policy, config)
    if dry_run:
        plan_one(config, portrait, audio, output or TALKING, judge, json)
    elif ui:
        from ft2.cli.generate_page import open_page

        place = output or Path("talking")
        open_page(
            source, overrides, policy, judge, place, port=port, token=token, json=json, quiet=quiet
        )
    elif portrait is None or audio is None:
        raise UsageError("nothing to speak with", "give --portrait IMAGE and --audio SOUND")
    else:
        job = Job(config, portrait, audio, output or TALKING, policy)
        make_one(job, judge, resume=resume, json=json, quiet=quiet)


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
        from ft2.tlpo.policy_files import find_policy

        find_policy(policy)
