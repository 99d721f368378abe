"""The plan's memory against what torch's autograd keeps in real steps of the nano generator."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ft2.config import load_config
from ft2.lora import expert_parameters, fused_linears, install_experts
from ft2.tlpo.config import DpoConfig, ExpertConfig, FusionConfig
from ft2.tlpo.data import Batch
from ft2.tlpo.gate import FusionGate, timestep_features
from ft2.tlpo.memory import GIB, kept_by_block, memory_gib
from ft2.tlpo.passes import GateFunction, base_gate
from ft2.tlpo.stage import constant, rest_encoders
from ft2.tlpo.step import PreferenceStep
from ft2.tlpo.work import Held
from ft2.wan.memory import encoders_of
from ft2.wan.model import TalkingModel
from ft2.wan.recompute import recompute_as
from ft2.wan.spec import WanSpec
from ft2.wan.weights import load_talking_model

PAIRS = 8


def kept(call: Callable[[], Tensor], module: nn.Module) -> int:
    """Return the bytes that a graph keeps beside the module's weights, each storage once."""
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    sizes: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = call()
    assert out.requires_grad
    return sum(size for place, size in sizes.items() if place not in weights)


def peak(call: Callable[[], object]) -> int:
    """Return the most bytes of tensors that a call held at a time, by the profiler's count."""
    held = most = 0
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    for event in profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@dataclass(frozen=True)
class Nano:
    """A step of some nano pairs, and what the plan is made from."""

    run: Callable[[], Tensor]
    config: ExpertConfig | FusionConfig
    model: TalkingModel
    held: Held
    trainable: int

    def planned(self, *parts: str) -> float:
        """Return the bytes of some parts of the plan."""
        sizes = (self.model.architecture, 0, self.trainable, self.held, 0, 1)
        plan = memory_gib(self.config, *sizes)
        return sum(plan[part] for part in parts) * GIB


def nano(
    stage: str, pairs: int, *, checkpointing: bool | str = False, decomposed: bool = False
) -> Nano:
    model = load_talking_model(WanSpec(weights="nano"), torch.device("cpu"))
    architecture, dit = model.architecture, model.dit
    layers = architecture.dit.num_layers
    dit.requires_grad_(False).eval()
    changes = [f"engine.micro_batch_size={pairs}", "sigma.draws=1", "dataset=none"]
    changes += [f"gradient_checkpointing={checkpointing}", f"dpo.decomposed={decomposed}"]
    config: ExpertConfig | FusionConfig = load_config(ExpertConfig, "nano/expert-lip", changes)
    lora = config.lora
    targets = lora.targets[:1] if stage == "attention only" else lora.targets
    install_experts(dit, targets, 3 if stage == "fusion" else 1, lora.rank, lora.alpha)
    trainable: dict[str, nn.Parameter] = {
        n: p for n, p in dit.named_parameters() if p.requires_grad
    }
    weights: GateFunction = constant(model, (1.0,))
    if stage == "fusion":
        config = load_config(FusionConfig, "nano/fusion", changes)
        for p in expert_parameters(dit):
            p.requires_grad_(False)
        gate = FusionGate(layers, 3, architecture.dit.dim)
        trainable = dict(gate.named_parameters())

        def weights(sigma: Tensor) -> Tensor:
            return gate(timestep_features(dit, sigma))

    if checkpointing:
        dit.enable_gradient_checkpointing(recompute_as(checkpointing))
    clip = architecture.clip
    portrait = np.full((1, clip.height, clip.width, 3), 128, np.uint8)
    sound = np.random.default_rng(0).standard_normal(clip.num_samples).astype(np.float32)
    cond = model.encode_conditions(portrait, [0.1 * sound], ["a person speaks"]).repeat(pairs)
    shape = (pairs, *model.latent_shape())
    batch = Batch(torch.randn(shape), torch.randn(shape), cond, None)
    dpo = DpoConfig(beta=500, decomposed=decomposed)
    later = recompute_as(checkpointing)
    step = PreferenceStep(model, weights, base_gate, trainable, dpo, later=later)
    sigma, noise = torch.rand(pairs, 1), torch.randn(pairs, 1, *shape[1:])
    held = Held.of(
        (n, x.lora_A.numel() + x.lora_B.numel(), x.lora_A.shape[0]) for n, x in fused_linears(dit)
    )
    count = sum(p.numel() for p in trainable.values())
    return Nano(lambda: step(batch, sigma, noise)[0], config, model, held, count)


@pytest.mark.parametrize("stage", ["expert", "attention only", "fusion"])
def test_activations_are_what_autograd_keeps(stage: str) -> None:
    given = nano(stage, PAIRS)
    architecture = given.model.architecture
    counted = kept(given.run, given.model.dit)
    planned = given.planned("activations")
    block = kept_by_block(given.config, architecture, given.held, 4)
    assert planned == pytest.approx(2 * PAIRS * architecture.dit.num_layers * block)
    assert planned == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("stage", ["expert", "attention only", "fusion"])
def test_the_peak_of_a_step_is_the_planned_one(
    stage: str, decomposed: bool, checkpointing: bool
) -> None:
    given = nano(stage, 2, checkpointing=checkpointing, decomposed=decomposed)
    given.run().backward()  # gradients exist from here on
    measured = peak(lambda: given.run().backward())
    planned = given.planned("activations", "workspace", "cast", "passing", "waiting")
    assert planned == pytest.approx(measured, rel=0.1)


def test_encoders_rest_on_the_cpu_while_a_gpu_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_talking_model(WanSpec(weights="nano"), torch.device("cpu"))
    moved: list[str] = []
    for part in encoders_of(model):
        monkeypatch.setattr(part, "to", lambda place, part=part: moved.append(place) or part)
    rest_encoders(model)
    assert not moved
    assert model.visiting is None
    monkeypatch.setattr(TalkingModel, "device", torch.device("cuda:1"))
    rest_encoders(model)
    assert moved == ["cpu"] * len(encoders_of(model))
    assert model.visiting == torch.device("cuda:1")
