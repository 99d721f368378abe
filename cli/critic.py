"""Commands of `ft2 critic`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ft2.cli import critic_ratings
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

Adapter = Annotated[
    Path | None,
    typer.Option(
        "--adapter", metavar="DIR", help="A trained critic (RUN/adapter).", show_default=False
    ),
]
Clips = Annotated[
    list[Path], typer.Argument(metavar="CLIP...", help="Video files with sound, faces in view.")
]
Device = Annotated[str, typer.Option("--device", help="Where to run: cpu, cuda, cuda:1.")]


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
def score(
    clips: Clips,
    adapter: Adapter = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Leave out the thresholds fitted on the dev split.")
    ] = False,
    device: Device = "cpu",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print P(yes) for motion, lip and quality of each clip."""
    from ft2.pairs import DIMENSIONS

    adapter = _adapter(adapter)
    missing = [str(path) for path in clips if not path.is_file()]
    if missing:
        raise UsageError(f"no such clip: {missing[0]}", "give paths of video files")
    from ft2.critic.score import CriticScorer

    progress = make_progress(quiet)
    scorer = CriticScorer(adapter, calibrated=not raw, device=device, progress=progress)
    scores = scorer.score(clips)
    if json:
        rows = [
            {"clip": str(path), **{d: s.get(d) for d in DIMENSIONS}}
            for path, s in zip(clips, scores, strict=True)
        ]
        emit({"adapter": str(adapter), "scores": rows}, json=True)
        return
    width = max(len(str(path)) for path in clips)
    typer.echo(f"{'clip':{width}}" + "".join(f"{d:>9}" for d in DIMENSIONS))
    for path, found in zip(clips, scores, strict=True):
        typer.echo(f"{path!s:{width}}" + "".join(f"{found.get(d):9.3f}" for d in DIMENSIONS))


def _adapter(given: Path | None) -> Path:
    """Return the adapter to use: the one given, else that of `runs/critic`."""
    path = given or Path("runs/critic/adapter")
    if not (path / "critic.json").is_file():
        inner = path / "adapter"
        if (inner / "critic.json").is_file():
            return inner
        raise UsageError(
            f"there is no trained critic in '{path}'",
            "give --adapter RUN/adapter, or train one: ft2 critic train nano/critic ratings=FILE",
        )
    return path


@app.command("eval")
def evaluate(
    ratings: Annotated[Path, typer.Argument(metavar="RATINGS", help="A ratings.jsonl.")],
    adapter: Adapter = None,
    split: Annotated[str, typer.Option("--split", help="train, dev or test.")] = "test",
    device: Device = "cpu",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print how often the critic agrees with raters, beside the judges that it must beat."""
    if split not in ("train", "dev", "test"):
        raise UsageError(f"unknown split '{split}'", "choose train, dev or test")
    adapter = _adapter(adapter)
    from ft2.critic import evaluate as evaluation

    result = evaluation.evaluate(
        ratings,
        adapter,
        split=split,  # type: ignore[arg-type]
        device=device,
        progress=make_progress(quiet),
    )
    if json:
        emit(result, json=True)
        return
    for line in evaluation.table_lines(result):
        typer.echo(line)


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
