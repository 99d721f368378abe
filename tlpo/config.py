"""Configs of the two TLPO stages; every value is a key and every key is used."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, model_validator

from ft2.config import Config, EngineConfig, preset_path
from ft2.errors import UsageError
from ft2.pairs import Dimension, Store
from ft2.tlpo.options import (
    ATTENTION_TARGETS,
    AUDIO_TARGETS,
    FFN_TARGETS,
    CacheConfig,
    DpoConfig,
    GateConfig,
    LoopConfig,
    LoraConfig,
    MaskConfig,
    SigmaConfig,
)
from ft2.wan.spec import WanSpec

View = Literal[Store, "mixed"]
"""Pairs to learn from: one store, or those of the three dimensions together."""

__all__ = [
    "ATTENTION_TARGETS",
    "AUDIO_TARGETS",
    "FFN_TARGETS",
    "CacheConfig",
    "DpoConfig",
    "ExpertConfig",
    "FusionConfig",
    "GateConfig",
    "LoopConfig",
    "LoraConfig",
    "MaskConfig",
    "SigmaConfig",
    "StageConfig",
    "View",
    "stage_of",
]


class StageConfig(Config):
    """What both stages have in common."""

    dataset: Path = Path("runs/nsq")
    """Talking-NSQ directory (`ft2 nsq build`)."""
    cache: Path | None = None
    """Encoded dataset, filled as needed; None is `cache` beside the output."""
    encoding: CacheConfig = CacheConfig()
    """How clips are encoded."""
    model: WanSpec = WanSpec()
    """The talking model that is trained."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to train; with several processes each takes the card of its local rank."""
    gradient_checkpointing: Literal[False, True, "keep_attention"] = False
    """Compute blocks again in the backward pass instead of keeping what is in them; with
    ``keep_attention`` without self-attention, whose outputs are kept: less time, more memory."""
    sigma: SigmaConfig = SigmaConfig()
    """Noise levels."""
    dpo: DpoConfig = DpoConfig()
    """Loss."""
    mask: MaskConfig = MaskConfig()
    """Error weights."""
    loop: LoopConfig = LoopConfig()
    """Length and evaluation."""
    engine: EngineConfig = EngineConfig()
    """Optimiser; micro_batch_size counts pairs."""
    view_weights: dict[Dimension, float] = Field(default_factory=dict)
    """Pair weights by dimension where the views are mixed; a missing one is 1, 0 leaves it out."""

    @model_validator(mode="after")
    def _check_stored_draws(self) -> "StageConfig":
        if self.sigma.stored_draws and self.dpo.anchor:
            raise ValueError(
                "dpo.anchor needs the reference's velocities: set sigma.stored_draws=0"
            )
        if self.sigma.stored_draws and self.mask.probability < 1:
            raise ValueError("mask.probability below 1 does not go with sigma.stored_draws")
        return self

    def cache_dir(self, output: Path) -> Path:
        """Return the cache directory for a run that writes to ``output``."""
        return self.cache if self.cache is not None else output.parent / "cache"


class ExpertConfig(StageConfig):
    """Stage 1: one expert LoRA on one dimension's pairs."""

    stage: Literal["expert"] = "expert"
    """Tells the two stages apart."""
    dimension: Literal[Dimension, "mixed"] = "quality"
    """Which store to learn; `mixed` is the baseline of one LoRA on the pairs of all three."""
    lora: LoraConfig = LoraConfig()
    """Size and place of the expert."""

    @property
    def view(self) -> View:
        """The pairs to learn from."""
        return self.dimension

    @model_validator(mode="after")
    def _check_views(self) -> "ExpertConfig":
        _check_view_weights(self.view, self.view_weights)
        return self


class FusionConfig(StageConfig):
    """Stage 2: backbone and experts frozen, only the gate learns."""

    stage: Literal["fusion"] = "fusion"
    """Tells the two stages apart."""
    experts: dict[Dimension, Path] = Field(default_factory=dict)
    """Run or adapter directory of each expert, by dimension."""
    gate: GateConfig = GateConfig()
    """Form and start of the gate."""
    store: View = "fusion"
    """Pairs to learn from; `fusion` are those whose chosen side wins on every dimension, `mixed`
    those of the three dimensions together."""
    reference: Literal["initial", "base"] = "initial"
    """`initial`: the merge that the gate starts from; `base`: no experts (saturates early)."""

    @property
    def view(self) -> View:
        """The pairs to learn from."""
        return self.store

    @model_validator(mode="after")
    def _check_views(self) -> "FusionConfig":
        _check_view_weights(self.view, self.view_weights)
        return self


def _check_view_weights(view: View, weights: dict[Dimension, float]) -> None:
    if weights and view != "mixed":
        raise ValueError(f"view_weights belong to mixed views, got {view}")
    if any(weight < 0 for weight in weights.values()):
        raise ValueError(f"view_weights must be at least 0, got {weights}")


def stage_of(source: str, overrides: Sequence[str]) -> str:
    """Return the stage that a preset or YAML file and its overrides name; "expert" if none does.

    Raises:
        UsageError: The file is missing or its stage is unknown.
    """
    path = Path(source) if Path(source).is_file() else preset_path(source)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return "expert"  # load_config reports what is wrong with the file
    stage = data.get("stage", "expert") if isinstance(data, dict) else "expert"
    for text in overrides:
        key, _, value = text.partition("=")
        stage = value if key == "stage" else stage
    if stage not in ("expert", "fusion"):
        raise UsageError(f"unknown stage '{stage}'", "stage is expert or fusion")
    return str(stage)
