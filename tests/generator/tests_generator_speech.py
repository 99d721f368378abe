"""Two made-up utterances for the tiny speech tower."""

import numpy as np

from ft2.generator.prepare import Speech
from ft2.speech import Phone


def speech() -> list[Speech]:
    """Return noise with two phones, twice."""
    rng = np.random.default_rng(0)
    phones = [Phone("AA", 0.0, 1.0), Phone("SIL", 1.0, 2.5)]
    return [Speech(rng.normal(size=40000).astype(np.float32) * 0.1, phones) for _ in range(2)]
