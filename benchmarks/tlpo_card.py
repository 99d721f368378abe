"""What one pair costs: expert and gate steps of a whole architecture with random weights.

    python benchmarks/tlpo_card.py [PRESET] [--rounds 2] [KEY=VALUE ...]

Builds a preset's transformer with random weights, so that none are needed (full/expert-motion:
Wan2.1-I2V-14B with the audio branch, 512 x 512 x 81), and takes steps of an expert, and of a gate
over three experts whose reference is their merge: as the preset says, with attention kept,
decomposed, and with the reference's errors known. Seconds and memory are for one pair and one draw;
TFLOP/s by the plan's count. What does not fit on the card is said to. `nano/expert-motion` shows on
a CPU that it runs.
"""

import argparse
import copy
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from machine import header
from torch import nn

from ft2.config import load_config
from ft2.engine import autocast
from ft2.lora import FusedLinear, fused_linears, install_experts
from ft2.tlpo.config import ExpertConfig, FusionConfig
from ft2.tlpo.data import Batch
from ft2.tlpo.gate import FusionGate, constant_gate, make_gate, timestep_features
from ft2.tlpo.methods import changed
from ft2.tlpo.passes import GateFunction, base_gate
from ft2.tlpo.stage import prepare_model
from ft2.tlpo.step import PreferenceStep
from ft2.tlpo.work import Held, audio_window, num_tokens, pair_flops
from ft2.wan.condition import Conditioning
from ft2.wan.model import TalkingModel
from ft2.wan.places import read_architecture
from ft2.wan.recompute import recompute_as
from ft2.wan.space import LatentSpace
from ft2.wan.spec import Architecture
from ft2.wan.weights import cast_transformer, meta_dit

RESULTS = Path(__file__).parent / "results" / "tlpo_card.json"
WAYS: dict[str, dict[str, object]] = {
    "as the preset": {},
    "attention kept": {"gradient_checkpointing": "keep_attention"},
    "decomposed": {"gradient_checkpointing": True, "dpo.decomposed": True},
    "known reference": {"sigma.stored_draws": 1},
}


def random_model(config: ExpertConfig) -> TalkingModel:
    """Return the preset's transformer with random weights, without encoders and codec."""
    architecture = read_architecture(config.model)
    dit = meta_dit(config.model)
    if config.model.precision == "bf16":
        cast_transformer(dit)
    dit.to_empty(device=config.device)
    sizes = architecture.dit
    dit.rope = WanRotaryPosEmbed(sizes.attention_head_dim, sizes.patch_size, 1024)
    dit.rope.to(config.device)
    for parameter in dit.parameters():
        nn.init.normal_(parameter, std=0.02)
    none: Any = None
    space = LatentSpace((1, 1, 1, 1)).to(config.device)
    return TalkingModel(config.model, architecture, dit, none, space, none, none, none, none)


def random_batch(architecture: Architecture, device: str) -> Batch:
    """Return one pair of random latents under random conditions."""
    clip, channels = architecture.clip, architecture.latent.channels
    size = (clip.num_latent_frames, clip.height // 8, clip.width // 8)
    text, image = architecture.text, architecture.image
    heard = (1, clip.num_latent_frames, audio_window(architecture))
    cond = Conditioning(
        torch.randn(1, 4 + channels, *size),
        torch.randn(1, text.max_tokens, text.d_model),
        torch.randn(1, image.num_tokens, image.hidden_size),
        torch.randn(*heard, architecture.audio.features),
        torch.ones(heard, dtype=torch.bool),
        torch.zeros(1, clip.height, clip.width, 3, dtype=torch.uint8),
    )
    sides = torch.randn(2, 1, channels, *size)
    return Batch(sides[0], sides[1], cond, None).to(torch.device(device))


def expert_step(config: ExpertConfig, model: TalkingModel) -> PreferenceStep:
    """Return the step of one expert against the base."""
    layers = with_experts(config, config, model, 1)
    trainable = {}
    for number, layer in enumerate(layers):
        trainable |= {f"{number}/A": layer.lora_A, f"{number}/B": layer.lora_B}

    def whole(sigma: torch.Tensor) -> torch.Tensor:
        return constant_gate(len(sigma), model.num_layers, [1.0]).to(sigma.device)

    later = recompute_as(config.gradient_checkpointing)
    return PreferenceStep(model, whole, base_gate, trainable, config.dpo, None, later)


def gate_step(config: FusionConfig, expert: ExpertConfig, model: TalkingModel) -> PreferenceStep:
    """Return the step of a gate over three frozen experts against their merge."""
    with_experts(config, expert, model, 3)
    model.dit.requires_grad_(False)
    gate = make_gate(config.gate, model.dit, 3).to(config.device)
    start = copy.deepcopy(gate).requires_grad_(False)

    def of(one: FusionGate) -> GateFunction:
        return lambda sigma: one(timestep_features(model.dit, sigma, config.gate.input))

    later = recompute_as(config.gradient_checkpointing)
    trainable = dict(gate.named_parameters())
    return PreferenceStep(model, of(gate), of(start), trainable, config.dpo, None, later)


def with_experts(
    stage: ExpertConfig | FusionConfig, expert: ExpertConfig, model: TalkingModel, count: int
) -> list[FusedLinear]:
    """Install random experts of an expert config's size, for a stage, and return their linears."""
    prepare_model(model, stage)
    lora = expert.lora
    install_experts(model.dit, lora.targets, count, lora.rank, lora.alpha)
    layers = [layer for _, layer in fused_linears(model.dit)]
    for layer in layers:
        nn.init.normal_(layer.lora_B, std=1e-3)
    return layers


def measure(
    step: PreferenceStep, config: ExpertConfig | FusionConfig, model: TalkingModel, rounds: int
) -> dict[str, Any]:
    """Return the least seconds, peak memory and TFLOP/s of one pair and one draw."""
    batch = random_batch(model.architecture, config.device)
    sigma = torch.full((1, 1), 0.7, device=config.device)
    noise = torch.randn_like(batch.chosen)[:, None]
    cuda = config.device == "cuda"
    times = []
    with autocast(config.engine, config.device):
        known = step.reference_errors(batch, sigma, noise) if config.sigma.stored_draws else None
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        for _ in range(rounds + 1):
            start = clock(cuda)
            step(batch, sigma, noise, known)[0].backward()
            times.append(clock(cuda) - start)
    linears = [(n, x.lora_A.numel() + x.lora_B.numel(), x.lora_A.shape[0])
               for n, x in fused_linears(model.dit)]  # fmt: skip
    tflop = pair_flops(config, model.architecture, Held.of(linears)) / 1e12
    seconds = min(times[1:])
    return {
        "seconds_per_pair": round(seconds, 3),
        "planned_tflop": round(tflop, 4),
        "tflop_per_second": round(tflop / seconds, 3),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1) if cuda else None,
    }


def clock(cuda: bool) -> float:
    """Return the time in seconds, when all that was asked of the card is done."""
    if cuda:
        torch.cuda.synchronize()
    return time.monotonic()


def attempt(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a call measures, or that it does not fit the card's memory."""
    try:
        return call()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"fits": False}


def stages(config: ExpertConfig, rounds: int) -> dict[str, Any]:
    """Return what every way of an expert's and a gate's step costs."""
    family = config.model.weights if config.model.weights == "nano" else "full"
    shared = {"model": config.model, "device": config.device, "sigma.draws": 1}
    fusion = changed(load_config(FusionConfig, f"{family}/fusion"), shared)
    config = changed(config, {"sigma.draws": 1})
    model = random_model(config)
    report: dict[str, Any] = {"tokens": num_tokens(model.architecture)}
    for way, changes in WAYS.items():
        mine, theirs = changed(config, changes), changed(fusion, changes)
        step = functools.partial(expert_step, mine, model)
        other = functools.partial(gate_step, theirs, mine, model)
        for name, own, make in (("expert", mine, step), ("gate", theirs, other)):
            found = attempt(lambda: measure(make(), own, model, rounds))  # noqa: B023
            print(way, name, found, flush=True)
            report.setdefault(name, {})[way] = found
    return report


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", nargs="?", default="full/expert-motion")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    config = load_config(ExpertConfig, given.preset, given.overrides)
    card = torch.cuda.get_device_name() if config.device == "cuda" else None
    report = {"machine": {**header(), "gpu": card, "torch": torch.__version__}}
    report |= stages(config, given.rounds)
    given.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
