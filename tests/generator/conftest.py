"""A tiny talking model and tiny training shards, made once for the generator's tests."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from generator_toys import TINY, speech
from safetensors.numpy import save_file

from ft2.generator.config import PrepareConfig, TrainConfig
from ft2.wan.spec import WanSpec


def moving_clips(count: int) -> np.ndarray:
    """Smooth pictures that slide about: uint8 [count, 9, 64, 64, 3]."""
    rng = np.random.default_rng(0)
    clips = np.zeros((count, 9, 64, 64, 3), np.uint8)
    for number in range(count):
        noise = rng.integers(0, 255, (6, 6, 3)).astype(np.uint8)
        picture = cv2.resize(noise, (64, 64), interpolation=cv2.INTER_CUBIC)
        for frame in range(9):
            move = np.float32([[1, 0, frame / 3], [0, 1, np.sin(frame + number) - np.sin(number)]])
            clips[number, frame] = cv2.warpAffine(picture, move, (64, 64), borderMode=1)
    return clips


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with one shard of 12 clips in the puppet world's layout."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(1)
    rows = [
        {"identity_id": f"p{i % 3}", "audio_id": f"u{i}", "caption": f"a person talks {i % 2}"}
        for i in range(12)
    ]
    arrays = {
        "frames": moving_clips(12),
        "audio": (rng.normal(size=(12, 11520)) * 3000).astype(np.int16),
        "curves": rng.random((12, 9, 13)).astype(np.float32),
        "shown": rng.random((12, 9, 13)).astype(np.float32),
        "labels": np.tile(np.array([1, 1, 1], np.uint8), (12, 1)),
    }
    save_file(arrays, folder / "shard-00000.safetensors", metadata={"clips": json.dumps(rows)})
    return folder


@pytest.fixture(scope="session")
def tiny_config(shards: Path) -> TrainConfig:
    """A clip-level stage that starts from nothing and takes seconds."""
    prepare = PrepareConfig(codec_clips=12, tower_steps=2, vocabulary=280)
    return TrainConfig(
        stage="clip",
        data=str(shards),
        model=WanSpec(weights="none", architecture=TINY),
        steps=6,
        prepare=prepare,
        engine={"learning_rate": 1e-3, "micro_batch_size": 4},
    )


@pytest.fixture(scope="session")
def trained(tiny_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of the finished tiny stage."""
    from ft2.generator.train import train_generator

    output = tmp_path_factory.mktemp("runs") / "clip"
    train_generator(tiny_config, output, speech=speech)
    return output
