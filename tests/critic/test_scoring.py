"""Scores on a scale, kept by content, alike at any batch size; bad files are rows with a reason."""

import json
import shutil

import av
import numpy as np
import pytest
from scipy.stats import norm, zscore

from ft2.__main__ import main
from ft2.critic import TalkingCritic
from ft2.critic.api import outcome
from ft2.critic.reference import Reference, read_reference
from ft2.errors import UsageError
from ft2.media import write_video


def run(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main(["critic", *map(str, args)])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


@pytest.fixture(scope="module")
def clips(ratings):
    return [ratings.parent / f"{number}.mp4" for number in range(25, 34)]


def without_frames(path):
    """Write a file that promises a picture and a sound, and has the sound only."""
    with av.open(str(path), "w", format="matroska") as container:
        picture = container.add_stream("libx264", rate=25)
        picture.width = picture.height = 64
        picture.codec_context.open()
        voice = container.add_stream("aac", rate=16000)
        heard = av.AudioFrame.from_ndarray(np.zeros((1, 32000), np.float32), "fltp", "mono")
        heard.sample_rate, heard.pts = 16000, 0
        container.mux(voice.encode(heard))
        container.mux(voice.encode())


@pytest.fixture(scope="module")
def broken(tmp_path_factory, ratings):
    """Files that cannot be judged, and a word of why."""
    folder = tmp_path_factory.mktemp("broken")
    whole = (ratings.parent / "0.mp4").read_bytes()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    (folder / "text.mp4").write_text("no video at all")
    shutil.copy(ratings, folder / "renamed.mp4")
    without_frames(folder / "zero.mp4")
    frames = np.full((9, 64, 64, 3), 90, np.uint8)
    write_video(folder / "silent.mp4", frames, 12.5)
    write_video(folder / "one.mp4", frames[:1], 12.5, np.zeros(1280, np.float32))
    big = np.full((12, 2160, 3840, 3), 90, np.uint8)
    write_video(folder / "wide.mp4", big, 12.5, np.zeros(16000, np.float32))
    return {
        folder / "empty.mp4": "decode",
        folder / "cut.mp4": "decode",
        folder / "text.mp4": "decode",
        folder / "renamed.mp4": "decode",
        folder / "zero.mp4": "no frame could be decoded",
        folder / "silent.mp4": "sound",
        folder / "one.mp4": "lasts",
        folder / "wide.mp4": "no face",
        folder / "absent.mp4": "no such file",
    }


def broken_file(broken, stem):
    return next(path for path in broken if path.stem == stem)


def test_batch_size_order_and_company_do_not_change_scores(adapter, clips):
    one = TalkingCritic.from_pretrained(adapter, batch_size=1).score(videos=clips)
    many = TalkingCritic.from_pretrained(adapter.parent, batch_size=5).score(videos=clips[::-1])
    for first, second in zip(one, many[::-1], strict=True):
        assert first.path == second.path
        for d in ("motion", "lip", "quality"):
            assert first.p[d] == pytest.approx(second.p[d], abs=1e-5)
            assert first.log_odds[d] == pytest.approx(second.log_odds[d], abs=1e-4)
            assert first.percentile[d] == second.percentile[d]


def test_unreadable_files_are_rows_and_leave_the_others_alone(adapter, clips, broken):
    critic = TalkingCritic.from_pretrained(adapter, batch_size=3)
    mixed = [path for pair in zip(broken, clips, strict=True) for path in pair]
    rows = critic.score(videos=mixed)
    for row in rows[::2]:
        assert broken[row.path] in row.error, row
        assert set(row.to_dict()) == {"clip", "error"}
    alone = critic.score(videos=clips)
    assert [r.p for r in rows[1::2]] == [pytest.approx(a.p, abs=1e-5) for a in alone]
    with pytest.raises(UsageError, match="renamed"):
        critic.compare(a=clips[0], b=next(p for p in broken if p.name == "renamed.mp4"))


def test_cache_knows_content_and_critic(adapter, clips, tmp_path, monkeypatch):
    critic = TalkingCritic.from_pretrained(adapter, cache_dir=tmp_path / "cache")
    first = critic.score(videos=clips[:2])
    same = tmp_path / "other-name.mp4"
    shutil.copy(clips[0], same)
    decoded = []
    monkeypatch.setattr(
        type(critic.scorer), "clip_odds", lambda self, paths: decoded.extend(paths) or iter([])
    )
    again = critic.score(videos=[same, clips[1]])
    assert not decoded
    assert [r.log_odds for r in again] == [r.log_odds for r in first]
    bare = TalkingCritic(critic.scorer, None, tmp_path / "cache")
    monkeypatch.setattr(type(critic.scorer), "questions", {"lip": "other?"}, raising=False)
    critic.scorer.questions = {"lip": "Is it another question?"}
    other = TalkingCritic(critic.scorer, None, tmp_path / "cache")
    assert other._cache._folder != bare._cache._folder
    for damaged in (tmp_path / "cache").rglob("*.json"):
        damaged.write_text("{")
    assert bare._cache.get(first[0].sha256, ("lip",)) is None


def test_z_and_percentile_equal_their_definitions():
    known = [0.5, -1.0, 2.0, 2.0, 3.5]
    reference = Reference("r", "c", {"lip": sorted(known)})
    z, percentile = reference.place("lip", 2.0)
    assert z == pytest.approx(zscore(known)[2])
    assert percentile == pytest.approx(100 * (2 + 0.5 * 2) / 5)
    normal = Reference("n", "c", {"lip": list(norm.ppf(np.linspace(0.001, 0.999, 999)))})
    assert normal.place("lip", 1.0)[1] == pytest.approx(100 * norm.cdf(1.0), abs=0.2)


def test_reference_set_of_another_critic_is_refused(adapter, clips, tmp_path, capsys):
    path = tmp_path / "mine.json"
    args = ["score", *clips, "--critic", adapter, "--write-reference", path, "--json"]
    code, out, _ = run(capsys, *args)
    assert code == 0
    reference = read_reference(path)
    assert reference.name == "mine"
    code, out, _ = run(capsys, "score", *clips, "--critic", adapter, "--reference", path, "--json")
    rows = json.loads(out)["scores"]
    assert json.loads(out)["reference"] == "mine"
    for d in ("motion", "lip", "quality"):
        assert np.mean([row["z"][d] for row in rows]) == pytest.approx(0, abs=1e-3)
        assert np.std([row["z"][d] for row in rows]) == pytest.approx(1, abs=1e-3)
    path.write_text(path.read_text().replace(reference.critic, "0" * 64))
    code, _, err = run(capsys, "score", *clips, "--critic", adapter, "--reference", path)
    assert code == 2
    assert "another critic" in err


def test_three_outcomes_sum_to_one_and_swap(adapter, clips):
    critic = TalkingCritic.from_pretrained(adapter)
    ab, ba = critic.compare(a=clips[0], b=clips[1]), critic.compare(a=clips[1], b=clips[0])
    for d in critic.dimensions:
        assert ab[d].a + ab[d].tie + ab[d].b == pytest.approx(1)
        assert (ab[d].a, ab[d].tie, ab[d].b) == pytest.approx((ba[d].b, ba[d].tie, ba[d].a))
    sure = outcome(1.0, 0.0)
    assert (sure.a, sure.tie, sure.b) == (1.0, 0.0, 0.0)
    with pytest.raises(UsageError, match="give a list"):
        critic.score(videos=str(clips[0]))
    with pytest.raises(TypeError):
        critic.score(clips)


def test_commands_take_jsonl_and_say_what_failed(adapter, clips, broken, tmp_path, capsys):
    listed = tmp_path / "clips.jsonl"
    names = [str(p) for p in (clips[0], *broken)]
    listed.write_text("".join(json.dumps({"clip": name}) + "\n" for name in names))
    out_file = tmp_path / "scores.jsonl"
    code, out, _ = run(capsys, "score", listed, "--critic", adapter, "-o", out_file)
    assert code == 0
    assert out.count("\n") == 1 + len(names)
    rows = [json.loads(line) for line in out_file.read_text().splitlines()]
    assert "percentile" in rows[0]
    assert all("error" in row for row in rows[1:])
    code, _, err = run(capsys, "score", *list(broken)[:3], "--critic", adapter, "--no-cache")
    assert code == 2  # their headers tell, no model is loaded
    assert "none of 3 clips can be judged: cannot decode" in err
    code, _, err = run(capsys, "score", broken_file(broken, "silent"), "--critic", adapter)
    assert code == 2
    assert "has no sound" in err
    code, _, err = run(capsys, "score", broken_file(broken, "one"), "--critic", adapter)
    assert code == 1
    assert "none of 1 clips could be scored" in err
    doctor = ["doctor", *clips[:3], broken_file(broken, "silent"), "--critic", adapter]
    code, _, err = run(capsys, *doctor)
    assert code == 2
    assert "1 of 4 clips cannot be judged" in err
    listed.write_text('{"name": 1}\n')
    assert run(capsys, "score", listed, "--critic", adapter)[0] == 2
    listed.write_text("")
    for more in ((), ("--json",)):
        args = ["score", listed, "--critic", adapter, "-o", tmp_path / "none.jsonl", *more]
        code, out, err = run(capsys, *args)
        assert (code, out) == (2, "")
        assert "names no clip" in err
        assert not (tmp_path / "none.jsonl").exists()


def test_no_critic_and_hub_names(tmp_path):
    with pytest.raises(UsageError, match="holds no critic"):
        TalkingCritic.from_pretrained(tmp_path)
    with pytest.raises(UsageError, match="the Hub gave none"):
        TalkingCritic.from_pretrained("nobody/no-critic")
