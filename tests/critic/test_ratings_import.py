"""Importers keep to their vocabularies; merging counts; splits share no face, voice or clip."""

import csv
import json
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft2.__main__ import main
from ft2.critic.answers import Answer, write_answers
from ft2.critic.importers import import_file, read_answers
from ft2.critic.merge import majority, merge
from ft2.critic.splits import assign_splits, groups_of
from ft2.errors import UsageError


def run(*args):
    """Return the exit code of `ft2 critic ARGS`."""
    with pytest.raises(SystemExit) as stop:
        main(["critic", *map(str, args)])
    return stop.value.code


def write(path, rows):
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def words(found):
    return [(a.clip, a.other, a.dimension, a.answer) for a in found.answers]


def test_genai_votes_keep_both_bad_apart(tmp_path):
    votes = ["leftvote", "rightvote", "tievote", "bothbad_vote", "Leftvote", "22"]
    rows = [
        {"id": i, "prompt": "p", "video_left": f"{i}.mp4", "video_right": "b.mp4", "vote_type": v}
        for i, v in enumerate(votes)
    ]
    found = import_file("genai-bench", write(tmp_path / "a.json", rows))
    assert [a.answer for a in found.answers] == ["A", "B", "tie", "tie"]
    assert found.counts()["counts"]["overall"]["bothbad_vote"] == 1
    assert [r.row for r in found.rejects] == [5, 6]
    assert "a.json: row 5: vote_type is 'Leftvote'" in found.lines()[0]


def test_videoalign_refuses_a_label_and_keeps_the_others_of_the_row(tmp_path):
    row = {"path_A": "./v/a.mp4", "path_B": "v/b.mp4", "prompt": "x, y", "VQ": "A", "MQ": "22"}
    row |= {"TA": "same", "MOS_A_VQ": "3.5", "MOS_B_VQ": "3.0"}
    found = import_file("videoalign", write(tmp_path / "a.csv", [row]))
    assert words(found) == [
        ("v/a.mp4", "v/b.mp4", "quality", "A"),
        ("v/a.mp4", "v/b.mp4", "text_alignment", "tie"),
    ]
    assert found.answers[0].margin == 0.5
    assert found.rejects[0].reason.startswith("MQ is '22'")


def test_mj_bench_refuses_other_spellings(tmp_path):
    row = {"caption": "c", "video_0_path": "a", "video_1_path": "b", "discard": False}
    row |= {"overall_preference": "Video 1 better"}
    row |= {"category_preference": {"Bias": "Video 1 Better", "Coherence & Consistency": "Same"}}
    rows = [row, row | {"discard": True}, row | {"overall_preference": "Hard to judge"}]
    found = import_file("mj-bench-video", write(tmp_path / "a.json", rows))
    assert words(found)[:2] == [
        ("a", "b", "coherence_and_consistency", "tie"),
        ("a", "b", "overall", "A"),
    ]
    assert Counter(r.row for r in found.rejects) == {1: 1, 2: 1, 3: 2}


@pytest.mark.parametrize(
    ("name", "row", "want"),
    [
        ("visionreward", {"standard_answer": "video2"}, ("B", None)),
        ("hpdv3", {"choice_dist": [9, 3]}, ("A", 0.75)),
        ("trl", {"margin": 0.5}, ("A", None)),
    ],
)
def test_other_formats(tmp_path, name, row, want):
    keys = {"visionreward": ("video1_path", "video2_path"), "hpdv3": ("path1", "path2")}
    a, b = keys.get(name, ("chosen", "rejected"))
    found = import_file(name, write(tmp_path / "a.jsonl", [row | {a: "x.mp4", b: "y.mp4"}]))
    assert (found.answers[0].answer, found.answers[0].share) == want


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("visionreward", {"video1_path": "a", "video2_path": "b"}, "standard_answer is None"),
        ("hpdv3", {"path1": "a", "path2": "b", "choice_dist": [1, 2]}, "contradicts"),
        ("hpdv3", {"path1": "a", "path2": "b", "choice_dist": "3"}, "not two counts"),
        ("trl", {"chosen": "a", "rejected": ["b"]}, "not the path"),
        ("trl", {"chosen": "a", "rejected": "a"}, "paired with itself"),
        ("ft2", {"clip": "a", "dimension": "lip", "answer": "Yes"}, "answer 'Yes' is not one of"),
        ("ft2", {"clip": "a", "dimension": "lip", "answer": "A"}, "answer 'A' is not one of"),
        ("ft2", {"clip": "a", "dimension": "lip", "answer": "no", "x": 1}, "unknown keys: x"),
        ("ft2", {"clip": "a", "lip": "no"}, "missing keys: dimension, answer; unknown keys: lip"),
        ("ft2", {"video": "a.mp4", "lip": True}, "ft2 critic train takes it"),
        ("ft2", {"clip": "a", "dimension": "lip", "answer": "no", "time": "noon"}, "ISO 8601"),
        ("ft2", {"clip": "a", "dimension": "lip", "answer": "no", "share": 1.5}, "share must"),
        ("ft2", {"clip": "a", "dimension": "lip", "answer": "no", "margin": "3"}, "no quotes"),
        ("trl", {"chosen": "a", "rejected": "b", "margin": math.inf}, "must be a number, got inf"),
        ("ft2", {"clip": 7, "dimension": "lip", "answer": "no"}, "clip must be a text"),
        ("ft2", {"dimension": "lip", "answer": "no"}, "keys: clip"),
    ],
)
def test_rows_outside_the_vocabulary_are_refused(tmp_path, name, row, reason):
    found = import_file(name, write(tmp_path / "a.jsonl", [row]))
    assert not found.answers
    assert reason in found.rejects[0].reason


def test_own_format_survives_every_container(tmp_path):
    answers = [
        Answer("a.mp4", "lip", "no", rater="r", time="2026-01-02T03:04:05", identity_id="face"),
        Answer("a.mp4", "overall", "tie", other="b.mp4", share=0.5, margin=-1.0, given="same"),
    ]
    write_answers(tmp_path / "a.jsonl", answers)
    write_answers(tmp_path / "a.parquet", answers)
    from datasets import Dataset

    Dataset.from_parquet(str(tmp_path / "a.parquet")).save_to_disk(tmp_path / "hf")
    for name in ("a.jsonl", "a.parquet", "hf"):
        assert read_answers(tmp_path / name) == answers
    (tmp_path / "a.jsonl").write_text('{"clip": "a"\n')
    with pytest.raises(UsageError, match="row 1: a row is an object"):
        read_answers(tmp_path / "a.jsonl")


def test_line_separators_in_a_prompt_survive(tmp_path):
    prompt = "one\u2028two\u2029three\x85four"
    row = {"clip": "a.mp4", "dimension": "lip", "answer": "no", "prompt": prompt}
    (tmp_path / "esc.jsonl").write_text(json.dumps(row) + "\n")
    assert run("import", "ft2", tmp_path / "esc.jsonl", "-o", tmp_path / "back.jsonl") == 0
    assert "\u2028" in (tmp_path / "back.jsonl").read_text()
    assert read_answers(tmp_path / "back.jsonl") == [Answer("a.mp4", "lip", "no", prompt=prompt)]
    from ft2.generator.batch import read_rows

    listed = {"portrait": "a.png", "audio": "a.wav", "prompt": prompt}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(listed, ensure_ascii=False) + "\n")
    assert json.loads(read_rows(path)[0].overrides[0].partition("=")[2]) == prompt


def test_csv_rows_have_as_many_cells_as_the_header(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(
        "clip,other,dimension,answer,share,identity_id\n"
        "a.mp4,,lip,no,,ann\n"
        "a.mp4,b.mp4,lip,A,0.75,ann\n"
        "a.mp4,,lip,no,,ann,surplus\n"
        "a.mp4,,lip,no\n"
        "a.mp4,b.mp4,lip,A,most,ann\n"
    )
    found = import_file("ft2", path)
    assert [(a.other, a.share, a.identity_id) for a in found.answers] == [
        (None, None, "ann"), ("b.mp4", 0.75, "ann")
    ]  # fmt: skip
    assert [r.row for r in found.rejects] == [3, 4, 5]
    reasons = " ".join(r.reason for r in found.rejects)
    for part in ("more cells", "'surplus'", "none for share, identity_id", "the text 'most'"):
        assert part in reasons
    wide = "path_A,path_B,VQ\na.mp4,b.mp4,A\na.mp4,c.mp4,A,B\n"
    (tmp_path / "v.csv").write_text(wide)
    found = import_file("videoalign", tmp_path / "v.csv")
    assert (len(found.answers), [r.row for r in found.rejects]) == (1, [2])


def test_a_dataset_of_several_splits_is_asked_for_one(tmp_path):
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([{"clip": "a.mp4", "dimension": "lip", "answer": "no"}])
    DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "hf")
    with pytest.raises(UsageError, match=r"train, test \(give one of them: .*hf/train") as caught:
        read_answers(tmp_path / "hf")
    assert read_answers(tmp_path / "hf" / "test")
    assert caught.value.exit_code == 2


def test_raters_who_repeat_or_contradict_themselves():
    def say(answer, rater="", other=None, clip="a"):
        return Answer(clip, "lip", answer, other=other, rater=rater)

    merged = merge(
        [
            *(say("yes", "ann"), say("yes", "ann"), say("no", "bob"), say("yes", "bob")),
            *(say("unsure", "cy"), say("no", "dan"), say("yes", "eve")),
            *(
                say("A", "ann", other="b"),
                say("B", "bob", other="a", clip="b"),
                say("B", other="b"),
            ),
        ]
    )
    assert merged.votes[("a", None), "lip"] == {"yes": 2, "no": 1}
    assert merged.votes[("a", "b"), "lip"] == {"A": 2, "B": 1}
    assert merged.counts == {"answers": 10, "duplicate": 1, "contradictory": 2, "unsure": 1}
    assert majority(Counter(yes=2, no=1)) == "yes"
    assert majority(Counter(A=1, B=1)) is None


FACES = st.sampled_from(["", "f1", "f2", "f3", "f4", "f5"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(FACES, FACES), min_size=1, max_size=25), st.integers(0, 3))
def test_splits_share_no_face_voice_or_clip(clips, seed):
    answers = [
        Answer(f"c{i}", "lip", "yes", identity_id=face, audio_id=voice and f"{voice}@{i}")
        for i, (face, voice) in enumerate(clips)
    ]
    facts = merge(answers).facts
    groups = groups_of(facts)
    try:
        splits = assign_splits(groups, seed=seed)
    except UsageError:
        assert len(set(groups.values())) < 3
        return
    assert set(splits.values()) == {"train", "dev", "test"}
    for read in (lambda a: a.identity_id, lambda a: a.audio_id.split("@")[0]):
        seen = {}
        for item, answer in facts.items():
            if read(answer):
                assert seen.setdefault(read(answer), splits[item]) == splits[item]
    backwards = dict(reversed(facts.items()))
    assert assign_splits(groups_of(backwards), seed=seed) == splits


def test_import_and_split_commands_feed_the_training(capsys, tmp_path, ratings):
    rows = [json.loads(line) for line in ratings.read_text().splitlines()]
    answers = [
        {"clip": r["video"], "dimension": d, "answer": "yes" if r[d] else "no", "rater": rater}
        | {"identity_id": r["identity_id"], "audio_id": f"{r['identity_id']}-{r['audio_id']}"}
        for r in rows
        for d in ("motion", "lip", "quality")
        for rater in ("ann", "bob")
    ]
    given = write(tmp_path / "given.jsonl", [*answers, {"clip": "x", "answer": "?"}])
    out = tmp_path / "answers.parquet"
    assert run("import", "ft2", given, "-o", out, "--json") == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert (result["answers"], result["rejected"], result["raters"]) == (216, 1, 2)
    assert "row 217" in captured.err
    path = tmp_path / "sub" / "ratings.jsonl"
    assert run("split", out, "--media", ratings.parent, "-o", path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["ratings"]["train"] > 0
    from ft2.critic.data import read_ratings

    read = read_ratings(path)
    assert {r.split for r in read} == {"train", "dev", "test"}
    by_name = {r.video.name: r for r in read}
    assert all(by_name[r["video"]].labels[2] == r["quality"] for r in rows)


def test_commands_refuse_nonsense(capsys, tmp_path):
    empty = tmp_path / "a.jsonl"
    empty.write_text("")
    for args in (
        ["import", "genai", empty],
        ["import", "ft2", empty],
        ["import", "ft2", tmp_path / "none.jsonl"],
        ["split", empty, "-o", tmp_path / "r.jsonl"],
        ["split", empty, "shares=[1,1,1]", "-o", tmp_path / "r.jsonl"],
    ):
        assert run(*args) == 2
        assert "hint:" in capsys.readouterr().err
    assert not (tmp_path / "r.jsonl").exists()


def test_counts_of_the_real_votes(capsys, shared_data):
    path = shared_data / "votes" / "genai_bench_video.json"
    assert run("import", "genai-bench", path, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["counts"]["overall"] == {
        "rightvote": 651,
        "leftvote": 619,
        "bothbad_vote": 404,
        "tievote": 215,
    }
    assert result["rejected"] == 0
    found = import_file("videoalign", shared_data / "videoalign" / "example.csv")
    assert len({a.clip for a in found.answers}) == 3
    assert len(found.answers) == 36
