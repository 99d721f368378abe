"""From scores to preference pairs: pure, seeded, independent of order and of how rows are cut.

Two clips of one condition (portrait, sound, prompt) become a pair of a dimension's store where one
of them wins there: by the critic's answers, as in FantasyTalking2's figure (Yes beats No, equal
answers make no pair), or by a margin in P(yes). A pair in which one clip wins on all three
dimensions also belongs to the store "fusion". Whole columns are handled at once; conditions may
come in any number of blocks, with the turns of the A/B balance carried from block to block.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ft2.errors import UsageError
from ft2.pairs import DIMENSIONS, STORES

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Hashes = NDArray[np.uint64]

NUM_PATTERNS = 27
"""Patterns of (A wins, tie, B wins) over three dimensions."""

UNLABELLED = 3
"""The label of a dimension that imported pairs say nothing about."""


@dataclass(frozen=True)
class Rule:
    """What makes a pair."""

    by: Literal["answers", "margin"] = "answers"
    """`answers`: Yes beats No; `margin`: the higher P(yes) wins if it is higher by `min_margin`."""
    thresholds: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """P(yes) from which an answer is Yes."""
    min_margin: float = 0.0
    """Least difference in P(yes) on the store's dimension (on all three for "fusion")."""
    max_per_condition: int = 4
    """Most pairs of one condition in one store."""
    widest: bool = False
    """Where the cap cuts: True keeps the widest margins, False a seeded choice."""
    seed: int = 0
    """Changes which pairs stay under the cap, and which side is A."""


@dataclass(frozen=True)
class Pairs:
    """P pairs as columns, sorted by condition, then by a hash of the two clips."""

    a: Ints
    """[P] row of clip A in the input."""
    b: Ints
    """[P] row of clip B."""
    labels: Ints
    """[P, 3] per dimension: 0 A is better, 1 B is better, 2 tie, `UNLABELLED` nobody was asked."""
    stores: Bools
    """[P, 4] membership in `STORES`."""

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.a)


def mine_pairs(
    conditions: Sequence[str],
    clip_ids: Sequence[str],
    scores: Floats,
    rule: Rule | None = None,
    turns: Ints | None = None,
) -> Pairs:
    """Return the pairs of N scored clips.

    Args:
        conditions: [N] condition of each clip; only clips of one condition meet.
        clip_ids: [N] distinct hexadecimal hashes of at least 16 digits.
        scores: [N, 3] P(yes) in [0, 1], in the order of `DIMENSIONS`.
        rule: What makes a pair.
        turns: [27] pairs so far of each pattern, for the A/B balance; brought up to date. Blocks of
            whole conditions in sorted order with one `turns` give what one call with all gives.

    Raises:
        UsageError: scores are not N probabilities of three dimensions, or clip ids repeat.
    """
    rule = rule or Rule()
    _check(conditions, clip_ids, scores)
    if not len(clip_ids):
        empty = np.zeros(0, np.int64)
        return Pairs(empty, empty, np.zeros((0, 3), np.int64), np.zeros((0, 4), bool))
    group = np.unique(np.asarray(conditions), return_inverse=True)[1]
    hashes = np.array([int(clip[:16], 16) for clip in clip_ids], np.uint64)
    low, high = _rows_that_meet(group, hashes)
    gaps = np.abs(scores[low] - scores[high])
    sign = _signs(scores[low], scores[high], rule)
    keys = _mix(hashes[low] ^ _mix(hashes[high] ^ _mix(np.uint64(rule.seed))))
    stores = _stores(sign, gaps, group[low], keys, rule)
    used = np.flatnonzero(stores.any(axis=1))
    used = used[np.lexsort((keys[used], group[low[used]]))]
    low, high, sign, stores = low[used], high[used], sign[used], stores[used]
    flip = _flips(sign, np.zeros(NUM_PATTERNS, np.int64) if turns is None else turns)
    sign = np.where(flip[:, None], -sign, sign)
    labels = np.choose(sign + 1, [1, 2, 0]).astype(np.int64)
    return Pairs(np.where(flip, high, low), np.where(flip, low, high), labels, stores)


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
        row = int(np.flatnonzero(~((scores >= 0) & (scores <= 1)).all(axis=1))[0])
        raise UsageError(
            f"clip {clip_ids[row]} has the scores {scores[row].tolist()}, outside [0, 1]",
            "scores are P(yes) of a critic; score the clip again",
        )
    if len(set(clip_ids)) != count:
        seen: set[str] = set()
        repeated = next(c for c in clip_ids if c in seen or seen.add(c))  # type: ignore[func-returns-value]
        raise UsageError(f"clip {repeated} is there twice", "give every clip once")


def _rows_that_meet(group: Ints, hashes: Hashes) -> tuple[Ints, Ints]:
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


def _signs(low: Floats, high: Floats, rule: Rule) -> Ints:
    """Return [P, 3]: +1 where the first clip wins, -1 where the second, 0 for a tie."""
    if rule.by == "answers":
        limits = np.asarray(rule.thresholds)
        return (low >= limits).astype(np.int64) - (high >= limits)
    gap = low - high
    return np.sign(gap).astype(np.int64) * (np.abs(gap) >= rule.min_margin)


def _stores(sign: Ints, gaps: Floats, group: Ints, keys: Hashes, rule: Rule) -> Bools:
    """Return [P, 4]: the stores that take each pair, after the cap."""
    decided = (sign != 0) & (gaps >= rule.min_margin)
    same_side = (sign == sign[:, :1]).all(axis=1) & decided.all(axis=1)
    eligible = np.column_stack([decided, same_side])
    stores = np.zeros_like(eligible)
    for column in range(len(STORES)):
        gap = gaps[:, column] if column < len(DIMENSIONS) else gaps.min(axis=1)
        order = -gap if rule.widest else np.zeros_like(gap)
        stores[:, column] = _cap(eligible[:, column], group, order, keys, rule.max_per_condition)
    return stores


def _cap(eligible: Bools, group: Ints, order: Floats, keys: Hashes, limit: int) -> Bools:
    """Keep at most `limit` eligible rows of each group: lowest `order` first, then lowest key."""
    rows = np.flatnonzero(eligible)
    rows = rows[np.lexsort((keys[rows], order[rows], group[rows]))]
    kept = np.zeros_like(eligible)
    kept[rows[_ranks(group[rows]) < limit]] = True
    return kept


def _flips(sign: Ints, turns: Ints) -> Bools:
    """Return which pairs to flip so that A wins half of every pattern of answers.

    Patterns that mirror each other form one class. In the order of the rows the winner (of the
    first decided dimension) of a class is A and B in turn; the class says which comes first.
    """
    if not len(sign):
        return np.zeros(0, bool)
    first = np.take_along_axis(sign, np.argmax(sign != 0, axis=1)[:, None], axis=1)[:, 0]
    classes = ((sign * first[:, None] + 1) * np.array([9, 3, 1])).sum(axis=1)
    rows = np.argsort(classes, kind="stable")
    a_wins = np.zeros(len(rows), bool)
    a_wins[rows] = (_ranks(classes[rows]) + turns[classes[rows]] + classes[rows]) % 2 == 0
    turns += np.bincount(classes, minlength=NUM_PATTERNS)
    return a_wins != (first > 0)


def _ranks(sorted_groups: Ints) -> Ints:
    """Return each row's place within its run of equal values."""
    starts = np.flatnonzero(np.r_[True, np.diff(sorted_groups) != 0])
    lengths = np.diff(np.r_[starts, len(sorted_groups)])
    return np.arange(len(sorted_groups)) - np.repeat(starts, lengths)


def _mix(value: Hashes | np.uint64) -> Hashes:
    """Return splitmix64's finaliser: a bijection on 64 bits in which every bit counts."""
    with np.errstate(over="ignore"):
        z = np.asarray(value, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)), np.uint64)
