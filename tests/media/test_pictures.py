import io

import numpy as np
import pytest
from PIL import Image

from ft2 import media
from ft2.errors import UsageError


def gradient(height=20, width=30):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 10, columns * 8, rows + columns], axis=-1).astype(np.uint8)


def test_png_round_trip_is_exact(tmp_path):
    media.write_png(tmp_path / "a.png", gradient())
    assert np.array_equal(media.read_image(tmp_path / "a.png"), gradient())
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(media.encode_png(gradient())))), gradient()
    )


@pytest.mark.parametrize(
    ("tag", "turn"), [(1, 0), (3, 2), (6, 3), (8, 1)], ids=["upright", "180", "90 cw", "90 ccw"]
)
def test_exif_orientation_is_applied(tmp_path, tag, turn):
    exif = Image.Exif()
    exif[0x0112] = tag
    stored = np.rot90(gradient(), -turn)
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(media.read_image(tmp_path / "a.png"), gradient())


def test_transparency_is_laid_over_white(tmp_path):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2, :, 3] = 255
    rgba[2:, :, 3] = 128
    Image.fromarray(rgba).save(tmp_path / "a.png")
    found = media.read_image(tmp_path / "a.png")
    assert (found[:2] == 0).all()
    assert np.abs(found[2:].astype(int) - 127).max() <= 1


def test_sixteen_bit_grey_is_scaled(tmp_path):
    deep = np.array([[0, 257 * 100, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    assert media.read_image(tmp_path / "a.png")[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "LA"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.fromarray(gradient()).convert("RGB").convert(mode).save(path)
    found = media.read_image(path)
    assert found.shape == (20, 30, 3)
    assert found.dtype == np.uint8


def test_unreadable_pictures_are_named(tmp_path):
    whole = media.encode_png(gradient())
    for content in (b"", b"hello", whole[: len(whole) // 2]):
        path = tmp_path / "bad.png"
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"cannot read .*bad\.png") as caught:
            media.read_image(path)
        assert caught.value.hint
    with pytest.raises(UsageError, match="no such file"):
        media.read_image(tmp_path / "none.png")


def test_sound_files_round_trip(tmp_path):
    sound = (0.5 * np.sin(np.arange(8000) / 7)).astype(np.float32)
    media.write_wav(tmp_path / "a.wav", sound)
    assert np.abs(media.read_audio(tmp_path / "a.wav") - sound).max() < 2 / 32768
    (tmp_path / "a.flac").write_bytes(media.encode_flac(sound))
    assert np.abs(media.read_audio(tmp_path / "a.flac") - sound).max() < 2 / 32768


def test_contact_sheet_has_a_row_for_each_clip_and_first_and_last_frame():
    clip = np.zeros((21, 8, 8, 3), np.uint8)
    clip[:] = np.arange(21)[:, None, None, None] * 10
    sheet = media.contact_sheet([clip, clip[:2]], ["one", "two"], columns=5, size=20)
    assert sheet.shape == (2 * (20 + 16), 100, 3)
    assert sheet[20, 0, 0] == 0
    assert sheet[20, 99, 0] == 200
    assert (sheet[60, 45:] == 255).all()
