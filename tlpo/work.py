"""How much a stage computes and holds: FLOPs of a pair, memory of a GPU, from sizes alone.

Counted: every matrix product of the transformer, attention as 2 products forward and 5 backward,
the experts' products, and what is run twice (reference, checkpointing, decomposed backward). A
frozen linear costs one product backward, and none where nothing before it is trained (text, image,
audio).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ft2.tlpo.config import ExpertConfig, FusionConfig, StageConfig
from ft2.wan.audio import audio_windows
from ft2.wan.spec import Architecture

GIB = 2**30
AUDIO_TOKENS_PER_SECOND = 50
BLOCK_WORKSPACE = 20
"""Activations of one block at work, in units of its input."""


@dataclass(frozen=True)
class Forward:
    """FLOPs of one forward pass of one clip, by what its backward pass costs."""

    video: float
    """Linears on video tokens: as much again backward."""
    conditions: float
    """Linears on text, image and audio tokens: nothing backward."""
    attention: float
    """Attention products: 2.5 times as much backward."""

    @property
    def total(self) -> float:
        """All of the forward pass."""
        return self.video + self.conditions + self.attention

    @property
    def backward(self) -> float:
        """The backward pass through the frozen network."""
        return self.video + 2.5 * self.attention


def num_tokens(architecture: Architecture) -> int:
    """Return the transformer's video tokens of one clip."""
    clip, patch = architecture.clip, architecture.dit.patch_size
    frames = clip.num_latent_frames // patch[0]
    return frames * (clip.height // 8 // patch[1]) * (clip.width // 8 // patch[2])


def audio_window(architecture: Architecture) -> int:
    """Return the audio tokens that a latent frame hears."""
    clip = architecture.clip
    rate = AUDIO_TOKENS_PER_SECOND / (2 if architecture.audio.kind == "log_mel" else 1)
    tokens = max(1, round(clip.num_frames / clip.fps * rate))
    return audio_windows(tokens, clip.num_frames).width


def forward_flops(architecture: Architecture) -> Forward:
    """Return the FLOPs of one forward pass of one clip through the base."""
    dit, tokens = architecture.dit, num_tokens(architecture)
    d, f, layers = dit.dim, dit.ffn_dim, dit.num_layers
    text, image = architecture.text, architecture.image
    window = audio_window(architecture)
    heard = window * architecture.clip.num_latent_frames
    channels = architecture.latent.channels
    patch = dit.patch_size[0] * dit.patch_size[1] * dit.patch_size[2]
    ends = 2 * patch * d * tokens * ((2 * channels + 4) + channels)
    video = layers * 2 * (6 * d**2 + 2 * d * f) * tokens + ends
    words, pictures = text.max_tokens, image.num_tokens
    keys = 4 * d * (d * (words + pictures) + dit.audio_dim * heard)
    embedded = 2 * (text.d_model * d + d * d) * words
    embedded += 2 * (image.hidden_size**2 + image.hidden_size * d) * pictures
    seen = tokens + words + pictures + window
    return Forward(video, layers * keys + embedded, layers * 4 * tokens * seen * d)


@dataclass(frozen=True)
class Held:
    """Parameters of the experts in a network."""

    total: int
    on_video: int
    """Those of linears that read video tokens; the others read text, image or audio."""

    @classmethod
    def of(cls, sizes: Iterable[tuple[str, int]]) -> "Held":
        """Count (name, parameters) of adapted linears, or of their tensors."""
        listed = list(sizes)
        own = [n for name, n in listed if not any(part in name for part in _CONDITION_LINEARS)]
        return cls(sum(n for _, n in listed), sum(own))


_CONDITION_LINEARS = ("attn2.to_k", "attn2.to_v", "add_k_proj", "add_v_proj", ".processor.")


def expert_flops(architecture: Architecture, held: Held) -> float:
    """Return the FLOPs of the experts' products in one forward pass.

    Every parameter is used once for each token of its linear; the text's tokens stand for those of
    all conditions.
    """
    words = architecture.text.max_tokens
    rest = held.total - held.on_video
    return 2.0 * (held.on_video * num_tokens(architecture) + rest * words)


def pair_flops(
    config: ExpertConfig | FusionConfig, architecture: Architecture, held: Held
) -> float:
    """Return the FLOPs of one training pair: both sides, all draws, policy and reference.

    Args:
        config: The stage.
        architecture: Sizes of the model.
        held: The experts in the network.
    """
    base, experts = forward_flops(architecture), expert_flops(architecture, held)
    policy = base.total + experts
    forwards = 1 + config.gradient_checkpointing + config.dpo.decomposed / 2
    trained = 2 if isinstance(config, ExpertConfig) else 1
    side = forwards * policy + base.backward + trained * experts
    if not config.sigma.stored_draws:
        merged = isinstance(config, FusionConfig) and config.reference == "initial"
        side += policy if merged else base.total
    return 2 * config.sigma.draws * side


def memory_gib(
    config: StageConfig, architecture: Architecture, base: int, trainable: int, held: int,
    zero_stage: int, gpus: int,
) -> dict[str, float]:  # fmt: skip
    """Return what one GPU holds, by part, in GiB.

    Args:
        config: The stage.
        architecture: Sizes of the model.
        base: Parameters of the frozen network.
        trainable: Parameters in the optimiser.
        held: Parameters of the experts, kept in fp32.
        zero_stage: 1 shares the optimiser's state, 2 also gradients, 3 also all weights.
        gpus: How many share.
    """
    width = 2 if config.model.precision == "bf16" else 4
    compute = 2 if config.engine.precision == "bf16" else width
    part = {stage: 1 / gpus if zero_stage >= stage else 1.0 for stage in (1, 2, 3)}
    sides = 1 if config.dpo.decomposed else 2
    rows = sides * config.engine.micro_batch_size * config.sigma.draws
    layers = architecture.dit.num_layers
    unit = rows * num_tokens(architecture) * architecture.dit.dim * compute / GIB
    kept = layers if config.gradient_checkpointing else BLOCK_WORKSPACE * layers
    return {
        "base": base * width / GIB * part[3],
        "experts": held * 4 / GIB * part[3],
        "gradients": trainable * 4 / GIB * part[2],
        "adam": trainable * 8 / GIB * part[1],
        "activations": unit * kept,
        "workspace": unit * BLOCK_WORKSPACE if config.gradient_checkpointing else 0.0,
    }
