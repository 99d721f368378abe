"""A tiny rated data set and a random base that the critic tests share."""

import json

import numpy as np
import pytest
from critic_toys import CLIP, SMALL

from ft2.critic.config import CriticConfig
from ft2.critic.train import train_critic
from ft2.media import write_video
from ft2.qwen.thinker import new_thinker, save_thinker
from ft2.qwen.tokens import build_processor
from ft2.runs import Silent


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def spec(tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    processor = build_processor(SMALL)
    thinker = new_thinker(SMALL, processor, seed=1)
    thinker.lm_head.weight.data *= 20  # a random head is too quiet to answer
    save_thinker(thinker, processor, path)
    return SMALL.model_copy(update={"weights": str(path)})


def write_clip(path, rng, *, bright, loud):
    frames = rng.integers(0, 60, (CLIP.num_frames, 64, 64, 3)) + (150 if bright else 20)
    audio = (0.5 if loud else 0.005) * rng.standard_normal(CLIP.num_samples)
    write_video(path, frames.astype(np.uint8), CLIP.fps, audio.clip(-1, 1).astype(np.float32))


@pytest.fixture(scope="session")
def ratings(tmp_path_factory):
    """36 clips whose labels a small model can learn: bright pictures and loud voices."""
    folder = tmp_path_factory.mktemp("ratings")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(36):
        split = "train" if number < 24 else "dev" if number < 28 else "test"
        bright, loud = bool(number % 2), bool(number // 2 % 2)
        write_clip(folder / f"{number}.mp4", rng, bright=bright, loud=loud)
        rows.append(
            {
                "video": f"{number}.mp4",
                "motion": None if number == 3 else loud,
                "lip": bright == loud,
                "quality": bright,
                "identity_id": f"{split}-face{number % 3}",
                "audio_id": f"{split}-voice{number % 4}",
                "split": split,
                "source": "puppet",
            }
        )
    path = folder / "ratings.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def config(spec, ratings):
    engine = {"learning_rate": 3e-3, "micro_batch_size": 8, "warmup_steps": 2}
    return CriticConfig(
        model=spec, ratings=str(ratings), engine=engine, steps=6, checkpoint_steps=2
    )


@pytest.fixture(scope="session")
def adapter(spec, ratings, tmp_path_factory):
    """A critic of a few steps: enough to score, not to be right."""
    engine = {"learning_rate": 3e-3, "micro_batch_size": 8, "warmup_steps": 2}
    config = CriticConfig(model=spec, ratings=str(ratings), engine=engine, steps=6)
    run = tmp_path_factory.mktemp("adapter") / "run"
    train_critic(config, run, False, Silent())
    return run / "adapter"
