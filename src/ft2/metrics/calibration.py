"""Does P(yes) mean what it says: Brier score, expected calibration error, reliability bins."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ft2.errors import UsageError
from ft2.metrics.bootstrap import Groups, bootstrap

NUM_BINS = 10


def brier(probabilities: ArrayLike, truth: ArrayLike) -> float:
    """Return the mean of (P(yes) - yes)^2 in [0, 1] (Brier 1950); 0.25 is a coin's."""
    p, y = _checked(probabilities, truth)
    return float(((p - y) ** 2).mean())


def ece(probabilities: ArrayLike, truth: ArrayLike, num_bins: int = NUM_BINS) -> float:
    """Return the expected calibration error in [0, 1].

    The mean over clips of |mean P(yes) - share of yes| of the clip's bin, with bins of equal width
    (Guo et al. 2017, eq. 3, for a yes/no answer).
    """
    bins = reliability(probabilities, truth, num_bins)
    total = sum(b["n"] for b in bins)
    return float(sum(b["n"] * abs(b["mean_p"] - b["share_yes"]) for b in bins) / total)


def reliability(
    probabilities: ArrayLike, truth: ArrayLike, num_bins: int = NUM_BINS
) -> list[dict[str, Any]]:
    """Return the bins that hold clips: edges, count, mean P(yes) and share of yes."""
    p, y = _checked(probabilities, truth)
    index = np.minimum((p * num_bins).astype(int), num_bins - 1)
    return [
        {
            "low": b / num_bins,
            "high": (b + 1) / num_bins,
            "n": int((index == b).sum()),
            "mean_p": float(p[index == b].mean()),
            "share_yes": float(y[index == b].mean()),
        }
        for b in range(num_bins)
        if (index == b).any()
    ]


def calibration(
    probabilities: ArrayLike, truth: ArrayLike, groups: Groups | None = None
) -> dict[str, Any]:
    """Return Brier score and ECE with intervals over groups, and the reliability bins.

    Raises:
        UsageError: No clips, or a probability outside [0, 1] (nan included).
    """
    p, y = _checked(probabilities, truth)
    return {
        "n": len(p),
        "brier": bootstrap(brier, p, y, groups=groups, num_resamples=300).to_dict(),
        "ece": bootstrap(ece, p, y, groups=groups, num_resamples=300).to_dict(),
        "reliability": reliability(p, y),
    }


def _checked(
    probabilities: ArrayLike, truth: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p, y = np.asarray(probabilities, np.float64), np.asarray(truth, np.float64)
    if p.ndim != 1 or p.shape != y.shape or not len(p):
        raise UsageError(
            f"probabilities {list(p.shape)} and answers {list(y.shape)}", "give one each a clip"
        )
    if not ((p >= 0) & (p <= 1)).all():
        raise UsageError("a probability lies outside [0, 1] or is nan", "give P(yes)")
    return p, y
