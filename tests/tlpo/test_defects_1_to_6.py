"""Rows 1 to 6 of the defects of public preference trainers: what the loss and its passes can show.

Each check passes here and fails when its defect is planted.
"""

import itertools
from pathlib import Path

import pytest
import torch
from test_step import adapted, draws, make_batch
from tlpo_defects import Defects, Patch, make
from tlpo_toys import SHAPE, World, toy_conditioning, toy_model
from torch import Tensor

import ft2.tlpo.dpo as dpo
import ft2.tlpo.step as step_module
from ft2.lora import FusedLinear, expert_parameters, fused_linears, install_experts
from ft2.tlpo import passes
from ft2.tlpo.config import SigmaConfig
from ft2.tlpo.draws import evaluation_noise, step_draws, stored_draws
from ft2.tlpo.gate import FusionGate, timestep_features
from ft2.wan.condition import Conditioning
from ft2.wan.model import TalkingModel

DEFECTS = Defects()
ROWS = [str(n) for n in range(1, 7)]


def plant_1(patch: Patch) -> None:
    add, calls = passes.add_noise, itertools.count()

    def own_noise(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return add(clean, noise.flip(0) if next(calls) % 2 else noise, sigma)

    patch.setattr(passes, "add_noise", own_noise)


@DEFECTS.seen_by("1 the noise differs between the sides", plant_1)
def check_1(world: World, folder: Path) -> None:
    step = make(adapted(seed=6))
    loss, stats = step(make_batch(same_sides=True), *draws())
    assert float(stats["margin"].abs().max()) < 1e-4
    loss.backward()
    assert max(float(p.grad.abs().max()) for p in step.parameters()) < 1e-4


def plant_1_level(patch: Patch) -> None:
    add, calls = passes.add_noise, itertools.count()

    def own_level(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return add(clean, noise, sigma.flip(0) if next(calls) % 2 else sigma)

    patch.setattr(passes, "add_noise", own_level)


DEFECTS.seen_by("1 the timestep differs between the sides", plant_1_level)(check_1)


def plant_2(patch: Patch) -> None:
    patch.setattr(torch, "randn", torch.rand)


@DEFECTS.seen_by("2 uniform noise", plant_2)
def check_2(world: World, folder: Path) -> None:
    drawn = [
        step_draws(SigmaConfig(draws=2), 0, 3, [0, 1, 2], 4, SHAPE)[1],
        stored_draws(SigmaConfig(stored_draws=8), 0, "pair", range(8), SHAPE)[1],
        evaluation_noise(0, "pair", 8, SHAPE),
    ]
    for noise in drawn:
        assert abs(float(noise.mean())) < 0.06
        assert abs(float(noise.var()) - 1) < 0.1
        assert abs(float((noise**4).mean()) - 3) < 0.5


def plant_3(patch: Patch) -> None:
    def four_dimensional(velocity: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return (velocity - target).square().mean(dim=(1, 2, 3))

    patch.setattr(dpo, "masked_error", four_dimensional)


@DEFECTS.seen_by("3 a 5-D error reduced over three dimensions: a sigmoid per column", plant_3)
def check_3(world: World, folder: Path) -> None:
    _, stats = make(adapted(seed=6))(make_batch(), *draws())
    assert stats["margin"].shape == (3,)
    assert stats["d_chosen"].shape == (3, 2)


def plant_4(patch: Patch) -> None:
    right = TalkingModel.encode_video

    def multiplied(self: TalkingModel, frames: Tensor, cond: Conditioning) -> Tensor:
        return right(self, frames, cond) * self.space.scale**2

    patch.setattr(TalkingModel, "encode_video", multiplied)


@DEFECTS.seen_by("4 latents multiplied by their deviation instead of divided", plant_4)
def check_4(world: World, folder: Path) -> None:
    model, cond = toy_model(), toy_conditioning(16)
    g = torch.Generator().manual_seed(0)
    clips = torch.randint(0, 256, (16, 5, 32, 32, 3), generator=g, dtype=torch.uint8)
    model.space.scale.fill_(1.0)
    raw = model.codec.encode(clips, cond.reference)
    varies = raw.std(0) > 0.05  # not the first frame, which is the given picture
    model.space.scale.copy_(raw.std(0).clamp_min(0.05))
    model.space.shift.copy_(raw.mean(0))
    assert abs(float(model.encode_video(clips, cond)[:, varies].std()) - 1) < 0.1


def plant_5(patch: Patch) -> None:
    right = step_module.pair_velocities

    def leaking(model: TalkingModel, draws: object, gate: object, split: bool = False) -> object:
        if gate is not passes.base_gate:
            return right(model, draws, gate, split)
        experts = expert_parameters(model.dit)
        for p in experts:
            p.requires_grad_(False)
        found = right(model, draws, gate, split)  # an exception leaves them frozen
        for p in experts:
            p.requires_grad_(True)
        return found

    patch.setattr(step_module, "pair_velocities", leaking)


@DEFECTS.seen_by("5 the reference pass leaves something behind", plant_5)
def check_5(world: World, folder: Path) -> None:
    model = adapted(seed=7)
    step = make(model)
    before = {n for n, p in model.dit.named_parameters() if p.requires_grad}
    with torch.no_grad():
        policy = step.policy_errors(make_batch(), *draws())
    velocity = model.velocity
    calls: list[int] = []

    def fails_once(*args: object) -> Tensor:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return velocity(*args)

    model.velocity = fails_once  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="out of memory"):
        step(make_batch(), *draws())
    assert {n for n, p in model.dit.named_parameters() if p.requires_grad} == before
    step.reference_errors(make_batch(), *draws())
    with torch.no_grad():
        again = step.policy_errors(make_batch(), *draws())
    assert all(torch.equal(a, b) for a, b in zip(policy, again, strict=True))


def plant_6(patch: Patch) -> None:
    right_scale, right_velocity = FusedLinear.rank_scale, TalkingModel.velocity

    def velocity(self: TalkingModel, *given: Tensor) -> Tensor:
        gate = given[-1]
        for number, block in enumerate(self.dit.blocks):
            for _, layer in fused_linears(block):
                layer.kept = gate[:, number]
        return right_velocity(self, *given)

    patch.setattr(TalkingModel, "velocity", velocity)
    patch.setattr(
        FusedLinear, "rank_scale", lambda self, _, batch: right_scale(self, self.kept, batch)
    )


@DEFECTS.seen_by("6 recomputation reads a stale gate", plant_6)
def check_6(world: World, folder: Path) -> None:
    def gradient(checkpointing: bool) -> Tensor:
        model = toy_model()
        install_experts(model.dit, ["attn1.to_q", "ffn.net.2"], 3, 2, 2)
        g = torch.Generator().manual_seed(1)
        for p in expert_parameters(model.dit):
            p.data.copy_(torch.randn(p.shape, generator=g))
        model.dit.requires_grad_(False)
        if checkpointing:
            model.dit.enable_gradient_checkpointing()
        gate = FusionGate(2, 3, 24)
        gate.weight.data.copy_(torch.randn(gate.weight.shape, generator=g))
        x, cond = torch.randn(2, *SHAPE, generator=g), toy_conditioning(2)
        total = torch.zeros(())
        for level in (0.2, 0.9):  # two draws in one graph
            sigma = torch.full((2,), level)
            weights = gate(timestep_features(model.dit, sigma))
            total = total + model.velocity(x, sigma, cond, weights).square().mean()
        return torch.autograd.grad(total, gate.weight)[0]

    torch.testing.assert_close(gradient(True), gradient(False), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", DEFECTS)
def test_sound(name: str, world: World, tmp_path: Path) -> None:
    DEFECTS.sound(name, world, tmp_path)


@pytest.mark.parametrize("name", DEFECTS)
def test_seen_when_planted(
    name: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    DEFECTS.planted(name, world, tmp_path, monkeypatch)


def test_all_rows_are_here() -> None:
    numbers = list(dict.fromkeys(name.split()[0] for name in DEFECTS))
    assert numbers == ROWS
