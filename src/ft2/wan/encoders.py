"""Frozen encoders of the conditions: prompt, reference picture, speech.

The classes are the published ones (umT5, CLIP vision, wav2vec 2.0) at any size. Small models
may keep text and image encoders at their seeded random initialisation: a frozen random network
is an injective feature map, and the record of the weights says so.
"""

from __future__ import annotations

import html
import re

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

from ft2.errors import UsageError
from ft2.speech import log_mel
from ft2.wan.spec import AudioSpec, ImageSpec, TextSpec

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SPEECH_RMS = 0.1
"""Level to which the sound is scaled before log-mel features."""


def text_encoder(spec: TextSpec) -> UMT5EncoderModel:
    """Build the umT5 encoder of the given size, in eval mode."""
    config = UMT5Config(
        vocab_size=spec.vocab_size,
        d_model=spec.d_model,
        d_kv=spec.d_kv,
        d_ff=spec.d_ff,
        num_layers=spec.num_layers,
        num_heads=spec.num_heads,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    return UMT5EncoderModel(config).eval()


def image_encoder(spec: ImageSpec, activation: str = "quick_gelu") -> CLIPVisionModel:
    """Build the CLIP vision encoder of the given size, in eval mode.

    OpenAI's models have ``quick_gelu``, open-CLIP's ViT-H/14 (Wan's) ``gelu``.
    """
    config = CLIPVisionConfig(
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_hidden_layers,
        num_attention_heads=spec.num_attention_heads,
        image_size=spec.image_size,
        patch_size=spec.patch_size,
        hidden_act=activation,
    )
    return CLIPVisionModel(config).eval()


def clean_prompt(prompt: str) -> str:
    """Return the prompt repaired as Wan's pipeline does: ftfy, entities, white space."""
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", text).strip()


@torch.no_grad()
def encode_text(
    encoder: nn.Module,
    tokenizer: object,
    prompts: list[str],
    max_tokens: int,
) -> Tensor:
    """Return prompt embeddings [B, max_tokens, D], zero beyond each prompt's end.

    Raises:
        UsageError: if a prompt has more than ``max_tokens`` tokens.
    """
    rows = []
    device = next(encoder.parameters()).device
    for prompt in prompts:
        ids = tokenizer(clean_prompt(prompt)).input_ids  # type: ignore[operator]
        if len(ids) > max_tokens:
            raise UsageError(
                f"the prompt has {len(ids)} tokens, this model reads {max_tokens}: '{prompt}'",
                "shorten the prompt",
            )
        embedded = encoder(torch.tensor([ids], device=device)).last_hidden_state[0]
        rows.append(F.pad(embedded, (0, 0, 0, max_tokens - len(ids))))
    return torch.stack(rows)


@torch.no_grad()
def encode_image(encoder: nn.Module, frames: Tensor, spec: ImageSpec) -> Tensor:
    """Return picture embeddings [B, tokens, D] of uint8 [B, H, W, 3], squashed to a square."""
    parameter = next(encoder.parameters())
    pixels = frames.to(parameter.device).permute(0, 3, 1, 2).float() / 255
    size = (spec.image_size, spec.image_size)
    pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
    mean = torch.tensor(CLIP_MEAN, device=pixels.device)[:, None, None]
    std = torch.tensor(CLIP_STD, device=pixels.device)[:, None, None]
    pixels = ((pixels - mean) / std).to(parameter.dtype)
    out = encoder(pixels, output_hidden_states=True)
    hidden: Tensor = out.hidden_states[spec.output_layer]
    return hidden


class SpeechTower(nn.Module):
    """A small convolutional phone recogniser over log-mel frames; its hidden state is used.

    Two convolutions at 50 Hz, one with stride 2, one at 25 Hz: each token sees about 0.3 s.
    """

    def __init__(self, num_mels: int, dim: int, num_phones: int) -> None:
        """Create the tower; ``num_phones`` is the width of the training head."""
        super().__init__()
        self.first = nn.Conv1d(num_mels, dim, 5, padding=2)
        self.second = nn.Conv1d(dim, dim, 3, padding=1)
        self.third = nn.Conv1d(dim, dim, 4, stride=2, padding=1)
        self.fourth = nn.Conv1d(dim, dim, 5, padding=2)
        self.head = nn.Linear(dim, num_phones)

    def forward(self, mel: Tensor) -> Tensor:
        """Return hidden states [B, T / 2, dim] of log-mel frames [B, T, num_mels]."""
        x = F.gelu(self.first(mel.transpose(1, 2)))
        x = x + F.gelu(self.second(x))
        x = F.gelu(self.third(x))
        x = x + F.gelu(self.fourth(x))
        return F.layer_norm(x.transpose(1, 2), (x.shape[1],))


def level(audio: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the sound scaled to a common RMS; silence stays silence."""
    rms = float(np.sqrt(np.mean(np.square(audio, dtype=np.float64)))) if audio.size else 0.0
    gain = SPEECH_RMS / rms if rms > 1e-3 else 1.0
    return (audio * gain).astype(np.float32)


def mel_frames(audio: NDArray[np.float32], num_mels: int) -> Tensor:
    """Return log-mel frames [T, num_mels] at 50 Hz of levelled sound, T even."""
    mel = torch.from_numpy(log_mel(level(audio), num_mels))
    return F.pad(mel, (0, 0, 0, mel.shape[0] % 2))


@torch.no_grad()
def log_mel_tokens(
    tower: SpeechTower | None, audios: list[NDArray[np.float32]], spec: AudioSpec
) -> Tensor:
    """Return audio tokens [B, L, D] at 25 Hz: mel pairs and tower states, without positions."""
    mel = torch.stack([mel_frames(audio, spec.num_mels) for audio in audios])
    parts = [mel.unflatten(1, (-1, 2)).flatten(2)]
    if tower is not None:
        parts.append(tower(mel.to(next(tower.parameters()).device)).to(mel))
    return torch.cat(parts, 2)


@torch.no_grad()
def wav2vec2_tokens(encoder: nn.Module, audios: list[NDArray[np.float32]]) -> Tensor:
    """Return the last hidden state [B, L, D] of normalised sound, as FantasyTalking does."""
    parameter = next(encoder.parameters())
    waves = torch.stack([torch.from_numpy(audio) for audio in audios]).to(parameter.device)
    waves = (waves - waves.mean(1, keepdim=True)) / (
        waves.var(1, keepdim=True, correction=0) + 1e-7
    ).sqrt()
    hidden: Tensor = encoder(waves.to(parameter.dtype)).last_hidden_state
    return hidden
