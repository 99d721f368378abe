"""A tiny architecture, and two made-up utterances for its speech tower."""

import numpy as np
from tiny_sizes import DIT, IMAGE, TEXT

from ft2.config import ClipFormat
from ft2.generator.prepare import Speech
from ft2.speech import Phone
from ft2.wan.spec import Architecture, AudioSpec, LatentSpec

TINY = Architecture(
    name="tiny",
    clip=ClipFormat(width=64, height=64, num_frames=9, fps=12.5),
    dit=DIT,
    text=TEXT,
    image=IMAGE,
    audio=AudioSpec(kind="log_mel", features=40, num_mels=10, tower_dim=8),
    latent=LatentSpec(codec="motion", residual=True, gaussian_skip=True, fill="repeat"),
)


def speech() -> list[Speech]:
    """Return noise with two phones, twice."""
    rng = np.random.default_rng(0)
    phones = [Phone("AA", 0.0, 1.0), Phone("SIL", 1.0, 2.5)]
    return [Speech(rng.normal(size=40000).astype(np.float32) * 0.1, phones) for _ in range(2)]
