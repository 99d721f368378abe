"""Stored reference errors: equal to the plain step, written once, refused for another reference."""

import shutil
from pathlib import Path

import pytest
import torch
from tlpo_toys import World, expert_config

from ft2.errors import UsageError
from ft2.runs import load_tensors
from ft2.tlpo.config import DpoConfig, ExpertConfig, MaskConfig, SigmaConfig
from ft2.tlpo.reference import read_reference
from ft2.tlpo.train import train_expert


def config_of(world: World, folder: Path, steps: int = 6, **changes) -> ExpertConfig:
    """A config with stored draws, its cache copied so that other tests do not see the file."""
    if not (folder / "cache").exists():
        shutil.copytree(world.cache_dir, folder / "cache")
    config = expert_config(
        world, steps=steps, sigma=SigmaConfig(draws=2, stored_draws=4), cache=folder / "cache",
        **changes,
    )  # fmt: skip
    loop = config.loop.model_copy(update={"eval_pairs": 2, "checkpoint_every": 3})
    return config.model_copy(update={"loop": loop})


def losses(run: Path) -> list[float]:
    import json

    return [json.loads(x)["loss"] for x in (run / "metrics.jsonl").read_text().splitlines()]


def stored_file(folder: Path) -> Path:
    (file,) = (folder / "cache").glob("*/reference-*.safetensors")
    return file


def test_equals_computing_the_reference_in_every_step(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(world, tmp_path)
    train_expert(config, tmp_path / "stored", model=world.model)
    monkeypatch.setattr("ft2.tlpo.reference.StoredReference.of", lambda *_: None)
    train_expert(config, tmp_path / "plain", model=world.model)
    stored, plain = losses(tmp_path / "stored"), losses(tmp_path / "plain")
    assert stored == pytest.approx(plain, abs=1e-6)
    assert abs(stored[-1] - stored[0]) > 1e-3


def test_is_computed_once_and_the_same_after_a_resume(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(world, tmp_path)
    train_expert(config, tmp_path / "first", model=world.model)
    content = stored_file(tmp_path).read_bytes()
    monkeypatch.setattr("ft2.tlpo.reference._compute", lambda *_: pytest.fail("computed again"))
    train_expert(config, tmp_path / "second", model=world.model)
    assert losses(tmp_path / "first") == losses(tmp_path / "second")
    assert stored_file(tmp_path).read_bytes() == content


def test_another_reference_gets_a_file_of_its_own_and_refuses_this_one(
    world: World, tmp_path: Path
) -> None:
    train_expert(config_of(world, tmp_path, steps=1), tmp_path / "a", model=world.model)
    first = stored_file(tmp_path)
    kept = first.read_bytes()
    mask = MaskConfig(kind="lip", dilation=0, min_sum=1)
    train_expert(
        config_of(world, tmp_path, steps=1, mask=mask, dpo=DpoConfig(beta=3)),
        tmp_path / "b", model=world.model,
    )  # fmt: skip
    files = set((tmp_path / "cache").glob("*/reference-*.safetensors"))
    (second,) = files - {first}
    second.write_bytes(kept)
    with pytest.raises(UsageError, match="belong to another reference"):
        train_expert(
            config_of(world, tmp_path, steps=1, mask=mask), tmp_path / "c", model=world.model
        )
    identity = load_tensors(first)[1]["identity"]
    import json

    assert torch.isfinite(read_reference(first, json.loads(identity))).all()
