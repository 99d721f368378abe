"""Each of our own metrics ranks what it claims to rank, on clips whose truth is known."""

import numpy as np
import pytest

from ft2.errors import UsageError
from ft2.metrics.catalogue import FACTS
from ft2.metrics.face import Face, overlap, tracks
from ft2.metrics.lips import LipSync
from ft2.metrics.measure import Clip
from ft2.metrics.motion import Motion
from ft2.metrics.picture import Picture, noise, sharpness


def with_sound(clip, audio):
    other = Clip(clip.path, clip.frames, clip.fps, audio)
    other.__dict__["landmarks"] = clip.landmarks
    return other


def means(metric, clips):
    found = [metric.measure(clip).values for clip in clips]
    assert all(set(f) == {c.name for c in metric.facts.columns} for f in found)
    return {name: float(np.mean([f[name] for f in found])) for name in found[0]}


@pytest.fixture(scope="module")
def lips(talkers, clean):
    early = [with_sound(c, t.sound(2)) for c, t in zip(clean, talkers, strict=True)]
    swapped = [with_sound(c, clean[(i + 2) % 4].audio) for i, c in enumerate(clean)]
    metric = LipSync()
    return {"true": means(metric, clean), "early": means(metric, early),
            "swapped": means(metric, swapped)}  # fmt: skip


def test_true_sound_beats_shifted_beats_swapped(lips):
    best = {name: found["lip_best"] for name, found in lips.items()}
    assert best["true"] > best["early"] > best["swapped"] + 0.2
    for column in ("lip_correlation", "lip_concordance"):
        assert lips["true"][column] > 0.55
        assert lips["true"][column] > max(lips[n][column] for n in ("early", "swapped")) + 0.3


def test_a_sound_two_frames_early_is_a_mouth_160_ms_late(lips):
    assert lips["true"]["lip_offset"] == pytest.approx(0.0, abs=25)
    assert lips["early"]["lip_offset"] == pytest.approx(160.0, abs=25)


def test_a_muted_mouth_loses_concordance(talkers, lips):
    muted = means(LipSync(), [talkers[0].clip("mute", strength=1.0)])
    assert muted["lip_concordance"] < lips["true"]["lip_concordance"] - 0.3


def test_moving_beats_frozen_and_jumps_have_a_peak(talkers, clean):
    metric = Motion()
    moving = means(metric, clean[:2])
    frozen = means(metric, [t.clip("frozen") for t in talkers[:2]])
    jump = means(metric, [t.clip("jump") for t in talkers[:2]])
    stutter = means(metric, [t.clip("stutter") for t in talkers[:2]])
    assert moving["head_spread"] > 5 * frozen["head_spread"]
    assert frozen["head_still"] > moving["head_still"] + 0.3
    assert moving["background_change"] > frozen["background_change"]
    assert jump["head_peak"] > 3 * moving["head_peak"]
    assert stutter["head_repeats"] > moving["head_repeats"] + 0.2


def test_clean_beats_blurred_and_noise_is_seen_where_faces_are_lost(talkers, clean):
    metric = Picture()
    good = means(metric, clean[:2])
    blurred = means(metric, [t.clip("blur") for t in talkers[:2]])
    noisy = talkers[0].clip("noise")
    found = metric.measure(noisy).values
    assert good["sharpness"] > blurred["sharpness"] + 0.5
    assert found["noise"] > 3 * good["noise"]
    with pytest.raises(UsageError, match="no face in"):
        Motion().measure(noisy)


def test_noise_estimate_against_known_noise():
    rng = np.random.default_rng(5)
    for sigma in (2.0, 8.0):
        grey = np.clip(rng.normal(128, sigma, (96, 96)), 0, 255).round().astype(np.uint8)
        assert noise(grey) == pytest.approx(sigma, rel=0.06)
    flat = np.full((16, 16), 90, np.uint8)
    assert noise(flat) == sharpness(flat) == 0.0


def test_tracks_are_counted(clean):
    clip = Clip(clean[0].path, clean[0].frames, clean[0].fps, None)
    points = clean[0].landmarks.copy()
    points[5] = np.nan
    points[12:, :, 0] += 60
    clip.__dict__["landmarks"] = points
    assert tracks(clip) == [(0, 5), (6, 12), (12, 21)]
    found = Face().measure(clip).values
    assert found == {"face_share": pytest.approx(20 / 21), "face_tracks": 3.0}
    assert np.allclose(clip.steady_landmarks()[5], (points[4] + points[6]) / 2, atol=1e-3)
    assert overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)


def test_clips_that_a_metric_cannot_measure_say_why(clean):
    clip = clean[0]
    with pytest.raises(UsageError, match="no sound"):
        LipSync().measure(with_sound(clip, None))
    with pytest.raises(UsageError, match="silent"):
        LipSync().measure(with_sound(clip, np.zeros_like(clip.audio)))
    with pytest.raises(UsageError, match="3 frames are too few"):
        Motion().measure(Clip(clip.path, clip.frames[:3], clip.fps, None))
    blank = Clip(clip.path, np.zeros_like(clip.frames[:5]), clip.fps, None)
    with pytest.raises(UsageError, match="no frame has a face"):
        Picture().measure(blank)
    assert Face().measure(blank).values == {"face_share": 0.0, "face_tracks": 0.0}


def test_every_metric_says_where_it_comes_from():
    for name, facts in FACTS.items():
        assert facts.name == name
        assert facts.paper
        assert facts.implementation
        assert all(column.unit for column in facts.columns)
