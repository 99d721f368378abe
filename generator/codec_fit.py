"""Fitting the nano codec: principal components, a lapped ridge decoder, and a correction."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ft2.faces import mouth_slice
from ft2.runs import Progress
from ft2.wan.codec import CHANNELS, CHUNK, PatchCodec, neighbourhood, to_patches, to_unit
from ft2.wan.model import LatentSpace

ENERGY_FLOOR = 0.01
"""Mean squared difference (of values in [-1, 1]) at which a clip's weight is halved."""

POOLED_IMAGE, POOLED_CHUNK = 0.2, 0.1
"""Weight of the covariance over all positions, which keeps the bases general."""


def differences(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Return chunk minus reference patches [N * k, P, 768] and reference patches [N, P, 192].

    The reference of a clip is its frame 0; ``frames`` is uint8 [N, 1 + 4k, H, W, 3].
    """
    unit = to_unit(frames)
    reference = to_patches(unit[:, :1])
    chunks = unit[:, 1:].unflatten(1, (-1, CHUNK)).flatten(0, 1)
    count = (frames.shape[1] - 1) // CHUNK
    held = reference.repeat(1, 1, CHUNK).repeat_interleave(count, 0)
    return to_patches(chunks) - held, reference


def clip_weights(difference: Tensor, count: int) -> Tensor:
    """Return a weight for each of [N * count, P, V]: large differences count less.

    A clip with another colour or heavy noise differs everywhere; without weights a few such
    clips would own the bases.
    """
    energy = difference.square().mean((1, 2)).unflatten(0, (-1, count)).mean(1)
    weight = (ENERGY_FLOOR / (energy + ENERGY_FLOOR)).repeat_interleave(count)
    return weight[:, None, None]


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


def fit_linear(
    codec: PatchCodec, frames: NDArray[np.uint8], ridge: float, progress: Progress
) -> None:
    """Fit everything but the correction network, in closed form, in place.

    Args:
        codec: is overwritten.
        frames: clips uint8 [N, 1 + 4k, H, W, 3]; frame 0 is the reference.
        ridge: ridge strength relative to the regressors' mean variance.
        progress: is told about every batch.
    """
    count, basis = codec.rows * codec.columns, codec.chunk_basis.shape[1]
    pictures = torch.cat(
        [to_patches(to_unit(torch.from_numpy(frames[:, i : i + 1]))) for i in (0, -5)]
    )
    mean = pictures.mean(0)
    centred = pictures - mean
    moment = torch.einsum("npv,npw->pvw", centred, centred) / len(centred)
    vectors, values = components(moment, CHANNELS, POOLED_IMAGE)
    std = values.clamp_min(1e-4).sqrt()
    codec.image_mean.copy_(mean)
    codec.image_encode.copy_(vectors / std[:, None])
    codec.image_decode.copy_((vectors * std[:, None]).transpose(1, 2))
    size = codec.chunk_encode.shape[1]
    moment, seen = torch.zeros(count, size, size), 0
    batches = [slice(i, i + 64) for i in range(0, len(frames), 64)]
    for number, part in enumerate(batches):
        difference, _ = differences(torch.from_numpy(frames[part]))
        weight = clip_weights(difference, (frames.shape[1] - 1) // CHUNK)
        columns = difference.transpose(0, 1)
        moment += (columns * weight.transpose(0, 1)).transpose(1, 2) @ columns
        seen += len(difference)
        progress.update("codec: components", number + 1, len(batches))
    vectors, values = components(moment / seen, basis, POOLED_CHUNK)
    codec.chunk_encode.copy_(vectors[:, :, :CHANNELS])
    codec.chunk_scale.copy_(values[:, :CHANNELS].clamp_min(1e-6).sqrt())
    codec.chunk_basis.copy_(vectors.transpose(1, 2))
    _fit_ridge(codec, frames, batches, ridge, progress)


def _fit_ridge(
    codec: PatchCodec,
    frames: NDArray[np.uint8],
    batches: list[slice],
    ridge: float,
    progress: Progress,
) -> None:
    """Regress the basis weights on the 3 x 3 neighbouring latents, position by position."""
    count, width, basis = codec.chunk_ridge.shape
    left, right = torch.zeros(count, width, width), torch.zeros(count, width, basis)
    for number, part in enumerate(batches):
        difference, _ = differences(torch.from_numpy(frames[part]))
        latents = torch.einsum("bpv,pvc->bpc", difference, codec.chunk_encode)
        around = neighbourhood(latents, codec.rows, codec.columns).transpose(0, 1)
        wanted = torch.einsum("bpv,pmv->pbm", difference, codec.chunk_basis)
        weighted = around * clip_weights(difference, (frames.shape[1] - 1) // CHUNK).transpose(0, 1)
        left += weighted.transpose(1, 2) @ around
        right += weighted.transpose(1, 2) @ wanted
        progress.update("codec: ridge", number + 1, len(batches))
    strength = ridge * left.diagonal(dim1=1, dim2=2).mean(1)
    left = left + strength[:, None, None] * torch.eye(width)
    codec.chunk_ridge.copy_(torch.linalg.solve(left.double(), right.double()).float())


def fit_correction(
    codec: PatchCodec,
    frames: NDArray[np.uint8],
    *,
    steps: int,
    rate: float,
    seed: int,
    progress: Progress,
    batch: int = 12,
    mouth_weight: float = 3.0,
) -> None:
    """Train the correction network on what the linear decoder misses, in place.

    The rate falls to zero along a cosine; pixels of the mouth box weigh more.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = torch.ones(1, 1, *frames.shape[2:4], 1)
    weight[:, :, *mouth_slice(frames.shape[2])] = mouth_weight
    weight = to_patches(weight.expand(1, CHUNK, -1, -1, 3))
    optimizer = torch.optim.AdamW(codec.correction.parameters(), lr=rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(float(step) / steps, 1.0)))
    )
    for step in range(steps):
        index = torch.randint(len(frames), (batch,), generator=generator)
        chosen = torch.from_numpy(frames[index.numpy()])
        difference, reference = differences(chosen)
        latents = torch.einsum("bpv,pvc->bpc", difference, codec.chunk_encode)
        count = len(latents) // batch
        decoded = codec.decode_difference(latents, reference.repeat_interleave(count, 0))
        loss = ((decoded - difference).square() * weight).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 20 == 0 or step + 1 == steps:
            progress.update("codec: correction", step + 1, steps, f"loss {loss.item():.5f}")


def fit_space(
    space: LatentSpace, codec: PatchCodec, frames: NDArray[np.uint8], power: float
) -> None:
    """Set scale and variance of residual latents: divide by variance to ``power``, mean 1 after."""
    total, seen = torch.zeros(codec.rows * codec.columns, CHANNELS), 0
    for start in range(0, len(frames), 64):
        difference, _ = differences(torch.from_numpy(frames[start : start + 64]))
        latents = torch.einsum("bpv,pvc->bpc", difference, codec.chunk_encode)
        total += latents.square().sum(0)
        seen += len(latents)
    variance = (total / seen).clamp_min(1e-8)
    scale = variance**power
    scale = scale * (variance / scale.square()).mean().sqrt()
    grid = (CHANNELS, 1, codec.rows, codec.columns)
    space.scale[:, 1:] = scale.T.reshape(grid)
    space.variance[:, 1:] = (variance / scale.square()).T.reshape(grid)
    space.variance[:, :1] = 1e-4


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio in dB of two uint8 arrays of one shape."""
    error = np.mean(np.square(one.astype(np.float64) - other.astype(np.float64)))
    return float(10 * np.log10(255.0**2 / max(float(error), 1e-10)))


def mouth_psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Return the PSNR in dB inside the mouth box of aligned frames [..., H, W, 3]."""
    rows, columns = mouth_slice(one.shape[-3])
    return psnr(one[..., rows, columns, :], other[..., rows, columns, :])
