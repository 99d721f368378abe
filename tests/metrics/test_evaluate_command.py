"""`ft2 evaluate` as a user types it: two folders, one clip, failures, and everything wrong."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from ft2 import media
from ft2.__main__ import main
from ft2.metrics.bootstrap import bootstrap_mean
from ft2.metrics.catalogue import NINE
from ft2.metrics.config import EvaluateConfig
from ft2.metrics.papers import TABLES


def run(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *map(str, argv)])
    out = capsys.readouterr()
    return stop.value.code, out.out, out.err


@pytest.fixture(scope="module")
def compared(folders, tmp_path_factory):
    """`good` against `bad`, where one clip of `good` has no partner and one cannot be read."""
    root = tmp_path_factory.mktemp("compared")
    good = shutil.copytree(folders / "good", root / "good")
    bad = shutil.copytree(folders / "bad", root / "bad")
    (good / "broken-0000.mp4").write_bytes(b"no video")
    (good / "results.json").write_text(
        json.dumps({"rows": {"late": {"done": False, "error": "no face in the portrait"}}})
    )
    shutil.copy(good / "face1-0001.mp4", good / "alone-0000.mp4")
    output = root / "out"
    argv = ["evaluate", str(good), "metrics=[face,lips]", "--against", str(bad)]
    with pytest.raises(SystemExit) as stop:
        main([*argv, "-o", str(output), "-q"])
    assert stop.value.code == 0
    return output


def test_the_table_says_what_was_found(compared):
    result = json.loads((compared / "result.json").read_text())
    assert result["run"]["counts"]["clips"] == 7
    assert result["run"]["counts"]["measured"] == 5
    assert set(result["run"]["counts"]["failed"]) == {"broken-0000", "late"}
    assert result["against"]["counts"]["measured"] == result["pairs"] == 4
    assert result["run"]["counts"]["face_tracks"] == {"1": 5}
    lips = result["paired"]["lip_correlation"]
    assert lips["difference"]["low"] > 0
    assert lips["difference"]["num_groups"] == 2
    assert lips["win_rate"]["value"] == 1.0
    assert "win_rate" not in result["paired"]["lip_offset"]
    assert any("3 of 7 clips of good have no partner" in r for r in result["remarks"])


def test_its_figures_follow_from_its_clips(compared):
    result = json.loads((compared / "result.json").read_text())
    rows = json.loads((compared / "clips.json").read_text())
    found = {r["name"]: r["values"]["lip_best"] for r in rows["run"] if "values" in r}
    other = {r["name"]: r["values"]["lip_best"] for r in rows["against"]}
    names = sorted(other)
    assert result["paired"]["lip_best"]["difference"]["value"] == pytest.approx(
        np.mean([found[n] - other[n] for n in names])
    )
    groups = [name.split("-")[0] for name in found]
    settings = EvaluateConfig()
    want = bootstrap_mean(
        list(found.values()), groups, num_resamples=settings.num_resamples, seed=settings.seed
    )
    assert result["run"]["means"]["lip_best"] == pytest.approx(want.to_dict())


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.videos, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.videos += [dict(attrs)["src"]] if tag == "video" else []

    def handle_data(self, data):
        self.text.append(data)


def test_page_and_markdown_show_clips_failures_and_papers(compared):
    page = Page((compared / "report.html").read_text())
    text = " ".join(page.text)
    assert len(page.videos) == 8
    assert all((compared / video).is_file() for video in page.videos)
    marked = (compared / "table.md").read_text()
    for shown in (text, marked):
        assert "no face in the portrait" in shown
        assert "FantasyTalking2, 2508.11255" in shown
        assert "second-hand" in shown
        assert "this run: good" in shown
    assert "| lips: correlation |" in marked


def test_only_differences_are_marked_as_clear(compared):
    page = (compared / "report.html").read_text()
    rows = [re.findall(r"<td[^>]*>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    places = {place for row in rows for place, cell in enumerate(row) if "clear" in cell}
    assert places == {7}


def test_the_terminal_table_of_a_comparison_is_at_most_100_columns_wide(compared):
    from ft2.cli.evaluate_page import table_text

    result = json.loads((compared / "result.json").read_text())
    result["run"]["label"] = "a folder of a rather long name"
    text, _, _ = table_text(result).partition("Intervals are")
    table = text.splitlines()[:-1]
    assert max(map(len, table)) <= 100
    rows = [line for line in table if "lips: correlation" in line]
    assert [line.count("[") for line in rows] == [2, 2]
    assert "difference" in text


def test_resume_reads_back_and_measures_only_what_changed(compared, capsys):
    argv = [compared.parent / "good", "metrics=[face,lips]", "--against", compared.parent / "bad"]
    code, out, _ = run(capsys, *argv, "-o", compared)
    assert code == 2
    code, out, _ = run(capsys, *argv, "-o", compared, "--resume", "--json")
    assert code == 0
    assert json.loads(out)["pairs"] == 4
    before = json.loads((compared / "result.json").read_text())
    (compared / "result.json").unlink()
    kept = compared / "measured" / "run" / "face0-0000.json"
    row = json.loads(kept.read_text())
    kept.write_text(json.dumps(row | {"values": {**row["values"], "lip_best": 0.125}}))
    code, out, _ = run(capsys, *argv, "-o", compared, "--resume", "--json")
    assert code == 0
    now, was = (r["run"]["means"]["lip_best"]["value"] for r in (json.loads(out), before))
    assert now == pytest.approx(was + (0.125 - row["values"]["lip_best"]) / 5)


def test_one_clip_without_sound_and_with_gaps(folders, tmp_path, capsys):
    found = media.read_video(next((folders / "good").glob("*.mp4")))
    clip = tmp_path / "own.mp4"
    media.write_video(clip, found.frames, found.fps)
    code, out, _ = run(capsys, clip, "-o", tmp_path / "out", "-q")
    assert code == 0
    assert "own: 1 of 1 clips measured, 1 conditions" in out
    assert "one condition only" in out
    share = next(line for line in out.splitlines() if "frames with a face" in line)
    assert "1.00" in share
    assert "[" not in share
    assert "no lips: the video has no sound (1 of 1 in own)" in out
    assert "no sync: needs weights.syncnet=PATH (syncnet_v2.model" in out
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert not {"lip_best", *NINE} & set(result["run"]["means"])
    assert set(result["gaps"]) == {"critic", "fid", "fvd", "sync", "expression", "identity",
                                   "dynamics", "imaging", "aesthetic"}  # fmt: skip
    gap = next(line for line in out.splitlines() if "Sync-C" in line)
    assert "\u2013" in gap
    assert "0" not in gap.replace("Sync-C", "")


def test_clips_of_different_lengths_are_told(folders, tmp_path, capsys):
    clips = sorted((folders / "good").glob("*.mp4"))[:2]
    for clip, frames in zip(clips, (21, 13), strict=True):
        found = media.read_video(clip)
        media.write_video(
            tmp_path / "short" / clip.name, found.frames[:frames], found.fps, found.audio
        )
    argv = [tmp_path / "short", "--against", folders / "good", "metrics=[face]"]
    code, out, _ = run(capsys, *argv, "-o", tmp_path / "out", "-q")
    assert code == 0
    assert "short: clips have 2 lengths, from 13 to 21" in out
    assert "1 of 2 pairs differ in length (face0-0001 1.04 and 1.68 s)" in out


def test_the_plan_writes_nothing(folders, tmp_path, capsys):
    argv = [folders / "good", "--against", folders / "bad", "-n", "--json", "-o", tmp_path / "out"]
    code, out, _ = run(capsys, *argv)
    assert code == 0
    assert json.loads(out)["pairs"] == 4
    assert not (tmp_path / "out").exists()


def bad_cases(folders: Path, root: Path):
    good = folders / "good"
    other = root / "other"
    media.write_video(other / "x.mp4", np.zeros((3, 32, 32, 3), np.uint8), 25)
    (root / "empty").mkdir()
    (root / "a.txt").write_text("no video")
    (root / "w.pth").write_bytes(b"weights")
    twice = [good, "--against", good]
    return {
        "no such folder": ([root / "absent"], "there is no file or folder"),
        "no videos": ([root / "empty"], "no videos in"),
        "videos below": ([folders], str(good)),
        "a text": ([root / "a.txt"], "is no video"),
        "no match": ([good, "--against", other], "the folders do not match"),
        "itself": (twice, "is compared with itself"),
        "metric without weights": ([good, "metrics=[sync]"], "needs weights.syncnet=PATH"),
        "unknown metric": ([good, "metrics=[snyc]"], "metrics"),
        "pattern": ([good, "condition=abc"], "has no group"),
        "no critic": ([good, "--critic", root / "empty"], "no trained critic"),
    }


def test_everything_wrong_is_told_before_anything_starts(folders, tmp_path, capsys):
    for name, (argv, message) in bad_cases(folders, tmp_path).items():
        code, out, err = run(capsys, *argv, "-o", tmp_path / "out")
        assert code == 2, name
        assert message in err, (name, err)
        assert err.startswith("error: "), name
        assert "hint: " in err, name
        assert not out, name
        assert not (tmp_path / "out").exists(), name


def test_a_folder_of_broken_videos_fails(tmp_path, capsys):
    (tmp_path / "a.mp4").write_bytes(b"nothing")
    code, _, err = run(capsys, tmp_path, "-o", tmp_path / "out", "-q")
    assert code == 1
    assert "none of 1 clips could be measured" in err


def test_clips_of_one_run_match_by_their_records(folders, tmp_path, capsys):
    for which, name in (("a", "first"), ("b", "second")):
        target = tmp_path / which / f"{name}.mp4"
        target.parent.mkdir()
        shutil.copy(folders / "good" / "face0-0000.mp4", target)
        record = {"inputs": {"portrait": {"sha256": "p" * 64}, "audio": {"sha256": "a" * 64}},
                  "config": {"seed": 3}}  # fmt: skip
        target.with_suffix(".json").write_text(json.dumps(record))
    code, out, _ = run(capsys, tmp_path / "a", "--against", tmp_path / "b", "-n", "--json")
    assert json.loads(out)["pairs"] == 1
    shutil.copy(tmp_path / "a" / "first.mp4", tmp_path / "a" / "again.mp4")
    shutil.copy(tmp_path / "a" / "first.json", tmp_path / "a" / "again.json")
    code, _, err = run(capsys, tmp_path / "a", "-n")
    assert code == 2
    assert "have the same inputs and the same seed" in err


def test_the_papers_tables_are_whole():
    first = TABLES[0]
    assert first.columns == [name for name in NINE if name != "bd"]
    assert TABLES[1].columns == list(NINE)
    assert TABLES[1].rows["FantasyTalking"]["sync_c"] == TABLES[5].rows["base"]["sync_c"] == 3.154
    assert all(table.confidence in ("authors' text", "review", "second-hand") for table in TABLES)
