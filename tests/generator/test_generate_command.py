"""``ft2 generate``: a clip with its record, and refusals before a model loads."""

import json
from pathlib import Path

import av
import numpy as np
import pytest

from ft2 import faces, media
from ft2.__main__ import main
from ft2.puppet import identities


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(argv))
    return int(stop.value.code or 0)


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    picture = np.repeat(np.repeat(rng.integers(60, 200, (8, 8, 3)), 8, 0), 8, 1).astype(np.uint8)
    media.write_png(tmp_path / "blur.png", picture)
    media.write_png(tmp_path / "face.png", faces.align(identities.load("astronaut").image))
    media.write_png(tmp_path / "wall.png", np.full((128, 128, 3), 120, np.uint8))
    media.write_wav(tmp_path / "short.wav", rng.normal(size=4000).astype(np.float32) * 0.1)
    (tmp_path / "broken.wav").write_bytes(b"no sound here")
    return {path.stem: path for path in tmp_path.iterdir()}


def test_a_clip_and_its_record(
    trained: Path, inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.mp4"
    settings = [f"model.weights={trained / 'model'}", "min_portrait_psnr=null", "steps=2"]
    paths = ["--portrait", str(inputs["face"]), "--audio", str(inputs["short"])]
    code = run("generate", *settings, *paths, "-o", str(output), "--json", "-q")
    assert code == 0
    printed = json.loads(capsys.readouterr().out)
    assert any("padded with silence" in remark for remark in printed["remarks"])
    video = media.read_video(output, need_audio=True)
    assert video.frames.shape == (5, 64, 64, 3), "cut to the sound's 0.25 s, at least 5 frames"
    assert video.fps == pytest.approx(12.5)
    record = json.loads(output.with_suffix(".json").read_text())
    assert record["synthetic"] is True
    assert record["config"]["steps"] == 2
    assert set(record["stage_seconds"]) == {"encode", "sample", "write"}
    assert set(record["inputs"]) == {"portrait", "audio"}
    assert len(record["weights_sha256"]["dit.safetensors"]) == 64
    first = output.read_bytes()
    again = tmp_path / "again.mp4"
    assert run("generate", *settings, *paths, "-o", str(again), "-q") == 0
    assert again.read_bytes() == first, "the same inputs and seed give the same file"
    assert run("generate", *settings, *paths, "-o", str(output), "-q") == 2


@pytest.mark.parametrize(
    ("portrait", "audio", "message"),
    [
        ("wall", "short", "no face"),
        ("face", "broken", "broken.wav"),
        ("nobody", "short", "nobody.png"),
    ],
)
def test_bad_inputs_are_refused_before_the_model_loads(
    trained: Path,
    inputs: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    portrait: str,
    audio: str,
    message: str,
) -> None:
    import ft2.generator.run as module

    def loaded(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(module, "load_talking_model", loaded)
    output = tmp_path / "never.mp4"
    code = run(
        "generate",
        f"model.weights={trained / 'model'}",
        "--portrait",
        str(inputs.get(portrait, tmp_path / "nobody.png")),
        "--audio",
        str(inputs[audio]),
        "-o",
        str(output),
    )
    error = capsys.readouterr().err
    assert code == 2
    assert "error:" in error
    assert message in error
    assert not output.exists()


def test_a_portrait_that_the_codec_cannot_return_is_refused(
    trained: Path, inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(
        "generate",
        f"model.weights={trained / 'model'}",
        "min_portrait_psnr=80",
        "--portrait",
        str(inputs["face"]),
        "--audio",
        str(inputs["short"]),
        "-o",
        str(tmp_path / "never.mp4"),
        "-q",
    )
    assert code == 2
    assert "do not serve this face" in capsys.readouterr().err


def test_a_small_picture_without_a_face_is_refused(
    trained: Path, inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(
        "generate",
        f"model.weights={trained / 'model'}",
        "--portrait",
        str(inputs["blur"]),
        "--audio",
        str(inputs["short"]),
        "-o",
        str(tmp_path / "never.mp4"),
        "-q",
    )
    assert code == 2
    assert "no face" in capsys.readouterr().err
    assert not (tmp_path / "never.mp4").exists()


@pytest.mark.parametrize("name", ["admiral", "bald"])
def test_shipped_weights_serve_faces_that_no_training_saw(name: str) -> None:
    from ft2.generator.portrait_check import check_portrait
    from ft2.wan.spec import WanSpec
    from ft2.wan.weights import load_talking_model

    model = load_talking_model(WanSpec())
    portrait = faces.align(identities.load(name).image)
    found = check_portrait(model, portrait, 25.0)
    assert found is not None
    assert 25 < found < 40


def test_full_plan_counts_the_published_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "full/generate", "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["audio_tensors"] == 83
    assert plan["audio_parameters"] == 840_437_760
    assert 16.0e9 < plan["dit_parameters"] - plan["audio_parameters"] < 16.8e9
    assert plan["video_tokens"] == 21504
    assert plan["audio_window"] == 15
    assert plan["forward_passes"] == 60
    assert run("generate", "full/generate", "vram=48", "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["placement"] == "encoders"
    assert 10 < plan["encoders_memory_gib"] < 14


def test_the_video_has_the_sound_at_its_own_rate(
    trained: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    time = np.arange(22050) / 44100
    tone = (0.3 * np.sin(2 * np.pi * 12000 * time)).astype(np.float32)  # 16 kHz could not carry it
    media.write_wav(tmp_path / "high.wav", tone, 44100)
    argv = [f"model.weights={trained / 'model'}", "steps=1", "min_portrait_psnr=null",
            "max_seconds=0.4", "--portrait", str(inputs["face"]), "--audio",
            str(tmp_path / "high.wav"), "-o", str(tmp_path / "high.mp4"), "-q"]  # fmt: skip
    assert run("generate", *argv) == 0
    with av.open(str(tmp_path / "high.mp4")) as container:
        assert container.streams.audio[0].rate == 44100
    sound = media.read_audio(tmp_path / "high.mp4", 44100)
    assert len(sound) == pytest.approx(0.4 * 44100, abs=0.09 * 44100)
    spectrum = np.abs(np.fft.rfft(sound[2000:12000]))
    assert spectrum.argmax() * 4.41 == pytest.approx(12000, rel=0.01)
    assert sound[2000:12000].std() == pytest.approx(0.3 / 2**0.5, rel=0.1)
