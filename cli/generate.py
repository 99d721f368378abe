"""The command `ft2 generate`."""

from pathlib import Path
from typing import Annotated

import typer

from ft2.cli.options import (
    ConfigArgs,
    DryRun,
    Json,
    Quiet,
    Verbose,
    emit,
    make_progress,
    say,
    split_config_args,
)
from ft2.errors import UsageError


def generate(
    args: ConfigArgs = None,
    portrait: Annotated[
        Path | None, typer.Option("--portrait", metavar="IMAGE", help="A picture with a face.")
    ] = None,
    audio: Annotated[
        Path | None, typer.Option("--audio", metavar="SOUND", help="A sound or video file.")
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", metavar="DIR", help="An expert or fusion run; default: the base."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="MP4", help="The clip to write.")
    ] = Path("talking.mp4"),
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make a portrait speak: an mp4 with sound, and a JSON record of how it was made."""
    from ft2.config import load_config
    from ft2.generator.config import GenerateConfig

    source, overrides = split_config_args(args)
    config = load_config(GenerateConfig, source or "nano/generate", overrides)
    _check(portrait, audio, policy, output)
    if dry_run:
        from ft2.generator.plan import plan_generation

        emit(plan_generation(config), json)
        return
    if portrait is None or audio is None:
        raise UsageError("nothing to speak with", "give --portrait IMAGE and --audio SOUND")
    from ft2.generator.run import generate_one
    from ft2.tlpo.policy import load_policy

    result = generate_one(
        config,
        portrait,
        audio,
        output,
        policy_path=policy,
        make_policy=load_policy,
        progress=make_progress(quiet),
        say=say,
    )
    emit({name: result[name] for name in ("video", "video_sha256", "seconds", "remarks")}, json)


def _check(portrait: Path | None, audio: Path | None, policy: Path | None, output: Path) -> None:
    """Refuse missing inputs and an existing output, before anything is loaded."""
    for option, path in (("--portrait", portrait), ("--audio", audio)):
        if path is not None and not path.is_file():
            raise UsageError(f"{option}: there is no file '{path}'", "check the path")
    if policy is not None and not policy.is_dir():
        raise UsageError(
            f"the policy '{policy}' is not a directory", "give a run of ft2 tlpo train"
        )
    if output.exists():
        raise UsageError(f"the output '{output}' already exists", "choose another -o NAME.mp4")
