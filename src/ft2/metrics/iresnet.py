"""IResNet, the network of ArcFace (Deng et al., 1801.07698).

Names of its parts are those of deepinsight/insightface's ``arcface_torch``, so that its
``backbone.pth`` loads.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

DEPTHS = {50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}
"""Blocks of each of the four stages, by the network's number."""


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-5)


class Block(nn.Module):
    """Norm, convolution, norm, PReLU, convolution, norm; and the way past them."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = _norm(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.bn2 = _norm(width)
        self.prelu = nn.PReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = _norm(width)
        self.downsample: nn.Module | None = None
        if stride > 1:
            conv = nn.Conv2d(inputs, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, _norm(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, width, H / stride, W / stride]."""
        inner = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        past: Tensor = x if self.downsample is None else self.downsample(x)
        return self.bn3(self.conv2(inner)) + past


class IResNet(nn.Module):
    """Embedding [B, 512] of aligned faces [B, 3, 112, 112], RGB in [-1, 1]."""

    def __init__(self, depths: tuple[int, ...] = DEPTHS[50]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1, self.prelu = _norm(64), nn.PReLU(64)
        inputs = 64
        for stage, (width, depth) in enumerate(zip((64, 128, 256, 512), depths, strict=True), 1):
            blocks = [Block(inputs, width, 2)] + [Block(width, width, 1) for _ in range(depth - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
            inputs = width
        self.bn2 = _norm(512)
        self.fc = nn.Linear(512 * 7 * 7, 512)
        self.features = nn.BatchNorm1d(512, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the embedding, not normalised."""
        x = self.prelu(self.bn1(self.conv1(x)))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        embedded: Tensor = self.features(self.fc(self.bn2(x).flatten(1)))
        return embedded


def depths_of(names: Iterable[str]) -> tuple[int, ...]:
    """Return how many blocks each stage has in a file with these tensor names."""
    blocks = {tuple(name.split(".")[:2]) for name in names if name.startswith("layer")}
    return tuple(sum(stage == f"layer{n}" for stage, _ in blocks) for n in range(1, 5))
