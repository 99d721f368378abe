"""Train Talking-Critic on answers or choices, all questions of a clip in one packed forward."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft2.critic.adapter import add_lora, count_trainable, save_adapter
from ft2.critic.batches import draw, draw_pairs, pair_rows
from ft2.critic.checkpoint import CriticCard, base_hash
from ft2.critic.config import CriticConfig
from ft2.critic.data import Rating
from ft2.critic.held_out import Best, HeldOut, held_out_pairs
from ft2.critic.loop import Batches, optimise
from ft2.critic.objective import AnswerLoss, ScoreLoss
from ft2.critic.reference import make_reference
from ft2.critic.thresholds import fit_thresholds
from ft2.critic.tokens import Critic, Tokens, encode_ratings, lazy_ratings
from ft2.critic.training_data import TrainingData, read_data
from ft2.engine import local_device
from ft2.qwen import packed
from ft2.qwen.streams import layout_of
from ft2.qwen.thinker import load_thinker, weights_dir
from ft2.runs import Progress, RunDir, check_output

if TYPE_CHECKING:
    from peft import PeftModel


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
    device = local_device(config.device)
    data = read_data(config)
    base = weights_dir(config.model)
    run = RunDir.open(output, config=config, resume=resume)
    if run.result is not None:
        return dict(run.result)
    started = time.monotonic()
    thinker, processor = load_thinker(config.model, device)
    layout = layout_of(thinker, processor, config.model, config.questions)
    thinker.set_attn_implementation("eager")
    if config.gradient_checkpointing:
        thinker.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    model = add_lora(thinker, config.lora, config.seed)
    critic = Critic(thinker, processor, config.model)
    tokens = _tokens(critic, data.train, config, progress)
    held_out = _held_out(critic, data, config, progress)
    seconds = {"load_and_encode": round(time.monotonic() - started, 1)}
    loss = make_loss(config, model, layout)
    best, value = optimise(config, run, loss, _batches(config, data, tokens), held_out, progress)
    seconds["total"] = round(time.monotonic() - started, 1)
    card = _card(config, base, best, held_out)
    if run.writes:
        save_adapter(model, card, run.path / "adapter", best.tensors)
    result: dict[str, Any] = {
        "adapter": str(run.path / "adapter"),
        "steps": config.steps,
        "objective": config.objective,
        "ratings": {"train": data.num_train, "dev": len(data.dev)},
        "trainable_parameters": count_trainable(model),
        "loss": value,
        "kept_step": best.step,
        "held_out_accuracy": best.accuracy,
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


def _held_out(
    critic: Critic, data: TrainingData, config: CriticConfig, progress: Progress
) -> HeldOut | None:
    """Return the dev split, or None where there is none."""
    if not data.dev:
        return None
    tokens = _tokens(critic, data.dev, config.model_copy(update={"copies": 0}), progress)
    pairs, choices = held_out_pairs(data.dev_pairs, data.dev) if data.dev_pairs else (None, None)
    return HeldOut(tokens, tuple(config.questions), config.objective, pairs, choices)


def _card(config: CriticConfig, base: Path, best: Best, held_out: HeldOut | None) -> CriticCard:
    """Return the adapter's card: thresholds and reference set are those of the dev clips."""
    dimensions = tuple(config.questions)
    thresholds, reference = dict.fromkeys(dimensions, 0.0), None
    if held_out is not None and best.odds is not None:
        if config.objective != "regression":
            thresholds = fit_thresholds(best.odds, held_out.labels, dimensions)
        name = f"dev clips of {Path(config.ratings).name}"
        rows = best.odds.tolist()
        reference = make_reference(name, "this critic", dimensions, rows).to_dict()
    widths = None if best.width is None else best.width.tolist()
    return CriticCard(
        questions=dict(config.questions),
        model=config.model,
        base_sha256=base_hash(base),
        thresholds=thresholds,
        objective=config.objective,
        tie_widths=None if widths is None else dict(zip(dimensions, widths, strict=True)),
        reference=reference,
    )


def _tokens(
    critic: Critic, ratings: Sequence[Rating], config: CriticConfig, progress: Progress
) -> Tokens:
    varied = {"copies": config.copies, "seed": config.seed}
    if not config.cache_features:
        return lazy_ratings(critic, ratings, texture=config.texture, **varied)
    return encode_ratings(critic, ratings, texture=config.texture, progress=progress, **varied)


def _batches(config: CriticConfig, data: TrainingData, tokens: Tokens) -> Batches:
    """Return what gives micro-batch number `place`."""
    if data.pairs is None:
        return lambda place: draw(tokens, config, place)
    pairs = pair_rows(data.pairs, data.train, tokens, config)
    return lambda place: draw_pairs(tokens, pairs, config, place)
