"""Sizes of a Thinker and what it sees; the one thing that tells nano from full."""

from typing import Literal, Self

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


class StreamSpec(Config):
    """One of several looks at a clip, for the questions that need it."""

    answers: tuple[str, ...] = Field(min_length=1)
    """Dimensions whose questions follow this stream; they see it and the streams before it."""
    crop: Literal["frame", "face", "mouth"] = "face"
    """What is shown: the whole picture, background and all, squeezed into the stream's sides; the
    aligned face; or its mouth. A clip of the critic's own size is its own face and frame."""
    width: int = Field(64, ge=8)
    """Pixels of the picture's width."""
    height: int = Field(64, ge=8)
    """Pixels of the picture's height."""
    every: int = Field(1, ge=1)
    """Take every n-th frame; 1 is the clip's own rate."""
    audio: bool = False
    """Interleave the sound with the pictures, on one clock; needs ``every: 1``."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.audio and self.every != 1:
            raise ValueError(f"a stream with audio takes every frame, got every: {self.every}")
        return self


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
    streams: tuple[StreamSpec, ...] = ()
    """Looks at the clip by what each question needs; empty shows the composite with the sound to
    all questions, as in the paper."""
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
        for stream in self.streams:
            if stream.width % cell or stream.height % cell:
                raise ValueError(
                    f"a stream of {stream.width}x{stream.height} pixels must have sides that are "
                    f"multiples of patch_size * merge_size = {cell}"
                )
        asked = [name for stream in self.streams for name in stream.answers]
        if len(set(asked)) != len(asked):
            raise ValueError(f"a question follows one stream, got {asked}")
        if self.clip.seconds > self.audio.chunk_seconds:
            raise ValueError(
                f"a clip of {self.clip.seconds} s does not fit audio.chunk_seconds "
                f"{self.audio.chunk_seconds}"
            )
        return self

    @property
    def stream_specs(self) -> tuple["QwenSpec", ...]:
        """One spec for each stream, whose view and clip are what that stream shows."""
        return tuple(self._stream_spec(stream) for stream in self.streams) or (self,)

    def _stream_spec(self, stream: StreamSpec) -> "QwenSpec":
        shown = ViewSpec.model_construct(  # its height and width are all that counts
            face_size=stream.width, mouth_height=stream.height - stream.width
        )
        clip = {
            "num_frames": -(-self.clip.num_frames // stream.every),
            "fps": self.clip.fps / stream.every,
        }
        changes = {
            "view": shown,
            "clip": self.clip.model_copy(update=clip),
            "streams": (),
        }
        return self.model_copy(update=changes)

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
        """Video tokens of a clip, of all streams together."""
        if self.streams:
            return sum(stream.num_video_tokens for stream in self.stream_specs)
        return self.num_patches_in_time * self.tokens_per_patch

    @property
    def num_audio_tokens(self) -> int:
        """Audio tokens of a clip (25 a second: 10 ms mel frames, halved twice)."""
        mel = -(-self.clip.num_samples // 160)
        return ((mel - 1) // 2 + 1 - 2) // 2 + 1
