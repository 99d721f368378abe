"""The critic's scores as a metric; the critic itself is brought by the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ft2.metrics.catalogue import FACTS
from ft2.metrics.measure import Clip, Facts, Measured
from ft2.pairs import DIMENSIONS


class CriticScores:
    """P(yes) per dimension of a trained critic."""

    def __init__(self, score: Callable[[Path], Mapping[str, float]]) -> None:
        """Ask `score` for the scores of a file; it raises UsageError where there are none."""
        self.score = score

    @property
    def facts(self) -> Facts:
        """What it is."""
        return FACTS["critic"]

    def measure(self, clip: Clip) -> Measured:
        """Return the critic's scores of one clip.

        Raises:
            UsageError: The critic cannot score it.
        """
        found = self.score(clip.path)
        return Measured({f"critic_{d}": found[d] for d in DIMENSIONS if d in found})
