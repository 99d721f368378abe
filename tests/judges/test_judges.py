import time

import cv2
import numpy as np
import pytest

from ft2 import media
from ft2.metrics import auc_value
from ft2.puppet.curves import Curves
from ft2.puppet.defects import DEFECTS, Defect
from ft2.puppet.judges import (
    NATURAL_ACCELERATION,
    NATURAL_PEAK,
    NATURAL_SPREAD,
    judge,
    landmark_lip,
    lip_parts,
    motion_parts,
    quality_parts,
)
from ft2.puppet.probe import PuppetProbe, pose_of


@pytest.fixture(scope="module")
def clean(scene, clean_clips):
    fps = scene.clip.fps
    return [judge(made.frames, scene.probe, made.curves, fps) for made in clean_clips]


def driving(opened, width=None):
    table = np.zeros((len(opened), len(Curves.names())), np.float32)
    table[:, 0] = opened
    table[:, 1] = 0 if width is None else width
    return Curves.unstack(table)


def talk(count=21, seed=0):
    rng = np.random.default_rng(seed)
    return np.clip(np.convolve(rng.normal(0.4, 0.5, count + 2), np.ones(3) / 3, "valid"), 0, 1)


@pytest.mark.parametrize("name", DEFECTS)
def test_each_defect_scores_below_every_clean_clip_on_its_own_dimension(scene, clean, name):
    found = []
    for number in range(4):
        made = scene.make(number + 20, [Defect(name, 0.5 + 0.12 * number, number)])
        found.append(judge(made.frames, scene.probe, made.curves, scene.clip.fps))
    own = DEFECTS[name]
    good, bad = ([getattr(j, own) for j in group] for group in (clean, found))
    assert auc_value(good + bad, [True] * len(good) + [False] * len(bad)) >= 0.95


def test_clean_clips_score_as_documented(clean):
    assert min(found.lip for found in clean) > 0.9
    assert min(found.motion for found in clean) > -0.5
    assert abs(np.mean([found.quality for found in clean])) < 0.4
    assert all(found.parts["lip_offset"] == 0 for found in clean)


def test_probe_reads_the_curves_that_drew_the_frames(scene, clean_clips):
    for made in clean_clips:
        tracks = scene.probe.track(made.frames)
        truth = np.stack([made.shown.open, made.shown.width], -1)
        assert np.abs(tracks.lips - truth).mean() < 0.09
        assert np.abs(tracks.lips[:, 0] - truth[:, 0]).mean() < 0.05
        assert np.abs(tracks.pose[:, :3] - pose_of(made.shown.stack())[:, :3]).mean() < 0.015


@pytest.mark.parametrize("spoil", ["blur", "noise", "blocks"])
def test_probe_still_reads_degraded_frames(scene, spoil):
    made = scene.make(3, [Defect(spoil, 0.5, 1)])
    tracks = scene.probe.track(made.frames)
    assert np.corrcoef(tracks.lips[:, 0], made.curves.open)[0, 1] > 0.9
    across = pose_of(made.curves.stack())[:, 0]
    assert np.abs(tracks.pose[:, 0] - across).mean() < 0.03


def test_equal_seeds_give_equal_probes_and_frames_may_be_larger(scene, clean_clips):
    again = PuppetProbe.fit(scene.identity, scene.clip, seed=1)
    assert np.array_equal(again.face_basis, scene.probe.face_basis)
    assert np.array_equal(again.lip_reader.weights, scene.probe.lip_reader.weights)
    made = clean_clips[0]
    larger = np.stack([cv2.resize(f, (128, 128)) for f in made.frames])
    plain = judge(made.frames, scene.probe, made.curves, 12.5)
    assert judge(larger, scene.probe, made.curves, 12.5).lip == pytest.approx(plain.lip, abs=0.05)


def test_lip_is_lins_concordance_and_feels_amplitude():
    x, y = talk(seed=1), talk(seed=2)
    lips = np.stack([x, np.zeros_like(x)], -1).astype(np.float32)
    mean_x, mean_y = x.mean(), y.mean()
    covariance = ((x - mean_x) * (y - mean_y)).mean()
    lin = 2 * covariance / (x.var() + y.var() + (mean_x - mean_y) ** 2)
    assert lip_parts(lips, driving(y))["concordance"] == pytest.approx(lin, abs=0.08)
    full = lip_parts(lips, driving(x))
    half = lip_parts(lips * np.float32(0.3), driving(x))
    assert full["concordance"] == pytest.approx(1, abs=1e-6)
    assert half["correlation"] == pytest.approx(1, abs=1e-6)
    assert half["concordance"] < 0.5
    assert half["gain"] == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("lag", [-5, -2, 0, 3, 5])
def test_offset_is_found_with_its_sign(lag):
    track = talk(60, seed=3)
    shown = track[10 - lag : 10 - lag + 21]
    lips = np.stack([shown, np.zeros(21)], -1).astype(np.float32)
    found = lip_parts(lips, driving(track[10:31]))
    assert found["offset"] == lag
    assert found["best"] == pytest.approx(1, abs=1e-6)


def test_shut_mouth_in_silence_is_right_and_open_mouth_wrong():
    quiet = np.full((21, 2), 0.01, np.float32)
    assert lip_parts(quiet, driving(np.zeros(21)))["concordance"] > 0.95
    open_mouth = np.stack([talk(), np.zeros(21)], -1).astype(np.float32)
    assert lip_parts(open_mouth, driving(np.zeros(21)))["concordance"] < 0.1


def pose(across, along=None):
    table = np.zeros((len(across), 5), np.float32)
    table[:, 0] = across
    table[:, 1] = 0 if along is None else along
    return table


def test_motion_parts_are_the_derivatives_in_seconds():
    fps, rate, size = 12.5, 0.5, 0.1
    times = np.arange(200) / fps
    found = motion_parts(pose(size * np.sin(2 * np.pi * rate * times)), fps)
    omega = 2 * np.pi * rate
    assert found["acceleration"] == pytest.approx(size * omega**2 / np.sqrt(2), rel=0.03)
    assert found["peak"] == pytest.approx(size * omega**2, rel=0.03)
    assert found["spread"] == pytest.approx(size / np.sqrt(2), rel=0.02)
    assert found["score"] == pytest.approx(-found["still"])


def test_motion_falls_with_jitter_jumps_freezing_and_replays():
    rng = np.random.default_rng(0)
    times = np.arange(21) / 12.5
    smooth = 0.2 * np.sin(2 * np.pi * 0.25 * times)
    jump = smooth + 0.2 * (times > 0.8)
    replay = smooth[[0, 1, 2, 3, 4, 5, 6, 3, 4, 5, 6, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]]
    scores = {
        name: motion_parts(pose(track), 12.5)
        for name, track in {
            "smooth": smooth,
            "jitter": smooth + rng.normal(0, 0.05, 21),
            "jump": jump,
            "frozen": 0 * smooth,
            "robot": np.repeat(smooth[::5], 5)[:21],
            "replay": replay,
        }.items()
    }
    for name in ("jitter", "jump", "frozen", "robot", "replay"):
        assert scores[name]["score"] < scores["smooth"]["score"] - 0.3, name
    assert scores["frozen"]["still"] == 1
    assert scores["robot"]["still"] > 0.6
    assert scores["replay"]["repeats"] > 0.3 > scores["smooth"]["repeats"] + 0.2


def test_natural_limits_are_those_of_clean_puppets(scene):
    found = [motion_parts(pose_of(scene.make(n).curves.stack()), 12.5) for n in range(60)]
    assert np.mean([f["acceleration"] < NATURAL_ACCELERATION for f in found]) > 0.95
    assert np.mean([f["peak"] < NATURAL_PEAK for f in found]) > 0.95
    assert np.mean([f["spread"] > NATURAL_SPREAD for f in found]) > 0.85
    assert np.mean([f["still"] for f in found]) < 0.1


def test_quality_falls_with_strength(scene, clean_clips):
    made = clean_clips[1]
    for name in ("blur", "blocks", "noise", "colour", "lowres"):
        worse = [scene.make(1, [Defect(name, strength, 5)]) for strength in (0.3, 0.9)]
        scores = [
            judge(frames, scene.probe, made.curves, 12.5).quality
            for frames in (made.frames, worse[0].frames, worse[1].frames)
        ]
        assert scores[0] > scores[1] > scores[2], name


def test_frames_closer_than_clean_win_nothing():
    near = np.full((5, 3), -1.0, np.float32)
    assert quality_parts(near, np.zeros(5, np.float32))["score"] == 0


def test_quality_is_minus_the_log_distance():
    distance = np.log(np.full((5, 3), 2.0, np.float32))
    assert quality_parts(distance, np.zeros(5, np.float32))["score"] == pytest.approx(-np.log(2))
    blurred = quality_parts(0 * distance, np.full(5, -1.2, np.float32))
    noisy = quality_parts(0 * distance, np.full(5, 1.2, np.float32))
    assert blurred["score"] == noisy["score"] == pytest.approx(-1.0)


def test_mp4_does_not_change_the_verdict(scene, clean_clips, clean, tmp_path):
    made = clean_clips[0]
    media.write_video(tmp_path / "a.mp4", made.frames, 12.5, made.audio)
    frames = media.read_clip(tmp_path / "a.mp4", scene.clip).frames
    again = judge(frames, scene.probe, made.curves, 12.5)
    assert again.lip == pytest.approx(clean[0].lip, abs=0.03)
    assert again.motion == pytest.approx(clean[0].motion, abs=0.2)
    assert again.quality == pytest.approx(clean[0].quality, abs=0.4)


def test_judging_a_clip_takes_milliseconds(scene, clean_clips):
    made = clean_clips[0]
    seconds = []
    for _ in range(20):
        began = time.process_time()
        judge(made.frames, scene.probe, made.curves, 12.5)
        seconds.append(time.process_time() - began)
    assert min(seconds) < 0.05


@pytest.mark.filterwarnings("ignore:SymbolDatabase")
def test_landmarks_agree_without_the_probe(scene, clean_clips):
    made = clean_clips[2]
    right = landmark_lip(made.frames, made.curves)
    assert right > 0.7
    other = landmark_lip(made.frames, clean_clips[3].curves)
    assert right > other + 0.3
    assert np.isnan(landmark_lip(np.zeros_like(made.frames), made.curves))
    assert np.isnan(landmark_lip(made.frames, driving(np.zeros(21))))
