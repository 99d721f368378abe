"""The lip-sync measure without SyncNet as a judge of lips: threshold, left-outs, both tables."""

import json
from pathlib import Path

import pytest

from ft2.__main__ import main
from ft2.critic import sync_row
from ft2.critic.answers import Answer, write_answers
from ft2.critic.data import Rating
from ft2.errors import UsageError
from ft2.metrics.measure import Measured


def run(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main(["critic", "eval", *map(str, args)])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


@pytest.fixture
def known(monkeypatch):
    """Give clips a concordance by name; any other clip cannot be measured."""
    values: dict[str, float] = {}

    def measured(self, clip):
        if clip not in values:
            raise UsageError("the video has no sound")
        return Measured({"lip_concordance": values[clip]})

    monkeypatch.setattr(sync_row.Clip, "read", lambda path: path.name)
    monkeypatch.setattr(sync_row.LipSync, "measure", measured)
    return values


def rating(name: str, lip: bool | None, voice: str = "v") -> Rating:
    return Rating(Path(name), (None, lip, True), "face", f"{voice}@1", "test", "human")


def test_threshold_is_that_of_the_dev_split(known):
    """All of dev's Yes lie above 0.6 and all No below 0.5; both kinds lie above 0 or the mean."""
    dev = []
    for number in range(40):
        known[f"dev{number}"] = 0.3 + 0.005 * number if number < 20 else 0.6 + 0.005 * number
        dev.append(rating(f"dev{number}", number >= 20))
    values = {"a": 0.9, "b": 0.69, "c": 0.42, "d": 0.3, "e": 0.1}
    known |= values
    rated = [
        *(rating("a", True, "v"), rating("b", False, "v"), rating("c", True, "w")),
        *(rating("d", False, "w"), rating("e", False, "w")),
        *(rating("f", True), rating("g", True), rating("a", None)),
    ]
    found = sync_row.sync_row(rated, dev, 1)
    assert found["n"] == 5
    assert found["left_out"] == {"the video has no sound": 2}
    assert 0.42 < found["threshold"] < 0.69
    assert found["accuracy"]["value"] == 3 / 5  # b is taken for Yes, c for No
    assert found["auc"]["value"] == 5 / 6  # of six pairs of a Yes and a No only c < b is wrong
    assert found["majority"]["value"] == 3 / 5


def test_nothing_to_measure_is_a_row_without_figures(known):
    found = sync_row.sync_row([rating("x", True)], [], 1)
    assert found == {
        "n": 0,
        "accuracy": None,
        "auc": None,
        "left_out": {"the video has no sound": 1},
    }


def test_row_beside_the_critic(adapter, ratings, tmp_path, capsys, known):
    """Of eight test clips two cannot be measured; the toy's clips show noise, not faces."""
    rows = [json.loads(line) for line in ratings.read_text().splitlines()]
    for number, row in enumerate(rows[:34]):
        known[f"{number}.mp4"] = 0.8 if row["lip"] else 0.2
    code, out, _ = run(capsys, ratings, "--critic", adapter, "-q", "-o", tmp_path / "out")
    assert code == 0
    assert "sync_measure leaves out 2: the video has no sound" in out
    line = next(line for line in out.splitlines() if line.startswith("sync_measure"))
    assert line.split()[:2] == ["sync_measure", "-"]
    assert "1.000 [1.00, 1.00] 1.000" in line
    stored = json.loads((tmp_path / "out/eval.json").read_text())
    assert stored["rows"]["sync_measure"]["lip"]["n"] == 6
    page = (tmp_path / "out/eval.html").read_text()
    assert "leaves out 2: the video has no sound" in page
    code, out, _ = run(capsys, ratings, "--critic", adapter, "-q", "--no-sync")
    assert code == 0
    assert "sync_measure" not in out


def test_beside_scores_of_pairs(tmp_path, capsys, known):
    known |= {"a": 0.9, "b": 0.1, "c": 0.2, "d": 0.8}

    def vote(a: str, b: str, dimension: str = "lip") -> Answer:
        return Answer(a, dimension, "A", other=b)

    answers = [vote("a", "b"), vote("c", "d"), vote("a", "e"), vote("a", "b", "quality")]
    write_answers(tmp_path / "a.jsonl", answers)
    scores = {"a": 2, "b": 1, "c": 2, "d": 1, "e": 1}
    rows = [{"clip": clip, "lip": s, "quality": s} for clip, s in scores.items()]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    clips = tmp_path / "clips"
    args = [tmp_path / "a.jsonl", "--scores", tmp_path / "s.jsonl", "--media", clips, "-q"]
    code, _, err = run(capsys, *args)
    assert code == 2
    assert "is no folder" in err
    clips.mkdir()
    code, _, err = run(capsys, *args)
    assert code == 2
    assert "5 of 5 clips are not there" in err
    for name in "abcde":
        (clips / name).touch()
    code, out, _ = run(capsys, *args, "-o", tmp_path / "out")
    assert code == 0
    assert "lip-sync measure without SyncNet, 2 pairs" in out
    assert "1 clips left out: the video has no sound" in out
    found = json.loads((tmp_path / "out/eval.json").read_text())["dimensions"]
    assert found["lip"]["strict"]["value"] == 1.0
    assert found["lip"]["sync_measure"]["strict"]["value"] == 0.5
    assert "sync_measure" not in found["quality"]
    assert "lip-sync measure: strict" in (tmp_path / "out/eval.html").read_text()


def test_media_belongs_to_scores(ratings, tmp_path, capsys):
    code, _, err = run(capsys, ratings, "--media", tmp_path)
    assert code == 2
    assert "--media" in err
    assert "needs --scores" in err
