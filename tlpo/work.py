"""How much a stage computes: FLOPs of a pair, from sizes alone.

Counted: every matrix product of the transformer, attention as 2 products forward and 5 backward,
the experts' products, and what is run twice (reference, checkpointing, decomposed backward). A
frozen linear costs one product backward, and none where nothing before it is trained (text, image,
audio).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ft2.tlpo.config import ExpertConfig, FusionConfig
from ft2.wan.audio import audio_windows
from ft2.wan.spec import Architecture

AUDIO_TOKENS_PER_SECOND = 50


@dataclass(frozen=True)
class Forward:
    """FLOPs of one forward pass of one clip, by what its backward pass costs."""

    video: float
    """Linears on video tokens: as much again backward."""
    conditions: float
    """Linears on text, image and audio tokens: nothing backward."""
    attention: float
    """Attention products: 2.5 times as much backward."""
    own: float
    """Those of self-attention."""

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
    own = float(layers * 4 * tokens**2 * d)
    return Forward(video, layers * keys + embedded, layers * 4 * tokens * seen * d, own)


@dataclass(frozen=True)
class Held:
    """The experts in a network: their parameters, and where they are."""

    total: int
    """Parameters."""
    on_video: int
    """Those of linears that read video tokens; the others read text, image or audio."""
    ranks: int
    """Ranks of the linears on video tokens, summed over linears and experts."""
    condition_ranks: tuple[int, int, int]
    """Those of the linears on text, image and audio tokens."""
    names: tuple[str, ...]
    """Adapted linears, or their tensors."""

    @classmethod
    def of(cls, parts: Iterable[tuple[str, int, int]]) -> "Held":
        """Count (name, parameters, ranks) of adapted linears, or of their tensors."""
        listed = list(parts)
        own = [p for p in listed if not any(part in p[0] for part in _CONDITION_LINEARS)]
        return cls(
            total=sum(count for _, count, _ in listed),
            on_video=sum(count for _, count, _ in own),
            ranks=sum(ranks for _, _, ranks in own),
            condition_ranks=(_ranks(listed, _TEXT), _ranks(listed, _IMAGE), _ranks(listed, _AUDIO)),
            names=tuple(name for name, _, _ in listed),
        )


_TEXT = ("attn2.to_k", "attn2.to_v")
_IMAGE = ("add_k_proj", "add_v_proj")
_AUDIO = (".processor.",)
_CONDITION_LINEARS = (*_TEXT, *_IMAGE, *_AUDIO)


def _ranks(parts: Iterable[tuple[str, int, int]], names: tuple[str, ...]) -> int:
    return sum(ranks for name, _, ranks in parts if any(part in name for part in names))


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
    again = policy - base.own if config.gradient_checkpointing == "keep_attention" else policy
    times = bool(config.gradient_checkpointing) + config.dpo.decomposed / 2
    trained = 2 if isinstance(config, ExpertConfig) else 1
    side = policy + times * again + base.backward + trained * experts
    if not config.sigma.stored_draws:
        merged = isinstance(config, FusionConfig) and config.reference == "initial"
        side += policy if merged else base.total
    return 2 * config.sigma.draws * side
