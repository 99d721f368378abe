"""Best of three by a trained critic, with the shipped models, as a person types it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ft2 import media
from ft2.__main__ import main
from ft2.critic.score import CriticScorer
from ft2.pairs import DIMENSIONS
from ft2.puppet import identities
from ft2.speech import synthesise

CRITIC = Path(__file__).parents[2] / "notebooks" / "critic"


def arguments(folder: Path, *more: str) -> list[str]:
    paths = ["--portrait", str(folder / "face.png"), "--audio", str(folder / "speech.wav")]
    return ["generate", *paths, "seed=4", "num_seeds=3", "steps=4", *more]


@pytest.mark.slow
def test_the_critics_best_is_kept_with_all_scores_and_nothing_chatters(tmp_path: Path) -> None:
    media.write_png(tmp_path / "face.png", identities.load("astronaut").image)
    sound = media.fit_audio(0.5 * synthesise("we made the best of three"), round(1.68 * 16000))
    media.write_wav(tmp_path / "speech.wav", sound)
    chosen = ["--critic", str(CRITIC), "-o", str(tmp_path / "best.mp4"), "best_by=lip", "--json"]
    command = [sys.executable, "-m", "ft2", *arguments(tmp_path, *chosen)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    chatter = [
        line
        for line in done.stderr.splitlines()
        if not re.match(r"(load the model|sample seed \d+): \d+/\d+  |the (audio|face) ", line)
    ]
    assert chatter == [], "lines of mediapipe, absl, TensorFlow or of whatever else is loaded"
    printed = json.loads(done.stdout)
    record = json.loads((tmp_path / "best.json").read_text())
    assert printed["candidates"] == record["candidates"]
    assert not list(tmp_path.glob("best-*"))

    with pytest.raises(SystemExit) as stop:
        main(arguments(tmp_path, "-o", str(tmp_path / "all.mp4"), "-q"))
    assert stop.value.code == 0
    files = [tmp_path / f"all-{seed}.mp4" for seed in (4, 5, 6)]
    scorer = CriticScorer(CRITIC)
    apart = [scorer.score([file])[0] for file in files]
    assert [c["seed"] for c in record["candidates"]] == [4, 5, 6]
    for candidate, alone in zip(record["candidates"], apart, strict=True):
        for name in DIMENSIONS:
            assert candidate[name] == pytest.approx(alone.get(name), abs=1e-4)
        assert candidate["mean"] == pytest.approx(sum(alone.values()) / 3, abs=1e-4)
    lips = [scores.lip for scores in apart]
    assert len(set(lips)) == 3
    best = lips.index(max(lips))
    assert record["config"]["seed"] == 4 + best
    assert (tmp_path / "best.mp4").read_bytes() == files[best].read_bytes()
