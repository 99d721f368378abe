"""The shipped base is the one that its record describes, and it answers."""

import json

import numpy as np

from ft2.critic.score import CriticScorer
from ft2.qwen.spec import QwenSpec
from ft2.qwen.view import make_view
from ft2.runs import hash_file, read_json
from ft2.weights import nano_dir


def test_record_names_runs_what_was_seen_and_the_files():
    entry = read_json(nano_dir() / "provenance.json")["thinker"]
    for name, digest in entry["sha256"].items():
        assert hash_file(nano_dir() / name) == digest, name
    assert entry["runs"][-1]["clips"] > 0
    assert "defects" in entry["seen"]
    rows = entry["held_out"]["rows"]
    assert {"untrained", "majority", "silenced", "audio_swapped"} <= set(rows)
    assert "/tmp" not in json.dumps(entry)


def test_bare_base_scores_a_clip():
    spec = QwenSpec()
    frames = np.full((spec.clip.num_frames, 64, 64, 3), 128, np.uint8)
    view = make_view(frames, np.zeros(spec.clip.num_samples, np.float32), spec)
    (scores,) = CriticScorer(None).score_views([view])
    assert all(0 <= value <= 1 for value in scores.values())
