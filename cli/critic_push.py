"""`ft2 critic push`: a critic with its card on the Hugging Face Hub."""

from pathlib import Path
from typing import Annotated

import typer

from ft2.cli.critic_use import Critic, find_critic
from ft2.cli.options import DryRun, Json, Quiet, Yes
from ft2.cli.push import Public, Repo, Update, check_push, run_push


def push(
    repo: Repo,
    critic: Critic = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(
            "--eval",
            metavar="FILE",
            help="An eval.json of `ft2 critic eval`, whose figures the card shows.",
            show_default=False,
        ),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            "--base-model",
            metavar="NAME",
            help="The base's name on the Hub, for the card.",
            show_default=False,
        ),
    ] = None,
    public: Public = False,
    update: Update = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Publish a critic with its card on the Hugging Face Hub: -n prints the plan, -y does it."""
    check_push("weights", dry_run=dry_run, yes=yes)
    folder = find_critic(critic)
    from ft2.critic.card import critic_maker, model_card, plan_critic_push, read_evaluation

    figures = None if evaluation is None else read_evaluation(evaluation, folder)

    def card() -> str:
        return model_card(folder, figures, base_model)

    run_push(
        plan_critic_push(folder, repo, card, base_model, private=not public), folder, card,
        critic_maker(folder, card, base_model),
        kind="model", dry_run=dry_run, update=update, json=json, quiet=quiet,
    )  # fmt: skip
