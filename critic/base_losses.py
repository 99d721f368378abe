"""What a nano Thinker's base learns: dense targets of the towers, readers of a middle layer."""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ft2.critic import heads as hd
from ft2.critic.arrays import Batch
from ft2.critic.base_state import PretrainConfig, State
from ft2.qwen import packed, towers

if TYPE_CHECKING:
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration


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
