"""Trainings on choices and opinion scores learn, resume after SIGKILL, and say their outcomes."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ft2.__main__ import main
from ft2.critic import TalkingCritic, train
from ft2.critic.checkpoint import read_card
from ft2.critic.config import CriticConfig
from ft2.critic.data import read_pair_ratings
from ft2.critic.training_data import read_data
from ft2.errors import UsageError
from ft2.runs import Silent, hash_file


@pytest.fixture(scope="module")
def pairs(ratings, tmp_path_factory):
    """Choices between the clips of each split: the brighter one has the better quality."""
    clips = [json.loads(line) for line in ratings.read_text().splitlines()]
    rows = []
    for a in clips:
        for b in clips:
            if a["split"] != b["split"] or a["video"] >= b["video"]:
                continue
            sign = int(a["quality"]) - int(b["quality"])
            label = {1: "A", -1: "B", 0: "tie"}[sign]
            rows.append(
                {
                    "video_a": str(ratings.parent / a["video"]),
                    "video_b": str(ratings.parent / b["video"]),
                    "motion": None,
                    "lip": None,
                    "quality": label,
                    "share": {"quality": 0.5 + 0.4 * sign},
                    "margin": {"quality": sign * 0.5},
                    **{k: a[k] for k in ("identity_id", "audio_id", "split")},
                    "source": "human",
                }
            )
    path = tmp_path_factory.mktemp("pairs") / "ratings.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings_for(spec, path, objective, **changes):
    engine = {"learning_rate": 3e-3, "micro_batch_size": 16, "warmup_steps": 2}
    given = {"model": spec, "ratings": str(path), "engine": engine, "steps": 60, "swap": 0.0}
    given |= {"objective": objective, "questions": {"quality": "Is the visual quality good?"}}
    return CriticConfig(**(given | changes))


def only_quality(path, folder):
    """A copy of a ratings file with the one dimension."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if k not in ("motion", "lip")} for row in rows]
    for row in rows:
        if "video" in row:
            row["video"] = str(path.parent / row["video"])
    target = folder / "quality.jsonl"
    target.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return target


@pytest.mark.parametrize("objective", ["rao_kupper", "soft"])
def test_choices_are_learned_and_outcomes_follow(objective, spec, pairs, ratings, tmp_path):
    path = only_quality(pairs, tmp_path)
    result = train.train_critic(
        settings_for(spec, path, objective), tmp_path / "run", False, Silent()
    )
    assert result["ratings"] == {"train": 276, "dev": 4}
    critic = TalkingCritic.from_pretrained(tmp_path / "run")
    assert critic.dimensions == ("quality",)
    dark, bright = ratings.parent / "28.mp4", ratings.parent / "29.mp4"
    found = critic.compare(a=bright, b=dark)["quality"]
    assert found.a > 0.6
    assert found.a + found.tie + found.b == pytest.approx(1)
    back = critic.compare(a=dark, b=bright)["quality"]
    assert (found.a, found.tie, found.b) == pytest.approx((back.b, back.tie, back.a))
    widths = read_card(tmp_path / "run" / "adapter").tie_widths
    if objective == "rao_kupper":
        same = critic.compare(a=dark, b=ratings.parent / "30.mp4")["quality"]
        assert same.tie > found.tie
        assert widths["quality"] != pytest.approx(1 + np.log(2), abs=1e-4)
    else:
        assert widths is None
        assert found.tie == 0


def test_answers_serve_pair_objectives_and_numbers_regression(spec, ratings, tmp_path):
    path = only_quality(ratings, tmp_path)
    davidson = settings_for(spec, path, "davidson", steps=40)
    train.train_critic(davidson, tmp_path / "davidson", False, Silent())
    critic = TalkingCritic.from_pretrained(tmp_path / "davidson")
    dark, bright = (ratings.parent / f"{n}.mp4" for n in (28, 29))
    assert critic.compare(a=bright, b=dark)["quality"].a > 0.5
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    marks = [row | {"quality": 4.5 if row["quality"] else 1.0} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in marks))
    train.train_critic(
        settings_for(spec, path, "regression", steps=80), tmp_path / "mos", False, Silent()
    )
    critic = TalkingCritic.from_pretrained(tmp_path / "mos")
    low, high = (s.log_odds["quality"] for s in critic.score(videos=[dark, bright]))
    assert low == pytest.approx(1.0, abs=1.0)
    assert high == pytest.approx(4.5, abs=1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "yes_no"}, "learns from single ones"),
        ({"swap": 0.2}, "set swap=0"),
    ],
)
def test_wrong_objective_for_pairs(spec, pairs, tmp_path, changes, message):
    path = only_quality(pairs, tmp_path)
    config = settings_for(spec, path, "soft").model_copy(update=changes)
    with pytest.raises(UsageError, match=message):
        read_data(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quality": "a"}, "A, B, tie or null"),
        ({"share": {"quality": 2}}, "share is a number"),
        ({"margin": 3}, "margin is a number"),
        ({"video_b": "none.mp4"}, "there is no video"),
        ({"who": 1}, "unknown keys: who"),
    ],
)
def test_bad_pair_lines_are_named(pairs, tmp_path, change, message):
    path = only_quality(pairs, tmp_path)
    lines = path.read_text().splitlines()
    lines[3] = json.dumps(json.loads(lines[3]) | change)
    path.write_text("\n".join(lines))
    with pytest.raises(UsageError, match=f":4: .*{message}"):
        read_pair_ratings(path, ["quality"])


def test_configs_that_do_not_go_together(spec, ratings):
    with pytest.raises(ValueError, match="swap=0"):
        settings_for(spec, ratings, "regression", swap=0.1)
    with pytest.raises(ValueError, match="must be even"):
        settings_for(spec, ratings, "soft", engine={"micro_batch_size": 3})
    with pytest.raises(ValueError, match="1 to 8"):
        settings_for(spec, ratings, "yes_no", questions={f"q{i}": "?" for i in range(9)})


def test_imported_choices_feed_a_training(spec, ratings, tmp_path, capsys):
    """Import, split and read back: shares, margins and sides arrive where the loss takes them."""
    rows = [
        {"path_A": f"./{a}.mp4", "path_B": f"{b}.mp4", "VQ": vote, "MQ": "same"}
        | {"MOS_A_VQ": 4, "MOS_B_VQ": 3}
        for a, b, vote in ((1, 0, "A"), (3, 10, "A"), (9, 4, "same"), (5, 20, "B"), (7, 6, "A"))
    ]
    (tmp_path / "v.json").write_text(json.dumps(rows))
    for args in (
        ["import", "videoalign", tmp_path / "v.json", "-o", tmp_path / "a.jsonl"],
        ["split", tmp_path / "a.jsonl", "--media", ratings.parent, "-o", tmp_path / "r.jsonl"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(["critic", *map(str, args)])
        assert stop.value.code == 0, capsys.readouterr().err
    read = {tuple(v.name for v in r.videos): r for r in read_pair_ratings(tmp_path / "r.jsonl")}
    assert read["0.mp4", "1.mp4"].labels == ("tie", None, "B")
    assert read["0.mp4", "1.mp4"].margins == (None, None, -1.0)
    assert read["0.mp4", "1.mp4"].shares == (0.5, None, 0.0)
    assert read["20.mp4", "5.mp4"].labels[2] == "A"


@pytest.mark.slow
def test_killed_training_ends_with_the_same_bytes(spec, pairs, tmp_path):
    path = only_quality(pairs, tmp_path)
    config = settings_for(spec, path, "rao_kupper", steps=15, checkpoint_steps=3)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    code = (
        "import sys; from pathlib import Path\n"
        "from ft2.critic.config import CriticConfig; from ft2.critic.train import train_critic\n"
        "from ft2.runs import Silent\n"
        "config = CriticConfig.model_validate_json(Path(sys.argv[1]).read_text())\n"
        "train_critic(config, Path(sys.argv[2]), True, Silent())\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "config.json")]
    train.train_critic(config, tmp_path / "whole", False, Silent())
    killed = 0
    for after in (2, 9):  # before the first checkpoint, and later
        process = subprocess.Popen([*command, str(tmp_path / "cut")])
        log = tmp_path / "cut" / "metrics.jsonl"
        while process.poll() is None:
            if log.exists() and log.read_text().count("\n") >= after:
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.005)
        killed += process.wait() == -signal.SIGKILL
    assert killed
    subprocess.run([*command, str(tmp_path / "cut")], check=True)
    for name in ("adapter/adapter_model.safetensors", "adapter/critic.json", "metrics.jsonl"):
        assert hash_file(tmp_path / "whole" / name) == hash_file(tmp_path / "cut" / name), name
