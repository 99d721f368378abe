"""The fusion stage and its policies on a toy world: what is trained, kept frozen, and resumed."""

from pathlib import Path

import pytest
import torch
from tlpo_toys import TARGETS, World, channel_gain, expert_config, fusion_config, metrics, toy_model
from torch import nn

from ft2.errors import RunError, UsageError
from ft2.runs import Silent, load_tensors
from ft2.tlpo.gate import FusionGate, timestep_features
from ft2.tlpo.policy import load_policy
from ft2.tlpo.policy_files import save_policy
from ft2.tlpo.train import train_fusion
from ft2.tlpo.views import read_view


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
