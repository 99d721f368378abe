"""What the pushes of datasets, policies and critics share: options, plan in files, upload."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ft2.cli.options import emit, make_progress, say
from ft2.errors import UsageError

if TYPE_CHECKING:
    from ft2.hub import PlannedFile, PushPlan

PLAN_NAME, CARD_NAME = "push-plan.json", "push-card.md"

Repo = Annotated[
    str, typer.Option("--repo", metavar="NAME", help="Repository on the Hub: NAME or OWNER/NAME.")
]
Public = Annotated[
    bool, typer.Option("--public", help="Make a new repository public; private otherwise.")
]
Update = Annotated[
    bool, typer.Option("--update", help="Replace files of a repository that has some.")
]


def check_push(what: str, *, dry_run: bool, yes: bool) -> None:
    """Refuse a push that does not say whether to plan or to publish.

    Raises:
        UsageError: Neither or both of -n and -y.
    """
    if dry_run == yes:
        raise UsageError(
            "a push wants --dry-run or --yes, and not both" if yes else f"a push publishes {what}",
            "-n prints and saves what would be uploaded; -y uploads it",
        )


def run_push(
    plan: "PushPlan",
    folder: Path,
    card: Callable[[], str],
    make: "Callable[[PlannedFile, Path], Path]",
    *,
    kind: Literal["dataset", "model"],
    dry_run: bool,
    update: bool,
    json: bool,
    quiet: bool,
) -> None:
    """Save and print the plan with its card, or upload its files and print the address.

    Args:
        plan: What goes up.
        folder: What is published; a plan is saved there.
        card: Gives the text of the card.
        make: Writes a planned file into a folder.
        kind: What the repository is.
        dry_run: Only plan.
        update: Allow a repository that has files.
        json: Print one JSON object.
        quiet: Show no progress.
    """
    from ft2.hub import push
    from ft2.nsq.publish import local_secrets
    from ft2.runs import write_atomic, write_json

    if dry_run:
        write_json(folder / PLAN_NAME, plan.to_json())
        write_atomic(folder / CARD_NAME, card())
        say(f"plan saved to {folder / PLAN_NAME}, the card to {CARD_NAME}; upload with -y")
        emit(plan.to_json(), json)
        return
    address = push(
        plan, make, secrets=local_secrets(folder), update=update, progress=make_progress(quiet),
        kind=kind,
    )  # fmt: skip
    emit({"repo": plan.repo, "address": address, "files": len(plan.files)}, json)
