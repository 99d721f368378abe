"""Settings of `ft2 evaluate`: all defaults of all metrics."""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from ft2.config import Config, DeviceName

MetricName = Literal[
    "face", "lips", "motion", "picture", "critic", "fid", "fvd", "sync", "expression", "identity",
    "dynamics", "imaging", "aesthetic",
]  # fmt: skip


class WeightsConfig(Config):
    """Where trained weights are; a metric without its weights leaves a gap in the table."""

    inception: Path | None = None
    """FID: ``pt_inception-2015-12-05-6726825d.pth``."""
    i3d: Path | None = None
    """FVD: ``i3d_pretrained_400.pt`` or ``rgb_imagenet.pt`` of pytorch-i3d."""
    syncnet: Path | None = None
    """Sync-C and Sync-D: ``syncnet_v2.model``."""
    arcface: Path | None = None
    """ES: an IResNet-50 or -100 ``backbone.pth`` of insightface, or an ArcFace ``.onnx``."""
    dino: str | None = None
    """IDC: a folder, or the hub id ``facebook/dino-vitb16``."""
    raft: Path | None = None
    """SD and BD: ``raft_large_C_T_SKHT_V2-ff5fadd5.pth`` of torchvision."""
    clip: str | None = None
    """Aesthetic: a folder, or the hub id ``openai/clip-vit-large-patch14``."""
    aesthetic: Path | None = None
    """Aesthetic: LAION's head, linear or its perceptron."""
    musiq: Path | None = None
    """Imaging quality: ``musiq_spaq_ckpt-358bb6af.pth`` for pyiqa; neither may be used
    commercially."""


class EvaluateConfig(Config):
    """What is measured, with what, and how it is summed up."""

    metrics: tuple[MetricName, ...] = ()
    """Which metrics; empty takes all, with gaps for those whose weights are not given."""
    weights: WeightsConfig = WeightsConfig()
    """Trained weights, by local path or hub id."""
    device: DeviceName = "cpu"
    """Where the networks run: cpu, cuda, cuda:1."""
    condition: str = r"^(.+?)(?:-\d{4})?$"
    """Pattern whose first group is the condition in a file's name, for clips without a record;
    clips of one condition (portrait and speech) are drawn together in the bootstrap."""
    num_resamples: int = Field(2000, ge=100)
    """Bootstrap samples of each interval."""
    seed: int = 0
    """Seed of the bootstrap."""
    max_shift_seconds: float = Field(0.4, gt=0)
    """Lip sync without SyncNet looks for an offset up to this far either way."""
    max_shift_frames: int = Field(15, ge=1)
    """Sync-C and Sync-D: offsets up to this many frames of 40 ms, 15 in the literature."""
    min_track: int = Field(25, ge=6)
    """Sync-C and Sync-D: shortest track of a face, in frames of 40 ms."""
    flow_side: int = Field(512, ge=128, multiple_of=8)
    """SD and BD: short side in pixels at which optical flow is measured."""
    batch_size: int = Field(16, ge=1)
    """Pictures a network gets at a time."""
    shown_clips: int = Field(6, ge=0)
    """Clips (or pairs) copied beside the HTML page."""

    @field_validator("condition")
    @classmethod
    def _has_group(cls, value: str) -> str:
        try:
            groups = re.compile(value).groups
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from error
        if groups < 1:
            raise ValueError(f"the pattern {value!r} has no group: write ^(clip\\d+)-seed")
        return value


STUDY_QUESTIONS = {
    "lip_sync": "Do the lips match the speech?",
    "video_quality": "How good is the picture: sharp, clean, without artefacts?",
    "identity": "Does it stay the same person throughout?",
    "motion_diversity": "How rich and natural is the motion of head, face and body?",
}
"""What FantasyTalking's raters scored (its Table 3); the words are ours."""


class StudyConfig(Config):
    """A study with people on the annotation page."""

    mode: Literal["scores", "pairs"] = "scores"
    """``scores``: one clip, 0 to 10 (FantasyTalking's Table 3); ``pairs``: two clips of one
    condition, A, B or tie."""
    questions: dict[str, str] = STUDY_QUESTIONS
    """What is asked, by dimension; the defaults are the four of FantasyTalking's study."""
    raters_per_clip: int = Field(3, ge=1)
    """At least this many people rate each clip (or pair)."""
    condition: str = r"^(.+?)(?:-\d{4})?$"
    """As in `EvaluateConfig`."""
