"""Train Talking-Critic on answers or choices, all questions of a clip in one packed forward."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ft2.critic.adapter import CriticCard, add_lora, base_hash, count_trainable, save_adapter
from ft2.critic.batches import draw, draw_pairs, pair_rows
from ft2.critic.config import CriticConfig
from ft2.critic.data import Rating
from ft2.critic.objective import AnswerLoss, ScoreLoss
from ft2.critic.reference import make_reference
from ft2.critic.thresholds import fit_thresholds
from ft2.critic.tokens import Critic, Tokens, encode_ratings, lazy_ratings
from ft2.critic.training_data import TrainingData, read_data
from ft2.engine import Engine, make_engine
from ft2.qwen import packed
from ft2.qwen.streams import layout_of
from ft2.qwen.thinker import load_thinker, weights_dir
from ft2.runs import Interrupts, Progress, RunDir, check_output

if TYPE_CHECKING:
    from peft import PeftModel

Batches = Callable[[int], tuple[Tensor, Tensor, Tensor]]


def train_critic(
    config: CriticConfig, output: Path, resume: bool, progress: Progress
) -> dict[str, Any]:
    """Train the critic and write ``adapter/``; return what ``result.json`` holds.

    Args:
        config: What to do.
        output: Run directory.
        resume: Go on after an interruption; a finished run is left as it is.
        progress: Told how far it is.

    Raises:
        UsageError: Ratings or weights are missing or unfit; the run directory exists.
        Interrupted: A signal came; a checkpoint was written first.
    """
    check_output(output, resume=resume)
    data = read_data(config)
    base = weights_dir(config.model)
    run = RunDir.open(output, config=config, resume=resume)
    if run.result is not None:
        return dict(run.result)
    started = time.monotonic()
    thinker, processor = load_thinker(config.model, config.device)
    layout = layout_of(thinker, processor, config.model, config.questions)
    thinker.set_attn_implementation("eager")
    model = add_lora(thinker, config.lora, config.seed)
    critic = Critic(thinker, processor, config.model)
    tokens = _tokens(critic, data.train, config, progress)
    seconds = {"load_and_encode": round(time.monotonic() - started, 1)}
    loss = make_loss(config, model, layout)
    value = _optimise(config, run, loss, _batches(config, data, tokens), progress)
    seconds["total"] = round(time.monotonic() - started, 1)
    held = None
    if data.dev:
        held = _tokens(critic, data.dev, config.model_copy(update={"copies": 0}), progress)
    card = _card(config, base, loss, held)
    save_adapter(model, card, run.path / "adapter")
    result: dict[str, Any] = {
        "adapter": str(run.path / "adapter"),
        "steps": config.steps,
        "objective": config.objective,
        "ratings": {"train": data.num_train, "dev": len(data.dev)},
        "trainable_parameters": count_trainable(model),
        "loss": value,
        "thresholds": card.thresholds,
        "seconds": seconds,
    }
    run.finish(result)
    return result


def make_loss(
    config: CriticConfig, model: "PeftModel", layout: packed.Layout
) -> AnswerLoss | ScoreLoss:
    """Return the module that is trained, by the config's objective."""
    if config.objective == "yes_no":
        return AnswerLoss(model, layout, config.smoothing)
    return ScoreLoss(model, layout, config.objective)


def _card(
    config: CriticConfig, base: Path, loss: AnswerLoss | ScoreLoss, held: Tokens | None
) -> CriticCard:
    """Return the adapter's card: thresholds and reference set are those of the dev clips."""
    dimensions = tuple(config.questions)
    thresholds, reference = dict.fromkeys(dimensions, 0.0), None
    if held is not None:
        odds = log_odds(loss.model.eval(), loss.layout, held)
        if config.objective != "regression":
            labels = held.rows.labels[held.rows.first_windows()]
            thresholds = fit_thresholds(odds, labels, dimensions)
        name = f"dev clips of {Path(config.ratings).name}"
        reference = make_reference(name, "this critic", dimensions, odds.tolist()).to_dict()
    width = None if isinstance(loss, AnswerLoss) else loss.width()
    return CriticCard(
        questions=dict(config.questions),
        model=config.model.model_dump(mode="json"),
        base_sha256=base_hash(base),
        thresholds=thresholds,
        objective=config.objective,
        tie_widths=None if width is None else dict(zip(dimensions, width.tolist(), strict=True)),
        reference=reference,
    )


def _tokens(
    critic: Critic, ratings: Sequence[Rating], config: CriticConfig, progress: Progress
) -> Tokens:
    if not config.cache_features:
        return lazy_ratings(critic, ratings, copies=config.copies, seed=config.seed)
    return encode_ratings(
        critic, ratings, copies=config.copies, seed=config.seed, progress=progress
    )


def _batches(config: CriticConfig, data: TrainingData, tokens: Tokens) -> Batches:
    """Return what gives micro-batch number `place`."""
    if data.pairs is None:
        return lambda place: draw(tokens, config, place)
    pairs = pair_rows(data.pairs, data.train, tokens, config)
    return lambda place: draw_pairs(tokens, pairs, config, place)


def _optimise(
    config: CriticConfig,
    run: RunDir,
    loss: AnswerLoss | ScoreLoss,
    batches: Batches,
    progress: Progress,
) -> float:
    """Run the optimiser's steps with checkpoints; return the mean loss of the last fifty."""
    settings = config.engine
    if settings.decay_steps == 0:
        settings = settings.model_copy(update={"decay_steps": config.steps})
    loss.train()
    engine = make_engine(settings, loss, run.path)
    latest = run.latest()
    first = 0
    if latest is not None:
        first, directory = latest
        engine.load(directory)
    run.rewind(first)
    recent: list[float] = []
    with Interrupts() as interrupts:
        for step in range(first, config.steps):
            value = _step(engine, config, batches, step)
            recent = [*recent[-49:], value]
            run.log(step + 1, loss=value)
            progress.update("train critic", step + 1, config.steps, f"loss {np.mean(recent):.3f}")
            last = step + 1 == config.steps
            if last or interrupts.pending or (step + 1) % config.checkpoint_steps == 0:
                with run.checkpoint(step + 1) as directory:
                    engine.save(directory)
            interrupts.check(f"go on with --resume -o {run.path}")
    engine.close()
    loss.eval()
    return float(np.mean(recent)) if recent else float("nan")


def _step(engine: Engine, config: CriticConfig, batches: Batches, step: int) -> float:
    total = 0.0
    parts = config.engine.accumulation_steps
    for part in range(parts):
        place = (step * parts + part) * engine.world_size + engine.rank
        value = engine(*batches(place))
        engine.backward(value)
        total += float(value.detach()) / parts
    engine.step()
    return total


@torch.no_grad()
def log_odds(
    model: "PeftModel",
    layout: packed.Layout,
    tokens: Tokens,
    *,
    sounds: Tensor | None = None,
    batch_size: int = 32,
) -> Tensor:
    """Return logit(Yes) - logit(No), float32 [N, 3], the mean over a clip's windows [clips, 3].

    Args:
        model: The adapted model.
        layout: Token plan; without sound, the audio tokens are left out.
        tokens: Tower tokens.
        sounds: Which window's sound each window gets, int64 [N]; None is its own.
        batch_size: Windows a forward pass.
    """
    thinker = model.get_base_model()
    every = torch.arange(len(tokens.rows))
    parts = []
    for rows in every.split(batch_size):
        video, audio = tokens.take(rows, rows if sounds is None else sounds[rows])
        heard = audio if len(layout.audio) else None
        logits = packed.answer_logits(thinker, layout, video, heard).float()
        parts.append(logits[..., layout.yes_id] - logits[..., layout.no_id])
    odds = torch.cat(parts)
    clips = int(tokens.rows.clip.max()) + 1
    total = torch.zeros(clips, odds.shape[1], device=odds.device)
    index = tokens.rows.clip.to(odds.device)
    count = torch.bincount(index, minlength=clips).clamp(min=1)
    return total.index_add(0, index, odds) / count[:, None]
