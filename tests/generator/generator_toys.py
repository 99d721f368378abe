"""A tiny architecture, and two made-up utterances for its speech tower."""

import numpy as np

from ft2.config import ClipFormat
from ft2.generator.prepare import Speech
from ft2.speech import Phone
from ft2.wan.spec import (
    Architecture,
    AudioSpec,
    DitSpec,
    ImageSpec,
    LatentSpec,
    TextSpec,
)

TINY = Architecture(
    name="tiny",
    clip=ClipFormat(width=64, height=64, num_frames=9, fps=12.5),
    dit=DitSpec(
        num_attention_heads=2,
        attention_head_dim=12,
        ffn_dim=32,
        num_layers=2,
        freq_dim=16,
        audio_dim=16,
    ),
    text=TextSpec(
        d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=280, max_tokens=24
    ),
    image=ImageSpec(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    ),
    audio=AudioSpec(kind="log_mel", features=40, num_mels=10, tower_dim=8),
    latent=LatentSpec(codec="motion", residual=True, gaussian_skip=True, fill="repeat"),
)


def speech() -> list[Speech]:
    """Return noise with two phones, twice."""
    rng = np.random.default_rng(0)
    phones = [Phone("AA", 0.0, 1.0), Phone("SIL", 1.0, 2.5)]
    return [Speech(rng.normal(size=40000).astype(np.float32) * 0.1, phones) for _ in range(2)]
