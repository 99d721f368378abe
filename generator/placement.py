"""Where a loaded model lies while it samples, and in which number format it is stored."""

from __future__ import annotations

from ft2.engine import local_device
from ft2.generator.config import GenerateConfig
from ft2.wan.float8 import store_float8
from ft2.wan.memory import MemoryPlan, card_gib, encoders_of, place, plan_memory, size_gib
from ft2.wan.model import TalkingModel


def start_device(config: GenerateConfig) -> str:
    """Return where to load: on the processor what is made smaller or spread out before it moves.

    Raises:
        UsageError: the device is not there, or ``vram`` is asked for without a card.
    """
    if config.vram is not None:
        card_gib(config.vram, config.device)
    local_device(config.device)
    return "cpu" if config.fp8 or config.vram is not None else config.device


def place_talker(model: TalkingModel, config: GenerateConfig) -> None:
    """Store and place a model, whose experts are installed, as ``fp8`` and ``vram`` say."""
    if config.fp8:
        store_float8(model.dit)
    if config.vram is not None:
        others = sum(size_gib(part) for part in encoders_of(model))
        memory = card_gib(config.vram, config.device)
        place(model, config.device, plan_memory(memory, size_gib(model.dit), others))
    elif config.fp8:
        place(model, config.device, MemoryPlan("all", False, size_gib(model.dit)))
