"""Filters, the score store, failures as data, and other models' folders."""

import json
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from nsq_fakes import CLIP, ColourScorer, HashGenerator

from ft2.errors import RunError, UsageError
from ft2.media import write_video
from ft2.nsq.build import build
from ft2.nsq.config import FilterConfig, NsqConfig
from ft2.nsq.filters import inspect, near_duplicates, perceptual_hash
from ft2.nsq.lookalikes import lookalikes
from ft2.nsq.store import ScoreStore
from ft2.pairs import Scores, read_clips
from ft2.runs import Silent

TONE = np.sin(np.arange(CLIP.num_samples) / 20).astype(np.float32) * 0.1


def noise(seed: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    return np.broadcast_to(small.repeat(4, 0).repeat(4, 1), (5, 32, 32, 3)).copy()


def clip(path: Path, frames: np.ndarray, audio: np.ndarray | None = TONE) -> Path:
    write_video(path, frames, CLIP.fps, audio)
    return path


def test_filters_name_what_they_drop(tmp_path: Path) -> None:
    good = clip(tmp_path / "good.mp4", noise(0))
    quiet = clip(tmp_path / "quiet.mp4", noise(0), TONE * 1e-5)
    mute = clip(tmp_path / "mute.mp4", noise(0), None)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(good.read_bytes()[:900])
    filters = FilterConfig()
    found = {p.stem: inspect(p, CLIP, filters) for p in (good, quiet, mute, cut)}
    assert {name: fact.dropped for name, fact in found.items()} == {
        "good": None, "quiet": "silent", "mute": "format", "cut": "format",
    }  # fmt: skip
    assert str(tmp_path) not in (found["cut"].detail or "")
    assert inspect(tmp_path / "none.mp4", CLIP, filters).dropped == "missing"
    off = FilterConfig(min_sound_db=None)
    assert inspect(quiet, CLIP, off).dropped is None
    assert inspect(quiet, CLIP, FilterConfig(min_sound_db=None, need_speech=True)).dropped == (
        "no-speech"
    )


def test_face_filter_wants_one_clear_face(tmp_path: Path) -> None:
    from ft2.puppet import dataset

    wide = CLIP.model_copy(update={"width": 64, "height": 64})
    face = next(iter(dataset.clips("train", 1, wide, 5))).frames[:5]
    write_video(tmp_path / "one.mp4", face, CLIP.fps, TONE)
    pair = np.concatenate([face, face], axis=2)
    write_video(tmp_path / "two.mp4", pair, CLIP.fps, TONE)
    blank = np.full_like(face, 90)
    write_video(tmp_path / "none.mp4", blank, CLIP.fps, TONE)
    filters = FilterConfig(min_face_confidence=0.8, face_frames=1)
    assert inspect(tmp_path / "one.mp4", wide, filters).dropped is None
    none = inspect(tmp_path / "none.mp4", wide, filters)
    assert (none.dropped, none.detail) == ("face", "best face confidence 0.00")
    both = inspect(tmp_path / "two.mp4", wide.model_copy(update={"width": 128}), filters)
    assert (both.dropped, both.detail) == ("face", "2 faces")


def test_perceptual_hash_survives_compression_and_tells_pictures_apart(tmp_path: Path) -> None:
    one, two = (
        inspect(clip(tmp_path / f"{i}.mp4", noise(i)), CLIP, FilterConfig()) for i in (1, 2)
    )
    assert (perceptual_hash(noise(1)[0]) != one.phash[:256]).sum() <= 30
    assert (one.phash[:256] != two.phash[:256]).sum() > 60
    again = inspect(clip(tmp_path / "3.mp4", noise(1) // 2 + 60), CLIP, FilterConfig())
    assert near_duplicates([one, two, again], 32) == [None, None, 0]
    assert near_duplicates([one, two, again], None) == [None, None, None]
    assert near_duplicates([one, one], None) == [None, 0]


def test_a_clip_is_judged_once_ever(config: NsqConfig, tmp_path: Path) -> None:
    config = config.model_copy(update={"store": str(tmp_path / "scores.sqlite")})
    scorer = ColourScorer()
    first = build(config, tmp_path / "a", HashGenerator(), scorer, progress=Silent())
    assert scorer.calls == 30
    second = build(config, tmp_path / "b", HashGenerator(), scorer, progress=Silent())
    assert scorer.calls == 30
    assert first == second

    class Other(ColourScorer):
        name = "another-critic"  # type: ignore[assignment]

    other = Other()
    build(config, tmp_path / "c", HashGenerator(), other, progress=Silent())
    assert other.calls == 30
    with ScoreStore(tmp_path / "scores.sqlite") as store:
        assert store.critics() == {"another-critic": 30, "colour-scorer": 30}
        with pytest.raises(UsageError, match="scores of 2 critics"):
            store.only_critic()


class Picky(ColourScorer):
    """Cannot judge some clips."""

    def __init__(self, bad: Sequence[str]) -> None:
        super().__init__()
        self.bad = bad

    def score(self, paths: Sequence[Path]) -> list[Scores]:
        for path in paths:
            if any(b in path.as_posix() for b in self.bad):
                raise UsageError(f"no face in {path}", "show one")
        return super().score(paths)


def test_clip_that_cannot_be_judged_is_a_row_with_the_reason(
    config: NsqConfig, tmp_path: Path
) -> None:
    config = config.model_copy(update={"max_failed_fraction": 0.1})
    scorer = Picky(["c1/0003", "c4/0000"])
    summary = build(config, tmp_path / "a", HashGenerator(), scorer, progress=Silent())
    (reason,) = summary["dropped"]
    assert (reason["reason"], reason["count"]) == ("not-judged", 2)
    assert reason["examples"][0]["detail"] == "no face in 0003.mp4"
    assert summary["num_failed"] == 2
    assert len(read_clips(tmp_path / "a")) == 17
    strict = config.model_copy(update={"max_failed_fraction": 0.05})
    with pytest.raises(RunError, match="2 of 30 clips failed") as caught:
        build(strict, tmp_path / "b", HashGenerator(), scorer, progress=Silent())
    assert caught.value.exit_code == 1
    assert not (tmp_path / "b" / "manifest.json").exists()


def test_errors_stay_until_a_retry_is_asked_for(config: NsqConfig, tmp_path: Path) -> None:
    config = config.model_copy(
        update={"max_failed_fraction": 0.1, "store": str(tmp_path / "s.sqlite")}
    )
    build(config, tmp_path / "a", HashGenerator(), Picky(["c1/0003"]), progress=Silent())
    kept = build(config, tmp_path / "b", HashGenerator(), ColourScorer(), progress=Silent())
    assert kept["num_failed"] == 1
    retry = config.model_copy(update={"retry_errors": True})
    scorer = ColourScorer()
    assert (
        build(retry, tmp_path / "c", HashGenerator(), scorer, progress=Silent())["num_failed"] == 0
    )
    assert scorer.calls == 1


def test_stored_nan_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    with ScoreStore(path) as store:
        store.put("critic", [(("v" * 64, "a"), Scores(0.1, 0.2, 0.3))])
        assert store.get("critic", [("v" * 64, "a"), ("w", "a")]) == [Scores(0.1, 0.2, 0.3), None]
    base = sqlite3.connect(path)
    base.execute("UPDATE verdicts SET lip = NULL")
    base.commit()
    base.close()
    with ScoreStore(path) as store, pytest.raises(UsageError, match=r"'lip': nan.*vvvv"):
        store.get("critic", [("v" * 64, "a")])


def test_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.sqlite").write_bytes(b"this is not a database, at all" * 100)
    with pytest.raises(UsageError, match="is not a score store"):
        ScoreStore(tmp_path / "s.sqlite")


def write_folder(config: NsqConfig, folder: Path, seeds: int = 4) -> Path:
    """Clips of another model, with a manifest."""
    folder.mkdir()
    rows = []
    for line in Path(config.conditions).read_text().splitlines():
        name = json.loads(line)["condition_id"]
        for seed in range(seeds):
            file = f"{name}-{seed}.mp4"
            clip(folder / file, noise(1000 * int(name[1:]) + seed))
            rows.append({"file": file, "condition_id": name, "model": "other", "seed": seed})
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_clips_of_other_models_meet_those_of_the_policy(config: NsqConfig, tmp_path: Path) -> None:
    manifest = write_folder(config, tmp_path / "other")
    config = config.model_copy(update={"folders": (str(manifest),)})
    summary = build(config, tmp_path / "a", HashGenerator(), ColourScorer(), progress=Silent())
    assert summary["num_candidates"] == 50
    models = summary["splits"][0]["models"]
    assert {name: row["clips"] for name, row in models.items()} == {
        "hash-generator": 18, "other": 12,
    }  # fmt: skip
    for d in ("motion", "lip", "quality"):
        assert models["other"]["wins"][d] == models["hash-generator"]["losses"][d]
    clips = read_clips(tmp_path / "a").values()
    assert {c.model for c in clips} == {"hash-generator", "other"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"condition_id": "nobody"}, "unknown condition_id 'nobody'"),
        ({"seed": "0"}, "seed is '0', not int"),
        ({"model": ""}, "model is ''"),
        ({"extra": 1}, "wrong fields"),
        ({"seed": 1}, "is twice"),
    ],
)
def test_bad_manifest_lines_are_named(
    config: NsqConfig, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    manifest = write_folder(config, tmp_path / "other", 2)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows[0] |= change
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config.model_copy(update={"folders": (str(manifest),)})
    with pytest.raises(UsageError, match=r"manifest\.jsonl:[12]: .*" + message):
        build(config, tmp_path / "a", HashGenerator(), ColourScorer(), progress=Silent())
    assert not (tmp_path / "a").exists()


def test_file_of_two_conditions_is_refused(config: NsqConfig, tmp_path: Path) -> None:
    manifest = write_folder(config, tmp_path / "other", 2)
    shutil.copyfile(tmp_path / "other" / "c0-0.mp4", tmp_path / "other" / "c2-1.mp4")
    config = config.model_copy(update={"folders": (str(manifest),)})
    with pytest.raises(RunError, match=r"c0 \(other, seed 0\), c2 \(other, seed 1\)"):
        build(config, tmp_path / "a", HashGenerator(), ColourScorer(), progress=Silent())


def test_lookalikes_are_those_that_comparing_all_with_all_finds() -> None:
    rng = np.random.default_rng(5)
    one = rng.integers(0, 256, (40, 3, 32), dtype=np.uint8)
    other = rng.integers(0, 256, (30, 3, 32), dtype=np.uint8)
    for row in range(12):  # copies with 0 to 22 changed bits a frame
        bits = np.unpackbits(one[row], axis=1)
        for frame in range(3):
            bits[frame, rng.permutation(256)[: 2 * row]] ^= 1
        other[row + 5] = np.packbits(bits, axis=1)
    for limit in (0, 7, 16):
        wanted = {}
        for a, b in np.ndindex(40, 30):
            mean = np.unpackbits(one[a] ^ other[b]).sum() / 3
            if mean <= limit:
                wanted[a, b] = mean
        assert {(a, b): d for a, b, d in lookalikes(one, other, limit)} == wanted
        assert len(wanted) == limit // 2 + 1


def test_clips_of_two_splits_that_look_the_same_are_refused(
    config: NsqConfig, tmp_path: Path
) -> None:
    manifest = write_folder(config, tmp_path / "other", 2)
    config = config.model_copy(update={"folders": (str(manifest),)})
    clip(tmp_path / "other" / "c4-1.mp4", noise(0) // 2 + 60)  # c0-0 of train, paler, in test
    near = config.model_copy(update={"filters": FilterConfig(max_duplicate_bits=24)})
    with pytest.raises(RunError, match="look the same") as caught:
        build(near, tmp_path / "a", HashGenerator(), ColourScorer(), progress=Silent())
    assert "train: c0 (other, seed 0) and test: c4 (other, seed 1)" in caught.value.message
    assert not (tmp_path / "a" / "manifest.json").exists()
    build(config, tmp_path / "b", HashGenerator(), ColourScorer(), progress=Silent())


@pytest.mark.parametrize("kind", ["gone", "changed"])
def test_clip_lost_between_stages_is_named_and_comes_back(
    config: NsqConfig, tmp_path: Path, kind: str
) -> None:
    manifest = write_folder(config, tmp_path / "other", 2)
    config = config.model_copy(update={"folders": (str(manifest),)})
    victim, saved = tmp_path / "other" / "c1-0.mp4", tmp_path / "saved.mp4"

    class Thief(ColourScorer):
        def score(self, paths: Sequence[Path]) -> list[Scores]:
            result = super().score(paths)
            if victim.exists() and any("c4" in p.as_posix() for p in paths):
                victim.rename(saved)
                if kind == "changed":
                    victim.write_bytes(saved.read_bytes() + b"x")
            return result

    message = (
        "c1-0.mp4 was judged and is gone" if kind == "gone" else "not the file that was judged"
    )
    with pytest.raises(RunError, match=message):
        build(config, tmp_path / "a", HashGenerator(), Thief(), progress=Silent())
    shutil.copyfile(saved, victim)
    scorer = ColourScorer()
    build(config, tmp_path / "a", HashGenerator(limit=0), scorer, resume=True, progress=Silent())
    assert scorer.calls == 0
    build(config, tmp_path / "b", HashGenerator(), ColourScorer(), progress=Silent())
    assert (tmp_path / "a" / "manifest.json").read_bytes() == (
        tmp_path / "b" / "manifest.json"
    ).read_bytes()


def test_near_duplicates_of_a_condition_are_dropped(config: NsqConfig, tmp_path: Path) -> None:
    class Stuck(HashGenerator):
        def generate(self, conditions, seeds, output_dir):  # type: ignore[no-untyped-def]
            for made in super().generate(conditions, seeds, output_dir):
                if made.seed >= 4:
                    shutil.copyfile(made.video.with_name("0001.mp4"), made.video)
                yield made

    summary = build(config, tmp_path / "a", Stuck(), ColourScorer(), progress=Silent())
    (reason,) = summary["dropped"]
    assert (reason["reason"], reason["count"], summary["num_failed"]) == ("duplicate", 10, 0)
    assert reason["examples"][0]["detail"] == "of model hash-generator, seed 1"


def test_portrait_in_two_splits_under_two_names_is_refused(
    config: NsqConfig, tmp_path: Path
) -> None:
    from ft2.media import read_image, write_png

    folder = Path(config.conditions).parent
    image = read_image(folder / "face0.png").astype(np.int16)
    write_png(folder / "face4.png", np.clip(image + 3, 0, 255).astype(np.uint8))
    with pytest.raises(
        UsageError, match=r"face0.png \(train\) and face4.png \(test\) look the same"
    ):
        build(config, tmp_path / "a", HashGenerator(), ColourScorer(), progress=Silent())


@pytest.mark.parametrize("field", ["prompt", "source_id"])
def test_prompt_or_source_clip_in_two_splits_is_refused(
    config: NsqConfig, tmp_path: Path, field: str
) -> None:
    rows = [json.loads(line) for line in Path(config.conditions).read_text().splitlines()]
    rows[0][field] = rows[4][field] = "the same"
    Path(config.conditions).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UsageError, match=rf"{field} 'the same' .*test \(c4\), train \(c0\)"):
        build(config, tmp_path / "a", HashGenerator(), ColourScorer(), progress=Silent())


def test_build_from_a_store_needs_every_score_and_one_critic(
    config: NsqConfig, tmp_path: Path, built: Path
) -> None:
    from ft2.cli.nsq_build import lazy_scorer

    path = tmp_path / "scores.sqlite"
    config = config.model_copy(update={"store": str(path), "critic": "store"})
    with ScoreStore(path) as store:
        store.put("a", [(("v", "a"), Scores(0.1, 0.2, 0.3))])
        store.put("b", [(("v", "a"), Scores(0.1, 0.2, 0.3))])
    with pytest.raises(UsageError, match="scores of 2 critics"):
        lazy_scorer(config)
    scorer = lazy_scorer(config.model_copy(update={"critic": "store:colour-scorer"}))
    with pytest.raises(RunError, match="'colour-scorer' has no scores in the store for 12 clips"):
        build(config, tmp_path / "a", HashGenerator(), scorer, progress=Silent())
    judged = config.model_copy(update={"critic": "elsewhere"})
    build(judged, tmp_path / "b", HashGenerator(), ColourScorer(), progress=Silent())
    build(config, tmp_path / "a", HashGenerator(), scorer, resume=True, progress=Silent())
    assert (tmp_path / "a" / "data").is_dir()
    hashes = [json.loads((p / "manifest.json").read_text())["dataset_hash"]
              for p in (tmp_path / "a", built)]  # fmt: skip
    assert hashes[0] == hashes[1]
    with pytest.raises(UsageError, match="needs a store"):
        lazy_scorer(config.model_copy(update={"store": None}))
