"""A network that a metric runs over pictures: loaded at first use, then batch by batch."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ft2.media import Frames

Load = Callable[[], nn.Module]
"""Returns a network with its weights; only tests give one with random weights."""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of RGB in [0, 1], as torchvision and DINO use them."""

MOST_FRAMES = 16
"""Frames of a clip whose picture is scored, evenly spaced: neighbours look alike."""


def spread(count: int, most: int) -> NDArray[np.int64]:
    """Return the numbers of at most `most` of `count` frames, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


class Network:
    """See the module."""

    def __init__(self, load: Load, device: str = "cpu", batch_size: int = 16) -> None:
        """Call `load` when the network is first needed."""
        self._load, self.device, self.batch_size = load, device, batch_size
        self._module: nn.Module | None = None

    @property
    def module(self) -> nn.Module:
        """The network, in evaluation mode on its device."""
        if self._module is None:
            self._module = self._load().eval().to(self.device)
        return self._module

    @torch.inference_mode()
    def __call__(self, *inputs: Tensor, call: Callable[..., Tensor] | None = None) -> Tensor:
        """Return the outputs for inputs [N, ...] on the CPU, joined over batches.

        Args:
            inputs: Tensors that are cut into batches alike.
            call: What of the network to call; itself by default.
        """
        run = call or self.module
        parts = []
        for start in range(0, len(inputs[0]), self.batch_size):
            batch = [x[start : start + self.batch_size].to(self.device) for x in inputs]
            parts.append(run(*batch).float().cpu())
        return torch.cat(parts)


def pictures(
    frames: Frames,
    size: int,
    mean: tuple[float, ...] = (0.5, 0.5, 0.5),
    std: tuple[float, ...] = (0.5, 0.5, 0.5),
) -> Tensor:
    """Return frames uint8 [N, H, W, 3] as float [N, 3, size, size], normalised.

    Square ones are resized; others are resized to `size` on the short side and cut in the middle.
    With the default mean and std the result lies in [-1, 1].
    """
    height, width = frames.shape[1:3]
    scale = size / min(height, width)
    shape = (max(size, round(width * scale)), max(size, round(height * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    resized = np.stack([cv2.resize(f, shape, interpolation=how) for f in frames])
    top, left = (shape[1] - size) // 2, (shape[0] - size) // 2
    cut = resized[:, top : top + size, left : left + size]
    unit = torch.from_numpy(np.ascontiguousarray(cut)).permute(0, 3, 1, 2).float() / 255
    return (unit - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def steadiness(features: NDArray[np.floating] | Tensor) -> float:
    """Return how alike the frames of a clip are: 1 for a still one.

    The mean over frames of half the cosine to the first frame and half that to the one before
    (VBench's subject consistency, 2311.17982), of features [F, D]; nan for one frame.
    """
    rows = np.asarray(features, np.float64)
    if len(rows) < 2:
        return float("nan")
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    first, before = rows[1:] @ rows[0], (rows[1:] * rows[:-1]).sum(1)
    return float((first + before).mean() / 2)
