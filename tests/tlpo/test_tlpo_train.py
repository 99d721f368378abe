"""Both stages end to end on a toy world: they shift samples, resume exactly, and stop."""

import json
import signal
from pathlib import Path

import peft
import pytest
import torch
from tlpo_toys import (
    SHAPE,
    World,
    channel_gain,
    expert_config,
    fusion_config,
    merit,
    metrics,
    sample,
    toy_conditioning,
    toy_model,
)

from ft2.errors import Interrupted, UsageError
from ft2.lora import fused_linears
from ft2.runs import Silent
from ft2.tlpo.config import DpoConfig, MaskConfig
from ft2.tlpo.policy import load_policy
from ft2.tlpo.train import train_expert, train_fusion


def adapter_bytes(path: Path) -> bytes:
    return (path / "adapter" / "adapter_model.safetensors").read_bytes()


def test_experts_learn_their_pairs_and_shift_samples(
    world: World, experts: dict[str, Path]
) -> None:
    for channel, (name, path) in enumerate(experts.items()):
        result = json.loads((path / "result.json").read_text())
        assert result["steps"] == 25
        assert result["norm_b"] > 0
        assert result["held_out_start"]["implicit_accuracy"] == 0.5
        policy = load_policy(path, world.model)
        assert policy.experts == (name,)
        gains = channel_gain(world, policy.gate, range(3))
        assert gains[channel] > 0.02, (name, gains)
        assert gains[channel] == max(gains)
        last = [m["implicit_accuracy"] for m in metrics(path)[-10:]]
        assert sum(last) / 10 > 0.6


def test_the_base_comes_back_plain_and_unchanged(world: World, experts: dict[str, Path]) -> None:
    train_expert(expert_config(world, steps=1), experts["lip"].parent / "one", model=world.model)
    fresh = toy_model().dit.state_dict()
    assert not list(fused_linears(world.model.dit))
    ours = world.model.dit.state_dict()
    assert set(ours) == set(fresh)
    assert all(torch.equal(ours[name], fresh[name]) for name in fresh)


def test_saved_expert_is_read_by_peft(world: World, experts: dict[str, Path]) -> None:
    """Folding PEFT's delta into the base equals our gate at 1."""
    policy = load_policy(experts["lip"], world.model)
    cond_gain = channel_gain(world, policy.gate, range(3), conditions=4)
    twin = toy_model()
    merged = peft.PeftModel.from_pretrained(twin.dit, experts["lip"] / "adapter")
    twin.dit = merged.merge_and_unload()
    again = World(twin, world.cache_dir, world.pairs)
    base = World(toy_model(), world.cache_dir, world.pairs)
    cond = toy_conditioning(4, seed=99)
    noise = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(7))
    theirs, plain = sample(again.model, cond, noise), sample(base.model, cond, noise)
    for channel in range(3):
        gain = float((merit(theirs, channel) - merit(plain, channel)).mean())
        assert gain == pytest.approx(cond_gain[channel], abs=1e-4)


class KillAt(Silent):
    """Sends this process a signal when a step has been reported."""

    def __init__(self, step: int, signum: int) -> None:
        self.step, self.signum = step, signum

    def update(self, stage: str, done: int, total: int, note: str = "") -> None:
        if stage.startswith("expert") and done == self.step:
            signal.raise_signal(self.signum)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed_is_byte_identical(
    world: World, tmp_path: Path, signum: int
) -> None:
    config = expert_config(world, steps=12)
    train_expert(config, tmp_path / "whole", model=world.model)
    with pytest.raises(Interrupted) as caught:
        train_expert(config, tmp_path / "cut", model=world.model, progress=KillAt(7, signum))
    assert caught.value.exit_code == 128 + signum
    assert "--resume" in caught.value.hint
    assert not (tmp_path / "cut" / "result.json").exists()
    train_expert(config, tmp_path / "cut", model=world.model, resume=True)
    assert adapter_bytes(tmp_path / "cut") == adapter_bytes(tmp_path / "whole")
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    first, second = (
        json.loads((tmp_path / n / "result.json").read_text()) for n in ("whole", "cut")
    )
    assert first == second
    assert train_expert(config, tmp_path / "cut", resume=True) == second


def test_killed_after_a_checkpoint_repeats_the_rest(world: World, tmp_path: Path) -> None:
    """As SIGKILL: no time to save; the run goes on from the checkpoint of step 10."""
    config = expert_config(world, steps=14)
    train_expert(config, tmp_path / "whole", model=world.model)

    class Crash(Silent):
        def update(self, stage: str, done: int, total: int, note: str = "") -> None:
            if stage.startswith("expert") and done == 12:
                raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train_expert(config, tmp_path / "cut", model=world.model, progress=Crash())
    assert not list(fused_linears(world.model.dit))
    train_expert(config, tmp_path / "cut", model=world.model, resume=True)
    assert adapter_bytes(tmp_path / "cut") == adapter_bytes(tmp_path / "whole")
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_stops_when_the_gradient_factor_falls(world: World, tmp_path: Path) -> None:
    config = expert_config(
        world, steps=60, dpo=DpoConfig(beta=400, min_gradient_factor=0.3, stop_decay=0.5)
    )
    result = train_expert(config, tmp_path / "run", model=world.model)
    assert result["steps"] < 60
    assert result["stopped"] == "gradient factor below 0.3"


def test_lip_mask_leaves_the_rest_alone(world: World, tmp_path: Path) -> None:
    """With a lip mask the expert changes the velocity less outside the mask."""
    config = expert_config(
        world, "lip", mask=MaskConfig(kind="lip", dilation=0, min_sum=1), dpo=DpoConfig(beta=10)
    )
    result = train_expert(config, tmp_path / "run", model=world.model)
    assert result["pairs"] > 10
    assert load_policy(tmp_path / "run", world.model).experts == ("lip",)


def test_bad_inputs_stop_before_anything_is_written(world: World, tmp_path: Path) -> None:
    config = expert_config(world)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "config.yaml").write_text("x: 1\n")
    with pytest.raises(UsageError, match="already exists"):
        train_expert(config, tmp_path / "used", model=world.model)
    empty = World(world.model, world.cache_dir, {"motion": []})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ft2.tlpo.views.read_pairs", lambda _, store: empty.pairs[store])
        with pytest.raises(UsageError, match="0 training pairs"):
            train_expert(config, tmp_path / "none", model=world.model)
    with pytest.raises(UsageError, match="no experts"):
        train_fusion(fusion_config(world, {}), tmp_path / "none", model=world.model)
    with pytest.raises(UsageError, match="holds no expert"):
        load_policy(tmp_path, world.model)
    assert not (tmp_path / "none").exists()
