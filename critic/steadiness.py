"""What must not move a critic's judgement: company, padding, which clip is side A."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ft2.critic.api import TalkingCritic
from ft2.qwen.view import ClipView

Matrix = NDArray[np.float64]

ROUNDING = 1e-5
"""Largest change of a probability that rounding explains."""
COMPARED = 6
"""Of so many clips every pair is compared, both ways round."""


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str
    value: float
    limit: str
    passed: bool
    meaning: str


def chances(critic: TalkingCritic, views: Sequence[ClipView]) -> Matrix:
    """Return P(yes) [clips, dimensions]."""
    return critic.scorer.chances(critic.scorer.log_odds(views)).numpy()


def company(critic: TalkingCritic, views: Sequence[ClipView], own: Matrix) -> list[Check]:
    """Check clips judged one by one, and with their sound padded further, against `own`."""
    alone = np.concatenate([chances(critic, [view]) for view in views])
    with _more_padding(critic):
        padded = chances(critic, views)
    return [
        _rounding("batch size", own, alone, "largest change of P(yes) when judged one by one"),
        _rounding("padding", own, padded, "largest change of P(yes) with the sound padded further"),
    ]


def _rounding(name: str, one: Matrix, other: Matrix, meaning: str) -> Check:
    gap = float(np.abs(one - other).max())
    return Check(name, gap, f"<= {ROUNDING:g}", gap <= ROUNDING, meaning)


@contextmanager
def _more_padding(critic: TalkingCritic) -> Iterator[None]:
    """Let the processor pad sounds to twice the length it otherwise does."""
    extractor = critic.scorer.processor.feature_extractor
    before = extractor.n_samples
    extractor.n_samples = 2 * before
    try:
        yield
    finally:
        extractor.n_samples = before


def sides(critic: TalkingCritic, videos: Sequence[Path]) -> list[Check]:
    """Check that `compare` says the mirror image with sides swapped, and makes no circle.

    Each comparison is a batch of its own, so that the place in it is swapped too.
    """
    clips = list(videos)[:COMPARED]
    count = len(clips)
    found = {
        (i, j): critic.compare(a=clips[i], b=clips[j])
        for i, j in itertools.permutations(range(count), 2)
    }
    swap, circles = 0.0, 0
    for name in critic.dimensions:
        wins = np.zeros((count, count))
        for (i, j), said in found.items():
            one, other = said[name], found[j, i][name]
            swap = max(swap, abs(one.a - other.b), abs(one.tie - other.tie))
            wins[i, j] = one.a - one.b
        beats = (wins > ROUNDING).astype(int)
        circles += int(np.trace(beats @ beats @ beats)) // 3
    return [
        Check(
            "A/B swap", swap, f"<= {ROUNDING:g}", swap <= ROUNDING,
            "largest change of an outcome with the sides swapped",
        ),
        Check("transitivity", float(circles), "0", circles == 0, "circles a > b > c > a"),
    ]  # fmt: skip
