"""Where the parts of a model lie, by how much memory the graphics card has.

``all``: everything stays on the card. ``encoders``: the transformer stays there; text, image and
speech encoders and the codec come while they are used. ``blocks``: also the transformer's blocks
come one after another, by diffusers' block-level group offload, the next copied while one computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ft2.errors import UsageError
from ft2.wan.codec import WanVae
from ft2.wan.model import TalkingModel

GIB = 2**30
Placement = Literal["all", "encoders", "blocks"]
WORKING_GIB = 8.0
"""Room kept for activations and the codec at 512 x 512 x 81; an estimate, not a measurement."""


@dataclass(frozen=True)
class MemoryPlan:
    """Where the parts lie, whether the codec works in tiles, and what that takes."""

    placement: Placement
    tiled_codec: bool
    resident_gib: float


def plan_memory(vram_gib: float, dit_gib: float, encoders_gib: float) -> MemoryPlan:
    """Return the fastest placement that fits.

    Args:
        vram_gib: memory of the card.
        dit_gib: weights of the transformer.
        encoders_gib: weights of everything else.
    """
    tiled = vram_gib < 48
    if vram_gib >= dit_gib + encoders_gib + WORKING_GIB:
        return MemoryPlan("all", tiled, dit_gib + encoders_gib)
    if vram_gib >= dit_gib + WORKING_GIB:
        return MemoryPlan("encoders", tiled, dit_gib)
    return MemoryPlan("blocks", tiled, dit_gib / 20)


def size_gib(module: nn.Module) -> float:
    """Return the size of a module's parameters and buffers in GiB."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors) / GIB


def card_gib(vram: int | Literal["auto"], device: str) -> float:
    """Return the memory to plan for: a number as given, or that of the card.

    Raises:
        UsageError: the device is not a graphics card that is there.
    """
    if not device.startswith("cuda"):
        raise UsageError(f"vram={vram} with device={device}", "vram is for device=cuda")
    if not torch.cuda.is_available():
        raise UsageError(f"there is no graphics card for device={device}", "set device=cpu")
    if vram == "auto":
        return torch.cuda.mem_get_info(device)[0] / GIB
    return float(vram)


def encoders_of(model: TalkingModel) -> list[nn.Module]:
    """Return the frozen parts beside the transformer."""
    codec = model.codec.vae if isinstance(model.codec, WanVae) else model.codec
    parts = (model.text, model.image, model.speech, codec)
    return [part for part in parts if isinstance(part, nn.Module)]


def place(model: TalkingModel, device: str, plan: MemoryPlan) -> None:
    """Put a loaded model where a plan says; experts must be installed before.

    Raises:
        UsageError: the transformer was placed block by block before.
    """
    model.compute = torch.device(device)
    model.space.to(device)
    if plan.tiled_codec and isinstance(model.codec, WanVae):
        model.codec.vae.enable_tiling()
    if plan.placement == "all":
        for part in encoders_of(model):
            part.to(device)
    else:
        model.visiting = torch.device(device)
    if plan.placement == "blocks":
        streams = model.compute.type == "cuda"
        model.dit.enable_group_offload(
            onload_device=model.compute,
            offload_device=torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
            use_stream=streams,
        )
    else:
        model.dit.to(device)
