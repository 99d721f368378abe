"""Sizes of a Thinker and what it sees; the one thing that tells nano from full."""

from typing import Self

from pydantic import Field, model_validator

from ft2.config import ClipFormat, Config


class TextSpec(Config):
    """The language model of the Thinker."""

    hidden_size: int = Field(128, ge=8)
    """Width of the residual stream."""
    num_layers: int = Field(4, ge=1)
    """Decoder layers."""
    num_heads: int = Field(4, ge=1)
    """Query heads; ``hidden_size / num_heads`` is the head width."""
    num_kv_heads: int = Field(2, ge=1)
    """Key and value heads (grouped-query attention)."""
    ffn_size: int = Field(320, ge=8)
    """Inner width of the gated feed-forward layers."""
    mrope_section: tuple[int, int, int] = (8, 4, 4)
    """Rotary channels for time, height, width; their sum is half the head width."""
    vocab_size: int = Field(512, ge=266)
    """Rows of the embedding matrix, at least the tokens of the processor's tokenizer."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % self.num_heads or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must divide by num_heads {self.num_heads}, "
                f"and that by num_kv_heads {self.num_kv_heads}"
            )
        if sum(self.mrope_section) * 2 != self.hidden_size // self.num_heads:
            raise ValueError(
                f"mrope_section {self.mrope_section} must sum to half the head width "
                f"{self.hidden_size // self.num_heads}"
            )
        return self


class VisionSpec(Config):
    """The vision tower."""

    hidden_size: int = Field(96, ge=8)
    """Width."""
    num_layers: int = Field(2, ge=1)
    """Blocks."""
    num_heads: int = Field(4, ge=1)
    """Attention heads."""
    ffn_size: int = Field(256, ge=8)
    """Inner width of the gated feed-forward layers."""
    patch_size: int = Field(16, ge=2)
    """Pixels of a square patch's side; a patch spans two frames."""
    merge_size: int = Field(2, ge=1)
    """Patches merged along each side into one token."""
    window_size: int = Field(128, ge=2)
    """Pixels of an attention window's side in the blocks that are not full."""
    full_attention_layers: tuple[int, ...] = (0, 1)
    """Blocks that attend over the whole frame pair."""


class AudioSpec(Config):
    """The audio tower (Whisper's encoder architecture)."""

    hidden_size: int = Field(128, ge=8)
    """Width."""
    num_layers: int = Field(2, ge=1)
    """Encoder layers."""
    num_heads: int = Field(4, ge=1)
    """Attention heads."""
    ffn_size: int = Field(320, ge=8)
    """Inner width of the feed-forward layers."""
    num_mel_bins: int = Field(128, ge=8)
    """Mel channels."""
    chunk_seconds: int = Field(2, ge=1, le=30)
    """Seconds of sound that the feature extractor pads to; a clip must fit."""


class ViewSpec(Config):
    """How a clip is laid out for the vision tower: the face above its enlarged mouth."""

    face_size: int = Field(64, ge=8)
    """Pixels of the aligned face's side."""
    mouth_height: int = Field(32, ge=8)
    """Pixels of the mouth crop's height; its width is `face_size`."""

    @property
    def height(self) -> int:
        """Height of the composite in pixels."""
        return self.face_size + self.mouth_height


class QwenSpec(Config):
    """A Thinker: its sizes, the clips it takes, and where its weights are."""

    text: TextSpec = TextSpec()
    """Language model."""
    vision: VisionSpec = VisionSpec()
    """Vision tower."""
    audio: AudioSpec = AudioSpec()
    """Audio tower."""
    clip: ClipFormat = ClipFormat()
    """Clips that the model judges; other formats are brought to this one first."""
    view: ViewSpec = ViewSpec()
    """Composite of face and mouth."""
    weights: str = "nano"
    """``nano`` (shipped with ft2) or a directory with safetensors weights and processor files."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        cell = self.vision.patch_size * self.vision.merge_size
        if self.view.face_size % cell or self.view.mouth_height % cell:
            raise ValueError(
                f"view.face_size {self.view.face_size} and view.mouth_height "
                f"{self.view.mouth_height} must be multiples of patch_size * merge_size = {cell}"
            )
        if self.clip.seconds > self.audio.chunk_seconds:
            raise ValueError(
                f"a clip of {self.clip.seconds} s does not fit audio.chunk_seconds "
                f"{self.audio.chunk_seconds}"
            )
        return self

    @property
    def num_patches_in_time(self) -> int:
        """Two-frame patches of a clip; an odd last frame is repeated."""
        return (self.clip.num_frames + 1) // 2

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches of a clip in time, height and width, before merging."""
        size = self.vision.patch_size
        return (
            self.num_patches_in_time,
            self.view.height // size,
            self.view.face_size // size,
        )

    @property
    def tokens_per_patch(self) -> int:
        """Video tokens of one two-frame patch."""
        _, rows, columns = self.grid
        return rows * columns // self.vision.merge_size**2

    @property
    def num_video_tokens(self) -> int:
        """Video tokens of a clip."""
        return self.num_patches_in_time * self.tokens_per_patch

    @property
    def num_audio_tokens(self) -> int:
        """Audio tokens of a clip (25 a second: 10 ms mel frames, halved twice)."""
        mel = -(-self.clip.num_samples // 160)
        return ((mel - 1) // 2 + 1 - 2) // 2 + 1
