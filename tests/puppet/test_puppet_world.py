"""Identities, utterances, clips and the files made of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from ft2 import faces, media, speech
from ft2.config import ClipFormat
from ft2.errors import UsageError
from ft2.puppet import colour, dataset, identities, world
from ft2.puppet import topology as topo
from ft2.puppet.curves import Curves
from ft2.puppet.defects import Defect
from ft2.puppet.portrait import CANVAS, MARGIN, UNIT, prepare
from ft2.puppet.render import Puppet
from ft2.puppet.sentences import SENTENCES

CLIP = ClipFormat(width=64, height=64, num_frames=21, fps=12.5, sample_rate=16000)


def test_splits_share_no_face_sentence_or_speaker() -> None:
    parts = {split: set(identities.names(split)) for split in identities.SPLITS}
    assert len(parts["train"]) >= 5
    assert parts["dev"]
    assert parts["test"]
    assert sum(len(p) for p in parts.values()) == len(set().union(*parts.values()))
    said = [text for texts in SENTENCES.values() for text in texts]
    assert len(SENTENCES["train"]) >= 110
    assert len(said) == len(set(said)) >= 140
    speakers = [s for part in world.SPEAKERS.values() for s in part]
    assert len(speakers) == len(set(speakers))


def test_every_face_has_its_files_source_and_free_licence() -> None:
    table = (identities.FACES_DIR / "SOURCES.md").read_text()
    for name, about in identities.index().items():
        assert about["licence"] in ("public domain", "MIT")
        assert about["source"] in table
        assert f"| {name} |" in table
        face = identities.load(name)
        assert face.image.shape == (CANVAS, CANVAS, 3)
        assert face.matte.shape == (CANVAS, CANVAS)
        assert face.landmarks.shape == (478, 3)
        gap = face.landmarks[topo.LOWER_INNER, 1] - face.landmarks[topo.UPPER_INNER, 1]
        assert gap.max() < 0.1 * UNIT, "mouths are shut"


def test_shipped_faces_are_aligned() -> None:
    for name in ("beard", "bald", "admiral", "astronaut"):
        points = identities.load(name).landmarks
        x0, y0, x1, y1 = faces.aligned_box(points)
        assert x0 == pytest.approx(MARGIN, abs=12)
        assert x1 == pytest.approx(CANVAS - MARGIN, abs=12)
        assert y0 == pytest.approx(MARGIN, abs=12)
        assert y1 == pytest.approx(CANVAS - MARGIN, abs=12)


def test_variations_are_other_people_and_repeatable() -> None:
    face = identities.load("beard")
    one, again, other = (identities.vary(face, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.image, again.image)
    assert one.identity_id == "beard-v1"
    assert np.abs(one.image.astype(int) - other.image).mean() > 8
    shape = [np.delete(v.landmarks[:, :2], slice(468, 478), 0) for v in (one, other)]
    assert np.abs(shape[0] - shape[1]).max() > 3
    box = faces.aligned_box(one.landmarks)
    assert box == pytest.approx((MARGIN, MARGIN, CANVAS - MARGIN, CANVAS - MARGIN), abs=0.5)


def test_mirror_order_swaps_sides_and_is_an_involution() -> None:
    order = identities.mirror_order()
    assert np.array_equal(order[order], np.arange(478))
    for ring in (topo.UPPER_INNER, topo.LOWER_INNER, topo.UPPER_OUTER, topo.LOWER_OUTER):
        assert order[ring].tolist() == ring[::-1]
    assert order[topo.LEFT_UPPER_LID].tolist() == topo.RIGHT_UPPER_LID[::-1]
    assert order[[61, 33, 468, 13, 152, 4, 70]].tolist() == [291, 263, 473, 13, 152, 4, 300]


def test_landmarks_of_a_variation_are_where_a_detector_finds_them() -> None:
    pytest.importorskip("mediapipe")
    made = identities.vary(identities.load("beard"), 4)
    found = faces.landmarks(made.image)
    parts = [*topo.LEFT_UPPER_LID, *topo.RIGHT_UPPER_LID, *topo.UPPER_OUTER, *topo.LOWER_OUTER]
    error = np.linalg.norm(found[parts, :2] - made.landmarks[parts, :2], axis=1)
    assert np.median(error) < 0.06 * UNIT


def test_blend_changes_the_face_and_keeps_the_hair() -> None:
    body, face = identities.load("bald"), identities.load("beard")
    made = identities.blend(body, face, 1.0)
    change = np.abs(made.image.astype(int) - body.image).mean(-1)
    assert change[150:200, 100:160].mean() > 5
    assert change[:30].max() < 2
    assert np.array_equal(made.landmarks, body.landmarks)
    assert np.array_equal(identities.blend(body, face, 0.0).landmarks, body.landmarks)


def test_any_portrait_becomes_a_puppet_and_an_open_smile_is_shut(tmp_path: Path) -> None:
    pytest.importorskip("mediapipe")
    smiling = Puppet(identities.load("astronaut"), 256, 1)
    values = dict.fromkeys(Curves.names(), 0.0)
    media.write_png(tmp_path / "me.png", smiling.frame({**values, "open": 0.6}))
    made = identities.from_portrait(tmp_path / "me.png")
    gap = made.landmarks[topo.LOWER_INNER, 1] - made.landmarks[topo.UPPER_INNER, 1]
    assert made.identity_id == "me"
    assert gap.max() < 0.02 * UNIT
    found = faces.landmarks(made.image)
    assert found[14, 1] - found[13, 1] < 0.1 * UNIT
    assert made.matte[200:, 110:146].mean() > 200 > 60 > made.matte[:60, :12].mean()
    with pytest.raises(faces.NoFace):
        prepare(np.full((200, 200, 3), 90, np.uint8), "wall")


def test_skin_is_found_on_the_face_and_not_on_the_wall() -> None:
    face = identities.load("bald")
    mask = colour.skin_mask(face.image, face.landmarks, face.matte, UNIT)
    assert mask[110:150, 115:140].min() > 0.9
    assert mask[:60, :30].max() < 0.1


def test_unknown_names_are_refused() -> None:
    for call in (
        lambda: identities.load("nobody"), lambda: identities.names("all"),
        lambda: world.utterances("all"), lambda: dataset.check_split("all"),
    ):  # fmt: skip
        with pytest.raises(UsageError):
            call()


@pytest.fixture(scope="module")
def spoken() -> world.Utterance:
    pytest.importorskip("ttspico")
    return world.utterances("test", 2)[1]


def test_shipped_phones_fit_the_sound(spoken: world.Utterance) -> None:
    stored = json.loads(world.PHONES_FILE.read_text())
    total = sum(len(SENTENCES[s]) * len(world.SPEAKERS[s]) for s in SENTENCES)
    assert len(stored) == total
    assert stored[spoken.audio_id]["samples"] == len(spoken.audio)
    fresh = speech.phones(spoken.audio, spoken.text)
    assert [p.name for p in fresh] == [p.name for p in spoken.phones]
    assert np.allclose([p.end for p in fresh], [p.end for p in spoken.phones], atol=0.011)


def test_windows_hold_speech_and_pad_with_silence(spoken: world.Utterance) -> None:
    for start in world.start_times(spoken, CLIP.seconds):
        sound = world.window(spoken.audio, start, CLIP)
        assert sound.shape == (CLIP.num_samples,)
        assert speech.has_speech(sound)
    beyond = world.window(spoken.audio, spoken.seconds - 0.1, CLIP)
    assert not beyond[1700:].any()


def test_a_clip_is_determined_by_its_seed_and_labelled_by_its_defects(
    spoken: world.Utterance,
) -> None:
    face = identities.load("admiral")
    found = [Defect("mute", 0.9, 1), Defect("noise", 0.5, 2)]
    one, again = (world.make_clip(face, spoken, 0.1, 7, found, CLIP) for _ in range(2))
    assert np.array_equal(one.frames, again.frames)
    assert np.array_equal(one.audio, again.audio)
    assert one.labels == {"motion": True, "lip": False, "quality": False}
    assert np.abs(one.frames[0].astype(int) - face.portrait(64)).mean() < 3
    clean = world.make_clip(face, spoken, 0.1, 7, [], CLIP)
    assert np.array_equal(clean.curves.stack(), one.curves.stack())
    assert np.array_equal(clean.shown.stack(), clean.curves.stack())
    with pytest.raises(UsageError, match="square"):
        world.make_clip(face, spoken, 0.1, 7, [], CLIP.model_copy(update={"height": 48}))


def test_arrays_hold_what_the_clips_hold_and_resume(tmp_path: Path) -> None:
    pytest.importorskip("ttspico")
    (path,) = dataset.build_arrays(tmp_path, "test", 4, CLIP, num_workers=1)
    with safe_open(path, "np") as stored:
        arrays = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        rows = json.loads(stored.metadata()["clips"])
    expected = list(dataset.clips("test", 4, CLIP))
    for number, clip in enumerate(expected):
        assert np.array_equal(arrays["frames"][number], clip.frames)
        assert np.array_equal(arrays["shown"][number], clip.shown.stack())
        assert np.allclose(arrays["audio"][number] / 32767, clip.audio, atol=2e-5)
        assert rows[number]["identity_id"] == clip.identity_id
        good = [clip.labels[d] for d in ("motion", "lip", "quality")]
        assert arrays["labels"][number].tolist() == [int(g) for g in good]
        assert [not name for name in rows[number]["defects"]] == good
        assert [s == 0 for s in arrays["strengths"][number]] == good
    before = path.stat().st_mtime_ns
    dataset.build_arrays(tmp_path, "test", 4, CLIP, num_workers=1)
    assert path.stat().st_mtime_ns == before


def test_ratings_and_conditions_can_be_read_back(tmp_path: Path) -> None:
    pytest.importorskip("ttspico")
    ratings = dataset.build(tmp_path / "set", 3, "dev", 1, CLIP)
    made = list(dataset.clips("dev", 3, CLIP, 1))
    rows = [json.loads(line) for line in ratings.read_text().splitlines()]
    for row, clip in zip(rows, made, strict=True):
        video = media.read_clip(ratings.parent / row["video"], CLIP)
        assert np.abs(video.frames.astype(int) - clip.frames).mean() < 6
        assert {d: row[d] for d in clip.labels} == clip.labels
        assert row["split"] == "dev"
        assert row["source"] == "puppet"
        assert set(row["defects"]) == {d.name for d in clip.defects}
    path = dataset.build_conditions(tmp_path / "set", 2, "test", 0, CLIP)
    for line in path.read_text().splitlines():
        row = json.loads(line)
        portrait = media.read_image(path.parent / row["portrait"])
        sound = media.read_audio(path.parent / row["audio"])
        assert portrait.shape == (64, 64, 3)
        assert sound.shape == (CLIP.num_samples,)
        assert row["prompt"].startswith("a person talks")
        assert {"condition_id", "identity_id", "audio_id", "split"} <= set(row)
