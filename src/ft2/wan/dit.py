"""The talking transformer: diffusers' Wan model with audio, and experts behind a gate."""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ft2.lora import Gate, layer_gate
from ft2.wan.block import AudioProjection, TalkingBlock
from ft2.wan.identity import IdentityFormer
from ft2.wan.intensity import MotionIntensity
from ft2.wan.recompute import recompute
from ft2.wan.spec import Architecture

FP32_PARTS = ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3", "intensity.")
"""Parts that Wan computes in float32 whatever the rest is in, and what is added to its time."""


class TalkingTransformer(WanTransformer3DModel):
    """Wan's image-to-video transformer with FantasyTalking's audio branch in every block.

    Beside diffusers' weights it holds ``proj_model`` (the audio projection) and, in every
    block, ``attn2.processor.{k,v}_proj``: 2 * layers + 3 tensors, 840,437,760 parameters at
    Wan 14B's size.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        patch_size: tuple[int, ...] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 36,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        qk_norm: str = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int | None = 1280,
        added_kv_proj_dim: int | None = 5120,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
        audio_features: int = 768,
        audio_dim: int = 2048,
    ) -> None:
        """Create the transformer; the first arguments are diffusers' own."""
        super().__init__(
            patch_size=patch_size,
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            in_channels=in_channels,
            out_channels=out_channels,
            text_dim=text_dim,
            freq_dim=freq_dim,
            ffn_dim=ffn_dim,
            num_layers=0,
            cross_attn_norm=cross_attn_norm,
            qk_norm=qk_norm,
            eps=eps,
            image_dim=image_dim,
            added_kv_proj_dim=added_kv_proj_dim,
            rope_max_seq_len=rope_max_seq_len,
            pos_embed_seq_len=pos_embed_seq_len,
        )
        self.register_to_config(
            num_layers=num_layers, audio_features=audio_features, audio_dim=audio_dim
        )
        dim = num_attention_heads * attention_head_dim
        self.blocks = nn.ModuleList(
            TalkingBlock(
                dim,
                ffn_dim,
                num_attention_heads,
                qk_norm,
                cross_attn_norm,
                eps,
                added_kv_proj_dim,
                audio_dim,
            )
            for _ in range(num_layers)
        )
        self.proj_model = AudioProjection(audio_features, audio_dim)
        self.identity: IdentityFormer | None = None
        self.intensity: MotionIntensity | None = None
        self._gradient_checkpointing_func = recompute

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None = None,
        audio: Tensor | None = None,
        audio_mask: Tensor | None = None,
        audio_scale: Tensor | None = None,
        gate: Gate | None = None,
        identity: Tensor | None = None,
        identity_scale: Tensor | None = None,
        motion: Tensor | None = None,
    ) -> Tensor:
        """Return the velocity, [B, out_channels, F, h, w].

        Args:
            hidden_states: noisy latents with mask and image latents, [B, in_channels, F, h, w].
            timestep: 1000 * sigma, [B].
            encoder_hidden_states: text embeddings, [B, T, text_dim]; every position is attended.
            encoder_hidden_states_image: image embeddings, [B, I, image_dim], or None.
            audio: audio features cut into windows, [B, G, L, audio_features], or None.
            audio_mask: True where an audio token is real, [B, G, L].
            audio_scale: strength of the audio branch, [B]; None is 1.
            gate: expert weights, [B, num_layers, K], or shared ones; None is the base, exactly.
            identity: face embeddings, [B, E], for a transformer with that branch.
            identity_scale: strength of the identity branch, [B].
            motion: motion strengths omega in [0, 1], [B, 1 or 2], likewise.
        """
        rotary = self.rope(hidden_states)
        grid = hidden_states.shape[2:]
        x = self.patch_embedding(hidden_states).flatten(2).transpose(1, 2).contiguous()
        temb, modulation, text, image = self.condition_embedder(
            timestep, encoder_hidden_states, encoder_hidden_states_image
        )
        if motion is not None and self.intensity is not None:
            temb = temb + self.intensity(motion).type_as(temb)
            embedder = self.condition_embedder
            modulation = embedder.time_proj(embedder.act_fn(temb))
        modulation = modulation.unflatten(1, (6, -1))
        known = None
        if identity is not None and self.identity is not None:
            known = self.identity(identity)
        if audio is not None:
            audio = self.proj_model(audio)
        if audio_scale is None:
            audio_scale = torch.ones(x.shape[0], device=x.device)
        for index, block in enumerate(self.blocks):
            conditions = (text, image, modulation, rotary, audio, audio_mask, audio_scale)
            arguments = (x, *conditions, layer_gate(gate, index), known, identity_scale)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = self._gradient_checkpointing_func(block, *arguments)
            else:
                x = block(*arguments)
        return self._project(x, temb, grid)

    def _project(self, x: Tensor, temb: Tensor, grid: torch.Size) -> Tensor:
        """Normalise, project and unpatch tokens [B, N, C] to [B, out_channels, *grid]."""
        shift, scale = (self.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
        x = (self.norm_out(x.float()) * (1 + scale) + shift).type_as(x)
        x = self.proj_out(x)
        patch = self.config.patch_size
        frames, height, width = (size // step for size, step in zip(grid, patch, strict=True))
        x = x.reshape(x.shape[0], frames, height, width, *patch, -1)
        return x.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def build_dit(architecture: Architecture) -> TalkingTransformer:
    """Return a transformer of the given sizes with fresh weights."""
    dit, latent = architecture.dit, architecture.latent
    return TalkingTransformer(
        patch_size=dit.patch_size,
        num_attention_heads=dit.num_attention_heads,
        attention_head_dim=dit.attention_head_dim,
        in_channels=2 * latent.channels + 4,
        out_channels=latent.channels,
        text_dim=architecture.text.d_model,
        freq_dim=dit.freq_dim,
        ffn_dim=dit.ffn_dim,
        num_layers=dit.num_layers,
        image_dim=architecture.image.hidden_size,
        added_kv_proj_dim=dit.dim,
        audio_features=architecture.audio.features,
        audio_dim=dit.audio_dim,
    )
