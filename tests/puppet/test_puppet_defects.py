"""Defects spoil their own dimension, by their strength, and nothing else."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft2.errors import UsageError
from ft2.puppet import defects as D
from ft2.puppet.curves import LIPS, MOTION, Curves, Style, from_speech, lip_tracks
from ft2.speech import Phone

FPS = 12.5
RNG = np.random.default_rng(0)
AUDIO = RNG.normal(0, 0.1, 4 * 16000).astype(np.float32)
SOUNDS = ["AA", "M", "IY", "OW", "B", "EH", "F", "UW", "AE", "S", "AO", "P", "AY", "N"]
PHONES = [Phone(n, 0.2 + 0.13 * k, 0.33 + 0.13 * k) for k, n in enumerate(SOUNDS * 2)]
TIMES = np.arange(21) / FPS
CLEAN = from_speech(PHONES, AUDIO, FPS, 21, 5, Style(), start=0.5)


def lips_at(shift: float) -> np.ndarray:
    return np.stack(lip_tracks(PHONES, AUDIO, 0.5 + shift + TIMES), -1)


def shown(name: str, strength: float = 0.8, seed: int = 1) -> Curves:
    return D.apply_to_curves(CLEAN, [D.Defect(name, strength, seed)], FPS, lips_at)


def part(curves: Curves, names: tuple[str, ...]) -> np.ndarray:
    return np.stack([getattr(curves, n) for n in names], -1)


def test_fifteen_defects_five_a_dimension() -> None:
    owners = list(D.DEFECTS.values())
    assert len(owners) == 15
    assert all(owners.count(d) == 5 for d in ("motion", "lip", "quality"))


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(D.DEFECTS)),
    strength=st.floats(0.05, 1.0),
    seed=st.integers(0, 10**6),
)
def test_a_defect_touches_only_its_own_curves(name: str, strength: float, seed: int) -> None:
    spoiled = shown(name, strength, seed)
    own = {"motion": MOTION, "lip": LIPS, "quality": ()}[D.DEFECTS[name]]
    other = tuple(n for n in Curves.names() if n not in own)
    assert np.array_equal(part(spoiled, other), part(CLEAN, other))
    assert np.array_equal(spoiled.stack()[0], CLEAN.stack()[0])
    if own:
        assert not np.array_equal(part(spoiled, own), part(CLEAN, own))


@pytest.mark.parametrize("name", ["offset", "shift", "shuffle", "mute", "flap"])
@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_lip_defects_break_agreement_with_the_sound(name: str, strength: float) -> None:
    for seed in range(5):
        agreement = D.concordance(CLEAN.open, shown(name, strength, seed).open)
        assert agreement < 0.5, (name, seed)


def test_offset_is_the_utterance_at_another_time() -> None:
    spoiled = part(shown("offset", 1.0), LIPS)[1:]
    ahead, behind = lips_at(0.5)[1:], lips_at(-0.5)[1:]
    assert np.allclose(spoiled, ahead) or np.allclose(spoiled, behind)


def test_frozen_holds_everything_but_the_mouth() -> None:
    spoiled = shown("frozen")
    assert np.ptp(part(spoiled, MOTION), axis=0).max() == 0
    assert np.ptp(spoiled.open) > 0.3


def _path(curves: Curves) -> np.ndarray:
    across = curves.tx + 1.1 * curves.yaw + 1.3 * curves.roll
    return np.stack([across, curves.ty + 1.1 * curves.pitch], -1) * 0.3 * 64


def test_jitter_and_jump_jerk_and_natural_motion_does_not() -> None:
    def jerk(curves: Curves) -> float:
        return float(np.linalg.norm(np.diff(_path(curves), 2, axis=0), axis=1).max())

    clean = jerk(CLEAN)
    for name in ("jitter", "jump"):
        for seed in range(5):
            assert jerk(shown(name, 0.4, seed)) > 2 * clean, name


def test_robot_holds_poses_and_stutter_repeats_frames() -> None:
    for name in ("robot", "stutter"):
        pose = np.round(part(shown(name, 0.8), ("yaw", "pitch", "tx")), 6)
        assert len(np.unique(pose, axis=0)) <= 14, name
    held = np.abs(np.diff(part(shown("robot", 0.8), ("tx",)), axis=0)) < 1e-7
    assert held.mean() > 0.6


def test_strength_orders_mute_and_quality() -> None:
    assert shown("mute", 0.4).open.max() > shown("mute", 1.0).open.max()
    frames = RNG.integers(0, 256, (3, 64, 64, 3)).astype(np.float32)
    smooth = np.stack([cv2.GaussianBlur(f, (0, 0), 1) for f in frames]).astype(np.uint8)
    for name in ("blur", "blocks", "noise", "colour", "lowres"):
        errors = []
        for strength in (0.3, 0.6, 1.0):
            spoiled = D.apply_to_frames(smooth, [D.Defect(name, strength, 3)])
            assert np.array_equal(spoiled[0], smooth[0])
            errors.append(np.abs(spoiled[1:].astype(int) - smooth[1:]).mean())
        assert errors[0] < errors[1] < errors[2], name
        assert errors[0] > 0.5, name


def test_pixels_are_untouched_without_quality_defects() -> None:
    frames = RNG.integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    found = [D.Defect("frozen", 1.0), D.Defect("mute", 1.0)]
    assert np.array_equal(D.apply_to_frames(frames, found), frames)


def test_concordance_is_lins() -> None:
    a, b = RNG.normal(size=50), RNG.normal(size=50) * 2 + 0.3
    rho = np.corrcoef(a, b)[0, 1]
    expected = 2 * rho * a.std() * b.std() / (a.var() + b.var() + (a.mean() - b.mean()) ** 2)
    assert D.concordance(a, b) == pytest.approx(expected)
    assert D.concordance(a, a) == pytest.approx(1.0)


def test_sampling_is_independent_per_dimension_and_seeded() -> None:
    drawn = [D.sample(np.random.default_rng(s)) for s in range(400)]
    assert drawn == [D.sample(np.random.default_rng(s)) for s in range(400)]
    hits = np.array([[any(d.dimension == n for d in f) for n in ("motion", "lip", "quality")]
                     for f in drawn])  # fmt: skip
    assert np.abs(hits.mean(0) - 0.5).max() < 0.1
    assert np.abs(np.corrcoef(hits.T) - np.eye(3)).max() < 0.15
    assert {d.name for f in drawn for d in f} == set(D.DEFECTS)
    assert all(0.4 <= d.strength <= 1.0 for f in drawn for d in f)
    assert not D.sample(np.random.default_rng(0), 0.0)
    only = D.sample(np.random.default_rng(0), 1.0, ("lip",))
    assert [d.dimension for d in only] == ["lip"]


@pytest.mark.parametrize(("name", "strength"), [("wobble", 0.5), ("blur", 0.0), ("blur", 1.5)])
def test_bad_defects_are_refused(name: str, strength: float) -> None:
    with pytest.raises(UsageError):
        D.Defect(name, strength)
