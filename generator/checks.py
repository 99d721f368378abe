"""What is checked before a model loads: inputs, output, experts and branches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ft2 import media
from ft2.config import ClipFormat, load_config
from ft2.errors import UsageError
from ft2.generator.best import Judge
from ft2.generator.config import ExpertConfig, GenerateConfig, MotionConfig
from ft2.generator.inputs import find_portrait, read_sound
from ft2.generator.sample import Gated
from ft2.generator.windows import num_frames, window_starts
from ft2.pairs import DIMENSIONS
from ft2.wan.places import read_architecture
from ft2.wan.weights import check_branches


@dataclass(frozen=True)
class Inputs:
    """Checked inputs of one generation.

    Attributes:
        portrait: aligned, uint8 [H, W, 3].
        audio: the whole sound, float32 [N].
        frames: frames of the video.
        starts: first frame of each window.
        remarks: what a person should know.
        clip: format of one window.
        sound_rate: samples a second of the sound that the video gets.
    """

    portrait: NDArray[np.uint8]
    audio: NDArray[np.float32]
    frames: int
    starts: list[int]
    remarks: list[str]
    clip: ClipFormat
    sound_rate: int


def check_inputs(
    config: GenerateConfig, portrait: Path, audio: Path, output: Path, judge: Judge | None = None
) -> Inputs:
    """Read and check everything before a model loads.

    Raises:
        UsageError: if a file is missing or unreadable, the output is not an mp4 file's name,
            the picture shows no face, or the video will be too short for the judge.
    """
    if output.suffix.lower() != ".mp4":
        raise UsageError(f"the output '{output}' is not an .mp4 file", "write -o NAME.mp4")
    if output.is_dir():
        raise UsageError(f"the output '{output}' is a directory", "write -o NAME.mp4")
    check_writable(output.parent)
    check_asked(config)
    for path, name in ((portrait, "portrait"), (audio, "audio")):
        if not path.is_file():
            raise UsageError(f"the {name} '{path}' does not exist", f"give a file: --{name} FILE")
    clip = read_architecture(config.model).clip
    sound, remarks = read_sound(audio, clip, config.max_seconds)
    picture = find_portrait(
        portrait,
        clip,
        config.portrait_margin,
        face=config.face,
        one_face=config.one_face,
        need_face=config.need_face,
    )
    frames = num_frames(len(sound), clip)
    if judge is not None:
        judge.check(frames / clip.fps)
    starts = window_starts(frames, clip, config.long.overlap_frames)
    whole = len(sound) / clip.sample_rate
    if frames < clip.num_frames:
        remarks.append(
            f"the audio lasts {whole:.2f} s: it is padded with silence to {clip.seconds:.2f} s for"
            f" the model, and the video is cut to {frames / clip.fps:.2f} s"
        )
    if len(starts) > 1:
        remarks.append(
            f"the audio lasts {whole:.2f} s: {len(starts)} windows of {clip.seconds:.2f} s that"
            f" share {config.long.overlap_frames} frames"
        )
    if media.num_channels(audio) > 2 and not media.copyable_sound(audio, whole):
        remarks.append(f"the video gets the {media.num_channels(audio)} channels mixed to stereo")
    said = picture.remarks + remarks
    return Inputs(picture.picture, sound, frames, starts, said, clip, media.sound_rate(audio))


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to.

    Raises:
        UsageError: naming what is in the way.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        what = "not a directory" if not there.is_dir() else "not writable"
        raise UsageError(f"cannot write into '{folder}': '{there}' is {what}", "choose another -o")


def load_sampling(source: str | None, overrides: Sequence[str] = ()) -> GenerateConfig:
    """Load how commands sample that make many clips in batches, on one device.

    Args:
        source: preset or YAML file.
        overrides: ``KEY=VALUE`` on top.

    Raises:
        UsageError: the config is wrong, or has what only `ft2 generate` does.
    """
    config = load_config(GenerateConfig, source, list(overrides))
    for name in ("vram", "fp8"):
        if getattr(config, name):
            raise UsageError(
                f"{source}: {name}={getattr(config, name)} is only for ft2 generate",
                f"leave {name} out: clips are sampled in batches here, on one device",
            )
    return config


def check_experts(strength: ExpertConfig, policy: Path | None) -> None:
    """Refuse strengths of experts without a policy that has any.

    Raises:
        UsageError: see above.
    """
    if policy is None and strength != ExpertConfig():
        raise UsageError("`expert` is set, but there is no policy", "give --policy DIR")


def check_strengths(strength: ExpertConfig, policy: Gated | None) -> None:
    """Refuse a strength of an expert that the policy lacks.

    Raises:
        UsageError: naming it.
    """
    experts = () if policy is None else policy.experts
    for name in DIMENSIONS:
        value = getattr(strength, name)
        if value != 1.0 and name not in experts:
            raise UsageError(
                f"expert.{name}={value:g}, but the policy has no {name} expert",
                f"it has {', '.join(experts) or 'none'}",
            )


def check_asked(config: GenerateConfig) -> None:
    """Refuse settings of branches that the model is not asked to load, and missing files.

    Raises:
        UsageError: naming the key and what makes it work.
    """
    branches = config.model.branches
    if config.motion != MotionConfig() and "motion" not in branches:
        raise UsageError(
            "`motion` is set, but the model is loaded without the branch motion",
            "add model.branches=[motion]",
        )
    if config.identity_scale is not None and "identity" not in branches:
        raise UsageError(
            "`identity_scale` is set, but the model is loaded without the branch identity",
            "add model.branches=[identity]",
        )
    if config.motion.body != MotionConfig().body and "motion" in branches:
        architecture = read_architecture(config.model)
        # one number sets both, so a model that hears the face alone takes motion=0.8
        if not architecture.motion.body and config.motion.face != config.motion.body:
            raise UsageError(
                f"motion.body={config.motion.body:g}, but {architecture.name} hears no body motion",
                "its clips show no body; set motion.face",
            )
    check_branches(config.model)
