"""Base training of a nano Thinker: towers on dense targets, then the language model.

A nano model has no pretraining to stand on, so this gives it one: stage ``towers`` teaches each
tower to measure (head pose, mouth, defects; the mouth that a voice asks for), stage ``model``
trains everything with plain questions and with readers on a *middle* layer, above all the
difference between the mouth shown and the mouth asked for, without which lip sync stays at chance.
"""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from ft2.config import Config
from ft2.critic import heads as hd
from ft2.critic.arrays import Arrays, Batch, Sampler
from ft2.qwen import packed, towers
from ft2.qwen.spec import QwenSpec
from ft2.runs import Interrupts, Progress, RunDir, check_output, load_tensors, save_tensors

if TYPE_CHECKING:
    from transformers import Qwen2_5OmniProcessor, Qwen2_5OmniThinkerForConditionalGeneration

Stage = Literal["towers", "model"]


class PretrainConfig(Config):
    """Base training of a nano Thinker."""

    model: QwenSpec = QwenSpec()
    """Sizes."""
    data: str
    """Directory with ``train`` arrays, and ``dev`` arrays for held-out losses (optional)."""
    initial: str | None = None
    """A directory with ``thinker.safetensors`` to start from; None starts from random weights."""
    towers_steps: int = Field(1500, ge=0)
    """Steps of the tower stage."""
    model_steps: int = Field(4000, ge=0)
    """Steps of the stage that trains everything."""
    batch_size: int = Field(32, ge=1)
    """Clips a step."""
    learning_rate: float = Field(1.5e-3, gt=0)
    """Peak rate of AdamW; falls as a cosine to a twentieth in each stage."""
    warmup_steps: int = Field(100, ge=1)
    """Steps of linear warm-up at the start of each stage."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay."""
    swap: float = Field(0.25, ge=0, le=1)
    """Share of clips that get another clip's sound."""
    bf16: bool = True
    """Multiply in bfloat16; weights and optimiser stay float32."""
    checkpoint_steps: int = Field(250, ge=1)
    """Steps between checkpoints."""
    seed: int = Field(0, ge=0)
    """Seed of weights, order and variation."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.model.streams:
            raise ValueError("base training shows the composite: leave model.streams empty")
        return self


@dataclass
class State:
    """All that a step changes, and what it needs."""

    config: PretrainConfig
    thinker: "Qwen2_5OmniThinkerForConditionalGeneration"
    processor: "Qwen2_5OmniProcessor"
    heads: hd.Heads
    scale: hd.Scale
    medians: Tensor
    sampler: Sampler
    optimizer: torch.optim.AdamW
    layouts: dict[tuple[int, ...], packed.Layout]


def stage_of(config: PretrainConfig, step: int) -> tuple[Stage, float]:
    """Return the stage of a step and its learning rate."""
    start, length = 0, config.towers_steps
    stage: Stage = "towers"
    if step >= config.towers_steps:
        stage, start, length = "model", config.towers_steps, config.model_steps
    place = step - start
    warm = min(1.0, (place + 1) / config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, place / max(length, 1))))
    return stage, config.learning_rate * warm * (0.05 + 0.95 * cosine)


def autocast(config: PretrainConfig) -> Any:
    """Return the context of the forward pass."""
    return torch.autocast("cpu", torch.bfloat16) if config.bf16 else nullcontext()


def tower_loss(state: State, batch: Batch) -> dict[str, Tensor]:
    """Return the losses of the tower stage."""
    heads = state.heads
    with autocast(state.config):
        video, audio = _read(state, batch)
        targets = hd.picture_targets(batch, state.scale, heads.cell)
        losses = hd.picture_loss(heads, heads.tower, video, targets, batch.kinds)
        asked = hd.voice_targets(batch, state.scale, audio.shape[1])["asked"]
        losses["heard"] = F.smooth_l1_loss(heads.heard(audio), asked)
    return losses


def _read(state: State, batch: Batch) -> tuple[Tensor, Tensor]:
    spec = state.config.model
    patches = towers.patchify(batch.pixels, spec, state.processor)
    video = towers.video_features(state.thinker, patches, spec)
    return video, towers.audio_features(state.thinker, batch.mel)


def model_loss(state: State, batch: Batch, step: int) -> dict[str, Tensor]:
    """Return the losses of the model stage: plain questions and the readers of the middle layer."""
    heads = state.heads
    chosen = _questions(state.config.seed, step)
    layout = _layout(state, chosen)
    with autocast(state.config):
        video, audio = _read(state, batch)
        targets = hd.picture_targets(batch, state.scale, heads.cell)
        low = hd.picture_loss(heads, heads.tower, video, targets, batch.kinds)
        logits, middle = read_middle(state.thinker, layout, video, audio)
        seen = middle[:, layout.video]
        losses = hd.picture_loss(heads, heads.middle, seen, targets, batch.kinds)
        heard = middle[:, layout.audio]
        voice = hd.voice_targets(batch, state.scale, heard.shape[1])
        losses |= hd.voice_loss(heads, heard, voice)
        losses |= _summary_loss(state, middle[:, layout.num_prefix - 1], batch)
        losses["towers"] = 0.3 * torch.stack(list(low.values())).sum()
    answers = (hd.plain_answers(batch) > state.medians)[:, list(chosen)]
    ids = torch.where(answers, layout.yes_id, layout.no_id)
    losses["answers"] = 0.5 * F.cross_entropy(logits.float().flatten(0, 1), ids.flatten())
    return losses


def _summary_loss(state: State, token: Tensor, batch: Batch) -> dict[str, Tensor]:
    guess = state.heads.summary(token).float()
    target = hd.summary_targets(batch, state.scale)
    split = target.shape[1]
    return {
        "summary": F.smooth_l1_loss(guess[:, :split], target),
        "summary_kinds": F.binary_cross_entropy_with_logits(guess[:, split:], batch.kinds),
    }


def read_middle(
    thinker: "Qwen2_5OmniThinkerForConditionalGeneration",
    layout: packed.Layout,
    video: Tensor,
    audio: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the answers' logits [B, Q, vocab] and the middle layer's output [B, L, hidden]."""
    layers = thinker.model.language_model.layers
    kept: list[Tensor] = []

    def keep(_module: object, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        kept.append(output if isinstance(output, Tensor) else output[0])

    handle = layers[len(layers) // 2 - 1].register_forward_hook(keep)
    try:
        logits = packed.answer_logits(thinker, layout, video, audio)
    finally:
        handle.remove()
    return logits, kept[0]


def _questions(seed: int, step: int, count: int = 3) -> tuple[int, ...]:
    """Return which plain questions a step asks; one of a few fixed trios, so layouts are reused."""
    trios = len(hd.PLAIN_QUESTIONS) // count
    pick = (seed + step) % trios
    return tuple(range(pick * count, (pick + 1) * count))


def _layout(state: State, chosen: tuple[int, ...]) -> packed.Layout:
    if chosen not in state.layouts:
        questions = [hd.PLAIN_QUESTIONS[i] for i in chosen]
        spec = state.config.model
        state.layouts[chosen] = packed.make_layout(state.thinker, state.processor, spec, questions)
    return state.layouts[chosen]


def parameters(state: State) -> Iterator[torch.nn.Parameter]:
    """Yield all trained parameters."""
    yield from state.thinker.parameters()
    yield from state.heads.parameters()


def train_step(state: State, step: int) -> dict[str, float]:
    """Make one update; return its losses."""
    stage, rate = stage_of(state.config, step)
    batch = state.sampler.batch(step, state.config.batch_size)
    losses = tower_loss(state, batch) if stage == "towers" else model_loss(state, batch, step)
    total = torch.stack([value.float() for value in losses.values()]).sum()
    state.optimizer.zero_grad(set_to_none=True)
    total.backward()
    torch.nn.utils.clip_grad_norm_(list(parameters(state)), 1.0)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    record = {name: float(value.detach()) for name, value in losses.items()}
    return record | {"loss": float(total.detach())}


def make_state(config: PretrainConfig, train: Arrays) -> State:
    """Return the state before the first step."""
    from ft2.qwen.thinker import new_thinker
    from ft2.qwen.tokens import build_processor

    processor = build_processor(config.model)
    thinker = new_thinker(config.model, processor, config.seed)
    if config.initial is not None:
        tensors, _ = load_tensors(Path(config.initial) / "thinker.safetensors")
        thinker.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    thinker.train().set_attn_implementation("eager")
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        heads = hd.Heads(config.model, train.shown.shape[2], len(train.kind_names))
    sampler = Sampler(train, config.model, config.seed, config.swap)
    some = sampler.plain(torch.arange(0, len(train), max(1, len(train) // 512)))
    trained = [*thinker.parameters(), *heads.parameters()]
    return State(
        config=config,
        thinker=thinker,
        processor=processor,
        heads=heads,
        scale=hd.fit_scale(train.shown),
        medians=hd.plain_answers(some).median(0).values,
        sampler=sampler,
        optimizer=torch.optim.AdamW(
            trained, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
        ),
        layouts={},
    )


def save_state(state: State, directory: Path) -> None:
    """Write weights, heads and optimiser into a checkpoint directory."""
    moments = state.optimizer.state_dict()["state"]
    save_tensors(directory / "thinker.safetensors", dict(state.thinker.state_dict()))
    save_tensors(directory / "heads.safetensors", dict(state.heads.state_dict()))
    flat = {f"{i}.{key}": value for i, row in moments.items() for key, value in row.items()}
    save_tensors(directory / "optimizer.safetensors", flat)


def load_state(state: State, directory: Path) -> None:
    """Read back what `save_state` wrote."""
    state.thinker.load_state_dict(load_tensors(directory / "thinker.safetensors")[0])
    state.heads.load_state_dict(load_tensors(directory / "heads.safetensors")[0])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in load_tensors(directory / "optimizer.safetensors")[0].items():
        index, key = name.split(".", 1)
        moments.setdefault(int(index), {})[key] = tensor
    current = state.optimizer.state_dict()
    state.optimizer.load_state_dict({**current, "state": moments})


def pretrain(
    config: PretrainConfig, output: Path, resume: bool, progress: Progress
) -> dict[str, object]:
    """Train a base and write ``thinker.safetensors`` with its processor files.

    Args:
        config: What to do.
        output: Run directory.
        resume: Go on after an interruption; a finished run is left as it is.
        progress: Told of every step.

    Returns:
        Steps, seconds and losses on held-out clips, also in ``result.json``.

    Raises:
        UsageError: The data are missing or of another format; the run directory exists.
        Interrupted: A signal came; the last checkpoint is complete.
    """
    from ft2.critic.arrays import load_arrays
    from ft2.qwen.thinker import save_thinker

    check_output(output, resume=resume)
    train = load_arrays(Path(config.data) / "train", config.model)
    run = RunDir.open(output, config=config, resume=resume)
    if run.result is not None:
        return dict(run.result)
    state = make_state(config, train)
    first = _resume(run, state)
    total = config.towers_steps + config.model_steps
    started = time.monotonic()
    with Interrupts() as interrupts:
        for step in range(first, total):
            losses = train_step(state, step)
            run.log(step + 1, seconds=time.monotonic() - started, **losses)
            stage = stage_of(config, step)[0]
            progress.update(f"base {stage}", step + 1, total, f"loss {losses['loss']:.3f}")
            if (step + 1) % config.checkpoint_steps == 0 or step + 1 == total or interrupts.pending:
                with run.checkpoint(step + 1) as directory:
                    save_state(state, directory)
            interrupts.check(f"go on with: ft2 critic pretrain ... -o {output} --resume")
    result: dict[str, object] = {
        "steps": total,
        "seconds": round(time.monotonic() - started, 1),
        "clips": len(state.sampler.arrays),
        "seen": hd.SEEN,
        "held_out": held_out_losses(state, Path(config.data) / "dev"),
    }
    save_thinker(state.thinker.eval(), state.processor, output / "weights")
    run.finish(result)
    return result


def _resume(run: RunDir, state: State) -> int:
    latest = run.latest()
    if latest is None:
        run.rewind(0)
        return 0
    step, directory = latest
    load_state(state, directory)
    run.rewind(step)
    return step


@torch.no_grad()
def held_out_losses(state: State, path: Path, limit: int = 256) -> dict[str, float]:
    """Return the mean losses of the model stage on clips that were not trained on."""
    from ft2.critic.arrays import load_arrays

    if not path.is_dir():
        return {}
    arrays = load_arrays(path, state.config.model)
    sampler = Sampler(arrays, state.config.model, state.config.seed)
    total: dict[str, float] = {}
    count = max(1, min(limit, len(arrays)) // state.config.batch_size)
    for number in range(count):
        first = number * state.config.batch_size
        index = torch.arange(first, min(first + state.config.batch_size, len(arrays)))
        for name, value in model_loss(state, sampler.plain(index), number).items():
            total[name] = total.get(name, 0.0) + float(value) / count
    return total
