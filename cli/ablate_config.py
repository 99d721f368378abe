"""Config of `ft2 generator ablate`."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ft2.config import Config
from ft2.wan.spec import WanSpec

Name = Literal["both stages", "clip stage", "frame stage", "no lip mask", "no identity"]
VARIANTS: tuple[Name, ...] = (
    "both stages", "clip stage", "frame stage", "no lip mask", "no identity"
)  # fmt: skip


class AblationConfig(Config):
    """Variants of base training against each other, all with the same number of steps."""

    family: str = "nano"
    """Presets of training (generator-frame, for both stages) and sampling (generate)."""
    model: WanSpec = WanSpec(branches=("identity", "motion"))
    """Weights from which every variant starts, with the branches that are trained."""
    fresh: tuple[Literal["audio", "identity", "motion"], ...] = ("audio", "identity", "motion")
    """Parts that start anew although the weights have them; the rest is as the weights have it."""
    data: str = "data/arrays"
    """Directory of array shards, with motion strengths where the branch `motion` is trained."""
    conditions: Path = Path("runs/ablation-conditions/conditions.jsonl")
    """Puppet conditions of the table (`ft2 puppet build --split dev`): held-out faces, speech."""
    variants: tuple[Name, ...] = VARIANTS
    """What is compared; `both stages` is what the others are compared with."""
    steps: int = Field(1000, ge=2)
    """Optimiser steps of every variant."""
    clip_share: float = Field(0.5, gt=0, lt=1)
    """Share of the steps that variants with both stages spend on the clip stage (paper: 0.8)."""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """Training seeds; every variant is trained anew for each."""
    samples: tuple[int, ...] = Field((0,), min_length=1)
    """Noise seeds of every condition."""
    overrides: dict[Literal["generator-frame", "generate"], list[str]] = Field(default_factory=dict)
    """KEY=VALUE changes of the two presets."""

    @model_validator(mode="after")
    def _check(self) -> "AblationConfig":
        if "both stages" not in self.variants:
            raise ValueError("variants need 'both stages': the others are compared with it")
        if "no identity" in self.variants and "identity" not in self.model.branches:
            raise ValueError("'no identity' needs the branch identity in model.branches")
        return self
