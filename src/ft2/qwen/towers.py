"""Tower features of a batch of equal clips, in one batched attention each.

transformers walks over the windows of vision and audio one at a time, which is slow for many short
clips. All clips of a batch have the same shape here, so the same layers run on [batch, window]
tensors instead. `video_features` and `audio_features` return what the class's own
`get_video_features` and `get_audio_features` return, up to rounding (held by a test), and fall
back to them for sizes with windowed attention or more than one audio chunk.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ft2.qwen.spec import QwenSpec

if TYPE_CHECKING:
    from transformers import Qwen2_5OmniProcessor, Qwen2_5OmniThinkerForConditionalGeneration


def patchify(pixels: Tensor, spec: QwenSpec, processor: "Qwen2_5OmniProcessor") -> Tensor:
    """Return what the processor's video processor returns for composites of the view's size.

    Args:
        pixels: uint8 [B, T, H, W, 3] with T even.
        spec: Sizes.
        processor: Gives the mean and standard deviation of the colours.

    Returns:
        float32 [B, patches, 3 * 2 * patch_size**2], patches ordered time, row block, column block,
        then the merge_size x merge_size patches of a token.
    """
    batch, _, height, width, _ = pixels.shape
    size, merge = spec.vision.patch_size, spec.vision.merge_size
    rows, columns = height // size // merge, width // size // merge
    x = pixels.view(batch, -1, 2, rows, merge, size, columns, merge, size, 3)
    #               0      1   2  3     4      5     6        7      8     9
    x = x.permute(0, 1, 3, 6, 4, 7, 9, 2, 5, 8).reshape(batch, -1, 3, 2 * size * size).float()
    video = processor.video_processor
    mean = torch.tensor(video.image_mean, device=x.device).view(3, 1) * 255.0
    std = torch.tensor(video.image_std, device=x.device).view(3, 1) * 255.0
    return x.sub_(mean).div_(std).flatten(2)


def video_features(
    thinker: "Qwen2_5OmniThinkerForConditionalGeneration", patches: Tensor, spec: QwenSpec
) -> Tensor:
    """Return video tokens [B, num_video_tokens, hidden] of patches [B, P, D]."""
    batch = patches.shape[0]
    times, rows, columns = spec.grid
    if set(spec.vision.full_attention_layers) != set(range(spec.vision.num_layers)):
        grid = torch.tensor([spec.grid] * batch, device=patches.device)
        out = thinker.get_video_features(patches.flatten(0, 1), grid, return_dict=True)
        return torch.stack(list(out.pooler_output))
    tower: Any = thinker.model.visual
    x = F.linear(patches.flatten(0, 1), tower.patch_embed.proj.weight.flatten(1))
    cos, sin = _rotary(tower, x, spec)
    x = x.view(batch * times, rows * columns, -1)
    for block in tower.blocks:
        x = x + _vision_attention(block.attn, block.norm1(x), cos, sin)
        x = x + block.mlp(block.norm2(x))
    merged: Tensor = tower.merger(x.reshape(batch * times * rows * columns, -1))
    return merged.view(batch, spec.num_video_tokens, -1)


def _rotary(tower: Any, x: Tensor, spec: QwenSpec) -> tuple[Tensor, Tensor]:
    """Return the rotary tables [1, patches, 1, head] of one frame pair, patches in merge order."""
    _, rows, columns = spec.grid
    merge = spec.vision.merge_size
    order = (rows // merge, merge, columns // merge, merge)
    h = torch.arange(rows).view(-1, 1).expand(rows, columns).reshape(order).permute(0, 2, 1, 3)
    w = torch.arange(columns).view(1, -1).expand(rows, columns).reshape(order).permute(0, 2, 1, 3)
    ids = torch.stack([h.reshape(-1), w.reshape(-1)], dim=-1).to(x.device)
    cos, sin = tower.rotary_pos_emb(x, ids)
    return cos[None, :, None], sin[None, :, None]


def _vision_attention(attn: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    shape = (*x.shape[:2], attn.num_heads, -1)
    query, key, value = attn.q(x).view(shape), attn.k(x).view(shape), attn.v(x).view(shape)
    query = query * cos + _rotate_half(query) * sin
    key = key * cos + _rotate_half(key) * sin
    return attn.proj(_attend(query, key, value.to(query.dtype), x))


def _attend(query: Tensor, key: Tensor, value: Tensor, like: Tensor) -> Tensor:
    """Softmax attention written out: on CPU its backward is several times that of the fused one."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
    out = scores.softmax(-1).to(value.dtype) @ value
    return out.transpose(1, 2).reshape(like.shape)


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def mel_features(processor: "Qwen2_5OmniProcessor", audio: list[object]) -> tuple[Tensor, int]:
    """Return Whisper log-mel frames float32 [B, mel, frames] of equally long sounds.

    Returns:
        The frames without padding, and their number.
    """
    extractor = processor.feature_extractor
    out = extractor(
        audio,
        sampling_rate=extractor.sampling_rate,
        padding="max_length",
        return_attention_mask=True,
        return_tensors="pt",
    )
    frames = int(out["attention_mask"][0].sum())
    return out["input_features"][:, :, :frames].contiguous(), frames


def audio_features(thinker: "Qwen2_5OmniThinkerForConditionalGeneration", mel: Tensor) -> Tensor:
    """Return audio tokens [B, tokens, hidden] of mel frames [B, mel, frames]."""
    tower: Any = thinker.model.audio_tower
    if mel.shape[2] > 2 * tower.n_window:
        mask = torch.ones(mel.shape[0], mel.shape[2], dtype=torch.long, device=mel.device)
        long = thinker.get_audio_features(mel, feature_attention_mask=mask, return_dict=True)
        tokens: Tensor = long.last_hidden_state
        return tokens.view(mel.shape[0], -1, tokens.shape[-1])
    x = F.gelu(tower.conv1(mel.to(tower.conv1.weight.dtype)))
    x = F.gelu(tower.conv2(x)).transpose(1, 2)
    x = x + tower.positional_embedding.positional_embedding[: x.shape[1]].to(x.dtype)
    for layer in tower.layers:
        x = x + _audio_attention(layer.self_attn, layer.self_attn_layer_norm(x))
        x = x + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(x))))
    pairs = x.shape[1] // 2
    pooled = x[:, : 2 * pairs].view(x.shape[0], pairs, 2, -1).mean(2)
    out: Tensor = tower.proj(tower.ln_post(pooled))
    return out


def _audio_attention(attn: Any, x: Tensor) -> Tensor:
    shape = (*x.shape[:2], attn.num_heads, -1)
    query, key = attn.q_proj(x).view(shape), attn.k_proj(x).view(shape)
    return attn.out_proj(_attend(query, key, attn.v_proj(x).view(shape), x))
