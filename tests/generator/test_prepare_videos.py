"""``ft2 generator prepare``: scenes, sync, reasons, resume, and shards that training reads."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ft2 import media
from ft2.__main__ import main
from ft2.config import ClipFormat
from ft2.generator.collect import kind_of, read_sources
from ft2.generator.config import VideosConfig
from ft2.generator.data import read_clips
from ft2.generator.strength import face_motion
from ft2.generator.videos import (
    clip_times,
    clips_of,
    loudness,
    opening,
    scenes,
    step_together,
    sync_reason,
)
from ft2.metrics.measure import Clip as Measurable
from ft2.metrics.sync import Sync
from ft2.metrics.syncnet import SyncNet
from ft2.puppet import identities, world
from ft2.puppet.curves import Curves
from ft2.puppet.render import render

CLIP = ClipFormat()


def test_scenes_end_at_cuts_and_not_at_movement() -> None:
    rng = np.random.default_rng(0)
    pictures = [cv2.resize(rng.integers(0, 255, (6, 6, 3)).astype(np.uint8), (64, 64))
                for _ in range(3)]  # fmt: skip
    moving = [np.roll(pictures[i // 10], i, axis=1) for i in range(30)]
    assert scenes(np.stack(moving), 20.0) == [(0, 10), (10, 20), (20, 30)]
    assert scenes(np.stack(moving[:10]), 20.0) == [(0, 10)]
    assert scenes(np.stack(moving[:1]), 20.0) == [(0, 1)]


def test_clips_lie_inside_their_scene() -> None:
    assert clip_times(25, 110, 25.0, CLIP) == pytest.approx([1.0, 2.68])
    assert clip_times(0, 41, 25.0, CLIP) == []
    assert clip_times(0, 42, 25.0, CLIP) == [0.0]


@pytest.mark.parametrize("delay", [-3, 0, 2])
def test_the_delay_of_the_sound_is_found(delay: int) -> None:
    wave = np.convolve(np.random.default_rng(0).normal(size=60), np.ones(4), "same")
    mouth, sound = wave[10:50], wave[10 - delay : 50 - delay]
    found = step_together(mouth, sound, 5)
    assert found == (pytest.approx(1.0), delay)
    assert step_together(mouth, np.zeros(40), 5)[0] == -1.0


def test_measures_of_mouth_face_and_sound() -> None:
    points = np.zeros((4, 478, 3), np.float32)
    points[:, 152, 1] = 100
    points[:, 14, 1] = [0, 5, 10, 5]
    np.testing.assert_allclose(opening(points), [0, 0.05, 0.1, 0.05])
    want = np.var([0, 0.05, 0.1, 0.05]) / 478
    assert face_motion(points) == pytest.approx(want, rel=1e-4)
    audio = np.concatenate([np.full(100, 0.5), np.zeros(100)]).astype(np.float32)
    np.testing.assert_allclose(loudness(audio, 4), [0.5, 0.5, 0, 0])


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one good video, one out of step, one without a face and one that is broken."""
    folder = tmp_path_factory.mktemp("videos")
    identity = identities.load("astronaut")
    spoken = world.utterances("test", 3)[0]
    count = 21
    envelope = loudness(spoken.audio[: round(count / 12.5 * 16000)], count)
    mouth = np.clip(envelope / envelope.max(), 0, 1) * 0.9

    def draw(opened: np.ndarray) -> np.ndarray:
        table = [opened if name == "open" else np.zeros(count) for name in Curves.names()]
        return render(identity, Curves.unstack(np.stack(table, -1)), 128)

    audio = media.fit_audio(spoken.audio, round(count / 12.5 * 16000))
    media.write_video(folder / "good.mp4", draw(mouth), 12.5, audio)
    media.write_video(folder / "off.mp4", draw(mouth[::-1].copy()), 12.5, audio)
    wall = np.full((count, 128, 128, 3), 90, np.uint8)
    media.write_video(folder / "wall.mp4", wall, 12.5, audio)
    media.write_video(folder / "silent.mp4", draw(mouth), 12.5, np.zeros_like(audio))
    (folder / "broken.mp4").write_bytes((folder / "good.mp4").read_bytes()[:3000])
    return folder


def prepare(*argv: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["generator", "prepare", *argv, "-q"])
    return int(stop.value.code or 0)


def test_videos_become_a_shard_that_training_reads(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "data"
    arguments = ("--videos", str(videos), "-o", str(output), "--json", "min_confidence=0.5",
                 "min_correlation=0.6")  # fmt: skip
    assert prepare(*arguments, "--dry-run") == 0
    assert json.loads(capsys.readouterr().out)["videos"] == 5
    assert not output.exists()
    assert prepare(*arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["videos"], printed["clips"]) == (5, 1)
    records = [json.loads(p.read_text()) for p in sorted((output / "videos").glob("*.json"))]
    reasons = {Path(r["video"]).name: [row["reason"] for row in r["refused"]] for r in records}
    assert reasons["good.mp4"] == []
    assert "correlate" in reasons["off.mp4"][0] or "late" in reasons["off.mp4"][0]
    assert reasons["wall.mp4"] == ["no face"]
    assert reasons["silent.mp4"] == ["no speech"]
    assert "cannot decode" in reasons["broken.mp4"][0]
    clips = read_clips(output / "clips")
    assert clips.frames.shape == (1, 21, 64, 64, 3)
    assert clips.identities == ["good"]
    assert clips.motion.shape == (1, 2)
    assert clips.motion[0, 0] > 0
    shown = np.unpackbits(clips.lips[:], axis=-1)[0].any(0)
    rows, columns = (np.flatnonzero(shown.any(axis)) for axis in (1, 0))
    assert 0.5 * 64 < rows.min() < rows.max() < 0.95 * 64, "lips lie in the crop's lower half"
    assert 0.2 * 64 < columns.min() < columns.max() < 0.8 * 64
    result = json.loads((output / "result.json").read_text())
    assert list(result["omega_l"].values()) == [0.5], "the only clip is its own median"
    assert result["body_motion_known"] == np.isfinite(clips.motion[:, 1]).sum()
    assert (output / "summary.png").is_file()
    shard = next((output / "clips").glob("*.safetensors")).read_bytes()
    assert prepare(*arguments) == 2, "an existing output needs --resume"
    (output / "result.json").unlink()
    for record in records[:2]:
        name = Path(record["video"]).name
        if name != "good.mp4":
            (output / "videos" / f"{name}").unlink(missing_ok=True)
    assert prepare(*arguments, "--resume") == 0
    assert next((output / "clips").glob("*.safetensors")).read_bytes() == shard


def test_syncnet_measures_clips_where_its_weights_are_given(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real architecture, random weights whose norms look trained; fresh ones are refused."""
    torch.manual_seed(0)
    network, weights = SyncNet(), tmp_path / "syncnet_v2.model"
    torch.save(network.state_dict(), weights)
    listed = tmp_path / "list.jsonl"
    listed.write_text(json.dumps({"video": str(videos / "good.mp4")}))
    arguments = ("--videos", str(listed), "-o", str(tmp_path / "data"), "min_confidence=0.5")
    given = (f"syncnet={weights}", "min_sync_c=-1000", "max_sync_frames=15")
    assert prepare(*arguments, *given) == 2
    assert "never trained" in capsys.readouterr().err
    assert prepare(*arguments, "syncnet=nowhere.model") == 2
    assert "no SyncNet file 'nowhere.model'" in capsys.readouterr().err
    assert prepare(*arguments, "min_sync_c=2") == 2
    assert "min_sync_c without syncnet" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
    torch.save(network.state_dict(), weights)
    assert prepare(*arguments, *given) == 0
    record = next((tmp_path / "data" / "videos").glob("*.json"))
    (row,) = json.loads(record.read_text())["kept"]
    video = media.read_video(videos / "good.mp4", CLIP.sample_rate)
    measured = Sync(lambda: network.eval()).measure(
        Measurable(videos, video.frames[: CLIP.num_frames], CLIP.fps, video.audio)
    )
    for name in ("sync_c", "sync_d", "sync_offset"):
        assert row[name] == pytest.approx(measured.values[name], rel=0.02, abs=1e-3)


def test_syncnets_measure_refuses_with_a_reason() -> None:
    config = VideosConfig(syncnet=Path("x"), min_sync_c=3, max_sync_frames=2)
    good = {"sync_c": 3.0, "sync_d": 8.0, "sync_offset": -2.0}
    assert sync_reason(good, config) is None
    assert sync_reason(good | {"sync_c": 2.5}, config) == "Sync-C 2.50 below 3"
    late = sync_reason(good | {"sync_offset": 3.0}, config)
    assert late == "SyncNet finds the sound +3 frames from the mouth"
    assert kind_of(late) == "SyncNet finds the sound N frames from the mouth"


def test_a_scene_that_is_too_short_has_a_row(videos: Path) -> None:
    video = media.read_video(videos / "good.mp4")
    short = videos.parent / "short.mp4"
    media.write_video(short, video.frames[:9], 12.5, video.audio)
    kept, refused = clips_of(short, CLIP, VideosConfig())
    assert kept == []
    assert "shorter than a clip of 1.68 s" in str(refused[0]["reason"])


def test_reasons_are_counted_by_their_kind() -> None:
    assert kind_of("no sound in /a b/c-1.mp4") == kind_of("no sound in /a b/d.mp4")
    assert kind_of("face confidence 0.85 below 0.9") == "face confidence N below N"


def test_lists_are_checked_line_by_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "list.jsonl"
    (tmp_path / "a.mp4").write_bytes(b"x")
    path.write_text('{"video": "a.mp4", "caption": "hello", "identity": "anna"}\n')
    found = read_sources(path)[0]
    assert (found.caption, found.identity) == ("hello", "anna")
    path.write_text('{"video": "nowhere.mp4"}\nnonsense\n')
    assert prepare("--videos", str(path), "-o", str(tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert "list.jsonl:1: there is no file" in said
    assert "list.jsonl:2" in said
    assert prepare("--videos", str(tmp_path / "nothing"), "-o", str(tmp_path / "out")) == 2
    assert not (tmp_path / "out").exists()
