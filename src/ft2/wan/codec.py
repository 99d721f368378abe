"""Video codecs with Wan's latent format: 16 channels, 8 times smaller in space, 1 + 4k in time.

``MotionCodec`` is the nano codec, closed-form throughout. Frame 0 is coded by per-position
principal components. Then four frames at a time (as the causal Wan VAE groups them) become eight
channels of motion vectors, which move the reference, and eight of principal components of what
motion does not explain. Motion hardly depends on who is moving, which makes it easy to learn.

Why not a small ``AutoencoderKLWan``: after a quarter of an hour on one core one of width 8 is still
below a frame 0 that stands still (mouth box 21.5 against 23.1 dB; this codec 28.7, on faces that
neither saw: ``benchmarks/codec.py``). Hours might do; the closed form is fitted in seconds. Larger
presets use ``AutoencoderKLWan`` behind the same Protocol.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from ft2.wan.motion import CELL, estimate_motion, warp

CHUNK = 4
CHANNELS = 16
MOTION_CHANNELS = 2 * CHUNK
RESIDUAL_CHANNELS = CHANNELS - MOTION_CHANNELS
IMAGE_VALUES = CELL * CELL * 3
CHUNK_VALUES = CHUNK * IMAGE_VALUES


class Codec(Protocol):
    """What the talking model asks of a codec; latents are raw, not normalised."""

    def encode(self, frames: Tensor, reference: Tensor | None = None) -> Tensor:
        """Encode uint8 [B, F, H, W, 3] to float latents [B, C, f, h, w]."""

    def decode(self, latents: Tensor, reference: Tensor | None = None) -> Tensor:
        """Decode latents to uint8 [B, F, H, W, 3]; ``reference`` is uint8 [B, H, W, 3]."""


def to_unit(frames: Tensor) -> Tensor:
    """Map uint8 values to float32 in [-1, 1]."""
    return frames.float() / 127.5 - 1


def to_bytes(frames: Tensor) -> Tensor:
    """Map values in [-1, 1] to uint8, clamped and rounded."""
    return ((frames + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)


def to_patches(frames: Tensor) -> Tensor:
    """Cut [B, F, H, W, 3] into patches [B, P, F * 192], P = H * W / 64, row-major."""
    batch, count, height, width, _ = frames.shape
    x = frames.reshape(batch, count, height // CELL, CELL, width // CELL, CELL, 3)
    return x.permute(0, 2, 4, 1, 3, 5, 6).reshape(batch, -1, count * IMAGE_VALUES)


def from_patches(patches: Tensor, rows: int, columns: int) -> Tensor:
    """Undo :func:`to_patches` on a grid of ``rows`` x ``columns`` patches."""
    batch = patches.shape[0]
    x = patches.reshape(batch, rows, columns, -1, CELL, CELL, 3)
    return x.permute(0, 3, 1, 4, 2, 5, 6).reshape(batch, -1, rows * CELL, columns * CELL, 3)


def neighbourhood(latents: Tensor, rows: int, columns: int) -> Tensor:
    """Stack the 3 x 3 neighbours of each position: [B, P, C] to [B, P, 9 * C], zero outside."""
    grid = latents.transpose(1, 2).unflatten(2, (rows, columns))
    return F.unfold(grid, 3, padding=1).transpose(1, 2)


def chunk_motion(frames: Tensor, reference: Tensor) -> Tensor:
    """Return motion vectors of uint8 [B, 4k, H, W, 3] to [B, H, W, 3] as [B, k, P, 8].

    The eight channels are x and y of four frames in turn.
    """
    found = [
        estimate_motion(clip.cpu().numpy(), still.cpu().numpy())
        for clip, still in zip(frames, reference, strict=True)
    ]
    cells = torch.stack(found).unflatten(1, (-1, CHUNK)).flatten(3, 4)
    return cells.permute(0, 1, 3, 2, 4).flatten(3)


def moved_reference(motion: Tensor, reference: Tensor, rows: int, columns: int) -> Tensor:
    """Return the reference moved for each chunk, patches [B, k, P, 768] in [-1, 1].

    Args:
        motion: as from :func:`chunk_motion`.
        reference: uint8 [B, H, W, 3].
        rows: rows of the latent grid.
        columns: columns of the latent grid.
    """
    vectors = motion.unflatten(2, (rows, columns)).unflatten(4, (CHUNK, 2))
    vectors = vectors.permute(0, 1, 4, 2, 3, 5).flatten(1, 2)
    moved = warp(to_unit(reference), vectors).unflatten(1, (-1, CHUNK))
    return to_patches(moved.flatten(0, 1)).unflatten(0, moved.shape[:2])


class MotionCodec(nn.Module):
    """The nano codec for one grid of positions; all its numbers are saved with the model."""

    image_mean: Tensor
    image_encode: Tensor
    image_decode: Tensor
    residual_encode: Tensor
    residual_ridge: Tensor
    residual_basis: Tensor

    def __init__(self, rows: int = 8, columns: int = 8, basis: int = 32) -> None:
        """Create an empty codec.

        Args:
            rows: rows of the latent grid (height / 8).
            columns: columns of the latent grid.
            basis: principal components that the residual's decoder writes.
        """
        super().__init__()
        self.rows, self.columns = rows, columns
        count = rows * columns
        shapes = {
            "image_mean": (count, IMAGE_VALUES),
            "image_encode": (count, IMAGE_VALUES, CHANNELS),
            "image_decode": (count, CHANNELS, IMAGE_VALUES),
            "residual_encode": (count, CHUNK_VALUES, RESIDUAL_CHANNELS),
            "residual_ridge": (count, 9 * RESIDUAL_CHANNELS, basis),
            "residual_basis": (count, basis, CHUNK_VALUES),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))

    @torch.no_grad()
    def encode(self, frames: Tensor, reference: Tensor | None = None) -> Tensor:
        """Encode uint8 [B, 1 + 4k, H, W, 3] to latents float32 [B, 16, 1 + k, h, w].

        Motion is relative to ``reference`` (uint8 [B, H, W, 3]), by default frame 0.
        """
        frames = frames.to(self.image_mean.device)
        first = to_patches(to_unit(frames[:, :1])) - self.image_mean
        parts = [torch.einsum("bpv,pvc->bpc", first, self.image_encode)[:, None]]
        if frames.shape[1] > 1:
            still = frames[:, 0] if reference is None else reference.to(frames.device)
            motion = chunk_motion(frames[:, 1:], still).to(frames.device)
            rest = self.residual(frames, still, motion)
            coded = torch.einsum("bkpv,pvc->bkpc", rest, self.residual_encode)
            parts.append(torch.cat((motion, coded), 3))
        joined = torch.cat(parts, 1)
        return joined.permute(0, 3, 1, 2).unflatten(3, (self.rows, self.columns)).contiguous()

    def residual(self, frames: Tensor, reference: Tensor, motion: Tensor) -> Tensor:
        """Return what motion leaves unexplained, patches [B, k, P, 768].

        Args:
            frames: uint8 [B, 1 + 4k, H, W, 3].
            reference: uint8 [B, H, W, 3].
            motion: as from :func:`chunk_motion`, [B, k, P, 8].
        """
        chunks = to_unit(frames[:, 1:]).unflatten(1, (-1, CHUNK))
        wanted = to_patches(chunks.flatten(0, 1)).unflatten(0, chunks.shape[:2])
        return wanted - moved_reference(motion, reference, self.rows, self.columns)

    @torch.no_grad()
    def decode(self, latents: Tensor, reference: Tensor | None = None) -> Tensor:
        """Decode latents [B, 16, f, h, w] to uint8 [B, 4f - 3, H, W, 3].

        Without ``reference`` (uint8 [B, H, W, 3]) the picture in latent frame 0 stands in.
        """
        x = latents.to(self.image_mean.device).flatten(3).permute(0, 2, 3, 1).float()
        first = torch.einsum("bpc,pcv->bpv", x[:, 0], self.image_decode) + self.image_mean
        if reference is None:
            still = to_bytes(from_patches(first, self.rows, self.columns))
        else:
            still = reference[:, None].to(x.device)
        held = to_patches(to_unit(still)) - self.image_mean
        held = torch.einsum("bpv,pvc->bpc", held, self.image_encode)
        change = torch.einsum("bpc,pcv->bpv", x[:, 0] - held, self.image_decode)
        frames = [to_unit(still) + from_patches(change, self.rows, self.columns)]
        for index in range(1, x.shape[1]):
            motion, coded = x[:, index].split((MOTION_CHANNELS, RESIDUAL_CHANNELS), 2)
            moved = moved_reference(motion[:, None], still[:, 0], self.rows, self.columns)
            chunk = moved[:, 0] + self.decode_residual(coded)
            frames.append(from_patches(chunk, self.rows, self.columns))
        return to_bytes(torch.cat(frames, 1))

    def decode_residual(self, coded: Tensor) -> Tensor:
        """Return pixel residuals [B, P, 768] of residual channels [B, P, 8], by ridge."""
        around = neighbourhood(coded, self.rows, self.columns)
        weights = torch.einsum("bpn,pnm->bpm", around, self.residual_ridge)
        return torch.einsum("bpm,pmv->bpv", weights, self.residual_basis)


class WanVae:
    """diffusers' ``AutoencoderKLWan`` behind the same two methods; the reference is not used."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        """Wrap a loaded, frozen VAE."""
        self.vae = vae

    @torch.no_grad()
    def encode(self, frames: Tensor, reference: Tensor | None = None) -> Tensor:
        """Encode uint8 [B, F, H, W, 3] to the posterior's mode, [B, C, f, h, w]."""
        del reference
        parameter = next(self.vae.parameters())
        pixels = to_unit(frames.to(parameter.device)).permute(0, 4, 1, 2, 3)
        posterior = self.vae.encode(pixels.to(parameter.dtype)).latent_dist
        mode: Tensor = posterior.mode()
        return mode.float()

    @torch.no_grad()
    def decode(self, latents: Tensor, reference: Tensor | None = None) -> Tensor:
        """Decode raw latents to uint8 [B, F, H, W, 3]; Wan's decoder needs no reference."""
        del reference
        parameter = next(self.vae.parameters())
        pixels = self.vae.decode(latents.to(parameter.device, parameter.dtype)).sample
        return to_bytes(pixels.float().permute(0, 2, 3, 4, 1))
