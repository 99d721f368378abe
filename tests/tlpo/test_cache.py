"""The cache against direct encoding; completion, fingerprint, masks."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tlpo_toys import CLIP, record, toy_model

from ft2 import faces
from ft2.errors import UsageError
from ft2.media import encode_flac, encode_mp4, encode_png, write_video
from ft2.media import read_clip as read_exact
from ft2.pairs import ClipRecord, Preference
from ft2.tlpo import cache as cache_module
from ft2.tlpo.cache import (
    Cache,
    clip_mask,
    condition_key,
    fill_cache,
    fingerprint,
    fit_portrait,
    model_hash,
    unique_clips,
)
from ft2.tlpo.config import CacheConfig
from ft2.tlpo.diagnostics import latent_alarms
from ft2.wan.condition import Conditioning

BOX = CacheConfig(mask="box", batch_size=2, shard_size=3)


def media_clip(number: int, condition: int) -> ClipRecord:
    rng = np.random.default_rng(number)
    small = rng.integers(40, 215, (5, 4, 4, 3))
    frames = np.repeat(np.repeat(small, 8, 1), 8, 2).astype(np.uint8)
    audio = np.sin(np.arange(CLIP.num_samples) / (10 + condition)).astype(np.float32) * 0.2
    portrait = np.full((32, 32, 3), 60 + 20 * condition, np.uint8)
    plain = record(f"clip{number}", condition)
    values = {**vars(plain)}
    values["video"] = pa.py_buffer(encode_mp4(frames, CLIP.fps, audio))
    values["audio"] = pa.py_buffer(encode_flac(audio))
    values["reference"] = pa.py_buffer(encode_png(portrait))
    return ClipRecord(**values)


def test_cache_equals_direct_encoding(tmp_path: Path) -> None:
    model = toy_model()
    clips = [media_clip(i, i // 2) for i in range(5)]
    cache = fill_cache(clips, tmp_path / "cache", model, BOX)
    assert cache.clips == {f"clip{i}" for i in range(5)}
    assert len(cache.conditions) == 3
    for clip in clips:
        (tmp_path / "x.mp4").write_bytes(memoryview(clip.video))
        frames = read_exact(tmp_path / "x.mp4", CLIP).frames
        cond = cache.conditioning([condition_key(clip)])
        expected = model.encode_video(frames[None], cond)
        torch.testing.assert_close(cache.latents([clip.clip_id]), expected, rtol=1e-5, atol=1e-5)
    audio = np.sin(np.arange(CLIP.num_samples) / 10).astype(np.float32) * 0.2
    direct = model.encode_condition(np.full((32, 32, 3), 60, np.uint8), audio, "p0")
    ours = cache.conditioning([condition_key(clips[0])])
    for name, value in direct.state().items():
        torch.testing.assert_close(ours.state()[name], value, rtol=1e-3, atol=1e-3)
    assert isinstance(ours, Conditioning)


def test_a_half_filled_cache_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, clips = toy_model(), [media_clip(i, i // 2) for i in range(5)]
    fill_cache(clips[:3], tmp_path, model, BOX)
    encoded = []
    inner = cache_module._encode_clips
    monkeypatch.setattr(
        cache_module, "_encode_clips",
        lambda m, part, c, k: encoded.extend(x.clip_id for x in part) or inner(m, part, c, k),
    )  # fmt: skip
    whole = fill_cache(clips, tmp_path, model, BOX)
    assert encoded == ["clip3", "clip4"]
    assert whole.clips == {f"clip{i}" for i in range(5)}
    again = Cache(whole.path)
    assert torch.equal(again.latents(["clip4", "clip0"]), whole.latents(["clip4", "clip0"]))
    before = {p.name: p.stat().st_mtime_ns for p in whole.path.iterdir()}
    fill_cache(clips, tmp_path, model, BOX)
    assert {p.name: p.stat().st_mtime_ns for p in whole.path.iterdir()} == before


def test_a_shard_without_its_index_is_ignored(tmp_path: Path) -> None:
    model, clips = toy_model(), [media_clip(0, 0)]
    cache = fill_cache(clips, tmp_path, model, BOX)
    for index in cache.path.glob("clips-*.json"):
        index.unlink()
    assert Cache(cache.path).clips == set()
    assert fill_cache(clips, tmp_path, model, BOX).clips == {"clip0"}


def test_fingerprint_tells_bases_and_masks_apart() -> None:
    model = toy_model()
    marks = fingerprint(model, BOX)
    assert fingerprint(toy_model(), BOX) == marks
    assert fingerprint(toy_model(seed=1), BOX) != marks
    assert fingerprint(model, CacheConfig(mask="landmarks")) != marks
    assert fingerprint(model, CacheConfig(mask="box", batch_size=7)) == marks
    half = toy_model()
    half.dit.to(torch.bfloat16)
    assert model_hash(half) == model_hash(model)


def test_condition_key_is_the_content_of_the_condition() -> None:
    a, b, c = media_clip(0, 0), media_clip(1, 0), media_clip(2, 1)
    assert condition_key(a) == condition_key(b) != condition_key(c)


def test_unique_clips_keep_order() -> None:
    a, b, c = (record(n, 0) for n in "abc")
    pairs = [Preference("1", "lip", b, a, 0.1), Preference("2", "lip", b, c, 0.1)]
    assert [clip.clip_id for clip in unique_clips(pairs)] == ["b", "a", "c"]


def test_box_mask_is_the_mouth_of_the_aligned_crop() -> None:
    mask = clip_mask(np.zeros((5, 64, 64, 3), np.uint8), "box")
    rows, columns = faces.mouth_slice(64)
    assert mask[2, rows, columns].min() == 1
    assert mask.sum() == 5 * (rows.stop - rows.start) * (columns.stop - columns.start)


def test_landmark_mask_fills_lost_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.full((5, 478, 3), np.nan, np.float32)
    for frame in (1, 4):
        points[frame] = 10
        ring = np.array([[20, 40], [44, 40], [44, 50 + frame], [20, 50 + frame]], np.float32)
        places = np.linspace(0, 3.999, len(faces.LIPS_OUTER)).astype(int)
        points[frame, faces.LIPS_OUTER, :2] = ring[places]
    monkeypatch.setattr(faces, "track", lambda frames: points)
    mask = clip_mask(np.zeros((5, 64, 64, 3), np.uint8), "landmarks")
    areas = mask.sum((1, 2)).tolist()
    assert areas[0] == areas[1] == areas[2] > 100
    assert areas[3] == areas[4] > areas[0]
    monkeypatch.setattr(faces, "track", lambda frames: points * np.nan)
    with pytest.raises(faces.NoFace):
        clip_mask(np.zeros((5, 64, 64, 3), np.uint8), "landmarks")


def test_wrong_formats_are_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "x.mp4", np.zeros((5, 64, 64, 3), np.uint8), 12.5,
                np.zeros(CLIP.num_samples, np.float32))  # fmt: skip
    values = {**vars(media_clip(0, 0))}
    values["video"] = pa.py_buffer((tmp_path / "x.mp4").read_bytes())
    with pytest.raises(UsageError, match="64x64"):
        fill_cache([ClipRecord(**values)], tmp_path / "cache", toy_model(), BOX)
    wide = CLIP.model_copy(update={"width": 64})
    with pytest.raises(UsageError, match="square"):
        fit_portrait(np.zeros((100, 100, 3), np.uint8), wide, 0.0)


def test_latents_of_a_wrong_scale_are_told(tmp_path: Path) -> None:
    """Defect 4: multiplied by the codec's std instead of divided."""
    model, clips = toy_model(), [media_clip(i, i // 2) for i in range(4)]
    keys = [clip.clip_id for clip in clips]
    cache = fill_cache(clips, tmp_path / "right", model, BOX)
    whole = torch.cat([cache.latents([key]) for key in keys])
    std = float(whole.std())
    assert cache.latent_std(keys) == pytest.approx(std)
    wanted = Cache(tmp_path / "wanted")
    for factor, told in ((1.0, 0), (0.3, 1), (3.0, 1)):
        scaled = Cache(tmp_path / f"scaled-{factor}")
        lips = torch.zeros(4, *whole.shape[2:])
        scaled.add("clips", keys, {"latents": factor * whole / std, "lip_mask": lips})
        alarms = latent_alarms(scaled.latent_std(keys))
        assert len(alarms) == told
        assert not told or f"deviation of {factor:.2g}" in alarms[0].text
    assert latent_alarms(wanted.latent_std([])) == []
