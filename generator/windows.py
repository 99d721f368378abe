"""Long sound in overlapping windows: the end of one is the beginning of the next.

The last frames of a window are encoded again, and the next window is sampled with these latents
held: at every noise level they are exactly as noisy as the rest. Then each window's colours are
matched to the first window's, because small shifts would add up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ft2 import media
from ft2.config import ClipFormat
from ft2.errors import UsageError
from ft2.generator.config import GenerateConfig
from ft2.generator.sample import Gated, sample_latents
from ft2.runs import load_tensors, save_tensors
from ft2.wan.condition import Conditioning
from ft2.wan.model import TalkingModel

MIN_FRAMES = 5
"""Shortest video; shorter sound is padded with silence."""


def num_frames(num_samples: int, clip: ClipFormat) -> int:
    """Return the frames that a sound of ``num_samples`` fills, at least :data:`MIN_FRAMES`."""
    exact = num_samples * clip.fps / clip.sample_rate
    return max(MIN_FRAMES, int(np.ceil(exact - 1e-6)))


def window_starts(frames: int, clip: ClipFormat, overlap: int) -> list[int]:
    """Return the first frame of each window; together they show every frame.

    Args:
        frames: frames of the whole video.
        clip: format of one window.
        overlap: frames that neighbours share, 1 + 4k.

    Raises:
        UsageError: the overlap leaves nothing new in a window.
    """
    step = clip.num_frames - overlap
    if step < 1:
        raise UsageError(
            f"long.overlap_frames {overlap} fills a window of {clip.num_frames} frames",
            f"set it below {clip.num_frames}",
        )
    more = max(0, -(-(frames - clip.num_frames) // step))
    return [step * number for number in range(more + 1)]


def window_audio(audio: NDArray[np.float32], start: int, clip: ClipFormat) -> NDArray[np.float32]:
    """Return the sound of the window that begins at a frame, padded with silence at the end."""
    first = round(start * clip.sample_rate / clip.fps)
    return media.fit_audio(audio[first:], clip.num_samples)


def colour_statistics(frames: NDArray[np.uint8]) -> tuple[NDArray[np.float64], ...]:
    """Return mean and deviation of each channel, [3] each, of uint8 [F, H, W, 3]."""
    flat = frames.reshape(-1, 3).astype(np.float64)
    return flat.mean(0), flat.std(0)


def match_colour(
    frames: NDArray[np.uint8], wanted: tuple[NDArray[np.float64], ...]
) -> NDArray[np.uint8]:
    """Return frames whose channels have the wanted means and deviations (before rounding)."""
    mean, deviation = colour_statistics(frames)
    scale = wanted[1] / np.maximum(deviation, 1e-6)
    moved = (frames - mean) * scale + wanted[0]
    return np.clip(np.round(moved), 0, 255).astype(np.uint8)


@dataclass
class Latents:
    """How far the sampling of one video is; can be saved, and taken up again.

    Attributes:
        done: latents of the finished windows, [1, C, f, h, w] each.
        step: steps taken of the window in work.
        state: its state then, or None if it has not begun.
    """

    done: list[Tensor] = field(default_factory=list)
    step: int = 0
    state: Tensor | None = None

    def save(self, path: Path, key: str) -> bool:
        """Write what there is to a file marked with ``key``; say whether there was anything."""
        tensors = {f"window.{number:04}": x for number, x in enumerate(self.done)}
        if self.state is not None:
            tensors["state"] = self.state
        if tensors:
            save_tensors(path, tensors, {"key": key, "step": str(self.step)})
        return bool(tensors)

    @classmethod
    def load(cls, path: Path, key: str) -> Latents:
        """Read what :meth:`save` wrote.

        Raises:
            UsageError: it belongs to other inputs or settings, or is damaged.
        """
        tensors, metadata = load_tensors(path)
        if metadata.get("key") != key:
            raise UsageError(
                f"'{path}' belongs to other inputs or settings",
                "give the same ones as before, or delete the file",
            )
        done = [tensors[name] for name in sorted(tensors) if name.startswith("window.")]
        return cls(done, int(metadata["step"]), tensors.get("state"))


def sample_long(
    model: TalkingModel,
    cond: Conditioning,
    audio: NDArray[np.float32],
    frames: int,
    key: tuple[str, int],
    config: GenerateConfig,
    policy: Gated | None = None,
    latents: Latents | None = None,
    watch: Callable[[int, int], None] = lambda _window, _step: None,
) -> NDArray[np.uint8]:
    """Return a video of any length, uint8 [frames, H, W, 3].

    Args:
        model: the talking model.
        cond: conditions of the first window, batch 1.
        audio: the whole sound, float32 [N].
        frames: frames of the video.
        key: (condition, seed); they alone decide the noise.
        config: steps, guidance, overlap, colours.
        policy: gives the gate at each step; None samples the base.
        latents: how far an earlier call came; is kept up to date.
        watch: is told window and step before each step, and may raise.
    """
    latents = latents if latents is not None else Latents()
    starts = window_starts(frames, model.clip, config.long.overlap_frames)
    parts: list[NDArray[np.uint8]] = []
    colours = None
    for number, start in enumerate(starts):
        given, carried, overlap = cond, None, 0
        if parts:
            overlap = config.long.overlap_frames
            sound = window_audio(audio, start, model.clip)
            heard, mask = model.encode_audio([sound], config.whole_audio)
            given = replace(cond, audio=heard.to(cond.audio), audio_mask=mask.to(model.device))
            tail = torch.from_numpy(parts[-1][-overlap:])[None]
            given, carried = model.continue_from(given, tail)
        name = key[0] if number == 0 else f"{key[0]}#{number}"
        x = _window_latents(
            model, given, (name, key[1]), config, policy, carried, latents, number, watch
        )
        shown = model.decode(x, given)[0].cpu().numpy()
        if colours is None:
            colours = colour_statistics(shown)
        elif config.long.colour_match:
            shown = match_colour(shown, colours)
        parts.append(shown[overlap:] if overlap else shown)
    return np.concatenate(parts)[:frames]


def _window_latents(
    model: TalkingModel,
    cond: Conditioning,
    key: tuple[str, int],
    config: GenerateConfig,
    policy: Gated | None,
    carried: Tensor | None,
    latents: Latents,
    number: int,
    watch: Callable[[int, int], None],
) -> Tensor:
    """Return the latents of one window: those kept, or sampled from where it was left."""
    if number < len(latents.done):
        return latents.done[number].to(model.device)
    start = None if latents.state is None else (latents.step, latents.state.to(model.device))

    def note(step: int, x: Tensor) -> None:
        latents.step, latents.state = step, x
        watch(number, step)

    x = sample_latents(model, cond, [key], config, policy, carried=carried, start=start, watch=note)
    latents.done.append(x)
    latents.step, latents.state = 0, None
    return x
