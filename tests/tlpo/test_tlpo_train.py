"""Both stages end to end on a toy world: they shift samples, resume exactly, and stop."""

import json
import signal
from pathlib import Path

import peft
import pytest
import torch
from tlpo_toys import (
    SHAPE,
    TARGETS,
    World,
    channel_gain,
    expert_config,
    merit,
    sample,
    toy_conditioning,
    toy_model,
)
from torch import nn

from ft2.errors import Interrupted, RunError, UsageError
from ft2.lora import fused_linears, read_adapter
from ft2.runs import Silent, load_tensors
from ft2.tlpo.config import DpoConfig, FusionConfig, GateConfig, MaskConfig
from ft2.tlpo.gate import FusionGate, timestep_features
from ft2.tlpo.policy import load_policy
from ft2.tlpo.policy_files import save_policy
from ft2.tlpo.stage import read_view
from ft2.tlpo.train import train_expert, train_fusion


def metrics(path: Path) -> list[dict[str, object]]:
    lines = [json.loads(x) for x in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def adapter_bytes(path: Path) -> bytes:
    return (path / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def experts(shared_world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three experts, each trained on its own channel's pairs."""
    folder = tmp_path_factory.mktemp("experts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ft2.tlpo.stage.read_pairs", lambda _, store: shared_world.pairs[store])
        for name in ("motion", "lip", "quality"):
            train_expert(expert_config(shared_world, name), folder / name, model=shared_world.model)
    return {name: folder / name for name in ("motion", "lip", "quality")}


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


def test_accumulation_equals_one_large_batch(world: World, tmp_path: Path) -> None:
    large = expert_config(world, steps=4)
    engine = large.engine.model_copy(update={"micro_batch_size": 1, "accumulation_steps": 4})
    small = large.model_copy(update={"engine": engine})
    train_expert(large, tmp_path / "large", model=world.model)
    train_expert(small, tmp_path / "small", model=world.model)
    a, b = (read_adapter(tmp_path / n / "adapter")[1] for n in ("large", "small"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=2e-5)


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


def fusion_config(world: World, experts: dict[str, Path], **changes) -> FusionConfig:
    base = expert_config(world, steps=15).model_dump(exclude={"stage", "dimension", "lora"})
    base |= {"experts": experts, "gate": GateConfig(bias_init=1 / 3), "dpo": DpoConfig(beta=60)}
    engine = {**base["engine"], "learning_rate": 1e-2}
    return FusionConfig(**{**base, "engine": engine, **changes})


def test_fusion_trains_the_gate_only(
    world: World, experts: dict[str, Path], tmp_path: Path
) -> None:
    before, after = {}, {}

    class Watch(Silent):
        """Takes all weights with the experts in place: at the first and after the last step."""

        def update(self, stage: str, done: int, total: int, note: str = "") -> None:
            if stage == "fusion":
                state = {n: t.clone() for n, t in world.model.dit.state_dict().items()}
                (before if done == 1 else after).update(state)

    plain = toy_model().dit.state_dict()
    result = train_fusion(
        fusion_config(world, experts), tmp_path / "fusion", model=world.model, progress=Watch()
    )
    installed = {n for n in before if ".lora_" in n}
    assert len(installed) == 2 * len(TARGETS) * 2
    assert all(torch.equal(after[n], before[n]) for n in before)
    assert all(torch.equal(before[n], plain[n]) for n in plain)
    assert all(torch.equal(t, plain[n]) for n, t in world.model.dit.state_dict().items())
    assert result["parameters"] == 2 * (3 * 24 + 3)
    assert result["held_out_start"]["d_chosen"] == 0.0
    policy = load_policy(tmp_path / "fusion", world.model)
    assert policy.learned
    assert policy.experts == ("motion", "lip", "quality")
    for index, name in enumerate(policy.experts):
        saved = load_tensors(tmp_path / f"fusion/policy/experts/{name}/adapter_model.safetensors")
        trained = load_tensors(experts[name] / "adapter" / "adapter_model.safetensors")
        assert all(torch.equal(saved[0][key], trained[0][key]) for key in trained[0]), index
    table = policy.table(torch.linspace(0.05, 1, 9))
    assert table.shape == (9, 2, 3)
    assert float((table - 2 / 3).abs().max()) > 1e-3
    gains = channel_gain(world, policy.gate, range(3))
    assert min(gains) > 0, gains


@pytest.mark.parametrize("name", ["blocks.1.ffn.net.2.weight", "blocks.0.attn1.to_q.lora_B"])
def test_a_frozen_weight_that_changed_is_never_saved_beside(
    world: World, experts: dict[str, Path], tmp_path: Path, name: str
) -> None:
    class Meddle(Silent):
        def update(self, stage: str, done: int, total: int, note: str = "") -> None:
            if stage == "fusion" and done == 2:
                with torch.no_grad():
                    world.model.dit.get_parameter(name).mul_(1.01)

    base = toy_model().dit.state_dict()
    config = fusion_config(world, experts, loop=expert_config(world, steps=2).loop)
    try:
        with pytest.raises(RunError, match="frozen weights changed in training"):
            train_fusion(config, tmp_path / "run", model=world.model, progress=Meddle())
    finally:
        world.model.dit.load_state_dict(base)
    assert not (tmp_path / "run/policy").exists()
    assert not (tmp_path / "run/result.json").exists()


def test_fusion_learns_from_mixed_pairs_by_weight(
    world: World, experts: dict[str, Path], tmp_path: Path
) -> None:
    """A dimension of weight 0 is left out; the others count by their weights."""
    loop = expert_config(world, steps=3).loop
    own = {"store": "mixed", "loop": loop}
    counts, gates = {}, {}
    for case, weights in {
        "even": {}, "lip off": {"lip": 0.0}, "motion": {"motion": 8.0},
    }.items():  # fmt: skip
        config = fusion_config(world, experts, **own, view_weights=weights)
        view = read_view(config, "mixed")[0]
        by_store: dict[str, set[float]] = {}
        for pair, weight in zip(view.pairs, view.weights or [1.0] * len(view.pairs), strict=True):
            by_store.setdefault(pair.store, set()).add(weight)
        assert by_store == {
            d: {weights.get(d, 1.0)} for d in ("motion", "lip", "quality") if weights.get(d) != 0
        }
        out = tmp_path / case
        counts[case] = train_fusion(config, out, model=world.model)["pairs"]
        gates[case] = load_tensors(out / "policy/gate.safetensors")[0]["bias"]
    assert counts["even"] == counts["motion"] > counts["lip off"] > 0
    assert not torch.allclose(gates["even"], gates["motion"])
    start = torch.full_like(gates["even"], 1 / 3)
    assert float((gates["motion"] - start).abs().max()) > 1e-3


def test_fusion_resumes_with_the_initial_merge_as_reference(
    world: World, experts: dict[str, Path], tmp_path: Path
) -> None:
    config = fusion_config(world, experts)
    train_fusion(config, tmp_path / "whole", model=world.model)

    class Crash(Silent):
        def update(self, stage: str, done: int, total: int, note: str = "") -> None:
            if stage == "fusion" and done == 11:
                raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train_fusion(config, tmp_path / "cut", model=world.model, progress=Crash())
    train_fusion(config, tmp_path / "cut", model=world.model, resume=True)
    files = [(tmp_path / n / "policy" / "gate.safetensors").read_bytes() for n in ("whole", "cut")]
    assert files[0] == files[1]
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_static_policies_and_switches(
    world: World, experts: dict[str, Path], tmp_path: Path
) -> None:
    sigma = torch.tensor([0.1, 0.9])
    save_policy(tmp_path, experts, 2 / 3)
    merge = load_policy(tmp_path, world.model)
    assert merge.gate(sigma).tolist() == [[[pytest.approx(2 / 3)] * 3] * 2] * 2
    assert merge.only("lip").gate(sigma)[0, 0].tolist() == [0, 1, 0]
    alone = channel_gain(world, merge.only("lip").gate, range(3))
    own = load_policy(experts["lip"], world.model)
    assert channel_gain(world, own.gate, range(3)) == pytest.approx(alone, abs=1e-4)
    with pytest.raises(UsageError, match="another policy"):
        merge.gate(sigma)
    with pytest.raises(UsageError, match="2 weights"):
        save_policy(tmp_path, experts, [1.0, 1.0])


def test_policy_round_trip(world: World, experts: dict[str, Path], tmp_path: Path) -> None:
    gate = FusionGate(2, 3, 24, 0.2)
    nn.init.normal_(gate.weight)
    save_policy(tmp_path / "policy", experts, gate)
    policy = load_policy(tmp_path / "policy", world.model)
    sigma = torch.tensor([0.2, 0.7])
    expected = gate(timestep_features(world.model.dit, sigma))
    assert torch.equal(policy.gate(sigma), expected.detach())
    save_policy(tmp_path / "static", experts, [1.0, 0.5, 0.25])
    static = load_policy(tmp_path / "static", world.model)
    assert static.gate(sigma)[1, 1].tolist() == [1.0, 0.5, 0.25]
    assert not static.learned


def test_another_base_is_refused(world: World, experts: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="another base model"):
        load_policy(experts["lip"], toy_model(seed=1))


def test_bad_inputs_stop_before_anything_is_written(world: World, tmp_path: Path) -> None:
    config = expert_config(world)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "config.yaml").write_text("x: 1\n")
    with pytest.raises(UsageError, match="already exists"):
        train_expert(config, tmp_path / "used", model=world.model)
    empty = World(world.model, world.cache_dir, {"motion": []})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ft2.tlpo.stage.read_pairs", lambda _, store: empty.pairs[store])
        with pytest.raises(UsageError, match="0 training pairs"):
            train_expert(config, tmp_path / "none", model=world.model)
    with pytest.raises(UsageError, match="no experts"):
        train_fusion(fusion_config(world, {}), tmp_path / "none", model=world.model)
    with pytest.raises(UsageError, match="holds no expert"):
        load_policy(tmp_path, world.model)
    assert not (tmp_path / "none").exists()
