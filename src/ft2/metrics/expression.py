"""ES: how alike the face's features are from frame to frame, by ArcFace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ft2.errors import MissingExtra, UsageError
from ft2.faces import Landmarks
from ft2.media import Frames
from ft2.metrics.catalogue import FACTS
from ft2.metrics.iresnet import DEPTHS, IResNet, depths_of
from ft2.metrics.measure import Clip, Facts, Measured
from ft2.metrics.network import Load, Network, pictures, steadiness
from ft2.metrics.weights import fill, read_state

SIDE = 112
TEMPLATE = np.array(
    [[38.29, 51.70], [73.53, 51.50], [56.03, 71.74], [41.55, 92.37], [70.73, 92.20]], np.float32
)
"""Where ArcFace wants eyes, nose and mouth corners, in pixels of the 112-pixel crop."""


class Expression:
    """Mean cosine of ArcFace embeddings to the first frame and to the one before."""

    def __init__(self, load: Load, device: str = "cpu", batch_size: int = 16) -> None:
        """See `ft2.metrics.network.Network`."""
        self._network = Network(load, device, batch_size)

    @property
    def facts(self) -> Facts:
        """What it is."""
        return FACTS["expression"]

    def measure(self, clip: Clip) -> Measured:
        """Measure one clip.

        Raises:
            UsageError: The face is lost.
        """
        points = clip.steady_landmarks()
        faces = np.stack([aligned(f, p) for f, p in zip(clip.frames, points, strict=True)])
        return Measured({"es": steadiness(self._network(pictures(faces, SIDE)))})


def five_points(points: Landmarks) -> NDArray[np.float32]:
    """Return eyes, nose and mouth corners [5, 2] of landmarks [478, 3], picture-left first."""
    eyes = points[[[33, 133], [362, 263]], :2].mean(1)
    return np.concatenate([eyes, points[[4, 61, 291], :2]]).astype(np.float32)


def aligned(frame: Frames, points: Landmarks) -> Frames:
    """Return the face uint8 [112, 112, 3], turned and scaled to ArcFace's template."""
    place, _ = cv2.estimateAffinePartial2D(five_points(points), TEMPLATE, method=cv2.LMEDS)
    if place is None:
        raise UsageError("the landmarks of a frame fit no face")
    return np.asarray(cv2.warpAffine(frame, place, (SIDE, SIDE)), np.uint8)


class OnnxNetwork(nn.Module):
    """An ArcFace model in ONNX, run by onnxruntime on the CPU."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            MissingExtra: onnxruntime is not installed.
            UsageError: The file is no ONNX model of pictures of 112 pixels.
        """
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtra("onnxruntime", "metrics") from error
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own classes derive from Exception alone
            raise UsageError(f"'{path}' is no ONNX model: {str(error).splitlines()[0]}") from error
        entry = self._session.get_inputs()[0]
        if list(entry.shape[1:]) != [3, SIDE, SIDE]:
            raise UsageError(f"'{path}' takes {entry.shape}", "give an ArcFace model of 112 pixels")
        self._input = entry.name

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        """Return embeddings [B, D] of faces [B, 3, 112, 112] in [-1, 1]."""
        found = self._session.run(None, {self._input: faces.cpu().numpy()})[0]
        return torch.from_numpy(np.asarray(found))


def load_arcface(path: Path) -> nn.Module:
    """Return ArcFace from an IResNet ``backbone.pth`` or an ONNX file.

    Raises:
        UsageError: The file is not what it should be.
    """
    if path.suffix == ".onnx":
        return OnnxNetwork(path)
    state = read_state(path)
    depths = depths_of(state)
    if depths not in DEPTHS.values():
        raise UsageError(f"'{path}' is no IResNet-50 or -100: stages of {depths} blocks")
    return fill(IResNet(depths), state, path)
