"""A study with people: means, relative gains and win rates of methods, with intervals.

FantasyTalking's Table 3 gives means of 0-to-10 scores; FantasyTalking2 gives relative gains, the
mean of one method over that of another less 1. Intervals are bootstraps over conditions (here:
portrait, speech and seed): a condition's value is the mean over its raters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ft2.errors import UsageError
from ft2.metrics.bootstrap import bootstrap, bootstrap_mean

SCALE = tuple(str(n) for n in range(11))
"""Scores that raters give: 0 (worst) to 10 (best)."""


@dataclass(frozen=True)
class Vote:
    """One person's answer about one clip, or about two.

    Attributes:
        rater: Who.
        condition: What the clip was made of.
        dimension: What was asked.
        method: Who made the clip (the one that `value` is for).
        value: The score, 0 to 10; of a pair 1 where `method` was preferred, 0 where `other`, else
            one half.
        other: Who made the other clip of a pair.
    """

    rater: str
    condition: str
    dimension: str
    method: str
    value: float
    other: str | None = None


def means(votes: Sequence[Vote], seed: int = 0) -> dict[str, Any]:
    """Return per method and dimension the mean score with its interval over conditions."""
    found: dict[str, Any] = {}
    for (method, dimension), by_condition in _table(votes).items():
        estimate = bootstrap_mean(list(by_condition.values()), seed=seed)
        found.setdefault(method, {})[dimension] = estimate.to_dict()
    return found


def gains(votes: Sequence[Vote], base: str, seed: int = 0) -> dict[str, Any]:
    """Return per method and dimension the relative gain over `base`, on the conditions of both.

    The gain is ``mean(method) / mean(base) - 1``; conditions are drawn together for both.

    Raises:
        UsageError: `base` is none of the methods.
    """
    table = _table(votes)
    methods = list(dict.fromkeys(vote.method for vote in votes))
    if base not in methods:
        raise UsageError(f"no clip of '{base}' was rated", f"choose one of {', '.join(methods)}")
    found: dict[str, Any] = {}
    for (method, dimension), own in table.items():
        theirs = table.get((base, dimension), {})
        shared = [c for c in own if c in theirs]
        if method == base or not shared:
            continue
        pair = ([own[c] for c in shared], [theirs[c] for c in shared])
        found.setdefault(method, {})[dimension] = bootstrap(_gain, *pair, seed=seed).to_dict()
    return found


def _gain(own: Any, base: Any) -> float:
    return float(np.mean(own) / np.mean(base) - 1) if np.mean(base) > 0 else float("nan")


def win_rates(votes: Sequence[Vote], seed: int = 0) -> dict[str, Any]:
    """Return per ``method over other`` and dimension the share won, ties counting one half."""
    groups: dict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        groups[f"{vote.method} over {vote.other}"].append(vote)
    found: dict[str, Any] = {}
    for name, part in groups.items():
        for (_, dimension), by_condition in _table(part).items():
            cell = bootstrap_mean(list(by_condition.values()), seed=seed).to_dict()
            asked = [v.value for v in part if v.dimension == dimension]
            counts = {"won": 1.0, "tied": 0.5, "lost": 0.0}
            found.setdefault(name, {})[dimension] = cell | {
                k: sum(value == v for value in asked) for k, v in counts.items()
            }
    return found


def coverage(
    votes: Sequence[Vote], shown: Sequence[tuple[str, str]], wanted: int, dimensions: int
) -> dict[str, Any]:
    """Return how many people finished each clip, and which clips have fewer than wanted.

    Args:
        votes: All answers.
        shown: (condition, method) of every clip of the study; the method of a pair is the first.
        wanted: Raters that each needs at least.
        dimensions: Questions a clip.
    """
    given: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for vote in votes:
        given[vote.condition, vote.method][vote.rater] += 1
    counts = {key: sum(n >= dimensions for n in given[key].values()) for key in shown}
    short = [f"{method}: {condition}" for (condition, method), n in counts.items() if n < wanted]
    return {
        "raters": len({vote.rater for vote in votes}), "answers": len(votes), "items": len(shown),
        "wanted": wanted, "least": min(counts.values(), default=0), "short": short,
    }  # fmt: skip


def agreement(votes: Sequence[Vote]) -> dict[str, float | None]:
    """Return Krippendorff's alpha of each dimension (interval scale); None where it is undefined.

    Raises:
        MissingExtra: krippendorff is not installed.
    """
    from ft2.errors import MissingExtra

    try:
        import krippendorff
    except ImportError as error:
        raise MissingExtra("krippendorff", "app") from error
    found: dict[str, float | None] = {}
    raters = sorted({vote.rater for vote in votes})
    for dimension in dict.fromkeys(vote.dimension for vote in votes):
        part = [v for v in votes if v.dimension == dimension]
        items = sorted({(v.condition, v.method) for v in part})
        table = np.full((len(raters), len(items)), np.nan)
        for v in part:
            table[raters.index(v.rater), items.index((v.condition, v.method))] = v.value
        rated_twice = (np.isfinite(table).sum(0) > 1).any()
        varied = len(set(table[np.isfinite(table)])) > 1
        alpha = (
            krippendorff.alpha(table, level_of_measurement="interval")
            if (rated_twice and varied)
            else None
        )
        found[dimension] = None if alpha is None else float(alpha)
    return found


def _table(votes: Sequence[Vote]) -> Mapping[tuple[str, str], dict[str, float]]:
    """Return the mean over raters by (method, dimension) and condition."""
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for vote in votes:
        cell = values.setdefault((vote.method, vote.dimension), {})
        cell.setdefault(vote.condition, []).append(vote.value)
    return {key: {c: float(np.mean(v)) for c, v in cell.items()} for key, cell in values.items()}
