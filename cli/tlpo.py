"""Commands of `ft2 tlpo`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from ft2.cli.options import (
    ConfigArgs,
    DryRun,
    Json,
    PlannedOutput,
    Quiet,
    Resume,
    Verbose,
    emit,
    make_progress,
    refuse_missing,
    require_output,
    say,
    split_config_args,
)
from ft2.cli.tlpo_policies import compare, export, merge, push, refuse_file
from ft2.errors import UsageError

if TYPE_CHECKING:
    from ft2.tlpo.config import ExpertConfig, FusionConfig

app = typer.Typer(help="Train experts and the fusion gate.", no_args_is_help=True)


@app.command()
def train(
    config: ConfigArgs = None,
    output: PlannedOutput = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train one expert (nano/expert-lip and so on), or the gate over three (nano/fusion)."""
    del verbose
    settings = load_stage(config, "train")
    if dry_run:
        from ft2.tlpo.plan import plan_stage

        plan = plan_stage(settings)
        emit(plan, json)
        refuse_missing(plan["missing"], config)  # type: ignore[arg-type]
        return
    output = require_output(output)
    from ft2.engine import shutdown
    from ft2.runs import check_output
    from ft2.tlpo.config import ExpertConfig
    from ft2.tlpo.data import check_dataset
    from ft2.tlpo.experts import ordered
    from ft2.tlpo.train import train_expert, train_fusion

    check_output(output, resume=resume)
    if not isinstance(settings, ExpertConfig):
        ordered(dict(settings.experts.items()))
    check_dataset(settings.dataset)

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


def load_stage(args: Sequence[str] | None, command: str) -> "ExpertConfig | FusionConfig":
    """Return the config of the stage that the command line of ``ft2 tlpo COMMAND`` means.

    Raises:
        UsageError: No config, an unknown stage, or a config with problems.
    """
    from ft2.config import load_config
    from ft2.tlpo.config import ExpertConfig, FusionConfig, stage_of

    source, overrides = split_config_args(args)
    if source is None:
        raise UsageError(
            "no config given", f"for example `ft2 tlpo {command} nano/expert-lip -o DIR`"
        )
    if stage_of(source, overrides) == "fusion":
        return load_config(FusionConfig, source, overrides)
    return load_config(ExpertConfig, source, overrides)


@app.command()
def cache(
    config: ConfigArgs = None,
    output: PlannedOutput = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Encode a dataset's clips, conditions and lip masks once, for all stages (cache=DIR)."""
    from ft2.tlpo.data import check_dataset
    from ft2.tlpo.plan import missing_weights, stores_of

    del verbose
    settings = load_stage(config, "cache")
    check_dataset(settings.dataset)
    if output is not None:
        refuse_file(output)
    plan: dict[str, object] = {"dataset": str(settings.dataset), **stores_of(settings.dataset)}
    if dry_run:
        missing = missing_weights(settings)
        emit({**plan, "missing": missing}, json)
        refuse_missing(missing, config)
        return
    output = require_output(output)
    if output.exists() and any(output.iterdir()) and not resume:
        raise UsageError(f"the cache '{output}' already exists", "complete it with --resume")
    from ft2.tlpo.train import encode_dataset

    result = encode_dataset(settings, output, make_progress(quiet))
    for alarm in result["alarms"]:  # type: ignore[attr-defined]
        say(f"{alarm['text']}; {alarm['advice']}")
    emit({"output": str(output), **plan, **result}, json)


for _command in (merge, export, push, compare):
    app.command()(_command)
