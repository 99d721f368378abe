"""What the judge sees of a clip: composites, windows, other formats, refusals."""

import cv2
import numpy as np
import pytest

from ft2.errors import UsageError
from ft2.faces import MOUTH_BOX, crop
from ft2.media import write_video
from ft2.puppet import identities
from ft2.qwen.spec import QwenSpec, ViewSpec
from ft2.qwen.view import composite, make_view, read_views

SPEC = QwenSpec()
CLIP = SPEC.clip


def frames_of(seed, count=21, size=64):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return np.stack([cv2.resize(f, (size, size), interpolation=cv2.INTER_CUBIC) for f in small])


def tone(seconds):
    time = np.arange(round(seconds * CLIP.sample_rate)) / CLIP.sample_rate
    return (0.3 * np.sin(2 * np.pi * 220 * time)).astype(np.float32)


def test_composite_is_the_face_above_its_mouth():
    frames = frames_of(0)
    seen = composite(frames, SPEC)
    assert seen.shape == (22, 96, 64, 3)
    assert np.array_equal(seen[:21, :64], frames)
    assert np.array_equal(seen[21], seen[20])
    x0, y0, x1, y1 = (64 * part for part in MOUTH_BOX)
    rows = y0 + (np.arange(32) + 0.5) * (y1 - y0) / 32 - 0.5
    columns = x0 + (np.arange(64) + 0.5) * (x1 - x0) / 64 - 0.5
    grid = np.meshgrid(columns.astype(np.float32), rows.astype(np.float32))
    for number in (0, 13):
        want = cv2.remap(frames[number], *grid, interpolation=cv2.INTER_LINEAR)
        assert np.abs(seen[number, 64:].astype(int) - want).max() <= 2


def test_larger_faces_are_shrunk_by_area():
    face = frames_of(1, 1, 256)
    want = cv2.resize(face[0], (64, 64), interpolation=cv2.INTER_AREA)
    assert np.abs(composite(face, SPEC)[0, :64].astype(int) - want).mean() < 2


def test_sizes_that_do_not_tile_are_refused():
    with pytest.raises(ValueError, match="multiples"):
        QwenSpec(view=ViewSpec(face_size=60))


def test_window_of_the_wrong_length_is_refused():
    with pytest.raises(UsageError, match="20 frames"):
        make_view(frames_of(0, 20), tone(CLIP.seconds), SPEC)


def test_file_in_the_clip_format_is_one_window(tmp_path):
    frames = frames_of(2)
    path = tmp_path / "a.mp4"
    write_video(path, frames, CLIP.fps, tone(CLIP.seconds), crf=4)
    (view,) = read_views(path, SPEC)
    assert np.abs(view.pixels[:21, :64].astype(int) - frames).mean() < 8
    assert view.audio.shape == (CLIP.num_samples,)
    assert np.abs(view.audio).max() == pytest.approx(0.3, abs=0.05)


def test_longer_file_gives_spread_windows_with_their_own_sound(tmp_path):
    frames = np.repeat(np.linspace(20, 220, 50).astype(np.uint8)[:, None, None, None], 64, 1)
    frames = np.ascontiguousarray(np.broadcast_to(frames, (50, 64, 64, 3)))
    audio = tone(4.0) * np.linspace(0, 1, 64000, dtype=np.float32)
    path = tmp_path / "long.mp4"
    write_video(path, frames, CLIP.fps, audio)
    views = read_views(path, SPEC, max_windows=3)
    assert len(views) == 2
    assert views[0].pixels.mean() < views[1].pixels.mean()
    assert np.abs(views[0].audio).mean() < np.abs(views[1].audio).mean()


def test_other_format_is_aligned_by_its_first_frame(tmp_path):
    picture = identities.load("astronaut").image
    big = cv2.copyMakeBorder(picture, 30, 10, 50, 20, cv2.BORDER_REPLICATE)
    big = np.ascontiguousarray(big[: big.shape[0] // 2 * 2, : big.shape[1] // 2 * 2])
    path = tmp_path / "big.mp4"
    write_video(path, np.repeat(big[None], 50, 0), 25.0, tone(2.0), crf=4)
    view = read_views(path, SPEC)[0]
    from ft2.faces import aligned_box, landmarks

    want = crop(big, aligned_box(landmarks(big)), 64)
    assert view.pixels.shape == (22, 96, 64, 3)
    assert np.abs(view.pixels[5, :64].astype(int) - want).mean() < 8


def test_no_face_no_sound_too_short(tmp_path):
    plain = np.full((60, 100, 120, 3), 90, np.uint8)
    write_video(tmp_path / "plain.mp4", plain, 25.0, tone(2.4))
    with pytest.raises(UsageError, match="no face"):
        read_views(tmp_path / "plain.mp4", SPEC)
    write_video(tmp_path / "silent.mp4", frames_of(3), CLIP.fps)
    with pytest.raises(UsageError, match=r"sound|audio"):
        read_views(tmp_path / "silent.mp4", SPEC)
    write_video(tmp_path / "short.mp4", frames_of(3, 9), CLIP.fps, tone(0.7))
    with pytest.raises(UsageError, match="lasts"):
        read_views(tmp_path / "short.mp4", SPEC)
