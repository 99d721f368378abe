"""Configs of the two TLPO stages; every value is a key and every key is used."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, model_validator

from ft2.config import Config, EngineConfig, preset_path
from ft2.errors import UsageError
from ft2.pairs import Dimension
from ft2.wan.spec import WanSpec

ATTENTION_TARGETS = (
    "attn1.to_q",
    "attn1.to_k",
    "attn1.to_v",
    "attn2.to_q",
    "attn2.to_k",
    "attn2.to_v",
)
FFN_TARGETS = ("ffn.net.0.proj", "ffn.net.2")
AUDIO_TARGETS = ("attn2.processor.k_proj", "attn2.processor.v_proj")


class LoraConfig(Config):
    """Size and place of an expert."""

    rank: int = Field(128, ge=1)
    """Rank r."""
    alpha: float = Field(128, gt=0)
    """Scale: an expert of weight 1 acts with alpha / rank."""
    targets: tuple[str, ...] = (*ATTENTION_TARGETS, *FFN_TARGETS)
    """Suffixes of the adapted linears: q, k, v of self- and cross-attention and the FFN, where
    the gate's arrows enter in the authors' figure; the audio branch's are an addition of ours."""


class CacheConfig(Config):
    """Encoding of a dataset into latents, conditions and lip masks."""

    mask: Literal["landmarks", "box"] = "landmarks"
    """Lip mask of a clip: from each frame's face landmarks, or the aligned crop's mouth box."""
    portrait_margin: float = Field(0.0, ge=0)
    """As in the sampling that made the clips: part of the side added around the face crop."""
    batch_size: int = Field(8, ge=1)
    """Clips encoded together."""
    shard_size: int = Field(64, ge=1)
    """Clips in one file of the cache."""


class SigmaConfig(Config):
    """Draws of the noise level: shifted logit-normal, stratified over a step's draws."""

    mean: float = 0.0
    """Mean of the logit."""
    std: float = Field(1.0, gt=0)
    """Standard deviation of the logit."""
    shift: float = Field(1.0, gt=0)
    """Wan's shift: above 1 more high noise."""
    draws: int = Field(2, ge=1)
    """(sigma, noise) draws per pair, averaged before the log-sigmoid."""
    antithetic: bool = False
    """Use each noise also with its sign turned (draws must be even)."""

    @model_validator(mode="after")
    def _check(self) -> "SigmaConfig":
        if self.antithetic and self.draws % 2:
            raise ValueError(f"antithetic needs an even number of draws, got {self.draws}")
        return self


class DpoConfig(Config):
    """The preference loss."""

    beta: float = Field(2000, gt=0)
    """Strength of the KL term, for errors averaged over elements."""
    positive_weight: float = Field(0.0, ge=0)
    """k of DPO-Positive: keeps the chosen side from getting worse; 0 is off."""
    target_probability: float = Field(1.0, gt=0.5, le=1)
    """Below 1, conservative DPO with the finite best margin log(p / (1 - p))."""
    min_gradient_factor: float = Field(0.0, ge=0, lt=0.5)
    """Stop when the mean of sigmoid(-z) over recent steps falls below this; 0 never stops."""
    stop_decay: float = Field(0.9, ge=0, lt=1)
    """Memory of that mean (exponential, bias-corrected)."""


class MaskConfig(Config):
    """Where the error counts."""

    kind: Literal["none", "lip"] = "none"
    """``lip`` weights the error by the union of both sides' lip masks."""
    background: float = Field(0.0, ge=0, le=1)
    """Weight outside the lips."""
    dilation: int = Field(1, ge=0)
    """Latent pixels added around the lips."""
    skip_first: bool = True
    """Leave out latent frame 0, the given picture."""
    min_sum: float = Field(30.0, ge=0)
    """Drop pairs whose mask sums to less (latent pixels x frames)."""


class LoopConfig(Config):
    """Length of the training, held-out pairs, checkpoints."""

    num_steps: int = Field(1000, ge=1)
    """Optimiser steps at most."""
    held_out: float = Field(0.1, ge=0, lt=1)
    """Part of the conditions whose pairs are only evaluated."""
    eval_every: int = Field(100, ge=1)
    """Steps between evaluations on the held-out pairs (also before the first and at the end)."""
    eval_sigmas: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 0.95)
    """Noise levels of the evaluation; its noise is fixed by pair."""
    eval_pairs: int = Field(64, ge=1)
    """Held-out pairs at most."""
    checkpoint_every: int = Field(200, ge=1)
    """Steps between checkpoints."""
    seed: int = Field(0, ge=0)
    """Seed of initial weights, order, sigma and noise."""


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
    gradient_checkpointing: bool = False
    """Recompute block activations in the backward pass."""
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

    def cache_dir(self, output: Path) -> Path:
        """Return the cache directory for a run that writes to ``output``."""
        return self.cache if self.cache is not None else output.parent / "cache"


class ExpertConfig(StageConfig):
    """Stage 1: one expert LoRA on one dimension's pairs."""

    stage: Literal["expert"] = "expert"
    """Tells the two stages apart."""
    dimension: Dimension = "quality"
    """Which store to learn."""
    lora: LoraConfig = LoraConfig()
    """Size and place of the expert."""


class GateConfig(Config):
    """Form of the fusion gate."""

    input: Literal["embedding", "sinusoid"] = "embedding"
    """Timestep features: Wan's time embedding, or the sinusoid before it."""
    bias_init: float = 0.0
    """Start of the bias; each expert starts at 1/3 + this."""
    train_bias: bool = True
    """False keeps the bias, and with it the total strength, at its start."""


class FusionConfig(StageConfig):
    """Stage 2: backbone and experts frozen, only the gate learns."""

    stage: Literal["fusion"] = "fusion"
    """Tells the two stages apart."""
    experts: dict[Dimension, Path] = Field(default_factory=dict)
    """Run or adapter directory of each expert, by dimension."""
    gate: GateConfig = GateConfig()
    """Form and start of the gate."""
    store: Literal["fusion", "motion", "lip", "quality"] = "fusion"
    """Pairs to learn from; `fusion` are those whose chosen side wins on every dimension."""
    reference: Literal["initial", "base"] = "initial"
    """`initial`: the merge that the gate starts from; `base`: no experts (saturates early)."""


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
