"""Rendering: each curve changes what it should and leaves the rest of the picture alone."""

import numpy as np
import pytest

from ft2.errors import UsageError
from ft2.faces import mouth_slice
from ft2.puppet import identities
from ft2.puppet.curves import Curves
from ft2.puppet.fields import Spline, invert
from ft2.puppet.portrait import UNIT
from ft2.puppet.render import Puppet, render

SIZE = 64
REST = dict.fromkeys(Curves.names(), 0.0)
EYES = (slice(19, 31), slice(14, 50))
BORDER = (slice(0, 6), slice(0, 8))


@pytest.fixture(scope="module")
def puppet() -> Puppet:
    return Puppet(identities.load("beard"), SIZE)


def difference(puppet: Puppet, **values: float) -> np.ndarray:
    moved = puppet.frame({**REST, **values}).astype(float)
    return np.abs(moved - puppet.frame(REST)).mean(-1)


def test_at_rest_the_frame_is_the_portrait(puppet: Puppet) -> None:
    portrait = identities.load("beard").portrait(SIZE).astype(float)
    assert np.abs(puppet.frame(REST) - portrait).mean() < 2.0


def test_an_open_mouth_changes_the_mouth_box_only(puppet: Puppet) -> None:
    change = difference(puppet, open=1.0)
    assert change[mouth_slice(SIZE)].mean() > 5
    assert change[:24].max() < 1.0, "nothing above the nose moves"
    half = difference(puppet, open=0.5)[mouth_slice(SIZE)].mean()
    assert 2 < half < change[mouth_slice(SIZE)].mean()


@pytest.mark.parametrize("curve", ["width", "press", "tuck"])
def test_lip_shapes_show_in_the_mouth_box(puppet: Puppet, curve: str) -> None:
    change = difference(puppet, **{curve: 1.0})
    assert change[mouth_slice(SIZE)].mean() > 0.5
    assert change[:24].max() < 1.0


@pytest.mark.parametrize("curve", ["blink", "brow"])
def test_eyes_move_alone(puppet: Puppet, curve: str) -> None:
    change = difference(puppet, **{curve: 1.0})
    assert change[EYES].mean() > 1.0
    assert change[40:].max() < 1.0
    assert change[:, :8].max() < 1.0


@pytest.mark.parametrize("curve", ["yaw", "pitch", "roll", "tx", "ty"])
def test_pose_moves_the_head_over_a_still_background(puppet: Puppet, curve: str) -> None:
    change = difference(puppet, **{curve: 0.1})
    assert change[20:44, 20:44].mean() > 2.0
    assert change[BORDER].max() < 2.0


def test_translation_is_in_face_units(puppet: Puppet) -> None:
    unit = 0.30 * SIZE
    moved = puppet.frame({**REST, "tx": 3 / unit}).astype(float)
    still = puppet.frame(REST).astype(float)
    head = (slice(14, 44), slice(22, 42))
    errors = [
        np.abs(moved[head] - np.roll(still, shift, 1)[head]).mean() for shift in (0, 1, 2, 3, 4)
    ]
    assert int(np.argmin(errors)) == 3


def test_breathing_moves_the_shoulders_and_background_the_background(puppet: Puppet) -> None:
    shoulders = difference(puppet, breathe=0.1)
    assert shoulders[:40].max() < 2.0 < shoulders[58:].max()
    behind = difference(puppet, background=0.2)
    assert behind[:, :10].mean() > 2.0
    assert behind[22:44, 24:40].max() < 1.0


def test_same_curves_same_pixels_at_any_call(puppet: Puppet) -> None:
    table = np.random.default_rng(0).uniform(0, 0.1, (3, 13)).astype(np.float32)
    driven = Curves.unstack(table)
    again = render(identities.load("beard"), driven, SIZE)
    assert again.shape == (3, SIZE, SIZE, 3)
    assert again.dtype == np.uint8
    assert np.array_equal(puppet.frames(driven), again)


def test_too_small_a_size_is_refused() -> None:
    with pytest.raises(UsageError, match="size 8"):
        Puppet(identities.load("beard"), 8)


def test_spline_passes_through_its_controls_and_reproduces_affine_fields() -> None:
    rng = np.random.default_rng(0)
    controls = rng.uniform(5, 95, (12, 2)).astype(np.float32)
    spline = Spline(controls, (0, 0, 100, 100), step=5, ridge=1e-9)
    wanted = rng.normal(0, 3, (12, 2)).astype(np.float32)
    assert np.allclose(spline.at(controls, wanted), wanted, atol=1e-2)
    matrix = rng.normal(0, 0.1, (2, 2)).astype(np.float32)
    dense = spline.dense(controls @ matrix + 1.0)
    grid = np.stack(np.meshgrid(np.arange(90), np.arange(90)), -1)
    assert np.allclose(dense[:90, :90], grid @ matrix + 1.0, atol=0.05)


def test_inverted_field_leads_back() -> None:
    x, y = np.meshgrid(np.arange(60.0), np.arange(60.0))
    field = np.stack([3 * np.sin(y / 12), 2 * np.cos(x / 15)], -1).astype(np.float32)
    backward = invert(field, 8)
    source = np.stack([x, y], -1) - backward
    expected = np.stack([3 * np.sin(source[..., 1] / 12), 2 * np.cos(source[..., 0] / 15)], -1)
    inner = (slice(10, 50), slice(10, 50))
    assert np.abs(source + expected - np.stack([x, y], -1))[inner].max() < 0.05
    assert pytest.approx(57.6) == UNIT
