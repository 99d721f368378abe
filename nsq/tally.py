"""Counts over a split: pairs per store, answers, conflicts, positions, models, score histograms."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ft2.nsq.pairing import UNLABELLED, Pairs
from ft2.nsq.scored import scores_of
from ft2.pairs import DIMENSIONS, STORES

NUM_BINS = 20
_COUPLES = [(0, 1), (0, 2), (1, 2)]


@dataclass
class Tally:
    """Running counts of one split; `add` takes a block of clips with the pairs among them."""

    split: str
    yes_from: Sequence[float]
    clips: int = 0
    pairs: int = 0
    conditions: int = 0
    stores: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(STORES), np.int64))
    yes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))
    a_wins: NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))
    ties: NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))
    labelled: NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))
    agree: NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))
    oppose: NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, NUM_BINS), np.int64))
    models: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, table: pa.Table, pairs: Pairs) -> None:
        """Count a block: clips as in `scored.SCHEMA`, pairs by rows of that block."""
        scores = scores_of(table)
        self.clips += len(scores)
        self.conditions += len(table["condition_id"].unique())
        self.pairs += len(pairs)
        self.stores += pairs.stores.sum(axis=0)
        self.yes += (scores >= np.asarray(self.yes_from)).sum(axis=0)
        inside = pairs.stores[:, :3]
        self.a_wins += ((pairs.labels == 0) & inside).sum(axis=0)
        self.ties += (pairs.labels == 2).sum(axis=0)
        self.labelled += (pairs.labels != UNLABELLED).sum(axis=0)
        known = scores[~np.isnan(scores).any(axis=1)]
        bins = np.minimum((known * NUM_BINS).astype(int), NUM_BINS - 1)
        for d in range(3):
            self.histogram[d] += np.bincount(bins[:, d], minlength=NUM_BINS)
        sign = np.choose(pairs.labels, [1, -1, 0, 0])
        for index, (one, other) in enumerate(_COUPLES):
            product = sign[:, one] * sign[:, other]
            self.agree[index] += (product > 0).sum()
            self.oppose[index] += (product < 0).sum()
        self._count_models(table, pairs, scores)

    def _count_models(self, table: pa.Table, pairs: Pairs, scores: NDArray[np.float64]) -> None:
        encoded = table["model"].combine_chunks().dictionary_encode()
        encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
        names, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
        for code, name in enumerate(names):
            row = self.models.setdefault(
                name, {"clips": 0, "sums": np.zeros(3), "wins": np.zeros(3), "losses": np.zeros(3)}
            )
            row["clips"] += int((codes == code).sum())
            row["sums"] += scores[codes == code].sum(axis=0)
            a, b = codes[pairs.a] == code, codes[pairs.b] == code
            other = codes[pairs.a] != codes[pairs.b]
            for d in range(3):
                inside = pairs.stores[:, d] & other
                won = (a & (pairs.labels[:, d] == 0)) | (b & (pairs.labels[:, d] == 1))
                lost = (a & (pairs.labels[:, d] == 1)) | (b & (pairs.labels[:, d] == 0))
                row["wins"][d] += int((won & inside).sum())
                row["losses"][d] += int((lost & inside).sum())

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain values."""
        return {
            "split": self.split,
            "conditions": self.conditions,
            "clips": self.clips,
            "pairs": self.pairs,
            "yes_from": dict(zip(DIMENSIONS, map(float, self.yes_from), strict=True)),
            **dict(zip(STORES, self.stores.tolist(), strict=True)),
            **{f"yes_{d}": _share(self.yes[i], self.clips) for i, d in enumerate(DIMENSIONS)},
            "position_a": {
                d: _share(self.a_wins[i], self.stores[i]) for i, d in enumerate(DIMENSIONS)
            },
            "tie_rate": {
                d: _share(self.ties[i], self.labelled[i]) for i, d in enumerate(DIMENSIONS)
            },
            "conflicts": {
                f"{DIMENSIONS[i]}-{DIMENSIONS[j]}": {
                    "agree": int(self.agree[k]), "oppose": int(self.oppose[k])
                } for k, (i, j) in enumerate(_COUPLES)
            },
            "score_histogram": {d: self.histogram[i].tolist() for i, d in enumerate(DIMENSIONS)},
            "models": {
                name: {
                    "clips": row["clips"],
                    "mean_score": _by_dimension(row["sums"] / max(1, row["clips"])),
                    "wins": _by_dimension(row["wins"].astype(int)),
                    "losses": _by_dimension(row["losses"].astype(int)),
                } for name, row in sorted(self.models.items())
            },
        }  # fmt: skip


def _by_dimension(values: NDArray[Any]) -> dict[str, Any]:
    rounded = [round(v, 6) if isinstance(v, float) else v for v in values.tolist()]
    rounded = [None if v != v else v for v in rounded]
    return dict(zip(DIMENSIONS, rounded, strict=True))


def _share(part: int, whole: int) -> float | None:
    return float(part) / float(whole) if whole else None
