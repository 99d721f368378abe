"""Motion vectors between the reference and each frame: estimated, and applied."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

CELL = 8
"""Pixels along each side of the square that shares one motion vector."""

_SMOOTHING = 0.8
_MIN_CONTRAST = 4.0


def grey(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return a frame uint8 [H, W, 3] in grey, slightly smoothed, float32 [H, W]."""
    plain = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(plain, (0, 0), _SMOOTHING), np.float32)


def estimate_motion(frames: NDArray[np.uint8], reference: NDArray[np.uint8]) -> Tensor:
    """Return where each frame's cells come from in the reference, [F, H / 8, W / 8, 2].

    Dense inverse search (Kroeger et al., ECCV 2016, in OpenCV) on grey pictures of equal
    brightness and contrast, averaged over cells of 8 x 8 pixels.

    Args:
        frames: uint8 [F, H, W, 3].
        reference: uint8 [H, W, 3].
    """
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    search.setFinestScale(0)
    search.setVariationalRefinementIterations(0)
    target = grey(reference)
    mean, spread = target.mean(), target.std()
    target = np.clip(target, 0, 255).astype(np.uint8)
    rows, columns = frames.shape[1] // CELL, frames.shape[2] // CELL
    found = np.empty((len(frames), rows, columns, 2), np.float32)
    for number, frame in enumerate(frames):
        source = grey(frame)
        scale = spread / max(float(source.std()), _MIN_CONTRAST)
        even = np.clip((source - source.mean()) * scale + mean, 0, 255).astype(np.uint8)
        flow = search.calc(even, target, None)
        found[number] = flow.reshape(rows, CELL, columns, CELL, 2).mean((1, 3))
    return torch.from_numpy(found)


def warp(picture: Tensor, motion: Tensor) -> Tensor:
    """Move a picture by motion vectors.

    Args:
        picture: [B, H, W, 3].
        motion: pixels (x, y) from a place in the frame to its source, one for each cell,
            [B, F, H / 8, W / 8, 2]; interpolated in between.

    Returns:
        [B, F, H, W, 3]; places outside repeat the edge.
    """
    batch, count = motion.shape[:2]
    height, width = picture.shape[1:3]
    cells = motion.flatten(0, 1).permute(0, 3, 1, 2)
    flow = F.interpolate(cells, (height, width), mode="bilinear", align_corners=False)
    ys = torch.arange(height, device=flow.device, dtype=flow.dtype)
    xs = torch.arange(width, device=flow.device, dtype=flow.dtype)
    place = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1) + flow.permute(0, 2, 3, 1)
    size = torch.tensor([width, height], device=flow.device, dtype=flow.dtype)
    source = picture.permute(0, 3, 1, 2).repeat_interleave(count, 0)
    moved = F.grid_sample(
        source,
        (2 * place + 1) / size - 1,
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return moved.permute(0, 2, 3, 1).unflatten(0, (batch, count))
