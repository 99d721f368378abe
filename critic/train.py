"""Train Talking-Critic: cross-entropy on the answers to three questions, one packed forward."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ft2.critic.adapter import CriticCard, add_lora, base_hash, count_trainable, save_adapter
from ft2.critic.config import CriticConfig
from ft2.critic.data import Rating, other_voice, read_ratings
from ft2.critic.reference import make_reference
from ft2.critic.tokens import Critic, Tokens, encode_ratings, lazy_ratings
from ft2.engine import Engine, make_engine
from ft2.errors import UsageError
from ft2.pairs import DIMENSIONS
from ft2.qwen import packed
from ft2.qwen.streams import layout_of
from ft2.qwen.thinker import load_thinker, weights_dir
from ft2.runs import Interrupts, Progress, RunDir, check_output

if TYPE_CHECKING:
    from peft import PeftModel

LIP = "lip"


class AnswerLoss(nn.Module):
    """Cross-entropy of the first answer token over the vocabulary, mean over rated questions."""

    def __init__(self, model: "PeftModel", layout: packed.Layout, smoothing: float = 0.0) -> None:
        """Keep the adapted model, the token plan and the probability of the other answer."""
        super().__init__()
        self.smoothing = smoothing
        self.model = model
        self.layout = layout

    def forward(self, video: Tensor, audio: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of tower tokens [B, V, D], [B, A, D] and labels [B, Q] in {1, 0, -1}."""
        thinker = self.model.get_base_model()
        logits = packed.answer_logits(thinker, self.layout, video, audio).float()
        chances = logits.log_softmax(-1)
        yes, no = chances[..., self.layout.yes_id], chances[..., self.layout.no_id]
        right, other = torch.where(labels > 0, yes, no), torch.where(labels > 0, no, yes)
        loss = -(1 - self.smoothing) * right - self.smoothing * other
        rated = labels >= 0
        return (loss * rated).sum() / rated.sum().clamp(min=1)


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
    dimensions = tuple(config.questions)
    train = read_ratings(Path(config.ratings), "train", dimensions)
    _check_labels(train, dimensions)
    dev = [r for r in read_ratings(Path(config.ratings), None, dimensions) if r.split == "dev"]
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
    tokens = _tokens(critic, train, config, progress)
    seconds = {"load_and_encode": round(time.monotonic() - started, 1)}
    losses = _optimise(config, run, AnswerLoss(model, layout, config.smoothing), tokens, progress)
    seconds["total"] = round(time.monotonic() - started, 1)
    thresholds, reference = dict.fromkeys(dimensions, 0.0), None
    if dev:
        held = _tokens(critic, dev, config.model_copy(update={"copies": 0}), progress)
        odds = log_odds(model.eval(), layout, held)
        thresholds = fit_thresholds(odds, held.rows.labels[held.rows.first_windows()], dimensions)
        name = f"dev clips of {Path(config.ratings).name}"
        reference = make_reference(name, "this critic", dimensions, odds.tolist()).to_dict()
    card = CriticCard(
        questions=dict(config.questions),
        model=config.model.model_dump(mode="json"),
        base_sha256=base_hash(base),
        thresholds=thresholds,
        reference=reference,
    )
    save_adapter(model, card, run.path / "adapter")
    result: dict[str, Any] = {
        "adapter": str(run.path / "adapter"),
        "steps": config.steps,
        "ratings": {"train": len(train), "dev": len(dev)},
        "trainable_parameters": count_trainable(model),
        "loss": losses,
        "thresholds": thresholds,
        "seconds": seconds,
    }
    run.finish(result)
    return result


def _tokens(
    critic: Critic, ratings: list[Rating], config: CriticConfig, progress: Progress
) -> Tokens:
    if not config.cache_features:
        return lazy_ratings(critic, ratings, copies=config.copies, seed=config.seed)
    return encode_ratings(
        critic, ratings, copies=config.copies, seed=config.seed, progress=progress
    )


def _check_labels(ratings: list[Rating], dimensions: tuple[str, ...]) -> None:
    for column, dimension in enumerate(dimensions):
        labels = {rating.labels[column] for rating in ratings} - {None}
        if len(labels) < 2:
            raise UsageError(
                f"the training ratings have no {'No' if labels == {True} else 'Yes'} for "
                f"{dimension}",
                "rate clips of both kinds for every dimension",
            )


def _optimise(
    config: CriticConfig, run: RunDir, loss: AnswerLoss, tokens: Tokens, progress: Progress
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
            value = _step(engine, config, tokens, step)
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


def _step(engine: Engine, config: CriticConfig, tokens: Tokens, step: int) -> float:
    total = 0.0
    parts = config.engine.accumulation_steps
    for part in range(parts):
        place = (step * parts + part) * engine.world_size + engine.rank
        value = engine(*draw(tokens, config, place))
        engine.backward(value)
        total += float(value.detach()) / parts
    engine.step()
    return total


def draw(tokens: Tokens, config: CriticConfig, place: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return micro-batch number `place` (video, audio, labels); it depends on the seed alone.

    Clips come without repetition within an epoch; with `balance`, those of rarer sources come more
    often, so that all sources have the same share. Some get another clip's voice: their lip answer
    is then No (a controlled negative), the others stay.
    """
    size = config.engine.micro_batch_size
    pool = _pool(tokens.rows.sources) if config.balance else torch.arange(len(tokens.rows))
    count = len(pool)
    places = torch.cat(
        [
            _epoch(count, config.seed, epoch)[max(place * size - epoch * count, 0) :]
            for epoch in range(place * size // count, ((place + 1) * size - 1) // count + 1)
        ]
    )[:size]
    rows = pool[places]
    rng = torch.Generator().manual_seed((config.seed + 1) * 1_000_003 + place)
    labels = tokens.rows.labels[rows].clone()
    swapped = torch.rand(size, generator=rng) < config.swap
    other = rows
    if bool(swapped.any()) and LIP in config.questions:
        lip = list(config.questions).index(LIP)
        voices = other_voice(tokens.rows.utterances, rng)[rows]
        other = torch.where(swapped, voices, rows)
        labels[:, lip] = torch.where(swapped, 0, labels[:, lip])
    return (*tokens.take(rows, other), labels)


def _pool(sources: "np.ndarray[Any, Any]") -> Tensor:
    """Return row numbers in which every source occurs as often as the most frequent one."""
    groups = [np.flatnonzero(sources == name) for name in np.unique(sources)]
    most = max(len(group) for group in groups)
    return torch.from_numpy(np.concatenate([np.resize(group, most) for group in groups]))


def _epoch(count: int, seed: int, epoch: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed * 7919 + epoch)
    return torch.randperm(count, generator=rng)


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


def fit_thresholds(
    odds: Tensor, labels: Tensor, dimensions: Sequence[str] = DIMENSIONS
) -> dict[str, float]:
    """Return per dimension the log-odds that separate Yes from No, halfway between clips.

    Of the thresholds whose balanced accuracy lies within one standard error of the best, the one
    nearest 0 is taken: the dev split has few faces, and a threshold that only it asks for does not
    carry over (the one-standard-error rule of Breiman et al. 1984). With fewer than 20 rated clips
    or one answer only it is 0.

    Args:
        odds: [N, Q].
        labels: [N, Q] in {1, 0, -1}.
        dimensions: Names of the Q columns.
    """
    found: dict[str, float] = {}
    for column, dimension in enumerate(dimensions):
        rated = labels[:, column] >= 0
        x = odds[rated, column].double().numpy(force=True)
        y = labels[rated, column].numpy(force=True).astype(bool)
        found[dimension] = _threshold(x, y)
    return found


def _threshold(x: "np.ndarray[Any, Any]", y: "np.ndarray[Any, Any]") -> float:
    if len(x) < 20 or y.all() or not y.any():
        return 0.0
    order = np.sort(x)
    cuts = np.concatenate([[0.0], (order[1:] + order[:-1]) / 2])
    scores = np.array([((x[y] >= c).mean() + (x[~y] < c).mean()) / 2 for c in cuts])
    best = scores.max()
    error = np.sqrt(best * (1 - best) / len(x))
    best = cuts[scores >= best - error - 1e-9]
    return float(best[np.argmin(np.abs(best))])
