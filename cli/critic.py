"""Commands of `ft2 critic`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ft2.cli import critic_annotate, critic_ratings, critic_use
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
    split_config_args,
)
from ft2.errors import UsageError

if TYPE_CHECKING:
    from ft2.critic.config import CriticConfig

app = typer.Typer(help="Train, evaluate and use the critic.", no_args_is_help=True)
app.command("import")(critic_ratings.import_ratings)
app.command("split")(critic_ratings.split)
app.command("score")(critic_use.score)
app.command("eval")(critic_use.evaluate)
app.command("doctor")(critic_use.doctor)
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
        emit(_plan(settings, output), json=json)
        return
    from ft2.critic.train import train_critic

    emit(train_critic(settings, output, resume, make_progress(quiet)), json=json)


def _plan(settings: "CriticConfig", output: Path) -> dict[str, Any]:
    """Return what training would do, counted without weights."""
    import torch

    from ft2.critic.adapter import add_lora, count_trainable
    from ft2.critic.data import read_ratings
    from ft2.qwen.thinker import meta_thinker

    ratings = Path(settings.ratings)
    rated = len(read_ratings(ratings, "train")) if ratings.is_file() else None
    thinker = meta_thinker(settings.model)
    total = sum(p.numel() for p in thinker.parameters())
    with torch.device("meta"):
        trained = count_trainable(add_lora(thinker, settings.lora))
    wide = settings.engine.precision == "bf16" and settings.device != "cpu"
    size = 2 if wide else 4
    clips = settings.steps * settings.engine.micro_batch_size * settings.engine.accumulation_steps
    return {
        "output": str(output),
        "ratings": str(ratings),
        "train_ratings": "not found" if rated is None else rated,
        "weights": settings.model.weights,
        "parameters": total,
        "trainable_parameters": trained,
        "tokens_per_clip": settings.model.num_video_tokens + settings.model.num_audio_tokens,
        "clips_seen_per_process": clips,
        "weights_gb": round(total * size / 1e9, 2),
        "adapter_and_optimizer_gb": round(trained * 16 / 1e9, 3),
        "device": settings.device,
        "engine": settings.engine.kind,
        "command": "torchrun --nproc-per-node N -m ft2 critic train ..."
        if settings.engine.kind == "deepspeed"
        else "ft2 critic train ...",
    }


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
    from ft2.config import load_config
    from ft2.critic.base import PretrainConfig, pretrain

    source, overrides = split_config_args(config)
    settings = load_config(PretrainConfig, source, overrides)
    emit(pretrain(settings, output, resume, make_progress(quiet)), json=json)
