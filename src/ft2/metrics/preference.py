"""Agreement of score differences with people's A, B or tie: exact, whatever the order of pairs.

A predicted tie is ``|score_a - score_b| <= eps``. The usual tie-aware accuracy moves eps pair by
pair, so that repeated differences make it depend on the order of rows; here eps only ever takes
*distinct* values. Five figures are called "accuracy" in papers, and they differ much: each has its
name here.

| name | human ties | predicted ties |
|---|---|---|
| strict | left out | wrong |
| half | left out | one half |
| decided | left out | left out; the share that is left is the coverage |
| three-way, held-out eps | a class | eps fitted on other pairs |
| three-way, oracle eps | a class | best eps on the same pairs: optimistic |
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ft2.errors import UsageError
from ft2.metrics.bootstrap import Groups, bootstrap

SIGNS = {"A": 1, "B": -1, "tie": 0}
"""Sign of the difference that a label asks for."""

FOLDS = 5
"""Parts of the pairs; eps for one part is fitted on the four others."""

Vector = NDArray[np.float64]
Labels = NDArray[np.int64]


def strict(differences: ArrayLike, labels: ArrayLike) -> float:
    """Return the share of decided pairs whose sign is right, a difference of 0 being wrong.

    Args:
        differences: score_a - score_b of each pair, [N].
        labels: 1 where people prefer A, -1 for B, 0 for a tie, [N].

    Returns:
        nan when people decided no pair.
    """
    d, y = _decided(differences, labels)
    return _mean(np.sign(d) == y)


def half(differences: ArrayLike, labels: ArrayLike) -> float:
    """Return `strict`, but with one half for a difference of 0."""
    d, y = _decided(differences, labels)
    return _mean(np.where(d == 0, 0.5, np.sign(d) == y))


def decided(differences: ArrayLike, labels: ArrayLike, eps: float = 0.0) -> tuple[float, float]:
    """Return (share right, coverage) of the decided pairs with a difference above `eps`."""
    d, y = _decided(differences, labels)
    kept = np.abs(d) > eps
    return _mean((np.sign(d) == y)[kept]), _mean(kept)


def three_way(differences: ArrayLike, labels: ArrayLike, eps: ArrayLike) -> float:
    """Return the share of pairs whose class A, B or tie is right; `eps` is one or one a pair."""
    d, y = _checked(differences, labels)
    return _mean(np.where(np.abs(d) <= eps, 0, np.sign(d)) == y)


def best_eps(differences: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """Return (eps, three-way accuracy) of the best tie width on these pairs.

    Looks at eps = 0 and after each distinct difference, in O(n log n). Of equally good widths the
    smallest is taken, and halfway to the next difference, which no pair here can tell apart.

    Returns:
        (0, nan) without pairs.
    """
    d, y = _checked(differences, labels)
    if not len(d):
        return 0.0, float("nan")
    size = np.abs(d)
    levels, place = np.unique(np.append(size, 0.0), return_inverse=True)
    place = place[:-1]
    gain = np.zeros(len(levels))
    np.add.at(gain, place, (y == 0).astype(float) - ((np.sign(d) == y) & (d != 0)))
    right = float(((np.sign(d) == y) & (d != 0)).sum()) + np.cumsum(gain)
    at = int(np.argmax(right))
    middle = (levels[at] + levels[at + 1]) / 2 if at + 1 < len(levels) else levels[at]
    return float(middle if at else 0.0), float(right[at] / len(d))


def held_out_eps(
    differences: ArrayLike, labels: ArrayLike, groups: Sequence[Hashable], folds: int = FOLDS
) -> Vector:
    """Return for each pair an eps [N] that was fitted on pairs of other groups.

    Groups (prompts) are dealt into folds by their hash, so that the order of pairs does not matter.
    """
    d, y = _checked(differences, labels)
    fold = np.array([_hash(group) % folds for group in groups], np.int64)
    if len(fold) != len(d):
        raise UsageError(f"{len(fold)} group keys for {len(d)} pairs", "give one key a pair")
    eps = np.zeros(len(d))
    for number in range(folds):
        mine = fold == number
        if mine.any():
            eps[mine] = best_eps(d[~mine], y[~mine])[0]
    return eps


def _hash(group: Hashable) -> int:
    return int(hashlib.sha256(repr(group).encode()).hexdigest()[:12], 16)


def pair_metrics(
    differences: ArrayLike, labels: ArrayLike, groups: Groups, *, num_resamples: int = 1000
) -> dict[str, Any]:
    """Return all named metrics with bootstrap intervals over groups, ready for JSON.

    Args:
        differences: score_a - score_b, finite, [N].
        labels: 1, -1 or 0, [N].
        groups: Prompt of each pair; pairs of one prompt are drawn together.
        num_resamples: Bootstrap samples.

    Raises:
        UsageError: No pairs, nan, or a label that is none.
    """
    d, y = _checked(differences, labels)
    if not len(d):
        raise UsageError("no pair to evaluate", "give at least one rated pair with both scores")
    eps = held_out_eps(d, y, list(groups))

    def estimate(statistic: Any, *columns: ArrayLike) -> dict[str, Any]:
        found = bootstrap(statistic, *columns, groups=groups, num_resamples=num_resamples)
        return found.to_dict()

    return {
        "n": len(d),
        "human": {name: int((y == sign).sum()) for name, sign in SIGNS.items()},
        "tie_rate": float((y == 0).mean()),
        "predicted_ties_at_eps_0": int((d == 0).sum()),
        "strict": estimate(strict, d, y),
        "half": estimate(half, d, y),
        "decided": {
            **estimate(lambda x, z: decided(x, z)[0], d, y),
            "coverage": _null(decided(d, y)[1]),
        },
        "three_way_held_out": {
            **estimate(three_way, d, y, eps),
            "eps": [float(e) for e in np.unique(eps)],
        },
        "three_way_oracle": {
            **estimate(lambda x, z: best_eps(x, z)[1], d, y),
            "eps": best_eps(d, y)[0],
            "note": "eps chosen on the same pairs: optimistic",
        },
    }


def trivial_pair_metrics(labels: ArrayLike, seed: int = 0, draws: int = 20) -> dict[str, Any]:
    """Return what judges without eyes reach: always A, always B, always tie, and random scores.

    ``random`` is the mean over `draws` random scorers, also with its own oracle eps: the bar that
    a tie-aware accuracy must clear.
    """
    _, y = _checked(np.zeros(np.size(labels)), labels)
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((draws, len(y)))
    return {
        "always_A": {"strict": _null(strict(np.ones(len(y)), y)), "three_way": _mean(y == 1)},
        "always_B": {"strict": _null(strict(-np.ones(len(y)), y)), "three_way": _mean(y == -1)},
        "always_tie": {"strict": 0.0, "half": 0.5, "three_way": _mean(y == 0)},
        "random": {
            "strict": _null(float(np.mean([strict(d, y) for d in scores]))),
            "three_way_oracle": float(np.mean([best_eps(d, y)[1] for d in scores])),
        },
    }


def _checked(differences: ArrayLike, labels: ArrayLike) -> tuple[Vector, Labels]:
    d, y = np.asarray(differences, np.float64), np.asarray(labels)
    if d.ndim != 1 or d.shape != y.shape:
        raise UsageError(
            f"differences {list(d.shape)} and labels {list(y.shape)} differ", "give one each a pair"
        )
    if not np.isfinite(d).all():
        row = int(np.flatnonzero(~np.isfinite(d))[0])
        raise UsageError(f"the difference of pair {row} is {d[row]}", "every score must be finite")
    if not np.isin(y, (-1, 0, 1)).all():
        raise UsageError("a label is none of 1 (A), -1 (B), 0 (tie)", "read them with SIGNS")
    return d, y.astype(np.int64)


def _decided(differences: ArrayLike, labels: ArrayLike) -> tuple[Vector, Labels]:
    d, y = _checked(differences, labels)
    return d[y != 0], y[y != 0]


def _mean(values: ArrayLike) -> float:
    array = np.asarray(values, np.float64)
    return float(array.mean()) if len(array) else float("nan")


def _null(value: float) -> float | None:
    return value if np.isfinite(value) else None
