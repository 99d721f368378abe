"""Ratings files: what is read, and what is refused with its line."""

import json

import pytest
import torch

from ft2.critic.data import other_voice, read_ratings
from ft2.errors import UsageError


def rewrite(ratings, tmp_path, number, **changes):
    rows = [json.loads(line) for line in ratings.read_text().splitlines()]
    for row in rows:
        row["video"] = str(ratings.parent / row["video"])
    rows[number].update(changes)
    rows[number] = {k: v for k, v in rows[number].items() if v != "drop"}
    path = tmp_path / "ratings.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_splits_and_missing_answers(ratings):
    train = read_ratings(ratings, "train")
    assert len(train) == 24
    assert train[3].labels[0] is None
    assert train[1].labels == (False, False, True)
    assert len(read_ratings(ratings)) == 36


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"motion": "yes"}, ":6: an answer"),
        ({"split": "val"}, ":6: split"),
        ({"video": "absent.mp4"}, ":6: there is no video"),
        ({"lip": "drop"}, ":6: missing or unknown keys: lip"),
        ({"extra": 1}, ":6: missing or unknown keys: extra"),
    ],
)
def test_bad_line_is_named(ratings, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        read_ratings(rewrite(ratings, tmp_path, 5, **changes))


def test_same_voice_in_train_and_test_is_refused(ratings, tmp_path):
    with pytest.raises(UsageError, match="utterance"):
        read_ratings(rewrite(ratings, tmp_path, 5, audio_id="test-voice0@00160"))


def test_other_voice_is_another_utterance():
    import numpy as np

    ids = np.array(list("aaaaaaab"))
    index = other_voice(ids, torch.Generator().manual_seed(0))
    assert (ids[index.numpy()] != ids).all()
    with pytest.raises(UsageError, match="same voice"):
        other_voice(np.array(["a", "a"]), torch.Generator())
