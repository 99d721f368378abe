"""`ft2 weights build` makes weights from nothing that the rest of the toolkit loads."""

import json
from pathlib import Path

import numpy as np
import pytest

from ft2.__main__ import main

TINY = [
    "train_clips=24",
    "dev_clips=6",
    "generator_clip=[steps=1,prepare.codec_clips=24,prepare.tower_steps=2]",
    "generator_frame=[steps=1,engine.decay_steps=1,engine.warmup_steps=0]",
    "thinker=[[towers_steps=1,model_steps=1,warmup_steps=1]]",
]


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["weights", "build", *argv])
    return int(stopped.value.code or 0)


def test_the_plan_names_every_training_command(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert run("-n", "--json", "-o", str(tmp_path / "w")) == 0
    commands = json.loads(capsys.readouterr().out)["commands"]
    assert [c.split()[:3] for c in commands] == [
        ["ft2", "generator", "train"],
        ["ft2", "generator", "train"],
        *[["ft2", "critic", "pretrain"]] * 5,
    ]
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_weights_made_from_nothing_generate_and_judge(tmp_path: Path):
    from ft2.critic.score import CriticScorer
    from ft2.qwen.spec import QwenSpec
    from ft2.qwen.view import make_view
    from ft2.wan.spec import WanSpec
    from ft2.wan.weights import load_talking_model

    output = tmp_path / "w"
    assert run(*TINY, "-o", str(output), "--quiet") == 0
    shipped = {"dit.safetensors", "codec.safetensors", "text.safetensors", "image.safetensors"}
    made = {p.name for p in (output / "nano").iterdir()}
    assert shipped | {"speech.safetensors", "thinker.safetensors", "provenance.json"} <= made
    model = load_talking_model(WanSpec(weights=str(output / "nano")))
    portrait = np.full((1, 64, 64, 3), 128, np.uint8)
    cond = model.encode_conditions(portrait, [np.zeros(26880, np.float32)], ["a person speaks"])
    assert cond.text.shape[0] == 1
    spec = QwenSpec(weights=str(output / "nano"))
    frames = np.full((spec.clip.num_frames, 64, 64, 3), 128, np.uint8)
    view = make_view(frames, np.zeros(spec.clip.num_samples, np.float32), spec)
    (scores,) = CriticScorer(None, model=spec).score_views([view])
    assert all(0 <= value <= 1 for value in scores.values())
