"""From scores to preference pairs: pure, seeded, and independent of the order of its input.

Two clips of one condition become a pair of a dimension's store where the critic answers Yes for
one and No for the other (equal answers make no pair there), and a pair of the store "fusion" where
Yes-Yes-Yes meets No-No-No. Whole columns are handled at once: 410,000 pairs take seconds.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ft2.errors import UsageError
from ft2.pairs import DIMENSIONS, STORES

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Pairs:
    """P pairs as columns. Rows are sorted by the first row of their condition, then by a hash."""

    a: Ints
    """[P] row of clip A in the input."""
    b: Ints
    """[P] row of clip B."""
    labels: Ints
    """[P, 3] per dimension: 0 A is better, 1 B is better, 2 tie (equal answers)."""
    stores: Bools
    """[P, 4] membership in `STORES`."""

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.a)


def mine_pairs(
    conditions: Sequence[str],
    clip_ids: Sequence[str],
    scores: Floats,
    *,
    thresholds: tuple[float, float, float] = (0.5, 0.5, 0.5),
    min_margin: float = 0.0,
    max_per_condition: int = 4,
    prefer_margin: bool = False,
    seed: int = 0,
) -> Pairs:
    """Return the pairs of N scored clips.

    Args:
        conditions: [N] condition of each clip; only clips of one condition meet.
        clip_ids: [N] distinct hexadecimal hashes of at least 16 digits.
        scores: [N, 3] P(yes) in [0, 1], in the order of `DIMENSIONS`.
        thresholds: P(yes) from which an answer is Yes.
        min_margin: Least |difference| in P(yes) on the store's dimension (on all, for "fusion").
        max_per_condition: Most pairs of one condition in one store.
        prefer_margin: Where the cap cuts, keep the widest margins instead of a seeded choice.
        seed: Changes which pairs stay under the cap, and which side is A.

    Raises:
        UsageError: scores are not N probabilities of three dimensions, or clip ids repeat.
    """
    _check(conditions, clip_ids, scores)
    if not clip_ids:
        empty = np.zeros(0, np.int64)
        return Pairs(empty, empty, np.zeros((0, 3), np.int64), np.zeros((0, 4), bool))
    _, first_rows, codes = np.unique(np.asarray(conditions), return_index=True, return_inverse=True)
    group = np.asarray(first_rows)[codes]
    hashes = np.array([int(clip[:16], 16) for clip in clip_ids], np.uint64)
    low, high = _candidate_rows(group, hashes)
    yes = scores >= np.asarray(thresholds)
    gaps = np.abs(scores[low] - scores[high])
    eligible = _eligible(yes[low], yes[high], gaps, min_margin)
    keys = _mix(hashes[low] ^ _mix(hashes[high] ^ _mix(np.uint64(seed))))
    stores = np.zeros_like(eligible)
    for column in range(len(STORES)):
        gap = gaps[:, column] if column < len(DIMENSIONS) else gaps.min(axis=1)
        order = np.where(prefer_margin, -gap, 0.0)
        stores[:, column] = _cap(eligible[:, column], group[low], order, keys, max_per_condition)
    used = stores.any(axis=1)
    low, high, keys, stores = low[used], high[used], keys[used], stores[used]
    sign = yes[low].astype(np.int64) - yes[high]
    flip = _sides(sign, keys)
    first, second = np.where(flip, high, low), np.where(flip, low, high)
    sign = np.where(flip[:, None], -sign, sign)
    labels = np.choose(sign + 1, [1, 2, 0])
    order = np.lexsort((keys, group[low]))
    return Pairs(first[order], second[order], labels[order], stores[order])


def pair_id(clip_a: str, clip_b: str) -> str:
    """Return the content hash of a pair: sha256 of its two clip ids, A first."""
    return hashlib.sha256(f"{clip_a}:{clip_b}".encode()).hexdigest()


def _check(conditions: Sequence[str], clip_ids: Sequence[str], scores: Floats) -> None:
    count = len(clip_ids)
    if scores.shape != (count, 3) or len(conditions) != count:
        raise UsageError(
            f"{count} clips, {len(conditions)} conditions, scores of shape {scores.shape}",
            "give one condition and three scores for every clip",
        )
    if count and not (scores.min() >= 0 and scores.max() <= 1):
        raise UsageError("scores outside [0, 1], or not numbers", "scores are P(yes)")
    if len(set(clip_ids)) != count:
        repeated = next(c for i, c in enumerate(clip_ids) if c in clip_ids[:i])
        raise UsageError(f"clip {repeated} is there twice", "give every clip once")


def _candidate_rows(group: Ints, hashes: Hashes) -> tuple[Ints, Ints]:
    """Return all unordered pairs of rows within a group; the smaller hash comes first."""
    order = np.lexsort((hashes, group))
    starts = np.flatnonzero(np.r_[True, np.diff(group[order]) != 0])
    sizes = np.diff(np.r_[starts, len(order)])
    lows, highs = [], []
    for size in np.unique(sizes):
        i, j = np.triu_indices(int(size), k=1)
        base = starts[sizes == size][:, None]
        lows.append((base + i).ravel())
        highs.append((base + j).ravel())
    return order[np.concatenate(lows)], order[np.concatenate(highs)]


def _eligible(yes_low: Bools, yes_high: Bools, gaps: Floats, min_margin: float) -> Bools:
    """Return [P, 4]: which pair may enter which store, before any cap."""
    decided = (yes_low != yes_high) & (gaps >= min_margin)
    opposed = (yes_low.all(axis=1) & ~yes_high.any(axis=1)) | (
        yes_high.all(axis=1) & ~yes_low.any(axis=1)
    )
    return np.column_stack([decided, opposed & decided.all(axis=1)])


def _cap(eligible: Bools, group: Ints, order: Floats, keys: Hashes, limit: int) -> Bools:
    """Keep at most `limit` eligible rows of each group: lowest `order` first, then lowest key."""
    rows = np.flatnonzero(eligible)
    rows = rows[np.lexsort((keys[rows], order[rows], group[rows]))]
    if not len(rows):
        return np.zeros_like(eligible)
    starts = np.flatnonzero(np.r_[True, np.diff(group[rows]) != 0])
    rank = np.arange(len(rows)) - np.repeat(starts, np.diff(np.r_[starts, len(rows)]))
    kept = np.zeros_like(eligible)
    kept[rows[rank < limit]] = True
    return kept


def _sides(sign: Ints, keys: Hashes) -> Bools:
    """Return which pairs to flip so that A wins half of every pattern of answers.

    Pairs whose patterns are each other's mirror form one class; sorted by key, the winner (the
    first decided dimension's) is A and B in turn, starting with the class's own hash bit.
    """
    first = np.take_along_axis(sign, np.argmax(sign != 0, axis=1)[:, None], axis=1)[:, 0]
    classes = ((sign * first[:, None] + 1) * np.array([9, 3, 1])).sum(axis=1)
    rows = np.lexsort((keys, classes))
    sorted_classes = classes[rows]
    starts = np.flatnonzero(np.r_[True, np.diff(sorted_classes) != 0])
    lengths = np.diff(np.r_[starts, len(rows)])
    rank = np.arange(len(rows)) - np.repeat(starts, lengths)
    a_wins = np.zeros(len(rows), bool)
    a_wins[rows] = (rank + sorted_classes) % 2 == 0
    return a_wins != (first > 0)


def _mix(value: Hashes | np.uint64) -> Hashes:
    """Return splitmix64's finaliser: a bijection on 64 bits in which every bit counts."""
    with np.errstate(over="ignore"):
        z = np.asarray(value, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)), np.uint64)
