"""SyncNet (Chung and Zisserman, Out of time, 2016): mouths and sounds in one space.

Names of its parts are those of joonson/syncnet_python, so that ``syncnet_v2.model`` loads.
"""

from __future__ import annotations

from torch import Tensor, nn

DIMENSIONS = 1024


def _conv2d(inputs: int, outputs: int) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


def _conv3d(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv3d(inputs, outputs, (1, kernel, kernel), (1, stride, stride), (0, 1, 1))
    return [conv, nn.BatchNorm3d(outputs), nn.ReLU()]


def _pool3d(padding: int = 0) -> nn.Module:
    return nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, padding, padding))


def _head() -> nn.Sequential:
    norm = nn.BatchNorm1d(512)
    return nn.Sequential(nn.Linear(512, 512), norm, nn.ReLU(), nn.Linear(512, DIMENSIONS))


class SyncNet(nn.Module):
    """Embeddings of five frames of a face, and of the 0.2 s of sound that go with them."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_conv2d(1, 64), nn.MaxPool2d(1, 1),
            *_conv2d(64, 192), nn.MaxPool2d(3, (1, 2)),
            *_conv2d(192, 384), *_conv2d(384, 256), *_conv2d(256, 256), nn.MaxPool2d(3, 2),
            nn.Conv2d(256, 512, (5, 4)), nn.BatchNorm2d(512), nn.ReLU(),
        )  # fmt: skip
        self.netfcaud = _head()
        self.netfclip = _head()
        self.netcnnlip = nn.Sequential(
            nn.Conv3d(3, 96, (5, 7, 7), (1, 2, 2)), nn.BatchNorm3d(96), nn.ReLU(), _pool3d(),
            *_conv3d(96, 256, 5, 2), _pool3d(1),
            *_conv3d(256, 256, 3), *_conv3d(256, 256, 3), *_conv3d(256, 256, 3), _pool3d(),
            nn.Conv3d(256, 512, (1, 6, 6)), nn.BatchNorm3d(512), nn.ReLU(),
        )  # fmt: skip

    def sound(self, mfcc: Tensor) -> Tensor:
        """Return [B, 1024] of 13 cepstral coefficients at 100 Hz, [B, 1, 13, 20]."""
        embedded: Tensor = self.netfcaud(self.netcnnaud(mfcc).flatten(1))
        return embedded

    def mouth(self, frames: Tensor) -> Tensor:
        """Return [B, 1024] of five frames in BGR, 0 to 255, [B, 3, 5, 224, 224]."""
        embedded: Tensor = self.netfclip(self.netcnnlip(frames).flatten(1))
        return embedded
