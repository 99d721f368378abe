"""Where Yes begins: log-odds fitted on the dev split."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ft2.pairs import DIMENSIONS


def fit_thresholds(
    odds: Tensor, labels: Tensor, dimensions: Sequence[str] = DIMENSIONS
) -> dict[str, float]:
    """Return per dimension the log-odds that separate Yes from No, halfway between clips.

    Of the thresholds whose balanced accuracy lies within one standard error of the best, the one
    nearest 0 is taken: the dev split has few faces, and a threshold that only it asks for does not
    carry over (the one-standard-error rule of Breiman et al. 1984). With fewer than 20 rated clips
    or one answer only it is 0.

    Args:
        odds: [N, Q].
        labels: [N, Q] in {1, 0, -1}.
        dimensions: Names of the Q columns.
    """
    found: dict[str, float] = {}
    for column, dimension in enumerate(dimensions):
        rated = labels[:, column] >= 0
        x = odds[rated, column].double().numpy(force=True)
        y = labels[rated, column].numpy(force=True).astype(bool)
        found[dimension] = _threshold(x, y)
    return found


def _threshold(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> float:
    if len(x) < 20 or y.all() or not y.any():
        return 0.0
    order = np.sort(x)
    cuts = np.concatenate([[0.0], (order[1:] + order[:-1]) / 2])
    scores = np.array([((x[y] >= c).mean() + (x[~y] < c).mean()) / 2 for c in cuts])
    best = scores.max()
    error = np.sqrt(best * (1 - best) / len(x))
    best = cuts[scores >= best - error - 1e-9]
    return float(best[np.argmin(np.abs(best))])
