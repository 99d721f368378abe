"""Fitting the nano codec in closed form: principal components and a lapped ridge decoder."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ft2.faces import mouth_slice
from ft2.runs import Progress
from ft2.wan.codec import (
    CHANNELS,
    MOTION_CHANNELS,
    RESIDUAL_CHANNELS,
    MotionCodec,
    chunk_motion,
    neighbourhood,
    to_patches,
    to_unit,
)
from ft2.wan.space import LatentSpace

ENERGY_FLOOR = 0.01
"""Mean squared residual (of values in [-1, 1]) at which a clip's weight is halved."""

POOLED_IMAGE, POOLED_RESIDUAL = 0.2, 0.1
"""Weight of the covariance over all positions, which keeps the bases general."""

BATCH = 64


def components(second_moment: Tensor, count: int, pooled: float) -> tuple[Tensor, Tensor]:
    """Return leading eigenvectors [P, V, count] and eigenvalues [P, count] of moments [P, V, V]."""
    mean = second_moment.mean(0)
    share = second_moment.diagonal(dim1=1, dim2=2).sum(1) / mean.trace()
    mixed = (1 - pooled) * second_moment + pooled * mean * share[:, None, None]
    values, vectors = torch.linalg.eigh(mixed.double())
    leading = vectors[:, :, -count:].flip(2)
    largest = leading.abs().argmax(1, keepdim=True)
    leading = leading * leading.gather(1, largest).sign()
    return leading.float(), values[:, -count:].flip(1).float()


def fit_codec(
    codec: MotionCodec,
    space: LatentSpace,
    frames: NDArray[np.uint8],
    *,
    ridge: float,
    power: float,
    progress: Progress,
) -> None:
    """Fit a codec and its latent space in closed form, in place.

    Args:
        codec: is overwritten.
        space: gets scales and variances: motion and residual channels are each divided by their
            variance to ``power`` and then to mean variance 1.
        frames: clips uint8 [N, 1 + 4k, H, W, 3]; frame 0 is the reference.
        ridge: ridge strength relative to the regressors' mean variance.
        power: 0.5 would whiten.
        progress: is told about every batch.
    """
    _fit_image(codec, frames)
    motions = []
    batches = [slice(start, start + BATCH) for start in range(0, len(frames), BATCH)]
    for number, part in enumerate(batches):
        clip = torch.from_numpy(frames[part])
        motions.append(chunk_motion(clip[:, 1:], clip[:, 0]))
        progress.update("codec: motion", number + 1, len(batches))
    motion = torch.cat(motions)
    count, values = codec.residual_encode.shape[:2]
    moment = torch.zeros(count, values, values)
    for rest, weight in _residuals(codec, frames, motion, progress, "codec: components"):
        columns = rest.transpose(0, 1)
        moment += (columns * weight).transpose(1, 2) @ columns
    vectors, _ = components(moment, codec.residual_basis.shape[1], POOLED_RESIDUAL)
    codec.residual_encode.copy_(vectors[:, :, :RESIDUAL_CHANNELS])
    codec.residual_basis.copy_(vectors.transpose(1, 2))
    variance = _fit_ridge(codec, frames, motion, ridge, progress)
    spread = motion.flatten(0, 1).square().mean(0)
    _fit_space(codec, space, spread, variance, power)


def _fit_image(codec: MotionCodec, frames: NDArray[np.uint8]) -> None:
    """Fit the components of still pictures on the first and the last frames."""
    stills = [to_patches(to_unit(torch.from_numpy(frames[:, i : i + 1]))) for i in (0, -5)]
    pictures = torch.cat(stills)
    mean = pictures.mean(0)
    centred = pictures - mean
    moment = torch.einsum("npv,npw->pvw", centred, centred) / len(centred)
    vectors, values = components(moment, CHANNELS, POOLED_IMAGE)
    std = values.clamp_min(1e-4).sqrt()
    codec.image_mean.copy_(mean)
    codec.image_encode.copy_(vectors / std[:, None])
    codec.image_decode.copy_((vectors * std[:, None]).transpose(1, 2))


def _residuals(
    codec: MotionCodec,
    frames: NDArray[np.uint8],
    motion: Tensor,
    progress: Progress,
    stage: str,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield residual patches [n, P, 768] and their weights [n, 1], batch by batch.

    A clip of another colour or with heavy noise differs everywhere; without weights a few such
    clips would own the bases.
    """
    for start in range(0, len(frames), BATCH):
        clip = torch.from_numpy(frames[start : start + BATCH])
        rest = codec.residual(clip, clip[:, 0], motion[start : start + BATCH])
        energy = rest.square().mean((1, 2, 3))
        weight = (ENERGY_FLOOR / (energy + ENERGY_FLOOR)).repeat_interleave(rest.shape[1])
        yield rest.flatten(0, 1), weight[:, None]
        progress.update(stage, min(start + BATCH, len(frames)), len(frames))


def _fit_ridge(
    codec: MotionCodec,
    frames: NDArray[np.uint8],
    motion: Tensor,
    ridge: float,
    progress: Progress,
) -> Tensor:
    """Regress basis weights on the 3 x 3 neighbours; return the channels' variance [P, 8]."""
    count, width, basis = codec.residual_ridge.shape
    left, right = torch.zeros(count, width, width), torch.zeros(count, width, basis)
    total, seen = torch.zeros(count, RESIDUAL_CHANNELS), 0
    for rest, weight in _residuals(codec, frames, motion, progress, "codec: ridge"):
        coded = torch.einsum("bpv,pvc->bpc", rest, codec.residual_encode)
        around = neighbourhood(coded, codec.rows, codec.columns).transpose(0, 1)
        wanted = torch.einsum("bpv,pmv->pbm", rest, codec.residual_basis)
        weighted = (around * weight).transpose(1, 2)
        left += weighted @ around
        right += weighted @ wanted
        total += coded.square().sum(0)
        seen += len(coded)
    strength = ridge * left.diagonal(dim1=1, dim2=2).mean(1)
    left = left + strength[:, None, None] * torch.eye(width)
    codec.residual_ridge.copy_(torch.linalg.solve(left.double(), right.double()).float())
    return total / seen


def _fit_space(
    codec: MotionCodec, space: LatentSpace, motion: Tensor, residual: Tensor, power: float
) -> None:
    """Set scales and variances from those of motion and residual channels, [P, 8] each."""
    grid = (CHANNELS, 1, codec.rows, codec.columns)
    scales, variances = [], []
    for variance in (motion, residual):
        safe = variance.clamp_min(1e-8)
        scale = safe**power
        scale = scale * (safe / scale.square()).mean().sqrt()
        scales.append(scale)
        variances.append(safe / scale.square())
    assert motion.shape[1] == MOTION_CHANNELS
    space.scale[:, 1:] = torch.cat(scales, 1).T.reshape(grid)
    space.variance[:, 1:] = torch.cat(variances, 1).T.reshape(grid)
    space.variance[:, :1] = 1e-4


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio in dB of two uint8 arrays of one shape."""
    error = float(np.mean(np.square(one.astype(np.float64) - other.astype(np.float64))))
    return float(10 * np.log10(255.0**2 / max(error, 1e-10)))


def mouth_psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Return the PSNR in dB inside the mouth box of aligned frames [..., H, W, 3]."""
    rows, columns = mouth_slice(one.shape[-3])
    return psnr(one[..., rows, columns, :], other[..., rows, columns, :])
