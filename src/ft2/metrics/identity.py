"""IDC: how alike crops of the face are from frame to frame, by DINO."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ft2.faces import crop, face_box
from ft2.metrics.catalogue import FACTS
from ft2.metrics.measure import Clip, Facts, Measured
from ft2.metrics.network import IMAGENET, Load, Network, pictures, steadiness
from ft2.metrics.weights import pretrained

SIDE = 224


class Identity:
    """Mean cosine of DINO features to the first frame and to the one before."""

    def __init__(self, load: Load, device: str = "cpu", batch_size: int = 16) -> None:
        """See `ft2.metrics.network.Network`."""
        self._network = Network(load, device, batch_size)

    @property
    def facts(self) -> Facts:
        """What it is."""
        return FACTS["identity"]

    def measure(self, clip: Clip) -> Measured:
        """Measure one clip.

        Raises:
            UsageError: The face is lost.
        """
        boxes = [face_box(points) for points in clip.steady_landmarks()]
        faces = [crop(f, _square(box), SIDE) for f, box in zip(clip.frames, boxes, strict=True)]
        found = self._network(pictures(np.stack(faces), SIDE, *IMAGENET))
        return Measured({"idc": steadiness(found)})


def _square(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """Return the square around the centre of a box that holds all of it."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half = max(box[2] - box[0], box[3] - box[1]) / 2
    return x - half, y - half, x + half, y + half


class ClassToken(nn.Module):
    """A vision transformer that gives the class token of its last layer, [B, D]."""

    def __init__(self, vit: nn.Module) -> None:
        """Wrap a transformers ``ViTModel``."""
        super().__init__()
        self.vit = vit

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the features of normalised pictures [B, 3, 224, 224]."""
        found: torch.Tensor = self.vit(pixel_values=pixels).last_hidden_state[:, 0]
        return found


def load_dino(name: str) -> nn.Module:
    """Return DINO from a folder or a hub id.

    Raises:
        UsageError: It is not there, or not whole.
    """
    from transformers import ViTModel

    return ClassToken(pretrained(ViTModel, name, add_pooling_layer=False))
