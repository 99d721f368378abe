"""Commands of `ft2 generator`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ft2.cli.options import (
    ConfigArgs,
    DryRun,
    Json,
    Output,
    Quiet,
    Resume,
    Verbose,
    emit,
    make_progress,
    read_config,
    say,
    split_config_args,
)

if TYPE_CHECKING:
    from ft2.generator.config import TrainConfig
    from ft2.generator.prepare import Speech

app = typer.Typer(help="Prepare data, train and evaluate the base generator.", no_args_is_help=True)


@app.callback()
def _callback() -> None:
    """Prepare data, train and evaluate the base generator."""


@app.command()
def prepare(
    videos: Annotated[
        Path,
        typer.Option("--videos", metavar="PATH", help="A folder, or a list of JSON objects."),
    ],
    args: ConfigArgs = None,
    output: Output = Path("data/clips"),
    resume: Resume = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Cut videos of talking people into training clips; say why others are refused."""
    from ft2.generator.config import VideosConfig

    config = read_config(VideosConfig, args)
    if dry_run:
        from ft2.generator.collect import read_sources
        from ft2.wan.places import read_architecture

        clip = read_architecture(config.model).clip
        emit({"videos": len(read_sources(videos)), "clip": clip.model_dump()}, json)
        return
    from ft2.generator.collect import prepare_videos

    result = prepare_videos(config, videos, output, resume=resume, progress=make_progress(quiet))
    shown = {name: value for name, value in result.items() if not name.startswith("omega")}
    emit({"output": str(output), "data": str(output / "clips"), **shown}, json)


@app.command()
def measure(
    data: Annotated[
        Path, typer.Option("--data", metavar="DIR", help="Array shards, changed in place.")
    ],
    args: ConfigArgs = None,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Add to array shards how much face and body move, for the branch `motion`."""
    from ft2.generator.config import MeasureConfig
    from ft2.generator.measure import measure_shards

    config = read_config(MeasureConfig, args)
    if dry_run:
        emit({"shards": len(list(data.glob("*.safetensors"))), **config.model_dump()}, json)
        return
    emit(measure_shards(config, data, make_progress(quiet)), json)


@app.command()
def cache(
    args: ConfigArgs = None,
    output: Output = Path("data/encoded"),
    resume: Resume = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Encode training clips once, for all stages (cache=DIR); torchrun shares the work."""
    from ft2.generator.precompute import cache_clips, check_cache, plan_cache

    config = load_training(args)
    check_cache(config, output, resume)
    if dry_run:
        emit(plan_cache(config), json)
        return
    emit({"output": str(output), **cache_clips(config, output, make_progress(quiet))}, json)


@app.command()
def train(
    args: ConfigArgs = None,
    output: Output = Path("runs/generator"),
    resume: Resume = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train one stage of the base generator (nano/generator-clip, then nano/generator-frame)."""
    from ft2.generator.plan import plan_training

    config = load_training(args)
    if dry_run:
        emit(plan_training(config), json)
        return
    from ft2.generator.train import train_generator

    result = train_generator(
        config, output, resume=resume, speech=load_speech, progress=make_progress(quiet)
    )
    emit({"output": str(output), **result}, json)


@app.command()
def ablate(
    args: ConfigArgs = None,
    output: Output = Path("runs/ablation"),
    resume: Resume = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train without a stage, the lip mask or the identity, and compare by puppets' ground truth."""
    from ft2.cli.ablate import check_inputs, plan_ablation, run_ablation
    from ft2.cli.ablate_config import AblationConfig
    from ft2.runs import check_output

    settings = read_config(AblationConfig, args)
    if dry_run:
        emit(plan_ablation(settings, output), json)
        return
    check_inputs(settings, output)
    check_output(output, resume=resume)
    table = run_ablation(settings, output, resume=resume, progress=make_progress(quiet))
    say(f"the table is in {output / 'table.md'}, its charts in {output / 'report.html'}")
    shown = {name: table[name] for name in ("conditions", "seeds", "difference_to_base")}
    emit({"output": str(output), **shown}, json)


def load_training(args: list[str] | None) -> "TrainConfig":
    """Return the config of the training stage that a command line means.

    Raises:
        UsageError: no config, or one with problems.
    """
    from ft2.generator.config import TrainConfig

    return read_config(TrainConfig, args, needed="for example nano/generator-clip")


def load_speech() -> "list[Speech]":
    """Return the puppet world's training utterances with their phones."""
    from ft2.generator.prepare import Speech
    from ft2.puppet.world import utterances

    return [Speech(item.audio, item.phones) for item in utterances("train")]


@app.command("eval")
def evaluate(
    data: Annotated[
        Path, typer.Option("--data", metavar="DIR", help="Array shards of held-out clips.")
    ],
    args: ConfigArgs = None,
    tracker_data: Annotated[
        Path | None,
        typer.Option(
            "--tracker-data", metavar="DIR", help="Training shards for the mouth tracker."
        ),
    ] = None,
    clips: Annotated[
        int, typer.Option("--clips", metavar="N", min=8, help="Held-out clips to sample.")
    ] = 64,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", metavar="PNG", help="Write a contact sheet.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure codec PSNR, and the mouth's correlation with the right and another sound."""
    from ft2.generator.checks import load_sampling
    from ft2.generator.evaluate import evaluate_generator

    source, overrides = split_config_args(args)
    config = load_sampling(source or "nano/generate", overrides)
    result = evaluate_generator(
        config, data, tracker_data or data, clips, sheet, make_progress(quiet)
    )
    emit(result, json)
