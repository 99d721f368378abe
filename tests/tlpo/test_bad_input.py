"""Bad input and bad luck: counted skips or clear errors, and nothing lost."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_export import expert
from tlpo_toys import SHAPE, World, expert_config, toy_model

from ft2 import faces
from ft2.errors import RunError, UsageError
from ft2.runs import load_tensors, save_tensors
from ft2.tlpo.cache import Cache, _mask_or_nothing
from ft2.tlpo.config import ExpertConfig, MaskConfig
from ft2.tlpo.data import PairData
from ft2.tlpo.gate import FusionGate
from ft2.tlpo.policy import load_policy
from ft2.tlpo.policy_files import save_policy
from ft2.tlpo.train import train_expert
from ft2.tlpo.views import read_view


def short(world: World, steps: int = 4, **changes) -> ExpertConfig:
    config = expert_config(world, steps=steps, **changes)
    loop = config.loop.model_copy(update={"eval_pairs": 2, "checkpoint_every": 2})
    return config.model_copy(update={"loop": loop})


def spoiled_world(world: World, folder: Path, value: float) -> World:
    """The same world with one value of one clip's latents changed."""
    shutil.copytree(world.cache_dir, folder)
    victim = world.pairs["motion"][0].chosen.clip_id
    (place,) = folder.iterdir()
    cache = Cache(place)
    file, row = cache._places["clips"][victim]
    tensors, _ = load_tensors(place / file)
    tensors["latents"][row, 0, 0, 0, 0] = value
    save_tensors(place / file, tensors)
    return World(world.model, folder, world.pairs)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_drop_their_pair_and_are_counted(
    world: World, tmp_path: Path, value: float
) -> None:
    bad = spoiled_world(world, tmp_path / "cache", value)
    cache = Cache(next(bad.cache_dir.iterdir()))
    data = PairData(world.pairs["motion"][:3], cache, MaskConfig())
    batch = data.batch([0, 1, 2], torch.device("cpu"))
    assert batch.weight.tolist() == [0, 1, 1]
    assert torch.isfinite(batch.chosen).all()
    config = short(bad, steps=4)
    train = read_view(config, "motion")[0].pairs
    assert world.pairs["motion"][0] in train  # not a held-out one
    epoch = -(-len(train) // config.engine.micro_batch_size)  # every pair comes once
    loop = config.loop.model_copy(update={"num_steps": epoch, "checkpoint_every": epoch})
    config = config.model_copy(update={"loop": loop})
    result = train_expert(config, tmp_path / "run", model=world.model)
    lines = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert sum(line["dropped"] for line in lines) >= 1
    assert "dropped pairs" in [alarm["name"] for alarm in result["alarms"]]
    assert result["norm_b"] > 0


def test_a_loss_that_is_not_finite_stops_before_the_update(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = type(world.model).velocity
    calls: list[int] = []

    def breaks(self: object, *given: object) -> torch.Tensor:
        calls.append(1)
        out = right(self, *given)
        return out * float("nan") if len(calls) > 12 else out

    monkeypatch.setattr(type(world.model), "velocity", breaks)
    with pytest.raises(RunError, match="not finite") as caught:
        train_expert(short(world, steps=20), tmp_path / "run", model=world.model)
    assert "checkpoint" in caught.value.hint
    latest = (tmp_path / "run/checkpoints/latest").read_text().strip()
    saved = load_tensors(tmp_path / f"run/checkpoints/{latest}/engine.safetensors")[0]
    assert all(torch.isfinite(t).all() for t in saved.values())


def test_pairs_of_two_formats_are_left_out_and_counted(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = list(world.pairs["motion"])
    pairs[:3] = [replace(p, rejected=replace(p.rejected, width=48)) for p in pairs[:3]]
    monkeypatch.setattr("ft2.tlpo.views.read_pairs", lambda *_: pairs)
    plain = len(world.pairs["motion"])
    result = train_expert(short(world, steps=1), tmp_path / "run", model=world.model)
    assert 0 < result["dropped"]["clips of two formats"] <= 3
    assert result["pairs"] < plain
    assert "clips of two formats" in (tmp_path / "run/report.html").read_text()


def test_latents_of_another_shape_are_left_out(world: World) -> None:
    cache = Cache(next(world.cache_dir.iterdir()))
    data = PairData(world.pairs["motion"], cache, MaskConfig())
    assert data.without_other_shapes(SHAPE) is data
    assert data.without_other_shapes((16, 2, 4, 5)).dropped == {"another shape": len(data)}


def test_no_mouth_at_all_says_what_was_dropped(world: World, tmp_path: Path) -> None:
    mask = MaskConfig(kind="lip", min_sum=1e6)
    with pytest.raises(UsageError, match="mask too small") as caught:
        train_expert(short(world, mask=mask), tmp_path / "run", model=world.model)
    assert "mask.min_sum" in caught.value.hint


def test_a_clip_without_a_face_has_an_empty_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = np.full((5, 478, 3), np.nan, np.float32)
    monkeypatch.setattr(faces, "track", lambda frames: lost)
    frames = np.zeros((5, 16, 16, 3), np.uint8)
    assert float(_mask_or_nothing(frames, "landmarks").sum()) == 0
    assert float(_mask_or_nothing(frames, "box").sum()) > 0


def test_a_full_disk_keeps_the_last_checkpoint(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ft2.engine import single

    right, saves = single.save_tensors, []

    def full(path: Path, tensors: object) -> None:
        saves.append(1)
        if len(saves) == 2:
            path.write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, "No space left on device")
        right(path, tensors)

    monkeypatch.setattr(single, "save_tensors", full)
    with pytest.raises(RunError, match="No space left") as caught:
        train_expert(short(world, steps=6), tmp_path / "cut", model=world.model)
    assert "the checkpoint of step 2 is whole" in caught.value.hint
    assert not list((tmp_path / "cut").rglob("*ft2-tmp*"))
    train_expert(short(world, steps=6), tmp_path / "cut", model=world.model, resume=True)
    train_expert(short(world, steps=6), tmp_path / "whole", model=world.model)
    files = [(tmp_path / n / "adapter/adapter_model.safetensors").read_bytes()
             for n in ("cut", "whole")]  # fmt: skip
    assert files[0] == files[1]


def test_killed_while_a_checkpoint_is_written(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As SIGKILL between two files of a checkpoint: the temporary folder stays and is cleaned."""
    from ft2.tlpo import loop

    class Killed(BaseException):
        pass

    right, writes = loop.write_json, []

    def killed(path: Path, value: object) -> None:
        if path.name == "loop.json":
            writes.append(1)
            if len(writes) == 2:
                raise Killed
        right(path, value)

    monkeypatch.setattr(loop, "write_json", killed)
    with pytest.raises(Killed):
        train_expert(short(world, steps=6), tmp_path / "cut", model=world.model)
    left = tmp_path / "cut/checkpoints/.000004.ft2-tmp"
    left.mkdir(exist_ok=True)  # what a real kill leaves
    (left / "engine.safetensors").write_bytes(b"half")
    train_expert(short(world, steps=6), tmp_path / "cut", model=world.model, resume=True)
    train_expert(short(world, steps=6), tmp_path / "whole", model=world.model)
    files = [(tmp_path / n / "adapter/adapter_model.safetensors").read_bytes()
             for n in ("cut", "whole")]  # fmt: skip
    assert files[0] == files[1]


def test_another_number_of_processes_is_refused_before_anything_loads(
    world: World, tmp_path: Path
) -> None:
    config = short(world)
    with pytest.raises(KeyboardInterrupt):
        train_expert(config, tmp_path / "run", model=world.model, progress=_StopAt(3))
    file = tmp_path / "run/checkpoints/000002/engine.json"
    file.write_text(file.read_text().replace('"world_size": 1', '"world_size": 4'))
    with pytest.raises(UsageError, match="saved by 4 processes, this run has 1"):
        train_expert(config, tmp_path / "run", resume=True)


class _StopAt:
    def __init__(self, step: int) -> None:
        self.step = step

    def update(self, stage: str, done: int, total: int, note: str = "") -> None:
        if stage.startswith("expert") and done == self.step:
            raise KeyboardInterrupt


def test_a_gate_for_other_experts_is_refused(tmp_path: Path) -> None:
    from ft2.lora import install_experts, save_expert

    model = toy_model()
    for seed, name in enumerate(("motion", "lip", "other")):
        torch.manual_seed(seed)
        install_experts(model.dit, ["attn1.to_q"], 1, 2, 2)
        about = {"dimension": "lip" if name == "other" else name}
        save_expert(model.dit, 0, tmp_path / name / "adapter", about)
        from ft2.lora import remove_experts

        remove_experts(model.dit)
    experts = {"motion": tmp_path / "motion", "lip": tmp_path / "lip"}
    policy = tmp_path / "policy"
    save_policy(policy, experts, FusionGate(2, 2, 24))
    assert load_policy(policy, model).learned
    name = "adapter_model.safetensors"
    shutil.copyfile(tmp_path / "other/adapter" / name, policy / "experts/lip" / name)
    with pytest.raises(UsageError, match="not the file that this policy was made with"):
        load_policy(policy, model)
    shutil.copyfile(tmp_path / "lip/adapter" / name, policy / "experts/lip" / name)
    save_tensors(policy / "gate.safetensors", dict(FusionGate(2, 3, 24).state_dict()))
    with pytest.raises(UsageError, match=r"gate\.safetensors is not the file"):
        load_policy(policy, model)


def test_an_adapter_of_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="proj_out is"):
        load_policy(expert(tmp_path, "lip", 0, ["proj_out"]), toy_model())
