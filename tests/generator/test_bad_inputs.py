"""Every kind of bad input through the command line: refused early, said plainly, nothing written.

Accepted inputs are shown by ``--dry-run``, which checks them as a real run does.
"""

import json
import signal
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bad_files import malformed, sound, variants, write_encoded, write_video, write_wave
from PIL import Image

from ft2 import faces, media
from ft2.__main__ import main
from ft2.config import ClipFormat
from ft2.errors import UsageError
from ft2.generator.inputs import find_portrait, portrait_box
from ft2.puppet import identities

Ask = Callable[..., tuple[int, dict, str]]


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    image = identities.load("astronaut").image
    size = max(image.shape[:2])
    return image if size <= 512 else image[:512, :512]


@pytest.fixture
def ask(
    trained: Path,
    face: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Ask:
    """Run ``ft2 generate`` (dry by default); returns exit code, printed plan and messages."""
    import ft2.generator.run as module

    def loaded(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(module, "load_talking_model", loaded)
    media.write_png(tmp_path / "face.png", face)
    write_wave(tmp_path / "sound.wav", sound())
    output = tmp_path / "made" / "out.mp4"

    def call(*argv: str, portrait: str = "face.png", audio: str = "sound.wav", dry: bool = True):
        paths = ["--portrait", str(tmp_path / portrait), "--audio", str(tmp_path / audio)]
        with pytest.raises(SystemExit) as stop:
            main(["generate", f"model.weights={trained / 'model'}", *paths, "-o", str(output),
                  "--json", *(["--dry-run"] if dry else []), *argv])  # fmt: skip
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert not output.parent.exists(), "nothing is written"
        code = int(stop.value.code or 0)
        return code, json.loads(captured.out) if code == 0 else {}, captured.err

    return call


def test_several_faces_are_listed_and_one_can_be_chosen(
    ask: Ask, tmp_path: Path, face: np.ndarray
) -> None:
    small = np.asarray(Image.fromarray(face).resize((face.shape[1] // 2, face.shape[0] // 2)))
    pair = np.full((face.shape[0], face.shape[1] + small.shape[1], 3), 128, np.uint8)
    pair[:, : face.shape[1]] = face
    pair[: small.shape[0], face.shape[1] :] = small
    media.write_png(tmp_path / "pair.png", pair)
    boxes = [faces.face_box(points) for points in faces.every_face(pair)]
    assert len(boxes) == 2
    code, plan, _ = ask(portrait="pair.png")
    assert code == 0
    assert any("2 faces: the largest is taken" in remark for remark in plan["remarks"])
    code, _, said = ask("one_face=true", portrait="pair.png")
    assert code == 2
    assert said.count("face=") == 2
    x0, y0, x1, y1 = boxes[1]
    chosen = f"face={x0:.0f},{y0:.0f},{x1 - x0:.0f},{y1 - y0:.0f}"
    code, plan, _ = ask("one_face=true", chosen, portrait="pair.png")
    assert code == 0
    assert plan["remarks"] == [r for r in plan["remarks"] if "faces" not in r]
    code, _, said = ask("face=0,0,3,3", portrait="pair.png")
    assert code == 2
    assert "no face has its middle in" in said
    clip = ClipFormat()
    one = find_portrait(tmp_path / "pair.png", clip, face=(x0, y0, x1 - x0, y1 - y0)).picture
    other = find_portrait(tmp_path / "pair.png", clip).picture
    assert np.abs(one.astype(int) - other).mean() > 1


def test_a_picture_without_a_face(ask: Ask, tmp_path: Path) -> None:
    media.write_png(tmp_path / "wall.png", np.full((100, 180, 3), 120, np.uint8))
    code, _, said = ask(portrait="wall.png")
    assert code == 2
    assert "no face in the 180x100 picture" in said
    code, plan, _ = ask("need_face=false", portrait="wall.png")
    assert code == 0
    assert any("the middle is taken" in remark for remark in plan["remarks"])


def test_a_face_that_is_too_small_is_refused(face: np.ndarray, tmp_path: Path) -> None:
    media.write_png(tmp_path / "face.png", face)
    with pytest.raises(UsageError, match=r"too small: its crop is \d+ pixels wide, 256 are needed"):
        find_portrait(tmp_path / "face.png", ClipFormat(width=1024, height=1024))
    soft = find_portrait(tmp_path / "face.png", ClipFormat(width=480, height=480))
    assert "enlarged" in soft.remarks[0]


def test_every_common_kind_of_picture_shows_the_same_face(
    ask: Ask, tmp_path: Path, face: np.ndarray
) -> None:
    want = find_portrait(tmp_path / "face.png", ClipFormat()).picture.astype(int)
    for name, path in variants(face, tmp_path).items():
        code, _, said = ask(portrait=path.name)
        assert code == 0, f"{name}: {said}"
        found = find_portrait(path, ClipFormat()).picture
        grey = name in {"deep", "grey"}
        error = np.abs(found.astype(int).mean(-1) - want.mean(-1)).mean() if grey else (
            np.abs(found.astype(int) - want).mean())  # fmt: skip
        assert error < 12, f"{name} differs by {error:.1f}"


@pytest.mark.parametrize(("width", "height"), [(64, 96), (96, 64), (64, 64)])
def test_a_crop_has_the_clips_aspect_and_the_face_in_it(
    face: np.ndarray, tmp_path: Path, width: int, height: int
) -> None:
    media.write_png(tmp_path / "face.png", face)
    clip = ClipFormat(width=width, height=height)
    points = faces.landmarks(face)
    x0, y0, x1, y1 = portrait_box(points, clip, 0.25)
    assert (x1 - x0) / (y1 - y0) == pytest.approx(width / height)
    left, top, right, bottom = faces.aligned_box(points)
    assert x0 < left < right < x1
    assert y0 < top < bottom < y1
    assert find_portrait(tmp_path / "face.png", clip, 0.25).picture.shape == (height, width, 3)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    data = b"\x89PNG\r\n\x1a\n"
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    for kind, body in ((b"IHDR", size), (b"IDAT", zlib.compress(b"0")), (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + kind + body
        data += struct.pack(">I", zlib.crc32(kind + body))
    return data


def test_pictures_that_cannot_be_read(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "huge.png").write_bytes(png_header(60000, 60000))
    (tmp_path / "large.png").write_bytes(png_header(12000, 10000))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "face.png").read_bytes()[:5000])
    (tmp_path / "folder.png").mkdir()
    for name, said in {
        "huge.png": "exceeds limit",
        "large.png": "12000x10000 pixels, more than 100 million",
        "empty.png": "cannot read",
        "text.jpg": "cannot read",
        "cut.png": "cannot read",
        "folder.png": "there is no file",
        "nowhere.png": "there is no file",
    }.items():
        code, _, error = ask(portrait=name)
        assert code == 2, name
        assert said in error, error
        assert "hint:" in error


def test_every_common_kind_of_sound_is_decoded(ask: Ask, tmp_path: Path) -> None:
    write_encoded(tmp_path / "a.mp3", "mp3")
    write_encoded(tmp_path / "a.m4a", "aac")
    write_encoded(tmp_path / "a.flac", "flac", 22050)
    write_video(tmp_path / "a.mp4")
    write_wave(tmp_path / "stereo.wav", np.stack([sound(), 0.3 * sound()], 1))
    write_wave(tmp_path / "fast.wav", sound(rate=96000), 96000)
    for name in ("a.mp3", "a.m4a", "a.flac", "a.mp4", "stereo.wav", "fast.wav"):
        code, plan, said = ask(audio=name)
        assert code == 0, f"{name}: {said}"
        assert abs(plan["frames"] - 8) <= 1, name
        assert not any("silent" in remark for remark in plan["remarks"]), name


def test_sounds_that_cannot_be_used(ask: Ask, tmp_path: Path) -> None:
    for value, name in ((np.nan, "nan"), (np.inf, "inf")):
        spoiled = sound()
        spoiled[100] = value
        write_wave(tmp_path / f"{name}.wav", spoiled)
    write_wave(tmp_path / "inverse.wav", np.stack([sound(), -sound()], 1))
    write_wave(tmp_path / "none.wav", np.zeros(0, np.float32))
    (tmp_path / "text.wav").write_text("no sound")
    for name, said in {
        "nan.wav": "the first is sample 100",
        "inf.wav": "the first is sample 100",
        "inverse.wav": "cancel out",
        "none.wav": "empty",
        "text.wav": "cannot decode",
        "face.png": "no sound",
        "nowhere.wav": "there is no file",
    }.items():
        code, _, error = ask(audio=name)
        assert code == 2, name
        assert said in error, error


def test_unusual_sounds_are_used_and_remarked_on(ask: Ask, tmp_path: Path) -> None:
    write_wave(tmp_path / "silent.wav", np.zeros(16000, np.float32))
    write_wave(tmp_path / "blink.wav", sound(0.01))
    write_wave(tmp_path / "loud.wav", np.clip(20 * sound(), -1, 1))
    write_wave(tmp_path / "long.wav", sound(3.0))
    for name, frames, windows, said in (
        ("silent.wav", 13, 2, "silent"),
        ("blink.wav", 5, 1, "padded with silence"),
        ("loud.wav", 8, 1, "clipped"),
        ("long.wav", 38, 9, "9 windows"),
    ):
        code, plan, error = ask(audio=name)
        assert code == 0, error
        assert (plan["frames"], plan["windows"]) == (frames, windows), name
        assert any(said in remark for remark in plan["remarks"]), plan["remarks"]
    _, plan, _ = ask("max_seconds=0.72", audio="long.wav")
    assert (plan["frames"], plan["windows"]) == (9, 1)
    assert any("max_seconds keeps 0.72 s" in remark for remark in plan["remarks"])


@pytest.mark.parametrize(
    "name", ["a b'c\"d;rm -rf x", "concat:x", "ünï日本", "%d", "-dash", "a.b.c"]
)
def test_odd_names_are_only_names(ask: Ask, tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.wav").write_bytes((tmp_path / "sound.wav").read_bytes())
    (tmp_path / f"{name}.png").write_bytes((tmp_path / "face.png").read_bytes())
    code, plan, said = ask(portrait=f"{name}.png", audio=f"{name}.wav")
    assert code == 0, said
    assert plan["frames"] == 8


@pytest.mark.parametrize(
    ("output", "said"),
    [("x.avi", "not an .mp4"), ("file/x.mp4", "is not a directory"), ("x.mp4", "already exists")],
)
def test_outputs_that_cannot_be_written(ask: Ask, tmp_path: Path, output: str, said: str) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "x.mp4").write_text("precious")
    code, _, error = ask("-o", str(tmp_path / output), dry=False)
    assert code == 2
    assert said in error
    assert (tmp_path / "x.mp4").read_text() == "precious"


@pytest.mark.parametrize("count", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_malformed_files_are_refused_or_read_but_never_crash(
    ask: Ask, tmp_path: Path, face: np.ndarray, count: int
) -> None:
    def late(*_: object) -> None:
        raise AssertionError("it hangs")

    refused = 0
    previous = signal.signal(signal.SIGALRM, late)
    try:
        for role, path in malformed(count, tmp_path, face):
            signal.alarm(120)
            code, _, error = ask(**{role: path.name})
            assert code in {0, 2}, f"{path.name}: {error}"
            assert code == 0 or error.startswith("error:"), error
            refused += code == 2
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    assert refused > count / 2
