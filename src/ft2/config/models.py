"""The base of all configs, and the groups of keys that several packages share."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def _device_name(name: str) -> str:
    if re.fullmatch(r"cpu|cuda(:\d+)?", name) is None:
        raise ValueError(f"unknown device '{name}': choose cpu, cuda or cuda:N")
    return name


DeviceName = Annotated[str, AfterValidator(_device_name)]
"""``cpu``, ``cuda`` or ``cuda:N``; whether it is there is asked before a model loads."""


class Config(BaseModel):
    """Base of all configs: immutable, no unknown keys, no NaN, documented attributes."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class ClipFormat(Config):
    """The one format of a clip: what generator, critic and dataset exchange.

    The defaults are the nano format. 21 frames at 12.5 a second are the shorter of the two formats
    that were considered (41 at 25 is the other): a critic on them tells right from wrong lips on
    unseen faces and speech (accuracies in ``weights/nano/provenance.json``), at half the cost.
    """

    width: int = Field(64, ge=16, multiple_of=8)
    """Width in pixels, a multiple of 8 (the codec's spatial stride)."""
    height: int = Field(64, ge=16, multiple_of=8)
    """Height in pixels, a multiple of 8."""
    num_frames: int = Field(21, ge=1)
    """Frames in a clip; 1 + 4k, because the codec keeps the first frame and groups four after."""
    fps: float = Field(12.5, gt=0)
    """Frames per second."""
    sample_rate: int = Field(16000, gt=0)
    """Audio samples per second, mono."""

    @model_validator(mode="after")
    def _check_frames(self) -> "ClipFormat":
        if self.num_frames % 4 != 1:
            below = self.num_frames - (self.num_frames - 1) % 4
            raise ValueError(
                f"num_frames must be 1 + 4k, got {self.num_frames}; use {below} or {below + 4}"
            )
        return self

    @property
    def seconds(self) -> float:
        """Duration in seconds: ``num_frames / fps``."""
        return self.num_frames / self.fps

    @property
    def num_samples(self) -> int:
        """Audio samples of a clip, rounded to the nearest whole sample."""
        return round(self.seconds * self.sample_rate)

    @property
    def num_latent_frames(self) -> int:
        """Latent frames of a clip: ``(num_frames - 1) // 4 + 1``."""
        return (self.num_frames - 1) // 4 + 1


class EngineConfig(Config):
    """The optimiser and how it is run; the one source of every number DeepSpeed gets."""

    kind: Literal["torch", "deepspeed"] = "torch"
    """``torch``: one process, plain PyTorch; ``deepspeed``: ZeRO, one process or many."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's two moments, each in [0, 1)."""
    eps: float = Field(1e-8, gt=0)
    """AdamW's denominator offset."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Clip the global gradient norm to this; 0 switches clipping off."""
    warmup_steps: int = Field(0, ge=0)
    """Optimiser steps of linear warm-up from 0."""
    decay_steps: int = Field(0, ge=0)
    """Steps after which the rate has fallen to a twentieth, as a cosine; 0 keeps it constant."""
    micro_batch_size: int = Field(1, ge=1)
    """Samples a process handles in one forward pass."""
    accumulation_steps: int = Field(1, ge=1)
    """Forward passes summed into one optimiser step."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage; only with ``kind: deepspeed``."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the forward and backward pass."""

    @model_validator(mode="after")
    def _check(self) -> "EngineConfig":
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {list(self.betas)}")
        if self.kind == "torch" and self.zero_stage:
            raise ValueError(f"zero_stage {self.zero_stage} needs kind: deepspeed, got kind: torch")
        return self
