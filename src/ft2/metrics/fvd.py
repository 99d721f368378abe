"""FVD: I3D logits of windows of 16 frames."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ft2.errors import UsageError
from ft2.metrics.catalogue import FACTS
from ft2.metrics.i3d import InceptionI3d
from ft2.metrics.measure import Clip, Facts, Measured
from ft2.metrics.network import Load, Network, pictures
from ft2.metrics.weights import fill, read_state

WINDOW, SIZE = 16, 224


class ClipFeatures:
    """Features of each window of 16 frames; their distribution is what FVD compares."""

    def __init__(self, load: Load, device: str = "cpu", batch_size: int = 16) -> None:
        """See `ft2.metrics.network.Network`; four windows go at a time at most."""
        self._network = Network(load, device, max(1, min(batch_size // 4, 4)))

    @property
    def facts(self) -> Facts:
        """What it is."""
        return FACTS["fvd"]

    def measure(self, clip: Clip) -> Measured:
        """Return features [F // 16, 400]; frames beyond the last whole window are left out.

        Raises:
            UsageError: The clip has fewer than 16 frames.
        """
        count = len(clip.frames) // WINDOW
        if not count:
            raise UsageError(f"{len(clip.frames)} frames: FVD needs windows of {WINDOW}")
        frames = pictures(clip.frames[: count * WINDOW], SIZE)
        windows = frames.reshape(count, WINDOW, 3, SIZE, SIZE).transpose(1, 2)
        return Measured(features=self._network(windows.contiguous()).numpy())


def load_i3d(path: Path) -> nn.Module:
    """Return I3D with the weights of a file in the layout of pytorch-i3d.

    Raises:
        UsageError: The file is not what it should be.
    """
    state: dict[str, torch.Tensor] = read_state(path)
    return fill(InceptionI3d(), state, path)
