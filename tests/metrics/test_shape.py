"""Shape distance: against scipy's rotation fit, and on faces that are known to differ."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ft2 import faces
from ft2.metrics.shape import fitted, shape_distance
from ft2.puppet import identities


def test_fit_undoes_a_similarity_and_agrees_with_scipy() -> None:
    rng = np.random.default_rng(3)
    wanted = rng.normal(size=(40, 3))
    turn = Rotation.from_rotvec([0.3, -0.5, 0.2])
    moved = 2.5 * turn.apply(wanted) + [4.0, -1.0, 7.0]
    assert fitted(moved, wanted) == pytest.approx(wanted, abs=1e-9)
    noisy = moved + rng.normal(size=moved.shape) * 0.4
    there, here = wanted - wanted.mean(0), noisy - noisy.mean(0)
    best, _ = Rotation.align_vectors(there, here)
    turned = best.apply(here)
    scale = (turned * there).sum() / (here**2).sum()
    assert fitted(noisy, wanted) == pytest.approx(scale * turned + wanted.mean(0), abs=1e-6)


def test_a_mirrored_face_is_another_shape() -> None:
    wanted = np.random.default_rng(4).normal(size=(30, 3))
    assert np.abs(fitted(wanted * [-1, 1, 1], wanted) - wanted).max() > 0.1


def test_own_portrait_is_nearer_and_lost_faces_are_unknown() -> None:
    first, second = (identities.vary(identities.load("astronaut"), seed) for seed in (3, 8))
    one, other = (faces.landmarks(person.portrait(128)) for person in (first, second))
    turned = one @ Rotation.from_rotvec([0.1, 0.2, 0.05]).as_matrix().T * 1.2 + 5
    clip = np.stack([turned, turned, np.full_like(one, np.nan)])
    own = shape_distance(clip, one)
    assert own < 1e-5 < 0.01 < shape_distance(clip, other)
    assert np.isnan(shape_distance(clip[1:][[1, 1, 0]], one))
