"""Means and other statistics with percentile bootstrap intervals, clustered where needed.

Clips of one utterance or one face resemble each other: an interval that treats them as independent
is too narrow. Give the utterance (or face) as `groups` and whole groups are drawn with
replacement (the cluster bootstrap, Davison and Hinkley 1997, section 3.8; Field and Welsh 2007).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ft2.errors import UsageError

Groups = Sequence[Hashable] | NDArray[Any]
Statistic = Callable[..., float]

LEVEL = 0.95
NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A statistic with its bootstrap interval.

    Attributes:
        value: The statistic on the whole sample.
        low: Lower end of the interval.
        high: Upper end of the interval.
        n: Number of samples (nan left out).
        num_groups: Number of independent groups that were drawn; n without groups.
    """

    value: float
    low: float
    high: float
    n: int
    num_groups: int

    def __str__(self) -> str:
        """Return for example `0.861 [0.790, 0.923], n=594`."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}], n={self.n}"

    def to_dict(self) -> dict[str, float | int | None]:
        """Return the fields for JSON, with None for nan."""
        fields = {"value": self.value, "low": self.low, "high": self.high}
        shown = {k: float(v) if np.isfinite(v) else None for k, v in fields.items()}
        return {**shown, "n": self.n, "num_groups": self.num_groups}


def bootstrap_mean(
    values: ArrayLike,
    groups: Groups | None = None,
    *,
    num_resamples: int = NUM_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Estimate:
    """Return the mean of `values` [N] with its interval.

    Args:
        values: Numbers; nan is left out (and not counted in n).
        groups: Key of each value; values with equal keys are drawn together.
        num_resamples: Number of bootstrap samples.
        level: Coverage of the interval.
        seed: Seed of the draws; the same input gives the same interval.

    Raises:
        UsageError: No finite value, or groups of another length.
    """
    numbers = _vector(values)
    codes, num_groups = _codes(groups, len(numbers))
    kept = np.isfinite(numbers)
    numbers, codes = numbers[kept], codes[kept]
    if not len(numbers):
        raise UsageError("no finite value to average", "score at least one clip")
    codes, num_groups = _codes(codes, len(codes))
    sums = np.bincount(codes, numbers, num_groups)
    counts = np.bincount(codes, minlength=num_groups)
    drawn = _draws(num_groups, num_resamples, seed)
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return _estimate(float(numbers.mean()), means, level, len(numbers), num_groups)


def bootstrap_paired(
    first: ArrayLike,
    second: ArrayLike,
    groups: Groups | None = None,
    *,
    num_resamples: int = NUM_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Estimate:
    """Return the mean of `first - second` [N], pair by pair, with its interval.

    A pair in which either is nan is left out. The other arguments are those of `bootstrap_mean`.
    """
    one, other = _vector(first), _vector(second)
    if len(one) != len(other):
        raise UsageError(
            f"{len(one)} values cannot be paired with {len(other)}", "give one value each a pair"
        )
    return bootstrap_mean(one - other, groups, num_resamples=num_resamples, level=level, seed=seed)


def bootstrap(
    statistic: Statistic,
    *columns: ArrayLike,
    groups: Groups | None = None,
    num_resamples: int = 1000,
    level: float = LEVEL,
    seed: int = 0,
) -> Estimate:
    """Return `statistic(*columns)` with its interval, for any statistic of rows.

    Args:
        statistic: Function of the columns that returns a number; nan where it is not defined
            (such resamples are left out).
        columns: Arrays [N, ...] whose rows belong together.
        groups: Key of each row; rows with equal keys are drawn together.
        num_resamples: Number of bootstrap samples.
        level: Coverage of the interval.
        seed: Seed of the draws.

    Raises:
        UsageError: No rows, or columns of different lengths.
    """
    arrays = [np.asarray(column) for column in columns]
    count = len(arrays[0])
    if not count or any(len(array) != count for array in arrays):
        raise UsageError(
            f"columns have {[len(array) for array in arrays]} rows", "give the same number, >= 1"
        )
    codes, num_groups = _codes(groups, count)
    order = np.argsort(codes, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(codes, minlength=num_groups))[:-1])
    values = []
    for drawn in _draws(num_groups, num_resamples, seed):
        rows = np.concatenate([members[group] for group in drawn])
        values.append(float(statistic(*(array[rows] for array in arrays))))
    return _estimate(float(statistic(*arrays)), np.array(values), level, count, num_groups)


def _vector(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    if array.ndim != 1:
        raise UsageError(f"values have shape {list(array.shape)}", "give a flat list of numbers")
    return array


def _codes(groups: Groups | None, count: int) -> tuple[NDArray[np.int64], int]:
    """Number the groups 0..G-1 in order of appearance."""
    if groups is None:
        return np.arange(count), count
    if len(groups) != count:
        raise UsageError(f"{len(groups)} group keys for {count} values", "give one key a value")
    known: dict[Any, int] = {}
    codes = np.array([known.setdefault(key, len(known)) for key in groups], np.int64)
    return codes, len(known)


def _draws(num_groups: int, num_resamples: int, seed: int) -> NDArray[np.int64]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, num_groups, (num_resamples, num_groups))


def _estimate(
    value: float, draws: NDArray[np.float64], level: float, n: int, num_groups: int
) -> Estimate:
    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return Estimate(value, float("nan"), float("nan"), n, num_groups)
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), n, num_groups)
