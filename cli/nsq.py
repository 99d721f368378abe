"""Commands of `ft2 nsq`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ft2.cli.options import (
    ConfigArgs,
    DryRun,
    Json,
    Output,
    Quiet,
    Resume,
    Verbose,
    Yes,
    emit,
    make_progress,
    say,
    split_config_args,
)
from ft2.errors import UsageError

if TYPE_CHECKING:
    from ft2.critic.score import CriticScorer
    from ft2.nsq.config import NsqConfig

app = typer.Typer(help="Build, check and publish preference data.", no_args_is_help=True)

DatasetDir = Annotated[
    Path, typer.Argument(metavar="DIR", help="A dataset that `ft2 nsq build` wrote.")
]


@app.command()
def build(
    output: Output,
    config: ConfigArgs = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Generate candidates, score them, pair them, and write Arrow shards with a card."""
    from ft2.config import load_config
    from ft2.nsq.config import NsqConfig
    from ft2.runs import check_output

    del verbose
    source, overrides = split_config_args(config)
    settings = load_config(NsqConfig, source, overrides)
    plan = plan_build(settings)
    if dry_run:
        emit(plan, json)
        return
    check_output(output, resume=resume)
    say(f"{plan['conditions']} conditions x {plan['candidates']} seeds = {plan['clips']} clips")
    emit(run_build(settings, output, resume, quiet), json)


def plan_build(settings: "NsqConfig") -> dict[str, Any]:
    """Check the inputs of a build and return what it would make.

    Raises:
        UsageError: conditions, critic or policy are missing or wrong.
    """
    from ft2.config import load_config
    from ft2.generator.config import GenerateConfig
    from ft2.nsq.candidates import check_splits
    from ft2.pairs import read_conditions

    conditions = read_conditions(settings.conditions)
    check_splits(conditions)
    load_config(GenerateConfig, settings.generator)
    for name, path in (("critic", settings.critic), ("policy", settings.policy)):
        if path is not None and not Path(path).is_dir():
            raise UsageError(f"no {name} directory {path}", f"set {name}=DIR")
    num_clips = len(conditions) * settings.num_candidates
    most = len(conditions) * settings.pairing.max_per_condition
    return {
        "conditions": len(conditions),
        "candidates": settings.num_candidates,
        "clips": num_clips,
        "most_pairs_per_store": most,
        "generator": settings.generator,
        "policy": settings.policy or "base",
        "critic": settings.critic,
    }


def run_build(settings: "NsqConfig", output: Path, resume: bool, quiet: bool) -> dict[str, Any]:
    """Load generator and critic and build the dataset."""
    from ft2.config import load_config
    from ft2.generator.config import GenerateConfig
    from ft2.generator.sample import Sampler
    from ft2.nsq.build import build as build_dataset
    from ft2.tlpo.policy import load_policy
    from ft2.wan.weights import load_talking_model

    progress = make_progress(quiet)
    generate = load_config(GenerateConfig, settings.generator)
    model = load_talking_model(generate.model, generate.device)
    policy = None if settings.policy is None else load_policy(settings.policy, model)
    generator = Sampler(model, generate, policy, settings.policy or "base")
    return build_dataset(
        settings, output, generator, load_scorer(settings), resume=resume, progress=progress
    )


def load_scorer(settings: "NsqConfig") -> "CriticScorer":
    """Return the critic that a build asks; its run directory or its adapter may be named.

    Raises:
        UsageError: there is no trained critic.
    """
    from ft2.critic.score import CriticScorer

    path = Path(settings.critic)
    if (path / "adapter").is_dir():
        path = path / "adapter"
    return CriticScorer(path, batch_size=settings.critic_batch_size, device=settings.critic_device)


@app.command()
def stats(directory: DatasetDir, json: Json = False) -> None:
    """Print how many conditions, clips and pairs a finished dataset has."""
    from ft2.runs import read_json

    if not (directory / "manifest.json").is_file():
        raise UsageError(
            f"{directory} is not a finished dataset", "build it, or finish it with --resume"
        )
    emit(read_json(directory / "result.json"), json)


@app.command()
def push(
    directory: DatasetDir,
    repo: Annotated[
        str, typer.Option("--repo", metavar="NAME", help="Dataset on the Hub: NAME or OWNER/NAME.")
    ],
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public; private otherwise.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Publish a dataset on the Hugging Face Hub: -n prints and saves the plan, -y does it."""
    from ft2.hub import PLAN_NAME, plan_push
    from ft2.hub import push as upload
    from ft2.runs import write_json

    del quiet
    if dry_run == yes:
        raise UsageError(
            "a push wants --dry-run or --yes, and not both" if yes else "a push publishes data",
            "-n prints and saves what would be uploaded; -y uploads it",
        )
    plan = plan_push(directory, repo, private=not public)
    if dry_run:
        write_json(directory / PLAN_NAME, plan.to_json())
        say(f"plan saved to {directory / PLAN_NAME}; upload it with -y")
        emit(plan.to_json(), json)
        return
    address = upload(directory, plan)
    emit({"repo": repo, "address": address, "bytes": plan.total_bytes}, json)
