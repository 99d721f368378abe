"""`ft2 critic`: plans without weights, scores as JSON, and errors before any model loads."""

import json
from pathlib import Path

import pytest

from ft2.__main__ import main
from ft2.cli.generate_run import find_judge
from ft2.critic.train import train_critic
from ft2.errors import UsageError
from ft2.generator.config import GenerateConfig
from ft2.runs import Silent


def run(capsys, *args):
    try:
        code = main(["critic", *map(str, args)])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code or 0, out, err


@pytest.mark.parametrize(
    ("preset", "trained"),
    [("nano/critic", 143_360), ("full/critic", 40_370_176), ("full/critic-3b", 29_933_568)],
)
def test_dry_run_counts_without_weights(capsys, ratings, tmp_path, preset, trained):
    given = f"ratings={ratings}"
    code, out, _ = run(capsys, "train", preset, given, "-n", "--json", "-o", tmp_path / "r")
    assert code == 0
    assert json.loads(out)["trainable_parameters"] == trained
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(("named", "code"), [(["ratings=absent.jsonl"], 2), ([], 0)])
def test_a_plan_without_ratings_counts_the_rest(capsys, tmp_path, monkeypatch, named, code):
    monkeypatch.chdir(tmp_path)
    found, out, err = run(capsys, "train", "nano/critic", *named, "-n", "--json")
    plan = json.loads(out)
    assert (found, plan["train_ratings"], plan["trainable_parameters"]) == (code, "unknown", 143360)
    assert "there is no ratings file" in plan["missing"]["ratings"]
    assert ("error: there is no ratings file absent.jsonl" in err) == bool(code)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train"], "no config given"),
        (["train", "nano/critic", "ratings=absent.jsonl"], "no ratings file"),
        (["train", "nano/critic", "lora.rnk=3"], "lora.rank"),
        (["train", "nano/critic", "device=bogus"], "unknown device 'bogus'"),
        (["score", "absent.mp4"], "no trained critic"),
        (["eval", "absent.jsonl", "--split", "val"], "unknown split"),
        (["pretrain", "data=absent"], "no puppet arrays"),
    ],
)
def test_wrong_input_is_error_2_with_a_hint(capsys, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *args)
    assert code == 2
    assert message in err
    assert "hint:" in err
    assert not out
    assert not any(tmp_path.iterdir())


def test_score_and_eval_after_training(capsys, config, ratings, tmp_path):
    train_critic(config, tmp_path / "run", False, Silent())
    clip = ratings.parent / "30.mp4"
    code, out, _ = run(capsys, "score", clip, clip, "--critic", tmp_path / "run", "--json")
    assert code == 0
    rows = json.loads(out)["scores"]
    assert rows[0] == rows[1]
    assert all(0 <= rows[0][d] <= 1 for d in ("motion", "lip", "quality"))
    code, out, _ = run(capsys, "eval", ratings, "--critic", tmp_path / "run/adapter")
    assert code == 0
    for row in ("critic", "untrained", "majority", "silenced", "audio_swapped"):
        assert f"\n{row}" in out
    code, _, err = run(capsys, "train", "nano/critic", f"ratings={ratings}", "-o", tmp_path / "run")
    assert code == 2
    assert "--resume" in err


def test_one_utterance_leaves_out_the_swapped_rows_alone(capsys, adapter, ratings, tmp_path):
    rows = [json.loads(line) for line in ratings.read_text().splitlines()]
    rows = [r for r in rows if r["split"] == "test" and r["audio_id"] == "test-voice1"]
    path = ratings.with_name("one-voice.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    call = ["eval", path, "--critic", adapter, "--no-sync", "-o", tmp_path / "e"]
    code, out, err = run(capsys, *call)
    path.unlink()
    assert code == 0, err
    assert "\naudio_swapped is left out: all clips have one utterance" in out
    found = json.loads((tmp_path / "e" / "eval.json").read_text())
    assert "silenced" in found["rows"]
    assert not {"audio_swapped", "audio_swapped_detected"} & {*found["rows"], *found["meaning"]}
    assert "No row for swapped sound" in (tmp_path / "e" / "eval.html").read_text()


def test_videos_that_a_critic_could_not_judge_are_refused_before_they_are_made():
    critic = Path(__file__).parents[2] / "notebooks" / "critic"
    judge = find_judge(critic, GenerateConfig(num_seeds=2))
    judge.check(21 / 12.5)
    with pytest.raises(UsageError, match=r"will last 1\.52 s, the critic needs 1\.64 s"):
        judge.check(19 / 12.5)
