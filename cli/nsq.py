"""Commands of `ft2 nsq`."""

from pathlib import Path
from typing import Annotated

import typer

from ft2.cli.nsq_import import import_dataset
from ft2.cli.options import (
    ConfigArgs,
    DryRun,
    Json,
    Output,
    PlannedOutput,
    Quiet,
    Resume,
    Verbose,
    Yes,
    emit,
    read_config,
    refuse_missing,
    require_output,
    say,
)
from ft2.cli.push import Public, Repo, Update, check_push, run_push
from ft2.errors import UsageError

app = typer.Typer(help="Build, check and publish preference data.", no_args_is_help=True)
app.command("import")(import_dataset)

DatasetDir = Annotated[
    Path, typer.Argument(metavar="DIR", help="A dataset that `ft2 nsq build` wrote.")
]


@app.command()
def plan(
    config: ConfigArgs = None,
    output: PlannedOutput = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Expand portraits x sounds x prompts into conditions.jsonl, capped and fair to every face."""
    from ft2.nsq.plan import PlanConfig, expand, summarise, write_conditions
    from ft2.runs import check_output

    conditions = expand(read_config(PlanConfig, config))
    if not dry_run:
        output = require_output(output)
        check_output(output, resume=False)
        write_conditions(conditions, output / "conditions.jsonl")
        say(f"wrote {output / 'conditions.jsonl'}; next: ft2 nsq build")
    emit(summarise(conditions), json)


@app.command()
def build(
    config: ConfigArgs = None,
    output: PlannedOutput = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Generate candidates, score them, pair them, and write Arrow shards with a card."""
    from ft2.cli.nsq_build import plan_build, run_build
    from ft2.nsq.config import NsqConfig
    from ft2.runs import check_output

    del verbose
    settings = read_config(NsqConfig, config)
    plan = plan_build(settings)
    if dry_run:
        emit(plan, json)
        refuse_missing(plan["missing"], config)
        return
    output = require_output(output)
    check_output(output, resume=resume)
    if not plan["missing"]:
        say(f"{plan['conditions']} conditions, {plan['clips']} clips")
    emit(run_build(settings, output, resume, quiet), json)


@app.command()
def validate(
    directory: DatasetDir,
    decode: Annotated[
        str,
        typer.Option(
            "--decode", metavar="WHICH", help="Clips to hash and decode: sample, all or none."
        ),
    ] = "sample",
    json: Json = False,
) -> None:
    """Check files, hashes, schemas, references, splits, balance and media; exit 1 with the list."""
    from ft2.errors import RunError
    from ft2.nsq.validate import validate as check

    if decode not in ("sample", "all", "none"):
        raise UsageError(f"--decode {decode} is unknown", "choose sample, all or none")
    report = check(directory, decode)  # type: ignore[arg-type]
    emit(report, json)
    if report["problems"]:
        raise RunError(
            f"{directory} has {len(report['problems'])} problems",
            "build the dataset anew, or fetch the files that are named again",
        )


@app.command()
def stats(
    directory: DatasetDir,
    page: Annotated[
        Path | None,
        typer.Option("--page", metavar="FILE", help="Also write tables and charts as HTML."),
    ] = None,
    json: Json = False,
) -> None:
    """Print pairs per dimension, histograms, conflicts and win rates of a finished dataset."""
    from ft2.nsq.stats_page import read_stats, write_stats_page

    found = read_stats(directory)
    if page is not None:
        if page.exists():
            raise UsageError(f"'{page}' already exists", "choose another --page")
        write_stats_page(found, page)
        say(f"page: {page}")
    emit(found, json)


@app.command()
def view(
    directory: DatasetDir,
    output: Output,
    split: Annotated[
        str | None,
        typer.Option(
            "--split", metavar="NAME", show_default=False,
            help="Which split; without it train, or the first that has pairs.",
        ),
    ] = None,
    count: Annotated[
        int, typer.Option("--count", metavar="N", min=1, help="Most pairs on the page.")
    ] = 60,
    json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Write a page that plays pairs side by side and in step, disagreement first."""
    from ft2.nsq.gallery import first_split, write_gallery

    if split is None:
        split = first_split(directory)
        say(f"split: {split}")
    emit(write_gallery(directory, output, split, count), json)


@app.command()
def export(
    directory: DatasetDir,
    kind: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT", help="trl, ms-swift, videoalign, genai-bench, webdataset, parquet."
        ),
    ],
    output: Output,
    dimension: Annotated[
        str, typer.Option("--dimension", metavar="NAME", help="motion, lip, quality or fusion.")
    ],
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="Which split.")] = "train",
    json: Json = False,
) -> None:
    """Write the pairs of one dimension, with their media, for another trainer or bench."""
    from ft2.nsq.export import export as write

    emit(write(directory, dimension, split, kind, output), json)  # type: ignore[arg-type]


@app.command()
def push(
    directory: DatasetDir,
    repo: Repo,
    card: Annotated[
        Path | None,
        typer.Option("--card", metavar="FILE", help="YAML with the card's facts, see the guide."),
    ] = None,
    public: Public = False,
    update: Update = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Publish a dataset on the Hugging Face Hub: -n prints and saves the plan, -y does it."""
    from ft2.nsq.publish import hub_card, maker, plan_push, read_card

    check_push("data", dry_run=dry_run, yes=yes)
    facts = read_card(directory, card)
    run_push(
        plan_push(directory, repo, facts, private=not public), directory,
        lambda: hub_card(directory, facts, {}), maker(directory, facts),
        kind="dataset", dry_run=dry_run, update=update, json=json, quiet=quiet,
    )  # fmt: skip
