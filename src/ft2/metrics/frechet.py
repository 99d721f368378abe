"""The Frechet distance between two sets of features, as FID and FVD use it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ft2.errors import UsageError

Vector = NDArray[np.float64]


def moments(features: NDArray[np.floating]) -> tuple[Vector, Vector]:
    """Return mean [D] and unbiased covariance [D, D] of features [N, D], in float64.

    Raises:
        UsageError: Fewer than two rows, or a number that is not finite.
    """
    rows = np.asarray(features, np.float64)
    if rows.ndim != 2 or len(rows) < 2:
        raise UsageError(
            f"features have shape {list(rows.shape)}: a covariance needs at least two rows",
            "give more or longer clips",
        )
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
        raise UsageError(f"row {bad} of the features is not finite", "leave that clip out")
    return rows.mean(0), np.cov(rows, rowvar=False).reshape(rows.shape[1], -1)


def frechet_distance(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Return the squared Frechet distance of Gaussians fitted to features [N, D] and [M, D].

    ``|m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2))`` (Heusel et al., 1706.08500, Eq. 6).
    The root is taken by eigenvalues of symmetric matrices: with ``C1 = R R``,
    ``tr((C1 C2)^(1/2))`` is the sum of the roots of the eigenvalues of ``R C2 R``. Nothing needs to
    be added to a singular covariance, unlike with a general matrix root.
    """
    return gaussian_distance(*moments(one), *moments(other))


def gaussian_distance(mean1: Vector, cov1: Vector, mean2: Vector, cov2: Vector) -> float:
    """Return the squared Frechet distance of two Gaussians; means [D], covariances [D, D]."""
    if mean1.shape != mean2.shape:
        raise UsageError(f"features have {len(mean1)} and {len(mean2)} dimensions", "use one model")
    values, vectors = np.linalg.eigh(cov1)
    root = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
    inner = root @ cov2 @ root
    cross = np.sqrt(np.clip(np.linalg.eigvalsh((inner + inner.T) / 2), 0.0, None)).sum()
    distance = ((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * cross
    return float(max(distance, 0.0))


def sample_remark(name: str, rows: int, dimensions: int, enough: int) -> str | None:
    """Return what to know about a distance that stands on few samples, or None.

    Args:
        name: The distance.
        rows: Samples of the smaller set.
        dimensions: Numbers a sample.
        enough: Samples with which the literature reports it.
    """
    if rows >= enough:
        return None
    text = f"{name} stands on {rows} samples; papers use {enough} and more: it is biased upwards"
    if rows <= dimensions:
        text += f", and {rows} samples cannot span {dimensions} dimensions"
    return f"{text}. Compare only sets of the same number, size and length."
