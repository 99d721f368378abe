"""Held-out figures of a generator: codec fidelity, and whether the mouth follows the sound.

The mouth is read from pixels by a ridge regression fitted on training clips whose curves are
known; it is a judge, and no part of training sees it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ft2 import media
from ft2.errors import UsageError
from ft2.faces import mouth_slice
from ft2.generator.codec_fit import mouth_psnr, psnr
from ft2.generator.config import GenerateConfig
from ft2.generator.data import Clips, read_clips
from ft2.generator.sample import generate_batch
from ft2.runs import Progress
from ft2.wan.condition import Conditioning
from ft2.wan.model import TalkingModel
from ft2.wan.weights import load_talking_model


class MouthTracker:
    """Linear reading of the mouth's opening from aligned frames, relative to frame 0."""

    def __init__(self, clips: Clips, ridge: float = 30.0) -> None:
        """Fit on clips with curves (column 0 is the opening) and without picture defects."""
        if clips.curves is None or clips.flawless is None:
            raise UsageError("the tracker's clips have no curves", "use shards with `shown`")
        clean = clips.flawless[:, 2]
        x = self._features(clips.frames[clean]).reshape(-1, self._width)
        y = clips.curves[clean][:, :, 0].reshape(-1)
        self.mean = x.mean(0)
        centred = x - self.mean
        moment = centred.T @ centred + ridge * np.eye(x.shape[1])
        self.weights = np.linalg.solve(moment, centred.T @ (y - y.mean()))

    _width = 0

    def _features(self, frames: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return grey mouth boxes, halved, minus those of frame 0, [N, F, D]."""
        rows, columns = mouth_slice(frames.shape[2])
        grey = frames[:, :, rows, columns].astype(np.float64).mean(-1) / 255
        height, width = (size // 2 * 2 for size in grey.shape[2:])
        small = grey[:, :, :height, :width].reshape(*grey.shape[:2], height // 2, 2, width // 2, 2)
        flat = small.mean((3, 5)).reshape(*grey.shape[:2], -1)
        self._width = flat.shape[-1]
        return np.asarray(flat - flat[:, :1])

    def opening(self, frames: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the opening in each frame, [N, F], of uint8 [N, F, H, W, 3]."""
        return np.asarray((self._features(frames) - self.mean) @ self.weights)


def correlations(one: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the Pearson correlation of each row, [N]; 0 where a row is constant."""
    a, b = one - one.mean(1, keepdims=True), other - other.mean(1, keepdims=True)
    scale = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.asarray((a * b).sum(1) / np.maximum(scale, 1e-9))


def conditions_of(
    model: TalkingModel, clips: Clips, index: NDArray[np.intp], whole_audio: bool = False
) -> Conditioning:
    """Return the conditions of the chosen clips: first frame, sound, caption."""
    return model.encode_conditions(
        clips.frames[index, 0],
        list(clips.sound(index)),
        [clips.captions[i] for i in index],
        whole_audio,
    )


def sample_clips(
    model: TalkingModel, clips: Clips, index: NDArray[np.intp], config: GenerateConfig
) -> NDArray[np.uint8]:
    """Sample one clip for each chosen condition, with seed 0."""
    parts = []
    for start in range(0, len(index), config.batch_size):
        part = index[start : start + config.batch_size]
        keys = [(str(i), 0) for i in part]
        cond = conditions_of(model, clips, part, config.whole_audio)
        parts.append(generate_batch(model, cond, keys, config))
    return np.concatenate(parts)


def codec_figures(model: TalkingModel, clips: Clips) -> dict[str, float]:
    """Return PSNR (dB) of the codec on clips without and with picture defects."""
    figures = {}
    assert clips.flawless is not None
    for name, chosen in (("clean", clips.flawless[:, 2]), ("spoiled", ~clips.flawless[:, 2])):
        frames = clips.frames[np.flatnonzero(chosen)[:128]]
        parts = []
        for part in torch.from_numpy(frames).split(32):
            parts.append(model.codec.decode(model.codec.encode(part), part[:, 0]).numpy())
        if parts:
            back = np.concatenate(parts)
            figures[f"codec_psnr_{name}"] = psnr(back[:, 1:], frames[:, 1:])
            figures[f"codec_mouth_psnr_{name}"] = mouth_psnr(back[:, 1:], frames[:, 1:])
    return figures


def evaluate_generator(
    config: GenerateConfig,
    data: str | Path,
    tracker_data: str | Path,
    num_clips: int,
    sheet: Path | None,
    progress: Progress,
) -> dict[str, object]:
    """Return held-out figures of a generator.

    Args:
        config: model and sampling.
        data: shards of held-out clips, with curves.
        tracker_data: shards on which the mouth tracker is fitted.
        num_clips: conditions to sample, once each.
        sheet: contact sheet to write (rows of frames; first column: the given frame).
        progress: is told how far it is.

    Returns:
        Codec PSNRs, and the correlation of the sampled mouth with the true mouth curve of its
        sound (``mouth_right``), with that of another clip's sound (``mouth_swapped``), and of
        the real clips' mouths with their curves (``mouth_ceiling``).
    """
    model = load_talking_model(config.model, config.device)
    clips = read_clips(data)
    tracker = MouthTracker(read_clips(tracker_data, limit=1500))
    assert clips.curves is not None
    assert clips.flawless is not None
    good = np.flatnonzero(clips.flawless[:, 1])[:num_clips]
    progress.update("sample", 0, len(good))
    frames = sample_clips(model, clips, good, config)
    progress.update("sample", len(good), len(good))
    seen = tracker.opening(frames)
    truth = clips.curves[good][:, :, 0]
    right, swapped = correlations(seen, truth), correlations(seen, np.roll(truth, 1, axis=0))
    ceiling = correlations(tracker.opening(clips.frames[good]), truth)
    if sheet is not None:
        rows = np.concatenate([np.concatenate(list(clip[::2]), 1) for clip in frames[:16]])
        media.write_png(sheet, rows)
    return {
        "clips": len(good),
        **codec_figures(model, clips),
        "mouth_right": float(right.mean()),
        "mouth_swapped": float(swapped.mean()),
        "mouth_ceiling": float(ceiling.mean()),
        "mouth_amplitude": float(seen.std() / max(truth.std(), 1e-9)),
    }
