import subprocess
import sys

import cv2
import numpy as np
import pytest

from ft2 import faces, media
from ft2.errors import MissingExtra, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:SymbolDatabase")


@pytest.fixture(scope="module")
def woman(shared_data):
    return media.read_image(shared_data / "portrait" / "woman.png")


@pytest.fixture(scope="module")
def points(woman):
    return faces.landmarks(woman)


def test_landmarks_lie_on_the_face_in_pixels(woman, points):
    assert points.shape == (478, 3)
    assert points.dtype == np.float32
    left_eye, right_eye = points[[33, 133], 0].mean(), points[[362, 263], 0].mean()
    assert left_eye < points[1, 0] < right_eye
    assert points[159, 1] < points[1, 1] < points[13, 1] < points[152, 1]
    assert np.array_equal(points, faces.landmarks(woman))


def test_flip_mirrors_the_landmarks(woman, points):
    mirrored = faces.landmarks(np.ascontiguousarray(woman[:, ::-1]))
    error = np.abs(
        (woman.shape[1] - 1 - mirrored[[1, 13, 14, 152], 0]) - points[[1, 13, 14, 152], 0]
    )
    assert error.max() < 0.01 * woman.shape[1]


@pytest.mark.parametrize("size", [64, 128, 512])
def test_aligned_crop_has_eyes_and_mouth_at_their_lines(woman, size):
    crop = faces.align(woman, size)
    assert crop.shape == (size, size, 3)
    found = faces.landmarks(crop) / size
    eyes = found[[33, 133, 362, 263], :2].mean(axis=0)
    mouth = found[[61, 291], 1].mean()
    assert eyes == pytest.approx((0.5, 0.40), abs=0.02)
    assert mouth == pytest.approx(0.70, abs=0.02)


def test_mouth_box_holds_the_lips(woman, points):
    size = 64
    inside = faces.to_crop(points, faces.aligned_box(points), size)
    lips = inside[faces.LIPS_OUTER, :2]
    rows, columns = faces.mouth_slice(size)
    assert columns.start <= lips[:, 0].min()
    assert lips[:, 0].max() <= columns.stop
    assert rows.start <= lips[:, 1].min()
    assert lips[:, 1].max() <= rows.stop
    mask = faces.lip_mask(inside, size, size)
    assert mask.dtype == bool
    assert mask[rows, columns].sum() == mask.sum()
    ring = lips.astype(np.float64)
    area = 0.5 * abs(
        np.dot(ring[:, 0], np.roll(ring[:, 1], -1)) - np.dot(ring[:, 1], np.roll(ring[:, 0], -1))
    )
    assert area * 0.9 < mask.sum() < area * 1.6


def test_crop_is_exact_for_whole_boxes_and_averages_when_shrinking():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (40, 60, 3)).astype(np.uint8)
    assert np.array_equal(faces.crop(image, (8, 4, 24, 20), 16), image[4:20, 8:24])
    shrunk = faces.crop(image, (8, 4, 40, 36), 16).astype(float)
    mean = image[4:36, 8:40].reshape(16, 2, 16, 2, 3).mean(axis=(1, 3))
    assert np.abs(shrunk - mean).max() <= 1
    outside = faces.crop(image, (-8, -8, 8, 8), 16)
    assert (outside[:8, :8] == image[0, 0]).all()


def test_crop_moves_by_parts_of_a_pixel():
    ramp = np.repeat(np.arange(0, 240, 4, dtype=np.uint8)[None], 40, 0)[..., None].repeat(3, 2)
    half = faces.crop(ramp, (10.5, 4, 26.5, 20), 16).astype(int)
    assert np.abs(half - (ramp[4:20, 10:26].astype(int) + 2)).max() <= 1


def test_margin_shows_more_around_the_same_face(woman):
    plain, wide = faces.align(woman, 60), faces.align(woman, 120, margin=0.5)
    inner = wide[30:90, 30:90].astype(int)
    assert np.abs(inner - plain).mean() < 6


def test_largest_of_several_faces_is_taken(woman):
    big = cv2.resize(woman, (600, 600), interpolation=cv2.INTER_AREA)
    small = cv2.resize(woman, (300, 300), interpolation=cv2.INTER_AREA)
    both = np.zeros((600, 900, 3), np.uint8)
    both[:300, :300], both[:, 300:] = small, big
    alone = faces.landmarks(big)
    together = faces.landmarks(both)
    assert np.abs(together[:, 0] - 300 - alone[:, 0]).mean() < 6
    assert np.abs(together[:, 1] - alone[:, 1]).mean() < 6


def test_track_gives_nan_where_there_is_no_face(woman):
    face = faces.align(woman, 64)
    found = faces.track(np.stack([face, np.zeros_like(face), face]))
    assert found.shape == (3, 478, 3)
    assert np.isnan(found[1]).all()
    assert np.array_equal(found[0], found[2])
    assert np.abs(found[0] - faces.landmarks(face)).max() == 0


@pytest.mark.parametrize("image", [np.zeros((100, 80, 3)), np.full((300, 300, 3), 255)])
def test_no_face_is_an_error_with_a_hint(image):
    with pytest.raises(faces.NoFace, match=r"no face in the .* picture") as caught:
        faces.align(image.astype(np.uint8))
    assert isinstance(caught.value, UsageError)
    assert caught.value.hint


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(faces, "_local", __import__("threading").local())
    monkeypatch.setitem(sys.modules, "mediapipe.python.solutions.face_mesh", None)
    with pytest.raises(MissingExtra, match=r"\.\[face\]"):
        faces.landmarks(np.zeros((64, 64, 3), np.uint8))


def test_nothing_is_written_to_standard_error():
    code = (
        "import numpy as np\nfrom ft2 import faces\n"
        "print(faces.track(np.zeros((2, 64, 64, 3), np.uint8)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(2, 478, 3)"
    assert done.stderr == ""
