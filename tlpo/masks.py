"""Lip masks: from pixels of each frame to weights on latents.

FantasyTalking (arXiv 2504.04842, eq. 2) weights the loss by a lip mask brought to latent space.
Here time follows the Wan VAE's causal grouping (frame 0 alone, then groups of four), space an 8x8
average, and both sides of a pair share the union of their masks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SPATIAL_STRIDE = 8
TIME_STRIDE = 4


def latent_mask(pixels: Tensor, dilation: int = 1) -> Tensor:
    """Bring a pixel mask to latent resolution.

    Args:
        pixels: Bool or {0, 1}, [..., F, H, W] with F = 1 + 4k and H, W multiples of 8.
        dilation: Latent pixels added around (max-pool of 2 * dilation + 1), >= 0.

    Returns:
        Float32 in [0, 1], [..., (F - 1) / 4 + 1, H / 8, W / 8]; latent frame 0 is frame 0,
        latent frame k >= 1 the maximum over frames 4k-3..4k.

    Raises:
        ValueError: The sizes do not fit.
    """
    frames, height, width = pixels.shape[-3:]
    if frames % TIME_STRIDE != 1 or height % SPATIAL_STRIDE or width % SPATIAL_STRIDE:
        raise ValueError(f"a mask of {frames} frames, {height}x{width} has no latent grid")
    flat = pixels.float().reshape(-1, frames, height, width)
    groups = flat[:, 1:].unflatten(1, (-1, TIME_STRIDE)).amax(2)
    grouped = torch.cat((flat[:, :1], groups), dim=1)
    pooled = F.avg_pool2d(grouped, SPATIAL_STRIDE)
    return dilate(pooled.reshape(*pixels.shape[:-3], *pooled.shape[1:]), dilation)


def dilate(mask: Tensor, pixels: int) -> Tensor:
    """Grow a mask [..., h, w] by some pixels in space: maximum over a square around each."""
    if pixels == 0:
        return mask
    flat = mask.reshape(-1, 1, *mask.shape[-2:])
    return F.max_pool2d(flat, 2 * pixels + 1, stride=1, padding=pixels).reshape(mask.shape)


def pair_mask(
    chosen: Tensor, rejected: Tensor, *, background: float = 0.0, skip_first: bool = False
) -> Tensor:
    """Return one weight map for both sides: ``background + (1 - background) * union``.

    Args:
        chosen: Latent mask in [0, 1], [B, f, h, w].
        rejected: The other side's, same shape.
        background: Weight outside the lips, in [0, 1].
        skip_first: Give latent frame 0 (the given picture) the weight 0.

    Returns:
        [B, 1, f, h, w], to be broadcast over latent channels.
    """
    mask = background + (1 - background) * torch.maximum(chosen, rejected)
    if skip_first:
        mask = torch.cat((torch.zeros_like(mask[:, :1]), mask[:, 1:]), dim=1)
    return mask.unsqueeze(1)


def box_mask(
    box: tuple[float, float, float, float], frames: int, height: int, width: int
) -> Tensor:
    """Return a pixel mask that is 1 in one box of every frame, float32 [frames, height, width].

    Args:
        box: x0, y0, x1, y1 as parts of the picture, as ``ft2.faces.MOUTH_BOX``.
        frames: Number of frames.
        height: Pixels.
        width: Pixels.
    """
    mask = torch.zeros(frames, height, width)
    x0, y0, x1, y1 = box
    mask[:, round(y0 * height) : round(y1 * height), round(x0 * width) : round(x1 * width)] = 1
    return mask
