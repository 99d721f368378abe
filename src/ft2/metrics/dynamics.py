"""SD and BD: how much the person and the background move, by RAFT's optical flow."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ft2.errors import UsageError
from ft2.faces import person_mask
from ft2.media import Frames
from ft2.metrics.catalogue import FACTS
from ft2.metrics.measure import Clip, Facts, Measured
from ft2.metrics.network import Load, Network
from ft2.metrics.weights import fill, read_state

FPS = 25
LEAST = 0.02
"""A region smaller than this part of the picture has no motion of its own."""


class Dynamics:
    """Mean optical flow on the person (SD) and off it (BD), in pixels per 40 ms."""

    def __init__(
        self, load: Load, device: str = "cpu", batch_size: int = 16, side: int = 512
    ) -> None:
        """Measure at `side` pixels on the short side; two pairs of frames at a time at most."""
        self._network = Network(load, device, max(1, min(batch_size // 8, 2)))
        self.side = side

    @property
    def facts(self) -> Facts:
        """What it is."""
        return FACTS["dynamics"]

    def measure(self, clip: Clip) -> Measured:
        """Measure one clip; a region that hardly is there has nan.

        Raises:
            UsageError: The clip has one frame.
        """
        if len(clip.frames) < 2:
            raise UsageError("one frame does not move")
        frames = resized(clip.frames, self.side)
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
        flow = self._network(pixels[:-1], pixels[1:])
        length = flow.norm(dim=1).numpy() * clip.fps / FPS
        inside = np.stack([person_mask(frame) for frame in frames[:-1]])
        return Measured({"sd": _mean(length, inside), "bd": _mean(length, ~inside)})


def _mean(length: NDArray[np.float32], where: NDArray[np.bool_]) -> float:
    return float(length[where].mean()) if where.mean() >= LEAST else float("nan")


def resized(frames: Frames, side: int) -> Frames:
    """Return frames with a short side of `side` and sides that RAFT takes (multiples of 8)."""
    height, width = frames.shape[1:3]
    scale = side / min(height, width)
    shape = (round(width * scale / 8) * 8, round(height * scale / 8) * 8)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.stack([cv2.resize(f, shape, interpolation=how) for f in frames])


class Flow(nn.Module):
    """RAFT, giving its last estimate of the flow alone."""

    def __init__(self, raft: nn.Module) -> None:
        """Wrap torchvision's ``RAFT``."""
        super().__init__()
        self.raft = raft

    def forward(self, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        """Return the flow [B, 2, H, W] in pixels from `one` to `two`, [B, 3, H, W] in [-1, 1]."""
        found: torch.Tensor = self.raft(one, two)[-1]
        return found


def load_raft(path: Path) -> nn.Module:
    """Return RAFT large with the weights of a file.

    Raises:
        UsageError: The file is not what it should be.
    """
    from torchvision.models.optical_flow import raft_large  # type: ignore[import-untyped]

    return Flow(fill(raft_large(weights=None, progress=False), read_state(path), path))
