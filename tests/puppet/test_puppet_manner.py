"""Manners: a closed form of the face, the same in all that a person does, and off unless asked."""

from dataclasses import replace

import numpy as np
import pytest

from ft2.config import ClipFormat
from ft2.errors import UsageError
from ft2.puppet import dataset, identities, manner, world
from ft2.puppet.curves import SETTLING, Curves
from ft2.puppet.portrait import CANVAS, UNIT


def of_width(units: float) -> float:
    """Return how someone with a face of this width holds the head."""
    person = identities.load("beard")
    points = person.landmarks.copy()
    points[[234, 454], :2] = CANVAS / 2
    points[[234, 454], 0] += np.array([-0.5, 0.5]) * units * UNIT
    return manner.held_pitch(replace(person, landmarks=points))


def test_the_held_pitch_is_a_closed_form_of_the_face() -> None:
    assert of_width(2.08) == pytest.approx(0.0, abs=1e-6)
    assert of_width(2.08 + 0.15 * np.arctanh(0.5)) == pytest.approx(0.05, abs=1e-6)
    assert of_width(2.08 - 0.15 * np.arctanh(0.5)) == pytest.approx(-0.05, abs=1e-6)
    assert of_width(4.0) == pytest.approx(0.10, abs=1e-6)
    assert manner.face_width(identities.load("beard")) > 1.5


def test_manners_hold_the_head_of_all_clips_of_a_person_and_change_nothing_else() -> None:
    clip = ClipFormat()
    plain = world.random_clips("dev", 10_000_042, 2, clip, 0.0, (0.5, 2.0))
    held = world.random_clips("dev", 10_000_042, 2, clip, 0.0, (0.5, 2.0), manners=True)
    hold = manner.held_pitch(identities.draw("dev", 10_000_042))
    assert abs(hold) > 0.02
    times = np.arange(clip.num_frames) / clip.fps
    settled = np.prod(
        [x**2 * (3 - 2 * x) for x in np.clip([times / SETTLING, times / 0.1], 0, 1)], 0
    )
    for one, other in zip(plain, held, strict=True):
        assert one.caption == other.caption
        assert np.array_equal(one.audio, other.audio)
        for name in Curves.names():
            extra = getattr(other.shown, name) - getattr(one.shown, name)
            want = hold * settled if name == "pitch" else 0 * times
            np.testing.assert_allclose(extra, want, atol=1e-6, err_msg=name)
        assert np.array_equal(one.frames[0], other.frames[0]), "the portrait stays at rest"
        assert not np.array_equal(one.frames[-1], other.frames[-1])


def test_arrays_are_made_of_so_many_clips_a_person(tmp_path) -> None:
    asked = {"probability": 0.0, "manners": True, "num_workers": 1}
    clip = ClipFormat(width=32, height=32)
    (path,) = dataset.build_arrays(tmp_path, "dev", 3, clip, per_person=1, **asked)
    made = [
        world.random_clips("dev", 10_000_000 + n, 1, clip, 0.0, manners=True)[0] for n in range(3)
    ]
    assert path.read_bytes() == dataset.pack(made)
    assert len({one.identity_id for one in made}) == 3
    with pytest.raises(UsageError, match="per_person"):
        dataset.build_arrays(tmp_path / "none", "dev", 3, clip, per_person=0, **asked)
    assert not (tmp_path / "none").exists()
