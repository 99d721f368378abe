"""Branches from training to video: the base untouched, exact resume, strengths that are heard."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from test_base_training import KillAt, Killed

from ft2 import faces, media
from ft2.__main__ import main
from ft2.errors import UsageError
from ft2.generator import train
from ft2.generator.batches import Batch, draw_batch
from ft2.generator.config import TrainConfig
from ft2.generator.data import read_clips
from ft2.generator.encode import lip_latents
from ft2.generator.start import start_anew
from ft2.generator.train import train_generator
from ft2.puppet import identities
from ft2.wan.spec import WanSpec
from ft2.wan.weights import load_talking_model

TINY_BRANCHES = {
    "identity": {"encoder": "face_tower", "size": 32, "features": 8, "face_tokens": 2,
                 "queries": 2, "dim": 16, "num_layers": 1, "num_heads": 2},
    "motion": {"dim": 16, "body": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def measured(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny shards with motion strengths."""
    folder = tmp_path_factory.mktemp("measured")
    for path in shards.glob("*.safetensors"):
        arrays = load_file(path)
        strengths = np.linspace(1e-3, 4e-3, 12, dtype=np.float32)
        arrays["motion"] = np.stack([strengths, np.full(12, np.nan, np.float32)], 1)
        rows = [{"identity_id": f"p{i % 3}", "audio_id": "u", "caption": "a"} for i in range(12)]
        save_file(arrays, folder / path.name, metadata={"clips": json.dumps(rows)})
    return folder


@pytest.fixture(scope="module")
def config(
    tiny_config: TrainConfig, trained: Path, measured: Path, tmp_path_factory
) -> TrainConfig:
    """Branches alone on the tiny clip stage's weights."""
    base = tmp_path_factory.mktemp("base") / "model"
    shutil.copytree(trained / "model", base)
    architecture = json.loads((base / "architecture.json").read_text())
    (base / "architecture.json").write_text(json.dumps(architecture | TINY_BRANCHES))
    prepare = tiny_config.prepare.model_copy(update={"face_steps": 2})
    return tiny_config.model_copy(update={
        "stage": "frame", "freeze_base": True, "data": str(measured), "prepare": prepare,
        "model": WanSpec(weights=str(base), branches=("identity", "motion")), "steps": 4,
        "checkpoint_seconds": 1e-6,
    })  # fmt: skip


@pytest.fixture(scope="module")
def branched(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("branched") / "run"
    result = train_generator(config, output)
    assert result["branches"] == ["identity", "motion"]
    assert 0 < int(str(result["trained"])) < int(str(result["parameters"]))
    return output / "model"


def test_branches_are_trained_beside_an_untouched_base(config: TrainConfig, branched: Path) -> None:
    base = Path(config.model.weights)
    assert (branched / "dit.safetensors").read_bytes() == (base / "dit.safetensors").read_bytes()
    for name in ("identity", "motion"):
        tensors = load_file(branched / f"{name}.safetensors")
        zero_at_first = [
            n for n in tensors if n.endswith("v_proj.weight") or n == "intensity.out.weight"
        ]
        assert zero_at_first
        assert all(np.abs(tensors[n]).max() > 0 for n in zero_at_first), name


def test_a_killed_branch_run_resumes_to_the_same_bytes(
    config: TrainConfig, branched: Path, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        train_generator(config, tmp_path / "run", progress=KillAt(2))
    train_generator(config, tmp_path / "run", resume=True)
    for name in ("identity", "motion", "face"):
        file = f"{name}.safetensors"
        assert (tmp_path / "run/model" / file).read_bytes() == (branched / file).read_bytes()


def test_what_branches_need_is_said_before_work_starts(
    config: TrainConfig, shards: Path, tmp_path: Path
) -> None:
    blind = config.model_copy(update={"data": str(shards)})
    with pytest.raises(UsageError, match="no motion strengths"):
        train_generator(blind, tmp_path / "run")
    nothing = config.model_copy(update={"model": WanSpec()})
    with pytest.raises(UsageError, match="nothing to train"):
        train_generator(nothing, tmp_path / "run")
    engine = config.engine.model_copy(update={"kind": "deepspeed", "zero_stage": 3})
    with pytest.raises(UsageError, match=r"ema_decay=0\.999 with ZeRO"):
        train_generator(config.model_copy(update={"engine": engine}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dropped_picture_leaves_only_the_face_embedding(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, ...]] = []

    def watched(*given: Any) -> Batch:
        seen.append(given)
        return draw_batch(*given)

    monkeypatch.setattr(train, "draw_batch", watched)
    train_generator(config.model_copy(update={"steps": 1}), tmp_path / "run")
    _, data, architecture, _ = seen[0]

    def batch(**dropped: float) -> Batch:
        dropout = config.dropout.model_copy(update=dropped)
        changed = config.model_copy(update={"dropout": dropout})
        return draw_batch(changed, data, architecture, 7)

    plain, blind = batch(), batch(picture=1.0)
    assert blind.cond.latents_mask_y[:, 4:].abs().max() == 0
    assert blind.cond.image.abs().max() == 0
    assert torch.equal(blind.cond.latents_mask_y[:, :4], plain.cond.latents_mask_y[:, :4])
    assert plain.cond.latents_mask_y[:, 4:].abs().max() > 0
    assert torch.equal(blind.cond.identity, plain.cond.identity)
    assert torch.equal(blind.noise, plain.noise), "the other draws stay as they are"
    assert torch.equal(blind.identity_scale, plain.identity_scale)


def test_parts_start_anew_where_the_config_says_so(
    config: TrainConfig, branched: Path, tmp_path: Path
) -> None:
    spec = WanSpec(weights=str(branched), branches=("identity", "motion"))
    given = load_talking_model(spec)
    model = load_talking_model(spec)
    start_anew(model, ("audio", "motion"), seed=5)
    cond = given.encode_conditions(
        np.full((1, 64, 64, 3), 90, np.uint8), [np.zeros(11520, np.float32)], ["a"]
    )
    x, sigma = torch.randn(1, *given.latent_shape()), torch.tensor([0.6])
    with torch.no_grad():
        silent = given.velocity(x, sigma, replace(cond, motion=None), silent=True)
        assert torch.equal(model.velocity(x, sigma, cond), silent)
    before, after = given.dit.state_dict(), model.dit.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all("proj_model" in n or ".processor." in n or "intensity" in n for n in changed)
    with pytest.raises(UsageError, match="no branch motion"):
        lacking = config.model.model_copy(update={"branches": ("identity",)})
        wrong = config.model_copy(update={"model": lacking, "fresh": ("motion",)})
        train_generator(wrong, tmp_path / "run")
    with pytest.raises(UsageError, match="no branch identity"):
        lacking = config.model.model_copy(update={"branches": ("motion",)})
        wrong = config.model_copy(update={"model": lacking, "fresh": ("face",)})
        train_generator(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_face_encoder_starts_anew_where_the_config_says_so(
    config: TrainConfig, branched: Path, tmp_path: Path
) -> None:
    model = config.model.model_copy(update={"weights": str(branched)})
    again = config.model_copy(update={"model": model, "steps": 1, "seed": 9})
    files = []
    for fresh in ((), ("face",)):
        train_generator(again.model_copy(update={"fresh": fresh}), tmp_path / f"run{len(fresh)}")
        files.append((tmp_path / f"run{len(fresh)}/model/face.safetensors").read_bytes())
    assert files[0] == (branched / "face.safetensors").read_bytes() != files[1]


def generate(*argv: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["generate", *argv, "-q"])
    return int(stop.value.code or 0)


def test_motion_and_identity_reach_the_video_and_its_record(
    branched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    media.write_png(tmp_path / "face.png", faces.align(identities.load("astronaut").image))
    sound = np.random.default_rng(0).normal(size=11520).astype(np.float32) * 0.1
    media.write_wav(tmp_path / "sound.wav", sound)
    given = [f"model.weights={branched}", "steps=2", "min_portrait_psnr=null", "--portrait",
             str(tmp_path / "face.png"), "--audio", str(tmp_path / "sound.wav")]  # fmt: skip
    both = "model.branches=[identity,motion]"
    asked = {
        "plain": [both], "again": [both], "lively": [both, "motion=1.0"],
        "blind": [both, "identity_scale=0"], "without": [],
    }  # fmt: skip
    for name, keys in asked.items():
        assert generate(*given, *keys, "-o", str(tmp_path / f"{name}.mp4")) == 0
    files = {name: (tmp_path / f"{name}.mp4").read_bytes() for name in asked}
    assert files["plain"] == files["again"]
    assert len({files[n] for n in ("plain", "lively", "blind", "without")}) == 4
    record = json.loads((tmp_path / "lively.json").read_text())
    assert record["config"]["motion"] == {"face": 1.0, "body": 1.0}
    assert "identity.safetensors" in record["weights_sha256"]
    capsys.readouterr()
    assert generate(*given, both, "motion.face=0.8", "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["motion_face"], plan["identity_scale"]) == (0.8, 0.5)
    assert plan["identity_parameters"] > plan["motion_parameters"] > 0
    for keys, said in (
        (["motion=0.9"], "without the branch motion"),
        (["identity_scale=1"], "without the branch identity"),
        ([both, "motion.body=0.9"], "hears no body motion"),
        (["model.weights=nano", "model.branches=[sound]"], "model.branches"),
        ([both, "motion=2"], "motion"),
    ):
        assert generate(*given, *keys, "-o", str(tmp_path / "never.mp4")) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "never.mp4").exists()


def test_shards_are_measured_once(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    face = identities.load("astronaut").portrait(64)
    moves = [np.zeros(9, int), np.array([0, 1, 2, 1, 0, -1, -2, -1, 0])]
    clips = np.stack([[np.roll(face, dx, 1) for dx in move] for move in (*moves, 2 * moves[1])])
    audio = np.zeros((3, 11520), np.int16)
    rows = [{"identity_id": "a", "audio_id": "b", "caption": "c"}] * 3
    path = tmp_path / "shard-0.safetensors"
    save_file({"frames": clips, "audio": audio}, path, metadata={"clips": json.dumps(rows)})
    argv = ["generator", "measure", "--data", str(tmp_path), "joints=none", "--json", "-q"]
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 0
        assert json.loads(capsys.readouterr().out) == {
            "shards": 1,
            "clips": 3,
            "face": 3,
            "body": 0,
        }
        after = path.read_bytes()
    assert path.read_bytes() == after
    still, little, much = read_clips(tmp_path).motion[:, 0]
    assert still < 0.1 * little
    assert 2.5 < much / little < 6, "twice the amplitude, about four times the variance"


def test_stored_lips_are_brought_to_latents_by_trilinear_interpolation() -> None:
    masks = np.zeros((2, 9, 64, 64), bool)
    masks[:, :, 24:32, 16:40] = True
    masks[0, 5:] = False
    found = lip_latents(np.packbits(masks, axis=-1), (3, 8, 8))
    assert found.shape == (2, 3, 8, 8)
    assert found[1, :, 3, 2:5].min() == 1.0
    assert found[1, :, 0].max() == 0.0
    assert found[0, 2].max() == 0.0, "frames without lips have no weight"
