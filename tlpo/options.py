"""The parts that the configs of both TLPO stages are made of."""

from typing import Literal

from pydantic import Field, model_validator

from ft2.config import Config

LossName = Literal["dpo", "ipo", "simpo", "kto"]

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
    window: tuple[float, float] = (0.0, 1.0)
    """Noise levels are drawn only between these two."""
    stored_draws: int = Field(0, ge=0)
    """Above 0, every pair has this many fixed draws, taken in turn, and the reference's errors on
    them are computed once and kept in the cache for all later epochs and runs with the same
    reference; 0 draws anew and computes the reference in every step."""

    @model_validator(mode="after")
    def _check(self) -> "SigmaConfig":
        if self.antithetic and self.draws % 2:
            raise ValueError(f"antithetic needs an even number of draws, got {self.draws}")
        low, high = self.window
        if not 0 <= low < high <= 1:
            raise ValueError(f"window must be 0 <= low < high <= 1, got {[low, high]}")
        if self.stored_draws % self.draws:
            raise ValueError(f"stored_draws {self.stored_draws} must be a multiple of draws "
                             f"{self.draws}")  # fmt: skip
        if self.stored_draws and self.antithetic:
            raise ValueError("stored_draws does not go with antithetic")
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
    loss: LossName = "dpo"
    """``dpo``, or for comparison ``ipo``, ``simpo`` (no reference) and ``kto``."""
    ipo_gap: float = Field(4e-4, gt=0)
    """1 / (2 tau) of IPO: the wanted difference of error differences."""
    simpo_margin: float = 0.0
    """gamma of SimPO: the margin beyond which its loss flattens."""
    sft: float = Field(0.0, ge=0)
    """Weight of the policy's error on the chosen side, added to the loss."""
    anchor: float = Field(0.0, ge=0)
    """Weight of mean((v_policy - v_reference)^2) over both sides, without the mask."""
    safeguard: float = Field(0.0, ge=0, lt=1)
    """mu of SDPO: weakens the rejected side's gradient where it would raise the chosen error;
    0 is off, 0.9 the paper's value for SD 1.5."""
    pair_weight: Literal["none", "confidence", "rarity"] = "none"
    """``confidence``: by the critic's score gap; ``rarity``: by how rare a gap of that size is."""
    weight_power: float = Field(1.0, gt=0)
    """Exponent of the pair weight."""
    decomposed: bool = False
    """Go through the two sides one after the other and recompute the rejected one in the backward
    pass: half the activation memory for about an eighth more work, and the same gradient."""

    @model_validator(mode="after")
    def _check_loss(self) -> "DpoConfig":
        if self.loss != "dpo":
            given = {"positive_weight": self.positive_weight,
                     "target_probability": 1 - self.target_probability}  # fmt: skip
            wrong = [name for name, value in given.items() if value]
            if wrong:
                raise ValueError(f"{', '.join(wrong)} belong to loss dpo, got loss {self.loss}")
        if self.weight_power != 1 and self.pair_weight == "none":
            raise ValueError(f"weight_power {self.weight_power} needs a pair_weight, got none")
        return self


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
    sides: Literal["union", "own"] = "union"
    """``union``: both errors use the union of both sides' masks; ``own``: each its own."""
    probability: float = Field(1.0, gt=0, le=1)
    """Share of draws of a pair that use the mask; the others are plain means (0.8 in the
    FantasyTalking paper's reading)."""


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

    @model_validator(mode="after")
    def _check(self) -> "LoopConfig":
        if not self.eval_sigmas or not all(0 <= sigma <= 1 for sigma in self.eval_sigmas):
            raise ValueError(f"eval_sigmas are levels in [0, 1], got {list(self.eval_sigmas)}")
        if self.seed >= 2**63:
            raise ValueError(f"seed must be below 2^63, got {self.seed}")
        return self


class GateConfig(Config):
    """Form of the fusion gate."""

    form: Literal["figure", "softmax", "sigmoid", "mlp"] = "figure"
    """``figure``: softmax(W tau) + b, the bias after the softmax; ``softmax``: softmax((W tau + b)
    / T), strengths sum to 1; ``sigmoid``: sigmoid(W tau + b), independent strengths; ``mlp``:
    softmax of a two-layer network, + b."""
    input: Literal["embedding", "sinusoid", "none"] = "embedding"
    """Timestep features: Wan's time embedding, the sinusoid before it, or none: then the gate
    does not depend on the timestep."""
    per_layer: bool = True
    """False: one set of weights for all layers."""
    per_linear: bool = False
    """True: weights of their own for each kind of adapted linear in a layer (q, k, v, ...)."""
    temperature: float = Field(1.0, gt=0)
    """T of the softmax form."""
    hidden_dim: int = Field(256, ge=1)
    """Width of the mlp form's hidden layer."""
    bias_init: float = 0.0
    """Start of the bias (figure, mlp); each expert starts at 1/3 + this."""
    train_bias: bool = True
    """False keeps the bias, and with it the total strength, at its start."""

    @model_validator(mode="after")
    def _check_form(self) -> "GateConfig":
        if self.form in ("softmax", "sigmoid") and self.bias_init:
            raise ValueError(f"bias_init {self.bias_init} belongs to the forms figure and mlp, "
                             f"got form {self.form}")  # fmt: skip
        if self.form != "softmax" and self.temperature != 1:
            raise ValueError(f"temperature {self.temperature} belongs to the form softmax, "
                             f"got form {self.form}")  # fmt: skip
        return self
