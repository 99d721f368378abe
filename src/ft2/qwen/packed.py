"""All questions about a clip in one forward pass.

The tokens are: a prefix (chat header, video, sound) and one branch a question. A block mask lets a
branch see the prefix and itself but no other branch, and every branch's positions start again at
the prefix's end. Each answer's logits are therefore those of asking its question alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ft2.errors import UsageError
from ft2.qwen.spec import QwenSpec

if TYPE_CHECKING:
    from transformers import Qwen2_5OmniProcessor, Qwen2_5OmniThinkerForConditionalGeneration

SYSTEM = "You judge talking portrait videos. Answer Yes or No."
PREFIX = (
    f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
    "<|im_start|>user\n<|vision_bos|><|VIDEO|><|vision_eos|>"
)
TAIL = "{question}<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True)
class Layout:
    """The token plan that all clips of one format share."""

    input_ids: Tensor
    """int64 [L]: prefix, then the branches."""
    position_ids: Tensor
    """int64 [3, L]: time, height, width."""
    mask: Tensor
    """bool [L, L]: True where row may attend to column."""
    answers: Tensor
    """int64 [Q]: last token of each branch, whose logits are the answer's first token."""
    video: Tensor
    """int64 [V]: places of the video tokens."""
    audio: Tensor
    """int64 [A]: places of the audio tokens; empty without sound."""
    num_prefix: int
    """Tokens of the prefix."""
    yes_id: int
    """Token of "Yes"."""
    no_id: int
    """Token of "No"."""


def answer_ids(processor: "Qwen2_5OmniProcessor") -> tuple[int, int]:
    """Return the token ids of "Yes" and "No".

    Raises:
        UsageError: The tokenizer needs more than one token for either.
    """
    ids = [processor.tokenizer(word, add_special_tokens=False).input_ids for word in ("Yes", "No")]
    if any(len(tokens) != 1 for tokens in ids):
        raise UsageError(
            f"Yes and No must be one token each, the tokenizer gives {ids}",
            "use the processor of Qwen2.5-Omni or the one shipped with ft2",
        )
    return int(ids[0][0]), int(ids[1][0])


def process(
    processor: "Qwen2_5OmniProcessor",
    spec: QwenSpec,
    text: str,
    pixels: "np.ndarray[Any, np.dtype[np.uint8]]",
    audio: "np.ndarray[Any, np.dtype[np.float32]] | None",
) -> dict[str, Tensor]:
    """Return the processor's own tensors for one clip and one text, sound read with the picture.

    Args:
        processor: Qwen2.5-Omni's processor.
        spec: Sizes.
        text: With one ``<|VIDEO|>``.
        pixels: Composite frames, uint8 [T, H, W, 3].
        audio: float32 [N], or None to leave the sound out.
    """
    edge = spec.view.height * spec.view.face_size
    video = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
    sound: dict[str, Any] = {}
    if audio is not None:
        sound = {
            "audio": [audio],
            "audio_from_video_indices": [0],
            "load_audio_from_video": True,
        }
    out = processor(
        text=[text],
        videos=[video],
        videos_kwargs={
            "size": {"shortest_edge": edge, "longest_edge": edge},
            "do_sample_frames": False,
            "cap_pixels_per_frame": False,
            "fps": spec.clip.fps,
        },
        return_tensors="pt",
        **sound,
    )
    return dict(out)


def make_layout(
    thinker: "Qwen2_5OmniThinkerForConditionalGeneration",
    processor: "Qwen2_5OmniProcessor",
    spec: QwenSpec,
    questions: Sequence[str],
) -> Layout:
    """Return the token plan of `questions` about clips of the spec's format.

    Args:
        thinker: Gives the position ids (only its config is used).
        processor: Gives the token ids.
        spec: Sizes.
        questions: One or more.
    """
    times = 2 * spec.num_patches_in_time
    blank = np.zeros((times, spec.view.height, spec.view.face_size, 3), np.uint8)
    silence = np.zeros(spec.clip.num_samples, np.float32)
    ids: list[Tensor] = []
    places: list[Tensor] = []
    owners: list[Tensor] = []
    num_prefix = 0
    for index, question in enumerate(questions):
        data = process(processor, spec, PREFIX + TAIL.format(question=question), blank, silence)
        row = data["input_ids"][0]
        place = positions(thinker, data, True)
        if index == 0:
            tail = processor.tokenizer(TAIL.format(question=question)).input_ids
            num_prefix = len(row) - len(tail)
            ids.append(row[:num_prefix])
            places.append(place[:, :num_prefix])
            owners.append(torch.full((num_prefix,), -1))
        ids.append(row[num_prefix:])
        places.append(place[:, num_prefix:])
        owners.append(torch.full((len(row) - num_prefix,), index))
    return assemble(thinker, processor, ids, places, owners)


def positions(
    thinker: "Qwen2_5OmniThinkerForConditionalGeneration", data: dict[str, Tensor], audio: bool
) -> Tensor:
    """Return the positions [3, L] of one text with its media, as the class itself counts them."""
    mask = data.get("feature_attention_mask")
    position_ids, _ = thinker.model.get_rope_index(
        data["input_ids"],
        None,
        data["video_grid_thw"],
        data["attention_mask"],
        audio,
        None if mask is None else mask.sum(-1),
        torch.as_tensor(data["video_second_per_grid"]),
    )
    return position_ids[:, 0].long()


def assemble(
    thinker: "Qwen2_5OmniThinkerForConditionalGeneration",
    processor: "Qwen2_5OmniProcessor",
    ids: list[Tensor],
    places: list[Tensor],
    owners: list[Tensor],
) -> Layout:
    """Return the plan of parts: a token sees the tokens before it that are its own or nobody's."""
    input_ids, owner = torch.cat(ids), torch.cat(owners)
    length = len(input_ids)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    visible = (owner[None, :] == -1) | (owner[None, :] == owner[:, None])
    yes_id, no_id = answer_ids(processor)
    ends = torch.tensor([len(part) for part in ids]).cumsum(0) - 1
    return Layout(
        input_ids=input_ids,
        position_ids=torch.cat(places, dim=1),
        mask=causal & visible,
        answers=ends[1:],
        video=(input_ids == thinker.config.video_token_id).nonzero()[:, 0],
        audio=(input_ids == thinker.config.audio_token_id).nonzero()[:, 0],
        num_prefix=len(ids[0]),
        yes_id=yes_id,
        no_id=no_id,
    )


def packed_hidden(
    thinker: "Qwen2_5OmniThinkerForConditionalGeneration",
    layout: Layout,
    video: Tensor,
    audio: Tensor | None,
) -> Tensor:
    """Return the last hidden states [B, L, hidden] of the packed sequence.

    Args:
        thinker: The model, with or without adapters.
        layout: Token plan.
        video: Video tokens [B, V, hidden].
        audio: Audio tokens [B, A, hidden]; None for a plan without sound.
    """
    device, batch = video.device, video.shape[0]
    embed = thinker.get_input_embeddings()
    x = embed(layout.input_ids.to(device))[None].expand(batch, -1, -1).to(video.dtype)
    x = x.index_copy(1, layout.video.to(device), video)
    if audio is not None:
        x = x.index_copy(1, layout.audio.to(device), audio.to(video.dtype))
    position_ids = layout.position_ids.to(device)[:, None].expand(-1, batch, -1)
    mask = layout.mask.to(device)[None, None]
    if thinker.model.language_model.config._attn_implementation == "eager":
        mask = torch.zeros(mask.shape, device=device, dtype=x.dtype).masked_fill(~mask, -1e9)
    out = thinker.model.language_model(
        inputs_embeds=x,
        attention_mask={"full_attention": mask.expand(batch, 1, -1, -1)},
        position_ids=position_ids,
        use_cache=False,
    )
    hidden: Tensor = out.last_hidden_state
    return hidden


def answer_logits(
    thinker: "Qwen2_5OmniThinkerForConditionalGeneration",
    layout: Layout,
    video: Tensor,
    audio: Tensor | None,
) -> Tensor:
    """Return the vocabulary logits [B, Q, vocab] of each question's first answer token."""
    hidden = packed_hidden(thinker, layout, video, audio)
    logits: Tensor = thinker.lm_head(hidden[:, layout.answers.to(hidden.device)])
    return logits
