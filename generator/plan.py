"""What a run would cost, without loading a weight: sizes, memory, time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ft2.generator.config import GenerateConfig, TrainConfig
from ft2.generator.sample import passes
from ft2.generator.start import starting_spec
from ft2.report.charts import significant
from ft2.wan.audio import audio_windows
from ft2.wan.branches import branch_parameters
from ft2.wan.dit import TalkingTransformer
from ft2.wan.encoders import image_encoder, text_encoder
from ft2.wan.float8 import float8_gib
from ft2.wan.memory import plan_memory
from ft2.wan.places import read_architecture
from ft2.wan.spec import Architecture, WanSpec
from ft2.wan.weights import meta_dit

if TYPE_CHECKING:
    from ft2.generator.checks import Inputs

GIB = 2**30
A100_FLOPS = 1.6e14
"""Sustained bf16 rate assumed in estimates, about half of an A100's peak."""


def audio_parameters(dit: TalkingTransformer) -> tuple[int, int]:
    """Return the number of tensors and of parameters of the audio branch."""
    found = [
        parameter.numel()
        for name, parameter in dit.named_parameters()
        if "proj_model." in name or ".processor." in name
    ]
    return len(found), sum(found)


def num_tokens(architecture: Architecture) -> int:
    """Return the video tokens of one clip."""
    clip, patch = architecture.clip, architecture.dit.patch_size
    rows, columns = clip.height // 8 // patch[1], clip.width // 8 // patch[2]
    return clip.num_latent_frames // patch[0] * rows * columns


def forward_flops(architecture: Architecture, parameters: int) -> float:
    """Return floating-point operations of one pass: linears, and self-attention."""
    tokens = num_tokens(architecture)
    attention = 4.0 * tokens**2 * architecture.dit.dim * architecture.dit.num_layers
    return 2.0 * parameters * tokens + attention


def describe_model(spec: WanSpec) -> dict[str, object]:
    """Return name and sizes of a model, from its shapes alone."""
    architecture = read_architecture(spec)
    dit = meta_dit(spec)
    tensors, audio = audio_parameters(dit)
    clip = architecture.clip
    samples = clip.num_samples
    token_rate = samples // 640 if architecture.audio.kind == "log_mel" else (samples - 80) // 320
    windows = audio_windows(token_rate, clip.num_frames)
    here = spec.weights == "nano" or Path(spec.weights).expanduser().is_dir()
    return {
        "model": architecture.name,
        "weights": spec.weights if here else f"{spec.weights} (not on this machine)",
        "dit_parameters": sum(p.numel() for p in dit.parameters()),
        "audio_tensors": tensors,
        "audio_parameters": audio,
        **{f"{branch}_parameters": branch_parameters(dit, branch) for branch in spec.branches},
        "clip": f"{clip.num_frames} frames, {clip.width}x{clip.height}, {clip.fps:g} fps,"
        f" {clip.seconds:.2f} s",
        "video_tokens": num_tokens(architecture),
        "audio_window": windows.width,
    }


def encoders_gib(architecture: Architecture, value_bytes: int) -> float:
    """Return the size of text and image encoder, from their shapes alone."""
    with torch.device("meta"):
        parts = (text_encoder(architecture.text), image_encoder(architecture.image))
    return sum(p.numel() for part in parts for p in part.parameters()) * value_bytes / GIB


def plan_generation(config: GenerateConfig, inputs: Inputs | None = None) -> dict[str, object]:
    """Return the plan of ``ft2 generate``: model, passes, memory and time (estimates).

    Args:
        config: model and sampling.
        inputs: checked inputs, if there are any; they say how many windows there are.
    """
    plan = describe_model(config.model)
    architecture = read_architecture(config.model)
    count = int(str(plan["dit_parameters"]))
    windows = config.num_seeds * (1 if inputs is None else len(inputs.starts))
    forwards = windows * sum(
        len(passes(config.guidance, i / config.steps)) for i in range(config.steps)
    )
    size = 2 if config.model.precision == "bf16" else 4
    seconds = forwards * forward_flops(architecture, count) / A100_FLOPS
    dit_gib = {False: count * size / GIB, True: float8_gib(meta_dit(config.model), size)}
    if config.vram not in (None, "auto"):
        others = encoders_gib(architecture, size)
        placed = {
            fp8: plan_memory(float(config.vram), gib, others).placement
            for fp8, gib in dit_gib.items()
        }
        plan |= {"placement": placed[config.fp8], "encoders_memory_gib": round(others, 3)}
        if placed[True] != placed[config.fp8]:
            plan["placement_with_fp8"] = placed[True]
    if "motion" in config.model.branches:
        plan |= {"motion_face": config.motion.face, "motion_body": config.motion.body}
    if "identity" in config.model.branches:
        own = architecture.identity.scale
        plan["identity_scale"] = own if config.identity_scale is None else config.identity_scale
    if inputs is not None:
        plan |= {"frames": inputs.frames, "remarks": inputs.remarks}
    return {
        **plan,
        "windows": windows,
        "steps": config.steps,
        "forward_passes": forwards,
        "fp8": config.fp8,
        "dit_memory_gib": significant(dit_gib[config.fp8]),
        "estimate_seconds_on_one_a100": significant(seconds),
        "estimate_note": "arithmetic at half of the peak rate, not a measurement",
    }


def plan_training(config: TrainConfig) -> dict[str, object]:
    """Return the plan of ``ft2 generator train``: model, data, memory and time (estimates)."""
    spec = config.model
    if config.start is not None and (Path(config.start) / "model").is_dir():
        spec = starting_spec(config)
    described = _maybe_described(spec, config)
    engine = config.engine
    batch = engine.micro_batch_size * engine.accumulation_steps
    plan: dict[str, object] = {
        **described,
        "stage": config.stage,
        "data": config.data,
        "shards": len(list(Path(config.data).glob("*.safetensors"))),
        "steps": config.steps,
        "clips_a_step": batch,
        "engine": engine.kind,
    }
    if "dit_parameters" in described:
        count = int(str(described["dit_parameters"]))
        trained = count
        if config.freeze_base:
            trained = sum(int(str(described[f"{b}_parameters"])) for b in spec.branches)
        flops = 3 * forward_flops(read_architecture(spec), count) * batch * config.steps
        plan |= {
            "trained_parameters": trained,
            "train_memory_gib": significant((2 * count + 16 * trained) / GIB),
            "estimate_a100_hours": significant(flops / A100_FLOPS / 3600),
            "estimate_note": "weights, gradients and AdamW state; arithmetic, not a measurement",
        }
    return plan


def _maybe_described(spec: WanSpec, config: TrainConfig) -> dict[str, object]:
    """Describe the model, or say that the earlier stage that defines it is not there yet."""
    if config.start is not None and not (Path(config.start) / "model").is_dir():
        return {"model": f"that of {config.start}, which is not finished"}
    return describe_model(spec)
