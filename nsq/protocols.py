"""What a dataset build needs from the outside: something that generates and something that scores.

Two real implementations of each exist: the nano and the full-size families, wired in `ft2.cli`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from ft2.pairs import Condition, Generated, Scores


class Scorer(Protocol):
    """Judges finished clips."""

    @property
    def name(self) -> str:
        """What judged, for the records: the critic's directory or its hash."""
        ...

    def score(self, paths: Sequence[Path]) -> list[Scores]:
        """Return the scores of mp4 files with sound, in the order of `paths`."""
        ...


class Generator(Protocol):
    """Makes talking clips."""

    @property
    def name(self) -> str:
        """What generated, for the records: the policy's directory or its hash."""
        ...

    def generate(
        self, conditions: Sequence[Condition], seeds: Sequence[int], output_dir: Path
    ) -> Iterator[Generated]:
        """Yield one mp4 file under `output_dir` for every condition with every seed.

        The same condition and seed give the same file, whatever else is in the call.
        """
        ...
