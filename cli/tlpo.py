"""Commands of `ft2 tlpo`."""

from collections.abc import Sequence
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
    say,
    split_config_args,
)
from ft2.errors import UsageError

if TYPE_CHECKING:
    from ft2.tlpo.config import ExpertConfig, FusionConfig
    from ft2.tlpo.experts import ExpertName

app = typer.Typer(help="Train experts and the fusion gate.", no_args_is_help=True)


@app.command()
def train(
    output: Output,
    config: ConfigArgs = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train one expert (nano/expert-lip and so on), or the gate over three (nano/fusion)."""
    del verbose
    settings = load_stage(config)
    if dry_run:
        from ft2.tlpo.plan import plan_stage

        emit(plan_stage(settings), json)
        return
    from ft2.engine import shutdown
    from ft2.tlpo.config import ExpertConfig
    from ft2.tlpo.train import train_expert, train_fusion

    progress = make_progress(quiet)
    try:
        if isinstance(settings, ExpertConfig):
            result = train_expert(settings, output, resume=resume, progress=progress)
        else:
            result = train_fusion(settings, output, resume=resume, progress=progress)
    finally:
        shutdown()
    for alarm in result.get("alarms", []):  # type: ignore[attr-defined]
        say(f"alarm at step {alarm['step']}: {alarm['text']}; {alarm['advice']}")
    emit({"output": str(output), **result}, json)


def load_stage(args: Sequence[str] | None) -> "ExpertConfig | FusionConfig":
    """Return the config of the stage that a command line means.

    Raises:
        UsageError: No config, an unknown stage, or a config with problems.
    """
    from ft2.config import load_config
    from ft2.tlpo.config import ExpertConfig, FusionConfig, stage_of

    source, overrides = split_config_args(args)
    if source is None:
        raise UsageError("no config given", "for example `ft2 tlpo train nano/expert-lip -o DIR`")
    if stage_of(source, overrides) == "fusion":
        return load_config(FusionConfig, source, overrides)
    return load_config(ExpertConfig, source, overrides)


@app.command()
def cache(
    output: Output,
    config: ConfigArgs = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Encode a dataset's clips, conditions and lip masks once, for all stages (cache=DIR)."""
    from ft2.tlpo.plan import stores_of

    del verbose
    settings = load_stage(config)
    if not settings.dataset.is_dir():
        raise UsageError(
            f"the dataset {settings.dataset} does not exist", "build it: ft2 nsq build"
        )
    if output.exists() and any(output.iterdir()) and not resume:
        raise UsageError(f"the cache '{output}' already exists", "complete it with --resume")
    plan: dict[str, object] = {"dataset": str(settings.dataset), **stores_of(settings.dataset)}
    if dry_run:
        emit(plan, json)
        return
    from ft2.tlpo.train import encode_dataset

    result = encode_dataset(settings, output, make_progress(quiet))
    emit({"output": str(output), **plan, **result}, json)


@app.command()
def export(
    policy: Annotated[
        Path, typer.Option("--policy", metavar="DIR", help="An expert's run, or a policy.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The safetensors file to write.")
    ],
    form: Annotated[
        str, typer.Option("--format", help="comfyui (diffusers too), kohya or diffsynth.")
    ] = "comfyui",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Write an expert, or a policy's average over the noise levels, as one LoRA for others."""
    from typing import get_args

    from ft2.tlpo.export import ExportFormat, export_lora, export_tensors, load_mix

    if form not in get_args(ExportFormat):
        raise UsageError(f"unknown format '{form}'", f"one of {', '.join(get_args(ExportFormat))}")
    if output.exists():
        raise UsageError(f"the output '{output}' already exists", "choose another --output")
    if dry_run:
        tensors, left_out = export_tensors(load_mix(policy), form)  # type: ignore[arg-type]
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        emit({"tensors": len(tensors), "bytes": size, "left_out": len(left_out)}, json)
        return
    result = export_lora(policy, form, output)  # type: ignore[arg-type]
    lost = result["left_out"]
    if lost["linears"]:  # type: ignore[index]
        say(f"left out, because {form} has no place for it: {lost}")
    emit(result, json)


@app.command()
def merge(
    output: Output,
    expert: Annotated[
        list[Path],
        typer.Option("--expert", metavar="DIR", help="An expert's run; give one a dimension."),
    ],
    weight: Annotated[float, typer.Option("--weight", help="Constant weight of every expert.")] = 2
    / 3,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Join experts with one constant weight into a policy, as a baseline of the gate."""
    from ft2.tlpo.experts import expert_dimension, find_adapter
    from ft2.tlpo.policy import save_policy

    found: dict[ExpertName, Path] = {}
    for path in expert:
        adapter = find_adapter(path)
        name = expert_dimension(adapter)
        if name in found:
            raise UsageError(f"two {name} experts: {found[name]} and {adapter}")
        found[name] = adapter
    if output.exists():
        raise UsageError(f"the output '{output}' already exists", "choose another --output")
    result = {"experts": {name: str(path) for name, path in found.items()}, "weight": weight}
    if not dry_run:
        save_policy(output, found, weight)
        say(f"use it with: ft2 generate --policy {output}")
    emit({"output": str(output), **result}, json)
