"""A scale for scores: where a clip stands among the clips of a named reference set."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import percentileofscore

from ft2.errors import UsageError
from ft2.runs import read_json, write_json

SCHEMA = 1
SAME = 1e-4
"""Log-odds that differ by less are the same score."""


@dataclass(frozen=True)
class Reference:
    """Scores of a set of clips by one critic."""

    name: str
    """What the clips are."""
    critic: str
    """Who scored; scores of another critic are not on this scale."""
    log_odds: dict[str, list[float]]
    """Per dimension logit P(yes) of every clip before any threshold, sorted."""

    def place(self, dimension: str, log_odds: float) -> tuple[float, float]:
        """Return (z, percentile in 0..100) of a clip.

        Equal scores count half, and scores within `SAME` are equal: batches of another size move
        log-odds by some 1e-6, and a clip of the reference set must not change its rank by that.
        """
        known = np.asarray(self.log_odds[dimension])
        spread = float(known.std())
        z = (log_odds - float(known.mean())) / spread if spread > 0 else 0.0
        near = np.where(np.isclose(known, log_odds, rtol=SAME / 10, atol=SAME), log_odds, known)
        return z, float(percentileofscore(near, log_odds, kind="mean"))

    def check_dimensions(self, names: Sequence[str]) -> None:
        """Refuse a set that lacks a dimension."""
        lacking = [name for name in names if name not in self.log_odds]
        if lacking:
            raise UsageError(
                f"the reference set '{self.name}' has no {lacking[0]}, it has "
                f"{', '.join(self.log_odds)}",
                "make one with this critic: ft2 critic score CLIPS --write-reference FILE",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return {"name": self.name, "critic": self.critic, "log_odds": self.log_odds}


def make_reference(
    name: str, critic: str, dimensions: Sequence[str], odds: Sequence[Sequence[float]]
) -> Reference:
    """Return the reference set of log-odds [clips, dimensions]."""
    columns = [sorted(round(float(x), 5) for x in column) for column in zip(*odds, strict=True)]
    return Reference(name, critic, dict(zip(dimensions, columns, strict=True)))


def write_reference(path: Path, reference: Reference) -> None:
    """Write a reference set as JSON."""
    write_json(path, {"schema": SCHEMA, **reference.to_dict()})


def read_reference(path: Path) -> Reference:
    """Return the reference set of a file that `write_reference` wrote.

    Raises:
        UsageError: No such file, or not a reference set.
    """
    if not path.is_file():
        raise UsageError(
            f"there is no reference set {path}",
            "make one: ft2 critic score CLIPS --write-reference FILE",
        )
    data = read_json(path)
    if not isinstance(data, dict) or data.pop("schema", None) != SCHEMA:
        raise UsageError(f"{path} is not a reference set of schema {SCHEMA}")
    return parse_reference(data, str(path))


def parse_reference(data: Mapping[str, Any], where: str) -> Reference:
    """Return the reference set of plain values.

    Raises:
        UsageError: Missing fields or fewer than two clips.
    """
    try:
        odds = {str(name): [float(x) for x in xs] for name, xs in dict(data["log_odds"]).items()}
        reference = Reference(str(data["name"]), str(data["critic"]), odds)
        short = min(len(values) for values in odds.values())
        if not all(math.isfinite(x) for values in odds.values() for x in values):
            raise ValueError("a value is not finite")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{where} is not a reference set: {error!r}",
            "make one: ft2 critic score CLIPS --write-reference FILE",
        ) from error
    if short < 2:
        raise UsageError(f"{where} has {short} clip(s); a scale needs two or more")
    return reference
