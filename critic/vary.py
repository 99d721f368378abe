"""Variation of clips that a rater's answers survive: light, tint, sharpness of the whole clip."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Variation:
    """How the copies of rated clips are varied."""

    rng: torch.Generator
    """Source of randomness; it goes on from call to call."""
    texture: float = 0.0
    """Share of the clips whose texture is changed (`retexture`)."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return uint8 clips [B, T, H, W, 3], some mirrored, in other light, tint and sharpness."""
        flip = (torch.rand(len(pixels), generator=self.rng) < 0.5).view(-1, 1, 1, 1, 1)
        pixels = torch.where(flip, pixels.flip(3), pixels)
        varied = recolour(soften(pixels, self.rng), self.rng)
        if self.texture:
            varied = retexture(varied, self.rng, self.texture).clamp_(0, 255)
        return varied.round_().to(torch.uint8)


def soften(frames: Tensor, rng: torch.Generator) -> Tensor:
    """Soften or sharpen half of the clips, first frame included.

    Portraits differ in sharpness: what counts is how a clip departs from its own first frame.

    Args:
        frames: uint8 [B, F, H, W, 3].
        rng: Source of randomness.

    Returns:
        float32 [B, F, H, W, 3], not clamped.
    """
    amount = 1.2 * torch.rand(len(frames), generator=rng) - 0.4
    chosen = (torch.rand(len(frames), generator=rng) < 0.5).nonzero()[:, 0]
    out = frames.float()
    if len(chosen):
        sharp = out[chosen]
        soft = sharp
        for axis in (2, 3):
            last = soft.shape[axis] - 1
            up = soft.index_select(axis, (torch.arange(last + 1) - 1).clamp(min=0))
            down = soft.index_select(axis, (torch.arange(last + 1) + 1).clamp(max=last))
            soft = soft.mul(2).add_(up).add_(down).mul_(0.25)
        out[chosen] = torch.lerp(sharp, soft, amount[chosen].view(-1, 1, 1, 1, 1))
    return out


def retexture(frames: Tensor, rng: torch.Generator, share: float) -> Tensor:
    """Mix clips with random 3x3 convolutions of themselves, the same for all frames of a clip.

    Few faces have few textures; shapes, movement and the departure from the first frame survive
    (RandConv: Xu et al., ICLR 2021, arXiv 2007.13003). Mean and spread of each channel stay.

    Args:
        frames: float [B, F, H, W, 3].
        rng: Source of randomness.
        share: Share of clips that are changed, each by a random amount.

    Returns:
        float [B, F, H, W, 3], not clamped; a new tensor if a clip is changed.
    """
    size = len(frames)
    kernels = torch.randn(size, 3, 3, 3, 3, generator=rng)
    amount = torch.rand(size, generator=rng)
    chosen = (torch.rand(size, generator=rng) < share).nonzero()[:, 0]
    if not len(chosen):
        return frames
    out = frames.clone()
    for i in chosen.tolist():
        clip = frames[i].movedim(-1, 1)
        made = F.conv2d(F.pad(clip, (1, 1, 1, 1), mode="replicate"), kernels[i])
        (mean, spread), (own_mean, own_spread) = _moments(clip), _moments(made)
        made = (made - own_mean) * (spread / own_spread) + mean
        out[i] = torch.lerp(clip, made, float(amount[i])).movedim(1, -1)
    return out


def _moments(clip: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel of a clip [F, 3, H, W], as [3, 1, 1]."""
    spread, mean = torch.std_mean(clip, dim=(0, 2, 3))
    return mean[:, None, None], spread[:, None, None] + 1e-3


def recolour(frames: Tensor, rng: torch.Generator) -> Tensor:
    """Change light and tint of float clips [B, F, H, W, 3] in 0..255, the same in every frame."""
    size = (len(frames), 1, 1, 1, 1)
    gain = 1 + 0.15 * (2 * torch.rand(size, generator=rng) - 1)
    offset = 12 * (2 * torch.rand(size, generator=rng) - 1)
    tint = 1 + 0.08 * (2 * torch.rand((len(frames), 1, 1, 1, 3), generator=rng) - 1)
    return (frames * (gain * tint)).add_(offset).clamp_(0, 255)
