"""Imaging quality without a reference: MUSIQ of pyiqa on whole frames, as VBench uses it.

An option: neither pyiqa (PolyForm Noncommercial 1.0.0) nor its weights may be used commercially,
so nothing of ft2 installs them unasked.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from ft2.errors import MissingExtra
from ft2.media import Frames
from ft2.metrics.catalogue import FACTS
from ft2.metrics.measure import Clip, Facts, Measured
from ft2.metrics.network import MOST_FRAMES, Load, Network, spread
from ft2.metrics.weights import fill, read_state

LONGEST = 512
"""Long side in pixels above which VBench makes frames smaller."""


class Imaging:
    """Mean of MUSIQ's score (0 to 100 on SPAQ) over frames, divided by 100."""

    def __init__(self, load: Load, device: str = "cpu", batch_size: int = 16) -> None:
        """See `ft2.metrics.network.Network`."""
        self._network = Network(load, device, batch_size)

    @property
    def facts(self) -> Facts:
        """What it is."""
        return FACTS["imaging"]

    def measure(self, clip: Clip) -> Measured:
        """Measure one clip."""
        frames = clip.frames[spread(len(clip.frames), MOST_FRAMES)]
        return Measured({"imaging": float(self._network(whole(frames)).mean()) / 100})


def whole(frames: Frames) -> Tensor:
    """Return frames uint8 [N, H, W, 3] uncut as float [N, 3, h, w] in [0, 1], h and w <= 512."""
    height, width = frames.shape[1:3]
    scale = min(1.0, LONGEST / max(height, width))
    shape = (round(width * scale), round(height * scale))
    resized = np.stack([cv2.resize(f, shape, interpolation=cv2.INTER_AREA) for f in frames])
    return torch.from_numpy(resized).permute(0, 3, 1, 2).float() / 255


def musiq() -> nn.Module:
    """Return MUSIQ with one score, as its SPAQ weights want it, untrained.

    Raises:
        MissingExtra: pyiqa is not installed.
    """
    try:
        from pyiqa.archs.musiq_arch import MUSIQ
    except ImportError as error:
        raise MissingExtra("pyiqa", "iqa") from error
    network: nn.Module = MUSIQ(pretrained=False)
    return network


def load_musiq(path: Path) -> nn.Module:
    """Return MUSIQ with the weights of a file; pyiqa itself is not asked to read or download.

    Raises:
        MissingExtra: pyiqa is not installed.
        UsageError: The file does not hold these weights, or untrained ones.
    """
    return fill(musiq(), read_state(path), path)
