"""Training of the small face encoder: shapes of faces, changed light, telling people apart."""

import numpy as np
import pytest
import torch

from ft2.generator.face_training import face_shapes, relit, verification_auc
from ft2.puppet import identities
from ft2.wan.face import FaceTower
from ft2.wan.spec import IdentitySpec


def test_shapes_of_faces_are_their_landmarks_standardised() -> None:
    names = identities.names("train")[:4]
    portraits = [identities.load(name).portrait(64) for name in names]
    nobody = np.full((64, 64, 3), 90, np.uint8)
    shapes, known = face_shapes(np.stack([*portraits, nobody]))
    assert known.tolist() == [1, 1, 1, 1, 0]
    seen = shapes[:4]
    assert seen.mean(0).abs().max() < 1e-4
    assert float(seen.var(0, correction=0).mean()) == pytest.approx(1.0, abs=1e-4)
    width = (seen.view(4, 478, 2)[:, 454] - seen.view(4, 478, 2)[:, 234])[:, 0].numpy()
    truth = [np.diff(identities.load(n).landmarks[[234, 454], 0])[0] for n in names]
    assert np.corrcoef(width, truth)[0, 1] > 0.9
    nothing, none = face_shapes(np.stack([nobody] * 2))
    assert none.tolist() == [0, 0]
    assert nothing.abs().max() == 0


def test_other_light_keeps_what_is_brighter_brighter() -> None:
    dark = torch.rand(4, 3, 16, 16) - 1
    bright = dark + torch.rand(4, 3, 16, 16)
    one, other = (relit(x, torch.Generator().manual_seed(3)) for x in (dark, bright))
    assert (one <= other).all()
    assert one.min() >= -1
    assert other.max() <= 1
    again = relit(dark, torch.Generator().manual_seed(4))
    assert (again - one).abs().mean() > 0.02


def test_verification_counts_pairs_in_order() -> None:
    turn = torch.tensor([0.0, 0.1, 1.0, 1.3])
    points = torch.stack([turn.cos(), turn.sin()], 1)
    assert verification_auc(points, ["a", "a", "b", "b"]) == 1.0
    turn = torch.tensor([0.0, 0.3, 0.2, 0.9])
    points = torch.stack([turn.cos(), turn.sin()], 1)
    # Pairs of one person are .3 and .7 apart, of two people .1, .2, .6 and .9: 2 + 1 of 8 orders.
    assert verification_auc(points, ["a", "a", "b", "b"]) == pytest.approx(3 / 8)
    assert np.isnan(verification_auc(points, ["a", "b", "c", "d"]))


def test_a_tower_that_starts_anew_depends_on_the_seed_alone() -> None:
    spec = IdentitySpec(encoder="face_tower", size=32, features=8)
    one, other = FaceTower(spec), FaceTower(spec)
    one.start_anew(5)
    other.start_anew(5)
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    other.start_anew(6)
    assert not torch.equal(one.out.weight, other.out.weight)
