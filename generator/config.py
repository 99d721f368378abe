"""Configs of ``ft2 generator train`` and ``ft2 generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ft2.config import Config, DeviceName, EngineConfig
from ft2.wan.spec import WanSpec


class SigmaConfig(Config):
    """Distribution of the training noise level: a shifted logit-normal."""

    mean: float = 0.0
    """Mean of the logit."""
    std: float = Field(1.0, gt=0)
    """Standard deviation of the logit."""
    shift: float = Field(1.0, gt=0)
    """Wan's shift; above 1 trains more at high noise."""


class DropoutConfig(Config):
    """Probabilities with which each condition is dropped, independently of the others."""

    text: float = Field(0.1, ge=0, le=1)
    """The prompt becomes the empty prompt."""
    image: float = Field(0.1, ge=0, le=1)
    """The picture's embedding becomes zero; the image latents stay."""
    picture: float = Field(0.0, ge=0, le=1)
    """Embedding and image latents both become zero: only the face embedding tells who it is."""
    audio: float = Field(0.1, ge=0, le=1)
    """The audio branch is scaled by zero."""
    identity: float = Field(0.0, ge=0, le=1)
    """The identity branch is scaled by zero; the paper names no such dropout."""


class PrepareConfig(Config):
    """How codec, tokenizer and speech tower are made when training starts from nothing."""

    codec_clips: int = Field(3000, ge=1)
    """Clips on which the closed-form part of the codec is fitted."""
    ridge: float = Field(1e-3, gt=0)
    """Ridge strength, relative to the mean variance of the regressors."""
    scale_power: float = Field(0.25, ge=0, le=0.5)
    """Latents are divided by variance to this power; 0.5 whitens them."""
    tower_steps: int = Field(1200, ge=0)
    """Steps of the speech tower on the corpus's phones."""
    vocabulary: int = Field(384, ge=260)
    """Size of the byte-level tokenizer learned on the captions."""
    encoder_seed: int = 0
    """Seed of the frozen random text and image encoders."""
    face_steps: int = Field(1500, ge=0)
    """Steps of the small face encoder on the clips' identities, where the model has one."""


class VideosConfig(Config):
    """How ``ft2 generator prepare`` cuts videos into training clips, and which it keeps."""

    model: WanSpec = WanSpec()
    """The model to be trained: its clips' size, length and rate."""
    margin: float = Field(0.0, ge=0)
    """Share of the aligned face crop's side that is added all around."""
    cut_threshold: float = Field(20.0, gt=0)
    """Mean change from frame to frame (levels, 32 x 32 grey) above which a scene ends."""
    min_confidence: float = Field(0.9, ge=0, le=1)
    """Least confidence of the face, in the first, middle and last frame."""
    other_confidence: float = Field(0.6, ge=0, le=1)
    """A second face of this confidence refuses a clip."""
    min_scale: float = Field(0.5, gt=0)
    """Least width of the face crop in the video, in widths of the clip."""
    max_lost: float = Field(0.1, ge=0, le=1)
    """Share of the frames in which the landmarks may be lost."""
    search_seconds: float = Field(0.4, ge=0)
    """Delays of the sound that are tried, either way."""
    max_offset_seconds: float = Field(0.2, ge=0)
    """Delay up to which a clip is kept."""
    min_correlation: float = Field(0.2, ge=-1, le=1)
    """Least correlation of mouth opening and loudness at the best delay."""
    syncnet: Path | None = None
    """SyncNet's ``syncnet_v2.model``: clips must pass its measure too, at seconds a clip."""
    min_sync_c: float = 3.0
    """With ``syncnet``: least Sync-C, its confidence (bytedance/LatentSync filters at 3)."""
    max_sync_frames: int = Field(3, ge=0, le=15)
    """With ``syncnet``: offset of the sound up to which a clip is kept, frames of 40 ms."""
    joints: str = "mediapipe"
    """What finds body joints: ``mediapipe``, the path of a DWPose ONNX file, or ``none``."""

    @model_validator(mode="after")
    def _check_syncnet(self) -> VideosConfig:
        fields = type(self).model_fields
        keys = [
            k for k in ("min_sync_c", "max_sync_frames") if getattr(self, k) != fields[k].default
        ]
        if self.syncnet is None and keys:
            raise ValueError(f"{', '.join(keys)} without syncnet=syncnet_v2.model")
        return self


class MeasureConfig(Config):
    """How ``ft2 generator measure`` adds motion strengths to array shards."""

    joints: str = "mediapipe"
    """What finds body joints: ``mediapipe``, the path of a DWPose ONNX file, or ``none``."""
    every: int = Field(1, ge=1)
    """Look at every n-th frame; landmarks take about 25 ms a frame on one core."""


class EncodingConfig(Config):
    """How training clips are encoded; on one machine the sizes do not change what comes out."""

    batch_size: int = Field(64, ge=1)
    """Clips encoded together; 1 for the Wan VAE at 512 x 512 x 81."""
    shard_size: int = Field(64, ge=1)
    """Clips in one file of the cache; an interruption loses at most one file."""


class TrainConfig(Config):
    """Base training of the generator: one stage of the two of FantasyTalking."""

    stage: Literal["clip", "frame"] = "clip"
    """``clip``: every video token hears the whole clip; ``frame``: only its own window."""
    data: str = "data/arrays"
    """Directory of array shards, as ``ft2.puppet.dataset.build_arrays`` writes."""
    model: WanSpec = WanSpec()
    """Weights to start from, or an architecture and ``weights: none`` to start from nothing."""
    start: str | None = None
    """Run directory of an earlier stage, whose averaged weights are the start."""
    cache: Path | None = None
    """Encoded clips (`ft2 generator cache`), completed as needed; None is `encoded` in the run
    directory, or the earlier stage's where it has all clips."""
    encoding: EncodingConfig = EncodingConfig()
    """How clips are encoded."""
    device: DeviceName = "cpu"
    """Where to encode and train; with several processes each takes the card of its local rank."""
    fresh: tuple[Literal["audio", "face", "identity", "motion"], ...] = ()
    """Parts that start anew although the weights have them; ``audio`` is the audio branch, ``face``
    the small face encoder."""
    freeze_base: bool = False
    """Train only ``model.branches``; the transformer with its audio branch stays as it is."""
    steps: int = Field(1000, ge=1)
    """Optimiser steps."""
    seed: int = 0
    """Seed of everything that is drawn."""
    sigma: SigmaConfig = SigmaConfig()
    """Training noise levels."""
    dropout: DropoutConfig = DropoutConfig()
    """Condition dropout."""
    lip_probability: float = Field(0.8, ge=0, le=1)
    """Frame stage: probability of weighting the loss by the lips (1 - eta of the paper)."""
    lip_background: float = Field(0.0, ge=0, le=1)
    """Weight of latents that the lips do not touch, relative to those they touch."""
    lip_source: Literal["landmarks", "box"] = "landmarks"
    """Where the lips are: landmarks of the given frame, or the fixed box of an aligned crop."""
    whole_audio_probability: float = Field(0.0, ge=0, le=1)
    """Frame stage: share of batches that still hear the whole clip."""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """Decay of the weight average that is exported; it warms up as (1 + n) / (10 + n). 0: none."""
    checkpoint_seconds: float = Field(60.0, gt=0)
    """Time between checkpoints; it does not change the result."""
    compile: bool = False
    """Compile the blocks with torch.compile; on a CPU it needs a C++ compiler."""
    prepare: PrepareConfig = PrepareConfig()
    """Codec, tokenizer and speech tower."""
    engine: EngineConfig = EngineConfig()
    """Optimiser; ``micro_batch_size`` times ``accumulation_steps`` clips a step."""


class GuidanceConfig(Config):
    """Classifier-free guidance; a scale of 1 is no guidance."""

    prompt: float = Field(5.0, ge=0)
    """Strength of the prompt, w_p."""
    audio: float = Field(5.0, ge=0)
    """Strength of the audio, w_a."""
    audio_until: float = Field(1.0, ge=0, le=1)
    """Share of the steps with audio guidance; afterwards w_a = w_p (two passes)."""
    negative_prompt: str = ""
    """Prompt of the unconditional pass."""


class ExpertConfig(Config):
    """Factors on the gate's weights: 1 leaves an expert as trained, 0 switches it off."""

    motion: float = Field(1.0, ge=-4, le=4)
    """Of the expert of motion naturalness."""
    lip: float = Field(1.0, ge=-4, le=4)
    """Of the expert of lip synchronisation."""
    quality: float = Field(1.0, ge=-4, le=4)
    """Of the expert of visual quality."""
    rounded: bool = False
    """Merge experts into 16-bit weights, too: a tenth faster at full size, but an expert that
    changes a weight by 0.1 % is half rounded away. 32-bit weights are merged anyway."""


class MotionConfig(Config):
    """How much the person moves: omega, a rank in the training set (0 still, 1 liveliest)."""

    face: float = Field(0.5, ge=0, le=1)
    """Strength of face motion, omega_l."""
    body: float = Field(0.5, ge=0, le=1)
    """Strength of body motion, omega_b."""

    @model_validator(mode="before")
    @classmethod
    def _one_for_both(cls, value: object) -> object:
        """Take one number for both."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return {"face": value, "body": value} if number else value


class LongConfig(Config):
    """How sound that is longer than one clip of the model is spoken: in overlapping windows."""

    overlap_frames: int = Field(5, ge=1)
    """Frames at the end of a window with which the next one begins; 1 + 4k."""
    colour_match: bool = True
    """Give every window the means and deviations of the first window's colours."""

    @model_validator(mode="after")
    def _check(self) -> LongConfig:
        if self.overlap_frames % 4 != 1:
            raise ValueError(f"overlap_frames must be 1 + 4k, got {self.overlap_frames}")
        return self


class GenerateConfig(Config):
    """How ``ft2 generate`` samples a clip."""

    model: WanSpec = WanSpec()
    """The talking model."""
    prompt: str = ""
    """Caption of the clip."""
    steps: int = Field(30, ge=1)
    """Euler steps."""
    shift: float = Field(5.0, gt=0)
    """Wan's shift of the noise levels."""
    guidance: GuidanceConfig = GuidanceConfig()
    """Classifier-free guidance."""
    audio_scale: float = Field(1.0, ge=0)
    """Strength of the audio branch."""
    whole_audio: bool = False
    """Let every frame hear all of the clip's sound: for a model of the clip stage alone."""
    seed: int = Field(0, ge=0)
    """Seed of the noise."""
    num_seeds: int = Field(1, ge=1)
    """Clips to make, with this seed and those after it; portrait and sound are encoded once."""
    best_by: Literal["mean", "motion", "lip", "quality"] = "mean"
    """With a critic: which of its scores chooses the best of ``num_seeds`` clips."""
    expert: ExpertConfig = ExpertConfig()
    """Strength of the policy's experts."""
    motion: MotionConfig = MotionConfig()
    """How much the person moves, for a model with the branch ``motion``; one number sets both."""
    identity_scale: float | None = Field(None, ge=0)
    """Strength of the branch ``identity``, lambda_2; None is the model's own."""
    long: LongConfig = LongConfig()
    """Sound that is longer than one clip of the model."""
    max_seconds: float | None = Field(None, gt=0)
    """Speak at most so much of the sound; None speaks all of it."""
    batch_size: int = Field(1, ge=1)
    """Clips that are sampled together."""
    device: DeviceName = "cpu"
    """Where the model computes, ``cpu`` or ``cuda``."""
    vram: Literal[8, 16, 24, 48, 80, "auto"] | None = None
    """Memory of the graphics card in GiB to make do with; None keeps everything on the device."""
    fp8: bool = False
    """Store the transformer's frozen weights in float8: half the memory of bf16, other numbers."""
    crf: int = Field(16, ge=0, le=51)
    """Quality of the h264 file; lower is better."""
    portrait_margin: float = Field(0.0, ge=0)
    """Share of the aligned face crop's side that is added all around."""
    face: tuple[float, float, float, float] | None = None
    """x, y, width, height (pixels) around the middle of the face to take; None: the largest."""
    one_face: bool = False
    """Refuse a portrait with several faces when ``face`` does not choose one."""
    need_face: bool = True
    """Refuse a portrait without a face; otherwise it is cropped around its middle."""
    min_portrait_psnr: float | None = None
    """Refuse a portrait whose mouth the codec cannot return at this PSNR (dB)."""

    @field_validator("face", mode="before")
    @classmethod
    def _split_face(cls, value: object) -> object:
        """Take ``x,y,w,h`` as it is typed."""
        return value.split(",") if isinstance(value, str) else value
