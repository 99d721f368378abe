"""Does the codec serve a face? Its portrait is drawn talking, encoded and decoded."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ft2.config import ClipFormat
from ft2.errors import UsageError
from ft2.generator.codec_fit import mouth_psnr
from ft2.puppet.curves import Curves
from ft2.puppet.portrait import CANVAS, prepare
from ft2.puppet.render import render
from ft2.wan.model import TalkingModel


def rehearsal(portrait: NDArray[np.uint8], clip: ClipFormat) -> NDArray[np.uint8]:
    """Return the portrait drawn as a talking puppet, uint8 [F, size, size, 3].

    Mouth and head move as much as they do in the clips that base training saw.

    Raises:
        NoFace: if the aligned portrait shows no face.
    """
    time = np.arange(clip.num_frames) / clip.fps
    start = np.minimum(1.0, time / 0.16)
    waves = {
        "open": 0.35 * (1 - np.cos(5 * np.pi * time)) * start,
        "width": 0.42 * np.sin(2.6 * np.pi * time),
        "yaw": 0.085 * np.sin(1.2 * np.pi * time),
        "pitch": 0.08 * np.sin(1.8 * np.pi * time),
        "tx": 0.06 * np.sin(0.8 * np.pi * time),
    }
    table = [waves.get(name, np.zeros(clip.num_frames)) for name in Curves.names()]
    large = cv2.resize(portrait, (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC)
    identity = prepare(np.asarray(large, np.uint8), "portrait")
    return render(identity, Curves.unstack(np.stack(table, -1)), clip.width)


def portrait_psnr(model: TalkingModel, portrait: NDArray[np.uint8]) -> float:
    """Return the codec's mouth-box PSNR (dB) on the portrait drawn as a talking puppet."""
    frames = torch.from_numpy(rehearsal(portrait, model.clip))[None]
    back = model.codec.decode(model.codec.encode(frames), frames[:, 0])
    return mouth_psnr(back[:, 1:].cpu().numpy(), frames[:, 1:].numpy())


def check_portrait(
    model: TalkingModel, portrait: NDArray[np.uint8], limit: float | None
) -> float | None:
    """Return :func:`portrait_psnr`, or None without a limit.

    Raises:
        UsageError: if it is below ``limit`` (dB): the weights do not serve this face.
        NoFace: if the aligned portrait shows no face.
    """
    if limit is None:
        return None
    found = portrait_psnr(model, portrait)
    if found < limit:
        raise UsageError(
            f"these weights do not serve this face: the codec returns its mouth at"
            f" {found:.1f} dB, {limit:.0f} dB are needed",
            "use another frontal portrait or other weights; min_portrait_psnr=null lifts the check",
        )
    return found
