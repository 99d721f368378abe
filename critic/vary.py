"""Variation of clips that a rater's answers survive: light, tint, sharpness of the whole clip."""

import torch
from torch import Tensor


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


def recolour(frames: Tensor, rng: torch.Generator) -> Tensor:
    """Change light and tint of float clips [B, F, H, W, 3] in 0..255, the same in every frame."""
    size = (len(frames), 1, 1, 1, 1)
    gain = 1 + 0.15 * (2 * torch.rand(size, generator=rng) - 1)
    offset = 12 * (2 * torch.rand(size, generator=rng) - 1)
    tint = 1 + 0.08 * (2 * torch.rand((len(frames), 1, 1, 1, 3), generator=rng) - 1)
    return (frames * (gain * tint)).add_(offset).clamp_(0, 255)
