"""Training on a published directory: its own layout back again, and the next stage from there."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from published_toys import TINY
from safetensors.numpy import save_file

from ft2.generator.config import TrainConfig
from ft2.generator.train import train_generator
from ft2.runs import load_tensors
from ft2.wan.branches import branch_state
from ft2.wan.spec import MotionSpec, WanSpec
from ft2.wan.weights import load_talking_model

ARCHITECTURE = TINY.model_copy(update={"motion": MotionSpec(dim=16)})


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    rows = [{"identity_id": "a", "audio_id": "b", "caption": "a person talks"}] * 3
    arrays = {
        "frames": rng.integers(0, 255, (3, 5, 32, 32, 3)).astype(np.uint8),
        "audio": rng.integers(-3000, 3000, (3, 16000)).astype(np.int16),
        "motion": rng.random((3, 2)).astype(np.float32),
    }
    save_file(arrays, folder / "shard-0.safetensors", metadata={"clips": json.dumps(rows)})
    return folder


@pytest.mark.parametrize(
    ("kind", "stage", "decay"),
    [("torch", 0, 0.9), pytest.param("deepspeed", 3, 0.0, marks=pytest.mark.slow)],
)
def test_stages_follow_each_other_on_published_weights(
    kind: str,
    stage: int,
    decay: float,
    published: Path,
    clips: Path,
    tmp_path: Path,
) -> None:
    spec = WanSpec(weights=str(published), architecture=ARCHITECTURE, branches=("motion",))
    engine = {"kind": kind, "zero_stage": stage, "learning_rate": 1e-3, "micro_batch_size": 2}
    first = TrainConfig(
        stage="clip", data=str(clips), model=spec, steps=2, lip_source="box", ema_decay=decay,
        engine=engine,
    )  # fmt: skip
    train_generator(first, tmp_path / "clip")
    model = tmp_path / "clip/model"
    assert (model / "vae").is_symlink()
    loaded = load_talking_model(WanSpec(weights=str(model), branches=("motion",)))
    before = load_talking_model(spec, fresh_branches=True)
    moved = {n: (p - dict(before.dit.named_parameters())[n]).abs().max().item()
             for n, p in loaded.dit.named_parameters()}  # fmt: skip
    assert 0 < max(moved.values()) < 5e-3
    assert moved["intensity.out.weight"] > 0
    second = first.model_copy(update={
        "stage": "frame", "start": str(tmp_path / "clip"), "freeze_base": True,
    })  # fmt: skip
    train_generator(second, tmp_path / "frame")
    after = load_talking_model(WanSpec(weights=str(tmp_path / "frame/model"), branches=("motion",)))
    for name, value in branch_state(after.dit, None).items():
        assert torch.equal(value, loaded.dit.state_dict()[name]), name
    tensors, _ = load_tensors(tmp_path / "frame/model/motion.safetensors")
    assert not torch.equal(tensors["intensity.out.weight"], loaded.dit.intensity.out.weight)
