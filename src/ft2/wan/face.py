"""Face embeddings of the reference picture: who is it, whatever the pose or light.

``ArcFace`` runs an ONNX file that the user names (arXiv 1801.07698; InsightFace's files fit);
``FaceTower`` is a small network of the same purpose that ft2 trains on its own clips.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ft2 import faces
from ft2.errors import MissingExtra, UsageError
from ft2.wan.spec import IdentitySpec

FIVE = (468, 473, 4, 61, 291)
"""Landmarks of both pupils (picture left first), the nose's tip and the corners of the mouth."""

TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655],
     [70.7299, 92.2041]], np.float64,
)  # fmt: skip
"""Where ArcFace wants them in a picture of 112 x 112 pixels (deepinsight/insightface)."""


class FaceEncoder(Protocol):
    """What turns pictures into face embeddings."""

    def embed(self, pictures: Tensor) -> Tensor:
        """Return embeddings of unit length, float32 [B, E], of uint8 [B, H, W, 3]."""


def similarity(points: NDArray[np.floating], wanted: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the rotation, scale and shift [2, 3] that brings points [N, 2] closest to wanted."""
    x, y = np.asarray(points, np.float64).T
    one, none = np.ones_like(x), np.zeros_like(x)
    rows = np.concatenate([np.stack([x, -y, one, none], 1), np.stack([y, x, none, one], 1)])
    a, b, right, down = np.linalg.lstsq(rows, np.asarray(wanted, np.float64).T.ravel(), rcond=None)[
        0
    ]
    return np.array([[a, -b, right], [b, a, down]])


def aligned_face(picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return the largest face of a picture as ArcFace wants it, uint8 [size, size, 3].

    Raises:
        NoFace: no face was found.
    """
    import cv2

    points = faces.landmarks(picture)[list(FIVE), :2]
    move = similarity(points, TEMPLATE * (size / 112))
    return np.asarray(cv2.warpAffine(picture, move, (size, size), flags=cv2.INTER_AREA), np.uint8)


class ArcFace:
    """A face-recognition network in an ONNX file, run on the processor."""

    def __init__(self, path: str | None, spec: IdentitySpec) -> None:
        """Open the file.

        Raises:
            UsageError: no file is named, it is missing, unreadable, or of other shapes.
            MissingExtra: onnxruntime is not installed.
        """
        self.size = spec.size
        self._session = open_onnx(arcface_path(path))
        found = self._session.get_inputs()[0].shape[1:], self._session.get_outputs()[0].shape[1:]
        wanted = [3, spec.size, spec.size], [spec.features]
        if [list(shape) for shape in found] != [list(shape) for shape in wanted]:
            raise UsageError(
                f"'{path}' maps {list(found[0])} to {list(found[1])}, the identity branch needs"
                f" {wanted[0]} to {wanted[1]}",
                "give ArcFace, such as w600k_r50.onnx, or change `model.architecture.identity`",
            )

    def embed(self, pictures: Tensor) -> Tensor:
        """Return embeddings of unit length, float32 [B, E], of uint8 [B, H, W, 3]."""
        shown = np.stack([aligned_face(picture, self.size) for picture in pictures.cpu().numpy()])
        values = (shown.transpose(0, 3, 1, 2).astype(np.float32) - 127.5) / 127.5
        name = self._session.get_inputs()[0].name
        rows = [self._session.run(None, {name: one[None]})[0] for one in values]
        return F.normalize(torch.from_numpy(np.concatenate(rows)).float(), dim=1)


def arcface_path(path: str | None) -> Path:
    """Return the ArcFace file.

    Raises:
        UsageError: none is named, or it does not exist.
    """
    hint = "set model.face_weights to an ONNX file of ArcFace, such as w600k_r50.onnx (InsightFace)"
    if path is None:
        raise UsageError("the identity branch needs a face-recognition network", hint)
    if not Path(path).expanduser().is_file():
        raise UsageError(f"there is no face-recognition network '{path}'", hint)
    return Path(path).expanduser()


def open_onnx(path: Path) -> Any:
    """Return a session of an ONNX file on the processor.

    Raises:
        UsageError: it cannot be read.
        MissingExtra: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("onnxruntime", "onnx") from error
    try:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UsageError(f"'{path}' is not a readable ONNX file: {error}") from error


class FaceTower(nn.Module):
    """A small convolutional face encoder for clips that are aligned face crops."""

    def __init__(self, spec: IdentitySpec) -> None:
        """Create the tower; a picture is reduced to ``spec.size`` first."""
        super().__init__()
        self.size = spec.size
        widths = (3, 32, 64, 128)
        self.steps = nn.ModuleList(
            nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in widths[1:])
        self.out = nn.Linear(widths[-1] * (spec.size // 8) ** 2, spec.features)

    def start_anew(self, seed: int) -> None:
        """Draw all weights again, in place."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for layer in (*self.steps, *self.norms, self.out):
                layer.reset_parameters()

    def forward(self, pixels: Tensor) -> Tensor:
        """Return embeddings of unit length [B, E] of pixels in [-1, 1], [B, 3, size, size]."""
        x = pixels
        for step, norm in zip(self.steps, self.norms, strict=True):
            x = F.silu(norm(step(x)))
        return F.normalize(self.out(x.flatten(1)), dim=1)

    def pixels(self, pictures: Tensor) -> Tensor:
        """Return pictures uint8 [B, H, W, 3] as the tower sees them, [B, 3, size, size]."""
        device = self.out.weight.device
        values = pictures.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        return F.interpolate(values, (self.size, self.size), mode="area")

    @torch.no_grad()
    def embed(self, pictures: Tensor) -> Tensor:
        """Return embeddings of unit length, float32 [B, E], of uint8 [B, H, W, 3]."""
        return torch.cat([self(self.pixels(part)) for part in pictures.split(256)])
