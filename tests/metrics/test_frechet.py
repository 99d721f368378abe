"""The Frechet distance against closed forms, scipy's matrix root, and torchmetrics."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.image.fid import _compute_fid

from ft2.errors import UsageError
from ft2.metrics.frechet import frechet_distance, gaussian_distance, moments, sample_remark


def test_gaussians_of_known_distance():
    mean, zero = np.array([3.0, 4.0]), np.zeros(2)
    same = gaussian_distance(mean, np.eye(2), zero, np.eye(2))
    assert same == pytest.approx(25.0)
    # commuting covariances: sum of squared differences of standard deviations
    one, two = np.diag([4.0, 9.0, 1.0]), np.diag([1.0, 16.0, 0.0])
    assert gaussian_distance(np.zeros(3), one, np.zeros(3), two) == pytest.approx(1 + 1 + 1)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    turned = gaussian_distance(np.zeros(3), turn @ one @ turn.T, np.zeros(3), turn @ two @ turn.T)
    assert turned == pytest.approx(3.0)


@pytest.mark.parametrize("samples", [400, 7])  # the second: singular covariances
def test_against_scipy_and_torchmetrics(samples):
    rng = np.random.default_rng(samples)
    one = rng.standard_normal((samples, 12)) @ rng.standard_normal((12, 12))
    two = rng.standard_normal((samples + 3, 12)) @ rng.standard_normal((12, 12)) + 1
    (m1, c1), (m2, c2) = moments(one), moments(two)
    found = frechet_distance(one, two)
    theirs = _compute_fid(*map(torch.from_numpy, (m1, c1, m2, c2))).item()
    assert found == pytest.approx(theirs, rel=1e-4)
    if samples > 12:
        root = scipy.linalg.sqrtm(c1 @ c2).real
        by_root = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * root)
        assert found == pytest.approx(by_root, rel=1e-9)
    assert frechet_distance(one, one) == pytest.approx(0.0, abs=1e-6 * np.trace(c1))
    assert found == pytest.approx(frechet_distance(two, one), rel=1e-6)


def test_samples_of_gaussians_come_near_their_distance_from_above():
    rng = np.random.default_rng(3)
    few, many = (
        np.mean([frechet_distance(rng.standard_normal((n, 8)), rng.standard_normal((n, 8)) + 0.5)
                 for _ in range(20)]) for n in (16, 1000)
    )  # fmt: skip
    assert many == pytest.approx(8 * 0.25, rel=0.1)
    assert few > 1.5 * many


def test_bad_features_are_refused():
    with pytest.raises(UsageError, match="at least two rows"):
        moments(np.zeros((1, 4)))
    rows = np.zeros((5, 4))
    rows[3, 1] = np.nan
    with pytest.raises(UsageError, match="row 3 of the features is not finite"):
        moments(rows)
    with pytest.raises(UsageError, match="4 and 3 dimensions"):
        frechet_distance(np.random.default_rng(0).random((5, 4)), np.zeros((5, 3)))


def test_small_samples_are_remarked():
    text = sample_remark("FID", 50, 2048, 10000)
    assert "50 samples" in text
    assert "biased upwards" in text
    assert "cannot span 2048" in text
    assert "span" not in sample_remark("FID", 4000, 2048, 10000)
    assert sample_remark("FID", 10000, 2048, 10000) is None
