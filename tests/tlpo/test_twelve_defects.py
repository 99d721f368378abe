"""Twelve defects of public preference trainers: each check passes here and fails when planted.

Every check is run twice: on the code as it is, and with the defect put into it.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_export import expert, loaded, output, read_by_diffusers
from test_step import adapted, draws, make_batch, one
from tlpo_toys import SHAPE, World, expert_config, toy_conditioning, toy_model
from torch import Tensor

import ft2.tlpo.dpo as dpo
import ft2.tlpo.loop as loop_module
import ft2.tlpo.step as step_module
from ft2.engine import Engine, TorchEngine
from ft2.lora import FusedLinear, expert_parameters, fused_linears, install_experts, read_adapter
from ft2.runs import RunDir, Silent
from ft2.tlpo import export, passes
from ft2.tlpo.config import DpoConfig, SigmaConfig
from ft2.tlpo.draws import step_draws
from ft2.tlpo.export import export_lora
from ft2.tlpo.gate import FusionGate, timestep_features
from ft2.tlpo.loop import StopRule
from ft2.tlpo.step import PreferenceStep
from ft2.tlpo.train import train_expert
from ft2.wan.condition import Conditioning
from ft2.wan.model import TalkingModel

Patch = pytest.MonkeyPatch
Check = Callable[[World, Path], None]
CHECKS: dict[str, tuple[Check, Callable[[Patch], None]]] = {}


def defect(name: str, plant: Callable[[Patch], None]) -> Callable[[Check], Check]:
    def keep(check: Check) -> Check:
        CHECKS[name] = (check, plant)
        return check

    return keep


def make(model: TalkingModel, **settings) -> PreferenceStep:
    trainable = {n: p for n, p in model.dit.named_parameters() if p.requires_grad}
    return PreferenceStep(
        model, one, passes.base_gate, trainable, DpoConfig(**{"beta": 50, **settings})
    )


def plant_1(patch: Patch) -> None:
    add, calls = passes.add_noise, itertools.count()

    def own_noise(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return add(clean, noise.flip(0) if next(calls) % 2 else noise, sigma)

    patch.setattr(passes, "add_noise", own_noise)


@defect("1 noise or timestep differ between the sides", plant_1)
def check_1(world: World, folder: Path) -> None:
    step = make(adapted(seed=6))
    loss, stats = step(make_batch(same_sides=True), *draws())
    assert float(stats["margin"].abs().max()) < 1e-4
    loss.backward()
    assert max(float(p.grad.abs().max()) for p in step.parameters()) < 1e-4


def plant_2(patch: Patch) -> None:
    patch.setattr(torch, "randn", torch.rand)


@defect("2 uniform noise", plant_2)
def check_2(world: World, folder: Path) -> None:
    _, noise = step_draws(SigmaConfig(draws=2), 0, 3, [0, 1, 2], 4, SHAPE)
    assert abs(float(noise.mean())) < 0.05
    assert abs(float(noise.var()) - 1) < 0.1
    assert abs(float((noise**4).mean()) - 3) < 0.5


def plant_3(patch: Patch) -> None:
    def four_dimensional(velocity: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return (velocity - target).square().mean(dim=(1, 2, 3))

    patch.setattr(dpo, "masked_error", four_dimensional)


@defect("3 a 5-D error reduced over three dimensions: one sigmoid per latent column", plant_3)
def check_3(world: World, folder: Path) -> None:
    _, stats = make(adapted(seed=6))(make_batch(), *draws())
    assert stats["margin"].shape == (3,)
    assert stats["d_chosen"].shape == (3, 2)


def plant_4(patch: Patch) -> None:
    right = TalkingModel.encode_video

    def multiplied(self: TalkingModel, frames: Tensor, cond: Conditioning) -> Tensor:
        return right(self, frames, cond) * self.space.scale**2

    patch.setattr(TalkingModel, "encode_video", multiplied)


@defect("4 latents multiplied by their deviation instead of divided", plant_4)
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


@defect("5 the reference pass leaves something behind", plant_5)
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


@defect("6 recomputation reads a stale gate", plant_6)
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


def plant_8(patch: Patch) -> None:
    right = dpo.margin
    patch.setattr(dpo, "margin", lambda w, x, beta, k=0.0: right(w, x, 5000.0, k))


@defect("8 a config key that is ignored", plant_8)
def check_8(world: World, folder: Path) -> None:
    model = adapted(seed=6)
    base = make(model, beta=5)(make_batch(), *draws())[0]
    changes = {"beta": 6, "positive_weight": 1, "target_probability": 0.9, "loss": "ipo",
               "sft": 0.1, "anchor": 0.1}  # fmt: skip
    for name, value in changes.items():
        other = make(model, **{"beta": 5, name: value})(make_batch(), *draws())[0]
        assert float((other - base).detach().abs()) > 1e-5, name


def plant_9(patch: Patch) -> None:
    right = TorchEngine.load

    def forgetful(self: TorchEngine, directory: Path) -> None:
        right(self, directory)
        self._optimizer.state.clear()

    patch.setattr(TorchEngine, "load", forgetful)


@defect("9 state that a resume loses", plant_9)
def check_9(world: World, folder: Path) -> None:
    class Crash(Silent):
        def update(self, stage: str, done: int, total: int, note: str = "") -> None:
            if stage.startswith("expert") and done == 3:
                raise RuntimeError("killed")

    config = expert_config(world, steps=4)
    loop = config.loop.model_copy(update={"checkpoint_every": 2, "eval_every": 4, "eval_pairs": 2})
    config = config.model_copy(update={"loop": loop})
    train_expert(config, folder / "whole", model=world.model)
    with pytest.raises(RuntimeError, match="killed"):
        train_expert(config, folder / "cut", model=world.model, progress=Crash())
    train_expert(config, folder / "cut", model=world.model, resume=True)
    whole, cut = (read_adapter(folder / n / "adapter")[1] for n in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def plant_9_rule(patch: Patch) -> None:
    right = loop_module._restore

    def forgetful(run: RunDir, engine: Engine, rule: StopRule) -> int:
        return right(run, engine, StopRule(rule.limit, rule.decay))

    patch.setattr(loop_module, "_restore", forgetful)


@defect("9 stop rule that a resume loses", plant_9_rule)
def check_9_rule(world: World, folder: Path) -> None:
    """Stopped by its rule just after a resume, as a straight run is: the rule has a long memory."""

    config = expert_config(world, steps=30)
    dpo = config.dpo.model_copy(
        update={"beta": 400.0, "min_gradient_factor": 0.45, "stop_decay": 0.8}
    )
    loop = config.loop.model_copy(update={"checkpoint_every": 1, "eval_pairs": 2})
    config = config.model_copy(update={"loop": loop, "dpo": dpo})
    whole = train_expert(config, folder / "whole", model=world.model)["steps"]
    assert 3 < whole < 30

    class CrashBefore(Silent):
        def update(self, stage: str, done: int, total: int, note: str = "") -> None:
            if stage.startswith("expert") and done == whole - 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_expert(config, folder / "cut", model=world.model, progress=CrashBefore())
    assert train_expert(config, folder / "cut", model=world.model, resume=True)["steps"] == whole


def plant_10(patch: Patch) -> None:
    right = Conditioning.cat.__func__

    def dropping(cls: type, parts: list[Conditioning]) -> Conditioning:
        whole = right(cls, parts)
        kept = torch.rand(len(whole)) > 0.5
        return replace(whole, text=whole.text * kept[:, None, None])

    patch.setattr(Conditioning, "cat", classmethod(dropping))


@defect("10 dropout differs between sides or passes", plant_10)
def check_10(world: World, folder: Path) -> None:
    model = adapted(seed=6)
    velocity, seen = model.velocity, []

    def watch(x: Tensor, sigma: Tensor, cond: Conditioning, gate: Tensor | None = None) -> Tensor:
        seen.append(cond)
        return velocity(x, sigma, cond, gate)

    model.velocity = watch  # type: ignore[method-assign]
    torch.manual_seed(0)
    make(model)(make_batch(), *draws())
    halves = [half for cond in seen for half in cond.text.chunk(2)]
    assert len(halves) == 4  # chosen and rejected, reference and policy
    assert all(torch.equal(half, halves[0]) for half in halves)


def plant_11(patch: Patch) -> None:
    patch.setattr(torch.optim.AdamW, "step", lambda self: None)


@defect("11 lora_B stays zero", plant_11)
def check_11(world: World, folder: Path) -> None:
    config = expert_config(world, steps=1)
    loop = config.loop.model_copy(update={"eval_pairs": 2})
    result = train_expert(
        config.model_copy(update={"loop": loop}), folder / "run", model=world.model
    )
    saved = read_adapter(folder / "run" / "adapter")[1]
    norms = [float(t.norm()) for name, t in saved.items() if ".lora_B." in name]
    assert min(norms) > 0
    assert result["norm_b"] > 0


def plant_12(patch: Patch) -> None:
    patch.setitem(export.WAN_NAMES, "attn1.to_q", "self_attn.to_q")


@defect("12 a consumer ignores the LoRA file", plant_12)
def check_12(world: World, folder: Path) -> None:
    path = expert(folder, "lip", 1)
    for form in ("comfyui", "kohya", "diffsynth"):
        export_lora(path, form, folder / f"{form}.safetensors")
        try:
            converted = read_by_diffusers(folder / f"{form}.safetensors", form)
        except (KeyError, ValueError) as error:
            raise AssertionError(f"{form}: {error}") from error
        assert len(converted) == 2 * (16 if form != "kohya" else 20)
        assert output(loaded(converted)).isfinite().all()


@pytest.mark.parametrize("name", CHECKS)
def test_sound(name: str, world: World, tmp_path: Path) -> None:
    CHECKS[name][0](world, tmp_path)


@pytest.mark.parametrize("name", CHECKS)
def test_seen_when_planted(
    name: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, plant = CHECKS[name]
    with monkeypatch.context() as patch:
        plant(patch)
        with pytest.raises((AssertionError, torch.utils.checkpoint.CheckpointError)):
            check(world, tmp_path)


def test_eleven_here_and_one_with_two_processes() -> None:
    """Number 7, no gradient sync, needs two processes: test_tlpo_ranks.py."""
    numbers = list(dict.fromkeys(name.split()[0] for name in CHECKS))
    assert numbers == [str(n) for n in range(1, 13) if n != 7]
