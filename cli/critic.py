"""Commands of `ft2 critic`."""

from pathlib import Path

import typer

from ft2.cli import (
    critic_annotate,
    critic_calibrate,
    critic_eval,
    critic_push,
    critic_ratings,
    critic_use,
)
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
    refuse_missing,
    say,
    split_config_args,
)
from ft2.errors import UsageError

app = typer.Typer(help="Train, evaluate and use the critic.", no_args_is_help=True)
app.command("import")(critic_ratings.import_ratings)
app.command("split")(critic_ratings.split)
app.command("score")(critic_use.score)
app.command("eval")(critic_eval.evaluate)
app.command("doctor")(critic_use.doctor)
app.command("calibrate")(critic_calibrate.calibrate)
app.command("push")(critic_push.push)
app.command("annotate")(critic_annotate.annotate)
app.command("raters")(critic_annotate.raters)
app.command("serve")(critic_annotate.serve)


@app.command()
def train(
    config: ConfigArgs = None,
    output: Output = Path("runs/critic"),
    resume: Resume = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train the critic on ratings: `ft2 critic train nano/critic ratings=FILE`."""
    del verbose
    from ft2.config import load_config
    from ft2.critic.config import CriticConfig

    source, overrides = split_config_args(config)
    if source is None and not overrides:
        raise UsageError("no config given", "start with: ft2 critic train nano/critic ratings=FILE")
    settings = load_config(CriticConfig, source, overrides)
    if dry_run:
        from ft2.critic.plan import plan_training

        plan = plan_training(settings, output)
        emit(plan, json=json)
        refuse_missing(plan["missing"], config)
        return
    from ft2.critic.train import train_critic
    from ft2.critic.training_data import remarks_on
    from ft2.engine import shutdown

    for remark in remarks_on(settings):
        say(remark)
    try:
        result = train_critic(settings, output, resume, make_progress(quiet))
    finally:
        shutdown()
    emit(result, json=json)


@app.command()
def pretrain(
    config: ConfigArgs = None,
    output: Output = Path("runs/thinker"),
    resume: Resume = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train the base of a nano critic from puppet arrays: `ft2 critic pretrain data=DIR`."""
    del verbose
    from ft2.critic.base import PretrainConfig, pretrain

    settings = read_config(PretrainConfig, config)
    emit(pretrain(settings, output, resume, make_progress(quiet)), json=json)
