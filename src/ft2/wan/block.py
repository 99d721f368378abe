"""One Wan transformer block with FantasyTalking's audio cross-attention.

The block keeps diffusers' modules and names. Audio, its mask and scale, and the gate of the
preference experts are arguments of ``forward``: a value kept as an attribute would be read
again, changed, when a checkpointed block is recomputed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_wan import WanAttention, WanTransformerBlock
from torch import Tensor, nn

from ft2.lora import Gate, apply_linear, apply_linears


class AudioProjection(nn.Module):
    """``AudioProjModel`` of FantasyTalking: a linear map without bias, then LayerNorm."""

    def __init__(self, in_features: int, out_features: int) -> None:
        """Create the projection from [.., in_features] to [.., out_features]."""
        super().__init__()
        self.proj = nn.Linear(in_features, out_features, bias=False)
        self.norm = nn.LayerNorm(out_features)

    def forward(self, audio: Tensor) -> Tensor:
        """Project audio tokens [..., in_features] to [..., out_features]."""
        projected: Tensor = self.norm(self.proj(audio))
        return projected


class AudioProcessor(nn.Module):
    """The audio keys and values of one block: zero at first, so the base is unchanged."""

    def __init__(self, audio_dim: int, inner_dim: int) -> None:
        """Create zero-initialised, bias-free ``k_proj`` and ``v_proj``."""
        super().__init__()
        self.k_proj = nn.Linear(audio_dim, inner_dim, bias=False)
        self.v_proj = nn.Linear(audio_dim, inner_dim, bias=False)
        nn.init.zeros_(self.k_proj.weight)
        nn.init.zeros_(self.v_proj.weight)


class IdentityProcessor(nn.Module):
    """The identity keys and values of one block; values are zero at first."""

    def __init__(self, identity_dim: int, inner_dim: int) -> None:
        """Create bias-free ``k_proj`` and ``v_proj``, the latter zero."""
        super().__init__()
        self.k_proj = nn.Linear(identity_dim, inner_dim, bias=False)
        self.v_proj = nn.Linear(identity_dim, inner_dim, bias=False)
        nn.init.zeros_(self.v_proj.weight)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """View [B, L, H * d] as [B, H, L, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """View [B, H, L, d] as [B, L, H * d]."""
    return x.transpose(1, 2).flatten(2)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return softmax(QK^T / sqrt(d)) V of [B, H, L, d] with heads merged, [B, L, H * d].

    On a CPU it is computed in fp32 whatever the autocast: torch's bf16 kernel there takes six
    times as long backwards.
    """
    if query.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):
            out = F.scaled_dot_product_attention(
                query.float(), key.float(), value.float(), attn_mask=mask
            )
        return merge_heads(out).type_as(value)
    return merge_heads(F.scaled_dot_product_attention(query, key, value, attn_mask=mask))


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Apply Wan's interleaved rotary embedding to [B, L, H, d]."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotary[0][..., 0::2], rotary[1][..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).type_as(x)


def self_attention(
    attn: WanAttention, x: Tensor, rotary: tuple[Tensor, Tensor], gate: Gate | None
) -> Tensor:
    """Return self-attention over all video tokens, [B, N, C]."""
    query, key, value = apply_linears((attn.to_q, attn.to_k, attn.to_v), x, gate)
    query = attn.norm_q(query).unflatten(2, (attn.heads, -1))
    key = attn.norm_k(key).unflatten(2, (attn.heads, -1))
    value = split_heads(value, attn.heads)
    query, key = rotate(query, rotary).transpose(1, 2), rotate(key, rotary).transpose(1, 2)
    return apply_linear(attn.to_out[0], attend(query, key, value), gate)


def audio_attention(
    attn: WanAttention, query: Tensor, audio: Tensor, mask: Tensor, gate: Gate | None
) -> Tensor:
    """Return the audio branch before the shared output projection.

    Args:
        attn: the block's cross-attention, whose ``processor`` is an :class:`AudioProcessor`.
        query: normalised queries of the block, [B, N, C], frame-major.
        audio: projected tokens, [B, G, L, A]; G = latent frames (each frame attends to its own
            window) or 1 (every token attends to the whole clip).
        mask: True where a token is real, [B, G, L]; every row has a real token.
        gate: expert weights of this layer, [B, K], or None.

    Returns:
        [B, N, C].
    """
    batch, groups = audio.shape[:2]
    processor = attn.processor
    key, value = apply_linears((processor.k_proj, processor.v_proj), audio, gate)
    key, value = key.flatten(0, 1), value.flatten(0, 1)
    grouped = query.unflatten(1, (groups, -1)).flatten(0, 1)
    out = attend(
        split_heads(grouped, attn.heads),
        split_heads(key, attn.heads),
        split_heads(value, attn.heads),
        mask.flatten(0, 1)[:, None, None, :],
    )
    return out.reshape(batch, query.shape[1], -1)


def identity_attention(
    attn: WanAttention, query: Tensor, identity: Tensor, gate: Gate | None
) -> Tensor:
    """Return the identity branch before the shared output projection, [B, N, C].

    Args:
        attn: the block's cross-attention, with an :class:`IdentityProcessor`.
        query: normalised queries of the block, split into heads, [B, H, N, d].
        identity: identity tokens, [B, Q, D].
        gate: expert weights of this layer, or None.
    """
    processor = attn.identity
    key, value = apply_linears((processor.k_proj, processor.v_proj), identity, gate)
    return attend(query, split_heads(key, attn.heads), split_heads(value, attn.heads))


def cross_attention(
    attn: WanAttention,
    x: Tensor,
    text: Tensor,
    image: Tensor | None,
    audio: Tensor | None,
    audio_mask: Tensor | None,
    audio_scale: Tensor,
    gate: Gate | None,
    identity: Tensor | None = None,
    identity_scale: Tensor | None = None,
) -> Tensor:
    """Return text, image, audio and identity attention summed before the one output projection.

    ``Z + lambda_1 Attn(Q, K_a, V_a) + lambda_2 Attn(Q, K_id, V_id)`` (FantasyTalking, eq. 4).
    """
    query = attn.norm_q(apply_linear(attn.to_q, x, gate))
    heads = split_heads(query, attn.heads)
    key, value = apply_linears((attn.to_k, attn.to_v), text, gate)
    key, value = split_heads(attn.norm_k(key), attn.heads), split_heads(value, attn.heads)
    out = attend(heads, key, value)
    if image is not None:
        key, value = apply_linears((attn.add_k_proj, attn.add_v_proj), image, gate)
        key = split_heads(attn.norm_added_k(key), attn.heads)
        value = split_heads(value, attn.heads)
        out = out + attend(heads, key, value)
    if audio is not None and audio_mask is not None:
        heard = audio_attention(attn, query, audio, audio_mask, gate)
        out = out + audio_scale.to(out.dtype)[:, None, None] * heard
    if identity is not None and identity_scale is not None:
        known = identity_attention(attn, heads, identity, gate)
        out = out + identity_scale.to(out.dtype)[:, None, None] * known
    return apply_linear(attn.to_out[0], out, gate)


class TalkingBlock(WanTransformerBlock):
    """A Wan block whose cross-attention also hears, and whose linears take a gate."""

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        num_heads: int,
        qk_norm: str,
        cross_attn_norm: bool,
        eps: float,
        added_kv_proj_dim: int | None,
        audio_dim: int,
    ) -> None:
        """Create diffusers' block and replace the cross-attention's processor."""
        super().__init__(dim, ffn_dim, num_heads, qk_norm, cross_attn_norm, eps, added_kv_proj_dim)
        del self.attn2.processor
        self.attn2.processor = AudioProcessor(audio_dim, dim)

    def forward(
        self,
        hidden_states: Tensor,
        text: Tensor,
        image: Tensor | None,
        modulation: Tensor,
        rotary: tuple[Tensor, Tensor],
        audio: Tensor | None,
        audio_mask: Tensor | None,
        audio_scale: Tensor,
        gate: Gate | None,
        identity: Tensor | None = None,
        identity_scale: Tensor | None = None,
    ) -> Tensor:
        """Return the block's output, [B, N, C].

        Args:
            hidden_states: video tokens, [B, N, C].
            text: embedded text tokens, [B, T, C].
            image: embedded image tokens, [B, I, C], or None.
            modulation: timestep projection, [B, 6, C].
            rotary: cosines and sines of the tokens' positions.
            audio: projected audio, [B, G, L, A], or None (no audio branch is computed).
            audio_mask: True where an audio token is real, [B, G, L].
            audio_scale: strength of the audio branch, [B]; 0 is "no audio".
            gate: expert weights of this layer, [B, K]; None is the base network, exactly.
            identity: identity tokens, [B, Q, D], if the block has that branch.
            identity_scale: strength of the identity branch, [B].
        """
        shift, scale, keep, ff_shift, ff_scale, ff_keep = (
            self.scale_shift_table + modulation.float()
        ).chunk(6, dim=1)
        x = hidden_states
        normed = (self.norm1(x.float()) * (1 + scale) + shift).type_as(x)
        x = (x.float() + self_attention(self.attn1, normed, rotary, gate) * keep).type_as(x)
        normed = self.norm2(x.float()).type_as(x)
        x = x + cross_attention(
            self.attn2, normed, text, image, audio, audio_mask, audio_scale, gate,
            identity, identity_scale,
        )  # fmt: skip
        normed = (self.norm3(x.float()) * (1 + ff_scale) + ff_shift).type_as(x)
        fed = feed_forward(self.ffn, normed, gate)
        return (x.float() + fed.float() * ff_keep).type_as(x)


def feed_forward(ffn: nn.Module, x: Tensor, gate: Gate | None) -> Tensor:
    """Return diffusers' GELU feed-forward with the gate handed to both linears."""
    first, second = ffn.net[0].proj, ffn.net[2]  # type: ignore[index, union-attr]
    hidden = F.gelu(apply_linear(first, x, gate), approximate="tanh")
    return apply_linear(second, hidden, gate)  # type: ignore[arg-type]
