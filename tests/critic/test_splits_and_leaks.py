"""From answers on any dimension to a training; what two splits must not share."""

import json
import shutil

import pytest

from ft2.__main__ import main
from ft2.critic.annotation import AnswerStore, Item
from ft2.critic.answers import Answer, write_answers
from ft2.critic.data import read_pair_ratings, read_ratings
from ft2.critic.merge import merge
from ft2.critic.train import train_critic
from ft2.critic.training_data import remarks_on
from ft2.errors import UsageError
from ft2.runs import Silent


def run(*args):
    """Return the exit code of `ft2 critic ARGS`."""
    with pytest.raises(SystemExit) as stop:
        main(["critic", *map(str, args)])
    return stop.value.code


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_own_dimensions_from_the_page_to_a_critic(ratings, config, tmp_path, capsys):
    store = AnswerStore(tmp_path / "smile.sqlite", ("smile", "gaze"))
    for row in rows_of(ratings):
        facts = {k: row[k] for k in ("identity_id", "audio_id")}
        store.add([Item(str(ratings.parent / row["video"]), facts=facts)])
    while task := store.task("ann"):
        bright = int(task.sides[0].split("/")[-1].removesuffix(".mp4")) % 2
        store.answer("ann", task.item, "gaze", "unsure" if bright else "no")
        store.answer("ann", task.item, "smile", "yes" if bright else "no")
    answers, out = tmp_path / "answers.jsonl", tmp_path / "ratings.jsonl"
    assert run("raters", tmp_path / "smile.sqlite", "-o", answers) == 0
    capsys.readouterr()
    assert run("split", answers, "--media", "/", "-o", out, "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["dimensions"] == ["gaze", "smile"]
    assert sum(made["ratings"].values()) == 36
    own = config.model_copy(
        update={"ratings": str(out), "questions": {"smile": "Is it a smile?"}, "steps": 1}
    )
    assert any("also rates gaze" in line for line in remarks_on(own))
    assert train_critic(own, tmp_path / "run", False, Silent())["thresholds"].keys() == {"smile"}
    with pytest.raises(UsageError, match="rates gaze, smile, asked is about motion, lip, quality"):
        train_critic(config.model_copy(update={"ratings": str(out)}), tmp_path / "x", False, None)


def test_a_dimension_that_nobody_was_asked_is_unrated(ratings, tmp_path, config):
    rows = [{k: v for k, v in row.items() if k != "lip"} for row in rows_of(ratings)]
    for row in rows:
        row["video"] = str(ratings.parent / row["video"])
    path = write(tmp_path / "ratings.jsonl", rows)
    assert {r.labels[1] for r in read_ratings(path)} == {None}
    with pytest.raises(UsageError, match="no Yes for lip"):
        train_critic(config.model_copy(update={"ratings": str(path)}), tmp_path / "x", False, None)
    del rows[4]["motion"]
    with pytest.raises(UsageError, match=":5: missing or unknown keys: motion"):
        read_ratings(write(path, rows))


def test_clips_and_pairs_go_to_two_files_with_the_same_splits(ratings, tmp_path, capsys):
    answers = []
    for row in rows_of(ratings):
        facts = {"identity_id": row["identity_id"], "audio_id": row["audio_id"]}
        clip, number = row["video"], int(row["video"].removesuffix(".mp4"))
        answers.append(Answer(clip, "lip", "yes" if row["lip"] else "no", **facts))
        other = f"{number + 12}.mp4"
        if number < 12:
            for dimension in ("quality", "lip"):
                answers.append(Answer(clip, dimension, "A", other=other, **facts))
    write_answers(tmp_path / "answers.jsonl", answers)
    out = tmp_path / "r.jsonl"
    args = ["split", tmp_path / "answers.jsonl", "--media", ratings.parent, "-o", out]
    assert run(*args, "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["pairs"]["output"] == str(tmp_path / "r-pairs.jsonl")
    clips = {r.video.name: r for r in read_ratings(out, dimensions=["lip"])}
    pairs = read_pair_ratings(tmp_path / "r-pairs.jsonl", ["quality"])
    assert (len(clips), len(pairs)) == (36, 12)
    assert "quality" not in rows_of(out)[0]
    assert all(clips[v.name].split == pair.split for pair in pairs for v in pair.videos)
    out.unlink()
    assert run(*args) == 2
    assert "r-pairs.jsonl' already exists" in capsys.readouterr().err


@pytest.mark.parametrize("splits", [("train", "dev"), ("dev", "test"), ("train", "test")])
@pytest.mark.parametrize("what", ["identity_id", "audio_id", "source_clip", "video", "copy"])
def test_no_two_splits_share_anything(ratings, tmp_path, what, splits):
    rows = rows_of(ratings)
    for row in rows:
        row["video"] = str(ratings.parent / row["video"])
    one, two = (next(r for r in rows if r["split"] == name) for name in splits)
    if what == "copy":
        two["video"] = str(shutil.copy(one["video"], tmp_path / "other.mp4"))
    elif what == "video":
        (tmp_path / "link.mp4").symlink_to(one["video"])
        two["video"] = "link.mp4"
    elif what == "audio_id":
        one[what], two[what] = "s1@0", "s1@16000"
    else:
        one[what] = two[what] = "the same"
    path = write(tmp_path / "ratings.jsonl", rows)
    with pytest.raises(UsageError, match=f"in {splits[0]} and in {splits[1]}"):
        read_ratings(path)


def test_split_keeps_recordings_and_copies_together(ratings, tmp_path):
    answers = []
    for number in range(12):
        name = f"{number}.mp4"
        shutil.copy(ratings.parent / name, tmp_path / name)
        recording = f"take{number // 2}" if number < 6 else ""
        answers.append(Answer(name, "lip", "yes", source_clip=recording))
    shutil.copy(tmp_path / "11.mp4", tmp_path / "twin.mp4")
    write_answers(tmp_path / "a.jsonl", [*answers, Answer("twin.mp4", "lip", "yes")])
    out = tmp_path / "ratings.jsonl"
    assert run("split", tmp_path / "a.jsonl", "-o", out, "shares=[0.4,0.3,0.3]") == 0
    read = {r.video.name: r for r in read_ratings(out, dimensions=["lip"])}
    assert [read[f"{n}.mp4"].source_clip for n in (0, 4, 8)] == ["take0", "take2", ""]
    assert all(read[f"{n}.mp4"].split == read[f"{n + 1}.mp4"].split for n in (0, 2, 4))
    assert read["11.mp4"].split == read["twin.mp4"].split


def test_facts_of_all_answers_count_and_conflicts_are_named(tmp_path, capsys):
    said = [
        Answer("a.mp4", "lip", "yes", rater="ann"),
        Answer("a.mp4", "lip", "yes", rater="bob", identity_id="face", audio_id="s@0"),
        Answer("a.mp4", "lip", "no", rater="cy", source_clip="take", audio_id="s@9"),
    ]
    merged = merge(said)
    fact = merged.facts["a.mp4", None]
    assert (fact.identity_id, fact.audio_id, fact.source_clip) == ("face", "s@0", "take")
    assert not merged.conflicts
    write_answers(tmp_path / "a.jsonl", [*said, Answer("a.mp4", "lip", "no", identity_id="else")])
    assert run("split", tmp_path / "a.jsonl", "-o", tmp_path / "r.jsonl") == 2
    message = capsys.readouterr().err
    assert "row 4: identity_id of a.mp4 is 'else', an earlier row says 'face'" in message


@pytest.mark.parametrize("kind", ["clips", "pairs"])
def test_contradicting_rows_are_named(ratings, tmp_path, kind):
    rows = rows_of(ratings)[:2]
    for row in rows:
        row["video"] = str(ratings.parent / row["video"])
    if kind == "clips":
        agreeing = [*rows, rows[0]]
        rows = [*agreeing, rows[1] | {"lip": not rows[1]["lip"]}]
        read, dimensions = read_ratings, ("motion", "lip", "quality")
    else:
        first = {k: v for k, v in rows[0].items() if k not in ("video", "motion", "quality")}
        a, b = (row["video"] for row in rows)
        agreeing = [first | {"video_a": a, "video_b": b, "lip": "A"}]
        agreeing += [first | {"video_a": b, "video_b": a, "lip": "B"}, agreeing[0] | {"lip": None}]
        rows = [*agreeing, agreeing[1] | {"lip": "A"}]
        read, dimensions = read_pair_ratings, ("lip",)
    assert len(read(write(tmp_path / "r.jsonl", agreeing), dimensions=dimensions)) == 3
    number = 2 if kind == "clips" else 1
    with pytest.raises(UsageError, match=f"rows {number} and 4 differ on lip"):
        read(write(tmp_path / "r.jsonl", rows), dimensions=dimensions)


def test_names_that_cannot_be_dimensions_and_answers_that_decide_nothing(tmp_path, capsys):
    (tmp_path / "a.mp4").write_bytes(b"x")
    for answers, message in (
        ([Answer("a.mp4", "split", "yes")], "cannot be called 'split'"),
        ([Answer("a.mp4", "lip", "unsure")], "1 unsure"),
    ):
        write_answers(tmp_path / "a.jsonl", answers)
        out = tmp_path / "r.jsonl"
        assert run("split", tmp_path / "a.jsonl", "-o", out, "shares=[1,0,0]") == 2
        assert message in capsys.readouterr().err
        assert not out.exists()


def test_numbers_in_quotes_are_named(ratings, tmp_path):
    row = rows_of(ratings)[0]
    row = {k: v for k, v in row.items() if k not in ("video", "motion", "quality")}
    row |= {"lip": "A", "margin": {"lip": "3"}}
    row |= {k: str(ratings.parent / f"{n}.mp4") for n, k in enumerate(("video_a", "video_b"))}
    with pytest.raises(UsageError, match="without quotes"):
        read_pair_ratings(write(tmp_path / "r.jsonl", [row]), ["lip"])
