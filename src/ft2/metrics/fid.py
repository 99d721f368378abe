"""FID: Inception features of frames, by torch-fidelity's port of the original network."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from ft2.metrics.catalogue import FACTS
from ft2.metrics.measure import Clip, Facts, Measured
from ft2.metrics.network import Load, Network
from ft2.metrics.weights import fill, read_state

FEATURE = "2048"


class FrameFeatures:
    """Features of every frame; their distribution is what FID compares."""

    def __init__(self, load: Load, device: str = "cpu", batch_size: int = 16) -> None:
        """See `ft2.metrics.network.Network`."""
        self._network = Network(load, device, batch_size)

    @property
    def facts(self) -> Facts:
        """What it is."""
        return FACTS["fid"]

    def measure(self, clip: Clip) -> Measured:
        """Return features [F, 2048]; the network itself resizes to 299 pixels as the original."""
        frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2).contiguous()
        return Measured(features=self._network(frames).numpy())


class Inception(nn.Module):
    """torch-fidelity's extractor, giving the pooled features as one tensor."""

    def __init__(self, extractor: nn.Module) -> None:
        """Wrap a ``FeatureExtractorInceptionV3``."""
        super().__init__()
        self.extractor = extractor

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Return [B, 2048] of uint8 [B, 3, H, W]."""
        found: torch.Tensor = self.extractor(frames)[0]
        return found


def load_inception(path: Path) -> nn.Module:
    """Return the network with the weights of a file.

    torch-fidelity would unpickle the file; it is read as plain tensors first, and what
    torch-fidelity reads is a copy of those.

    Raises:
        UsageError: The file is not what it should be.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    state = read_state(path)
    with tempfile.TemporaryDirectory() as folder:
        safe = Path(folder) / "weights.pth"
        torch.save(state, safe)
        extractor = FeatureExtractorInceptionV3("inception-v3-compat", [FEATURE], str(safe))
    return Inception(fill(extractor, state, path))
