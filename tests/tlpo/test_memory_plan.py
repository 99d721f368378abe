"""The plan's memory against what torch's autograd keeps in real steps of the nano generator."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ft2.config import load_config
from ft2.lora import expert_parameters, fused_linears, install_experts
from ft2.tlpo.config import DpoConfig, ExpertConfig, FusionConfig
from ft2.tlpo.data import Batch
from ft2.tlpo.gate import FusionGate, constant_gate, timestep_features
from ft2.tlpo.memory import GIB, kept_by_block, memory_gib
from ft2.tlpo.passes import base_gate
from ft2.tlpo.step import PreferenceStep
from ft2.tlpo.work import Held
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


@pytest.mark.parametrize("stage", ["expert", "attention only", "fusion"])
def test_activations_are_what_autograd_keeps(stage: str) -> None:
    model = load_talking_model(WanSpec(weights="nano"), torch.device("cpu"))
    architecture, dit = model.architecture, model.dit
    layers = architecture.dit.num_layers
    dit.requires_grad_(False).eval()
    sizes = [f"engine.micro_batch_size={PAIRS}", "sigma.draws=1", "dataset=none"]
    config: ExpertConfig | FusionConfig = load_config(ExpertConfig, "nano/expert-lip", sizes)
    lora = config.lora
    targets = lora.targets[:1] if stage == "attention only" else lora.targets
    install_experts(dit, targets, 3 if stage == "fusion" else 1, lora.rank, lora.alpha)
    trainable: dict[str, nn.Parameter] = {
        n: p for n, p in dit.named_parameters() if p.requires_grad
    }
    if stage == "fusion":
        config = load_config(FusionConfig, "nano/fusion", sizes)
        for p in expert_parameters(dit):
            p.requires_grad_(False)
        width = dit.config["num_attention_heads"] * dit.config["attention_head_dim"]
        gate = FusionGate(layers, 3, width)
        trainable = dict(gate.named_parameters())

    def weights(sigma: Tensor) -> Tensor:
        if stage == "fusion":
            return gate(timestep_features(dit, sigma))
        return constant_gate(len(sigma), layers, [1.0])

    clip = architecture.clip
    portrait = np.full((1, clip.height, clip.width, 3), 128, np.uint8)
    sound = np.random.default_rng(0).standard_normal(clip.num_samples).astype(np.float32)
    cond = model.encode_conditions(portrait, [0.1 * sound], ["a person speaks"]).repeat(PAIRS)
    shape = (PAIRS, *model.latent_shape())
    batch = Batch(torch.randn(shape), torch.randn(shape), cond, None)
    step = PreferenceStep(model, weights, base_gate, trainable, DpoConfig(beta=500))
    sigma, noise = torch.rand(PAIRS, 1), torch.randn(PAIRS, 1, *shape[1:])
    counted = kept(lambda: step(batch, sigma, noise)[0], dit)
    held = Held.of(
        (n, x.lora_A.numel() + x.lora_B.numel(), x.lora_A.shape[0]) for n, x in fused_linears(dit)
    )
    planned = memory_gib(config, architecture, 0, 0, held, 1, 1)["activations"] * GIB
    assert planned == pytest.approx(
        2 * PAIRS * layers * kept_by_block(config, architecture, held, 4)
    )
    assert planned == pytest.approx(counted, rel=0.1)
