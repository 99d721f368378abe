"""What a talking model is made of: sizes, classes, latent space, and where its weights lie.

The defaults are the published sizes: Wan2.1-I2V-14B with FantasyTalking's audio branch,
umT5-XXL, CLIP ViT-H/14 and wav2vec2-base-960h. Smaller models differ by config alone.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ft2.config import ClipFormat, Config


class DitSpec(Config):
    """Sizes of the transformer (diffusers' names) and of its audio branch."""

    num_attention_heads: int = 40
    """Attention heads."""
    attention_head_dim: int = 128
    """Channels of a head; the width is heads times this."""
    ffn_dim: int = 13824
    """Width of the feed-forward layers."""
    num_layers: int = 40
    """Transformer blocks."""
    freq_dim: int = 256
    """Width of the sinusoidal timestep embedding."""
    patch_size: tuple[int, int, int] = (1, 2, 2)
    """Latent frames, rows and columns in one token."""
    audio_dim: int = 2048
    """Width of the projected audio tokens."""

    @property
    def dim(self) -> int:
        """Width of the transformer."""
        return self.num_attention_heads * self.attention_head_dim


class TextSpec(Config):
    """Sizes of the umT5 encoder and of its tokenizer."""

    d_model: int = 4096
    """Width of the embeddings."""
    d_kv: int = 64
    """Channels of a head."""
    d_ff: int = 10240
    """Width of the feed-forward layers."""
    num_layers: int = 24
    """Layers."""
    num_heads: int = 64
    """Attention heads."""
    vocab_size: int = 256384
    """Tokens of the vocabulary."""
    max_tokens: int = Field(512, ge=1)
    """Every prompt is padded with zero embeddings, or refused, at this many tokens."""


class ImageSpec(Config):
    """Sizes of the CLIP vision encoder of the reference picture."""

    hidden_size: int = 1280
    """Width of the embeddings."""
    intermediate_size: int = 5120
    """Width of the feed-forward layers."""
    num_hidden_layers: int = 32
    """Layers."""
    num_attention_heads: int = 16
    """Attention heads."""
    image_size: int = 224
    """Side of the picture in pixels; the portrait is squashed to it."""
    patch_size: int = 14
    """Side of a patch in pixels."""
    output_layer: int = -2
    """Hidden state that is used; -2 is the last but one, as Wan does."""

    @property
    def num_tokens(self) -> int:
        """Tokens of a picture: its patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


POSITION_PERIODS = 6
"""Sine and cosine pairs that tell log-mel tokens their place in time."""


class AudioSpec(Config):
    """Where the audio tokens come from."""

    kind: Literal["wav2vec2", "log_mel"] = "wav2vec2"
    """``wav2vec2``: last hidden state; ``log_mel``: mel frames behind a small speech tower."""
    features: int = 768
    """Width of a token."""
    num_mels: int = 40
    """Mel filters of ``log_mel``, at 50 frames a second."""
    tower_dim: int = 96
    """Width of the convolutional speech tower of ``log_mel``; 0 has none."""

    @property
    def place(self) -> bool:
        """Whether positions are appended to the tokens (wav2vec 2.0 has a sense of its own)."""
        return self.kind == "log_mel"

    @model_validator(mode="after")
    def _check_width(self) -> AudioSpec:
        wanted = 2 * self.num_mels + self.tower_dim + 2 * POSITION_PERIODS
        if self.kind == "log_mel" and self.features != wanted:
            raise ValueError(
                f"features must be {wanted} (2 mel frames, tower, positions), got {self.features}"
            )
        return self


class LatentSpec(Config):
    """Codec and the space in which the transformer sees its latents."""

    codec: Literal["wan_vae", "motion"] = "wan_vae"
    """``wan_vae``: diffusers' AutoencoderKLWan; ``motion``: the closed-form nano codec."""
    channels: int = 16
    """Latent channels."""
    residual: bool = False
    """Latents are differences to those of the reference held still."""
    gaussian_skip: bool = False
    """The velocity has a closed-form Gaussian part; the transformer adds the rest."""
    fill: Literal["zeros", "repeat"] = "zeros"
    """What follows the reference in the image latents: black frames, or the reference again."""


class IdentitySpec(Config):
    """Face embedding, Q-Former and the strength of the identity branch.

    FantasyTalking (arXiv 2504.04842) names these parts and the strength 0.5; sizes are ours.
    """

    encoder: Literal["arcface", "face_tower"] = "arcface"
    """``arcface``: an ONNX file (``face_weights``); ``face_tower``: a small one that ft2 trains."""
    size: int = Field(112, ge=16, multiple_of=8)
    """Side of the face crop in pixels."""
    features: int = Field(512, ge=1)
    """Width of the face embedding."""
    face_tokens: int = Field(4, ge=1)
    """Tokens into which the embedding is spread."""
    queries: int = Field(32, ge=1)
    """Learned queries of the Q-Former: the tokens that every block attends to."""
    dim: int = Field(1024, ge=1)
    """Width of the Q-Former."""
    num_layers: int = Field(4, ge=1)
    """Layers of the Q-Former."""
    num_heads: int = Field(16, ge=1)
    """Attention heads of the Q-Former."""
    scale: float = Field(0.5, ge=0)
    """Strength of the branch, lambda_2."""


class MotionSpec(Config):
    """The motion-intensity network; FantasyTalking names its layers, sizes are ours."""

    dim: int = Field(512, ge=16, multiple_of=8)
    """Width of its layers."""
    body: bool = True
    """Whether it hears omega_b; clips that show no body teach nothing about it."""


class Architecture(Config):
    """Everything about a talking model but its numbers."""

    name: str = "wan2.1-i2v-14b-fantasytalking"
    """Name that is written into records."""
    clip: ClipFormat = ClipFormat(width=512, height=512, num_frames=81, fps=25.0)
    """The clips it makes."""
    dit: DitSpec = DitSpec()
    """Transformer."""
    text: TextSpec = TextSpec()
    """Text encoder."""
    image: ImageSpec = ImageSpec()
    """Image encoder."""
    audio: AudioSpec = AudioSpec()
    """Audio features."""
    latent: LatentSpec = LatentSpec()
    """Codec and latent space."""
    identity: IdentitySpec = IdentitySpec()
    """Identity branch, where ``branches`` asks for it."""
    motion: MotionSpec = MotionSpec()
    """Motion-intensity network, where ``branches`` asks for it."""


Branch = Literal["identity", "motion"]


class WanSpec(Config):
    """A talking model: its weights, and its architecture if the weights do not say."""

    weights: str = "nano"
    """``nano`` (shipped), or a directory (``docs`` list the files it must hold)."""
    architecture: Architecture | None = None
    """None reads ``architecture.json`` beside the weights."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the frozen weights."""
    branches: tuple[Branch, ...] = ()
    """Networks beside the audio branch that are used: ``identity``, ``motion``."""
    face_weights: str | None = None
    """ArcFace ONNX file, for ``identity`` with the encoder ``arcface``."""

    @model_validator(mode="after")
    def _check_branches(self) -> WanSpec:
        if len(set(self.branches)) < len(self.branches):
            raise ValueError(f"a branch is named twice: {', '.join(self.branches)}")
        return self
