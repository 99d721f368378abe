"""Pair evaluation end to end: labels, sides, left-outs, generators, page."""

import json
from pathlib import Path

import numpy as np
import pytest

from ft2.__main__ import main
from ft2.critic import TalkingCritic
from ft2.critic.answers import Answer, write_answers
from ft2.critic.card import read_evaluation
from ft2.critic.evaluate_pairs import evaluate_pairs, read_scores
from ft2.errors import UsageError


def vote(a, b, answer, rater="", dimension="overall", **facts):
    return Answer(a, dimension, answer, other=b, rater=rater, **facts)


SCORES = {
    name: {"overall": score} for name, score in zip("abcdef", (3, 2, 1, 0.5, 0, -1), strict=True)
}


def test_by_hand():
    answers = [
        vote("a", "b", "A", model="X", other_model="Y"),  # right
        vote("d", "c", "A", model="Y", other_model="X"),  # wrong: c has more
        vote("f", "e", "B"),  # right
        vote("a", "c", "tie"),
        *(vote("b", "d", word, rater) for rater, word in (("r", "A"), ("s", "A"), ("t", "B"))),
        *(vote("b", "e", word, rater) for rater, word in (("r", "A"), ("s", "B"))),  # split
        vote("a", "unknown", "A"),
    ]
    found = evaluate_pairs(answers, SCORES)["dimensions"]["overall"]
    assert found["n"] == 5
    assert found["human"] == {"A": 3, "B": 1, "tie": 1}
    assert found["strict"]["value"] == 3 / 4
    assert found["left_out"] == {"split_votes": 1, "without_scores": 1}
    assert found["generators"]["X"] == {"n": 2, "people": 0.5, "scores": 1.0, "bias": 0.5}
    # the others' majority: r against {s,t} and s against {r,t} is undecided; t against A, A
    assert found["raters"] == {"answers": 3, "agree_with_the_others": 0.0}


def test_order_and_sides_do_not_matter():
    rng = np.random.default_rng(0)
    names = [f"clip{i}" for i in range(30)]
    scores = {name: {"overall": float(round(rng.normal(), 1))} for name in names}
    answers = []
    for _ in range(80):
        a, b = rng.choice(names, 2, replace=False)
        answers.append(vote(str(a), str(b), str(rng.choice(["A", "B", "tie"])), prompt=str(a)[-1]))
    swap = {"A": "B", "B": "A", "tie": "tie"}
    turned = [vote(x.other, x.clip, swap[x.answer], prompt=x.prompt) for x in reversed(answers)]
    first, second = (evaluate_pairs(x, scores, num_resamples=50) for x in (answers, turned))
    names = ("strict", "half", "decided", "three_way_held_out", "three_way_oracle")
    for name in names:
        one, other = (x["dimensions"]["overall"][name]["value"] for x in (first, second))
        assert one == other


def test_scores_of_another_judge_are_read_strictly(tmp_path):
    path = tmp_path / "scores.jsonl"
    for rows, message in (
        ([{"clip": "a"}], "no finite score"),
        ([{"clip": "a", "overall": float("nan")}], "no finite score"),
        ([{"clip": "a", "overall": 1}, {"clip": "a", "overall": 2}], "two different"),
        ([{"overall": 1}], "row 1: a score row"),
        ([{"clip": "a", "log_odds": {"lip": "x"}}], 'no finite score in {"clip": "a"'),
        ([{"clip": "a", "log_odds": {"lip": None}}], "no finite score"),
        ([{"clip": "a", "log_odds": {"lip": True}}], "no finite score"),
        ([{"clip": "a", "log_odds": [1]}], "no finite score"),
        ([{"clip": "a", "log_odds": {}, "lip": 1}], "no finite score"),
    ):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(UsageError, match=message):
            read_scores(path)
    path.write_text('{"clip": "a", "error": "cut"}\n{"clip": "b", "overall": 1, "sha256": "x"}\n')
    assert read_scores(path) == {"b": {"overall": 1}}
    with pytest.raises(UsageError, match="no pair has scores"):
        evaluate_pairs([vote("a", "b", "A")], read_scores(path))


def test_page_and_json(tmp_path, capsys):
    write_answers(tmp_path / "a.jsonl", [vote("a", "b", "A", prompt="<b>"), vote("c", "b", "B")])
    lines = [json.dumps({"clip": c, **s}) for c, s in SCORES.items()]
    (tmp_path / "s.jsonl").write_text("\n".join(lines))
    args = ["critic", "eval", str(tmp_path / "a.jsonl"), "--scores", str(tmp_path / "s.jsonl")]
    for code in (0, 2):
        with pytest.raises(SystemExit) as stop:
            main([*args, "-o", str(tmp_path / "out")])
        assert stop.value.code == code
    out = capsys.readouterr().out
    assert "overall: 2 pairs (A 1, B 1, tie 0), 2 prompts" in out
    assert "trivial: random scores" in out
    page = (tmp_path / "out" / "eval.html").read_text()
    assert "coverage 1.00" in page
    stored = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert stored["dimensions"]["overall"]["strict"]["value"] == 1.0


def test_critic_is_asked_about_rated_pairs(adapter, ratings, tmp_path, capsys):
    names = [str(ratings.parent / f"{n}.mp4") for n in range(28, 34)]
    (tmp_path / "cut.mp4").write_bytes((ratings.parent / "28.mp4").read_bytes()[:900])
    critic = TalkingCritic.from_pretrained(adapter)
    odds = {row.path: row.log_odds for row in critic.score(videos=names)}
    pairs = [(names[0], names[1]), (names[2], names[3]), (names[4], names[5])]
    labels, wins = ["A", "B", "A"], 0
    for (a, b), label in zip(pairs, labels, strict=True):
        gap = odds[Path(a)]["quality"] - odds[Path(b)]["quality"]
        wins += (gap > 0) == (label == "A")
    rows = [
        {"video_a": a, "video_b": b, "motion": None, "lip": None, "quality": label,
         "identity_id": "f", "audio_id": f"v{a[-6:]}", "split": "test", "source": "human"}
        for (a, b), label in zip([*pairs, (names[0], "cut.mp4")], [*labels, "A"], strict=True)
    ]  # fmt: skip
    path = tmp_path / "ratings-pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = ["critic", "eval", str(path), "--critic", str(adapter), "-o", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        main(args)
    out, err = capsys.readouterr()
    assert stop.value.code == 0, err
    assert "quality: 3 pairs (A 2, B 1, tie 0), 3 prompts" in out
    assert "left out cut.mp4: cannot decode" in out
    found = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert found["dimensions"]["quality"]["strict"]["value"] == pytest.approx(wins / 3)
    assert found["dimensions"]["quality"]["left_out"] == {"without_scores": 1}
    assert read_evaluation(tmp_path / "out" / "eval.json", adapter)["split"] == "test"


def test_random_scores_on_the_real_votes(shared_data):
    from ft2.critic.importers import import_file

    answers = import_file("genai-bench", shared_data / "votes" / "genai_bench_video.json").answers
    rng = np.random.default_rng(0)
    clips = sorted({c for a in answers for c in (a.clip, a.other)})
    scores = {
        clip: {"overall": float(x)}
        for clip, x in zip(clips, rng.normal(size=len(clips)), strict=True)
    }
    found = evaluate_pairs(answers, scores, num_resamples=50)["dimensions"]["overall"]
    assert found["n"] == 1889
    assert found["human"]["tie"] == 404 + 215
    assert found["prompts"] == 502
    low, high = found["strict"]["low"], found["strict"]["high"]
    assert low < 0.5 < high
    assert found["three_way_oracle"]["value"] < 0.4
