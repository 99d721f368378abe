"""Video codecs with Wan's latent format: 16 channels, 8 times smaller in space, 1 + 4k in time.

``PatchCodec`` is the nano codec. Encoding is linear and closed-form: per-position principal
components, frame 0 by itself and then four frames at a time (as the causal Wan VAE groups
them). Decoding may use the reference picture: the latents' difference to those of the
reference held still is decoded to a difference in pixels, linearly from the 3 x 3 neighbouring
positions and then by a small convolutional correction.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

CHUNK = 4
STRIDE = 8
CHANNELS = 16
IMAGE_VALUES = STRIDE * STRIDE * 3
CHUNK_VALUES = CHUNK * IMAGE_VALUES
FLOW_CELLS = 2
FLOW_VALUES = CHUNK * 2 * FLOW_CELLS**2
"""Flow that the decoder writes for each position: frames, x and y, 2 x 2 cells."""


class Codec(Protocol):
    """What the talking model asks of a codec; latents are raw, not normalised."""

    def encode(self, frames: Tensor) -> Tensor:
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
    x = frames.reshape(batch, count, height // STRIDE, STRIDE, width // STRIDE, STRIDE, 3)
    return x.permute(0, 2, 4, 1, 3, 5, 6).reshape(batch, -1, count * IMAGE_VALUES)


def from_patches(patches: Tensor, rows: int, columns: int) -> Tensor:
    """Undo :func:`to_patches` on a grid of ``rows`` x ``columns`` patches."""
    batch = patches.shape[0]
    x = patches.reshape(batch, rows, columns, -1, STRIDE, STRIDE, 3)
    return x.permute(0, 3, 1, 4, 2, 5, 6).reshape(batch, -1, rows * STRIDE, columns * STRIDE, 3)


def neighbourhood(latents: Tensor, rows: int, columns: int) -> Tensor:
    """Stack the 3 x 3 neighbours of each position: [B, P, C] to [B, P, 9 * C], zero outside."""
    grid = latents.transpose(1, 2).unflatten(2, (rows, columns))
    return F.unfold(grid, 3, padding=1).transpose(1, 2)


class Correction(nn.Module):
    """Convolutions on the latent grid that add what a linear decoder cannot know.

    From the latent difference and the reference's own pixels they tell where the reference has
    moved to, how much of the linear decoding to keep, and what to add.
    """

    def __init__(self, rows: int, columns: int, hidden: int) -> None:
        """Create the network for a grid; at first nothing moves and nothing is added."""
        super().__init__()
        self.enter = nn.Conv2d(CHANNELS + IMAGE_VALUES, hidden, 3, padding=1)
        self.place = nn.Parameter(torch.zeros(hidden, rows, columns))
        self.middle = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.last = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.leave = nn.Conv2d(hidden, CHUNK_VALUES + FLOW_VALUES + CHUNK, 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]

    def forward(self, difference: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what to add [B, P, 768], flow in pixels [B, 4, H, W, 2], and what to keep.

        The share of the linear decoding to keep is [B, P, 4], one number a frame.

        Args:
            difference: scaled latent differences, [B, P, 16].
            reference: reference patches in [-1, 1], [B, P, 192].
        """
        rows, columns = self.place.shape[1:]
        x = torch.cat((difference, reference), 2).transpose(1, 2).unflatten(2, (rows, columns))
        x = F.gelu(self.enter(x) + self.place)
        x = x + F.gelu(self.middle(x))
        x = x + F.gelu(self.last(x))
        added, flow, keep = self.leave(x).split((CHUNK_VALUES, FLOW_VALUES, CHUNK), 1)
        flow = F.pixel_shuffle(flow, FLOW_CELLS)
        size = (rows * STRIDE, columns * STRIDE)
        flow = F.interpolate(flow, size, mode="bilinear", align_corners=False)
        flow = flow.unflatten(1, (CHUNK, 2)).permute(0, 1, 3, 4, 2)
        return added.flatten(2).transpose(1, 2), flow, 1 + keep.flatten(2).transpose(1, 2)


def warp(picture: Tensor, flow: Tensor) -> Tensor:
    """Read a picture [B, H, W, 3] at each pixel plus ``flow`` [B, F, H, W, 2] (x, y in pixels).

    Returns:
        [B, F, H, W, 3]; places outside repeat the edge.
    """
    batch, count, height, width, _ = flow.shape
    ys = torch.arange(height, device=flow.device, dtype=flow.dtype)
    xs = torch.arange(width, device=flow.device, dtype=flow.dtype)
    place = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1) + flow
    size = torch.tensor([width, height], device=flow.device, dtype=flow.dtype)
    grid = (2 * place + 1) / size - 1
    source = picture.permute(0, 3, 1, 2).repeat_interleave(count, 0)
    moved = F.grid_sample(
        source, grid.flatten(0, 1), mode="bilinear", padding_mode="border", align_corners=False
    )
    return moved.permute(0, 2, 3, 1).unflatten(0, (batch, count))


class PatchCodec(nn.Module):
    """The nano codec for one grid of positions; all its numbers are saved with the model."""

    image_mean: Tensor
    image_encode: Tensor
    image_decode: Tensor
    chunk_encode: Tensor
    chunk_scale: Tensor
    chunk_ridge: Tensor
    chunk_basis: Tensor

    def __init__(self, rows: int = 8, columns: int = 8, basis: int = 32, hidden: int = 128) -> None:
        """Create an empty codec.

        Args:
            rows: rows of the latent grid (height / 8).
            columns: columns of the latent grid.
            basis: principal components that the linear decoder writes.
            hidden: channels of the correction network.
        """
        super().__init__()
        self.rows, self.columns = rows, columns
        count = rows * columns
        shapes = {
            "image_mean": (count, IMAGE_VALUES),
            "image_encode": (count, IMAGE_VALUES, CHANNELS),
            "image_decode": (count, CHANNELS, IMAGE_VALUES),
            "chunk_encode": (count, CHUNK_VALUES, CHANNELS),
            "chunk_scale": (count, CHANNELS),
            "chunk_ridge": (count, 9 * CHANNELS, basis),
            "chunk_basis": (count, basis, CHUNK_VALUES),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))
        self.correction = Correction(rows, columns, hidden)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Encode uint8 [B, 1 + 4k, H, W, 3] to latents float32 [B, 16, 1 + k, h, w]."""
        unit = to_unit(frames)
        first = to_patches(unit[:, :1]) - self.image_mean
        parts = [torch.einsum("bpv,pvc->bpc", first, self.image_encode)]
        for start in range(1, frames.shape[1], CHUNK):
            chunk = to_patches(unit[:, start : start + CHUNK])
            parts.append(torch.einsum("bpv,pvc->bpc", chunk, self.chunk_encode))
        return self._to_grid(torch.stack(parts, 1))

    @torch.no_grad()
    def decode(self, latents: Tensor, reference: Tensor | None = None) -> Tensor:
        """Decode latents [B, 16, f, h, w] to uint8 [B, 4f - 3, H, W, 3].

        Without ``reference`` (uint8 [B, H, W, 3]) the picture in latent frame 0 stands in.
        """
        x = latents.flatten(3).permute(0, 2, 3, 1).float()
        first = torch.einsum("bpc,pcv->bpv", x[:, 0], self.image_decode) + self.image_mean
        if reference is None:
            still = to_bytes(from_patches(first, self.rows, self.columns))
        else:
            still = reference[:, None]
        held = self.encode(still.expand(-1, 1 + CHUNK, -1, -1, -1))
        held = held.flatten(3).permute(0, 2, 3, 1)
        base = to_patches(to_unit(still))
        move = torch.einsum("bpc,pcv->bpv", x[:, 0] - held[:, 0], self.image_decode)
        frames = [from_patches(base + move, self.rows, self.columns)]
        difference = x[:, 1:] - held[:, 1:2]
        count = difference.shape[1]
        pixels = self.decode_difference(
            difference.flatten(0, 1), base.repeat_interleave(count, 0)
        ).unflatten(0, (-1, count))
        for index in range(count):
            chunk = base.repeat(1, 1, CHUNK) + pixels[:, index]
            frames.append(from_patches(chunk, self.rows, self.columns))
        return to_bytes(torch.cat(frames, 1))

    def decode_difference(self, difference: Tensor, reference: Tensor) -> Tensor:
        """Return pixel differences [B, P, 768] of latent differences [B, P, 16].

        Args:
            difference: chunk latents minus those of the reference held still.
            reference: reference patches in [-1, 1], [B, P, 192].
        """
        around = neighbourhood(difference, self.rows, self.columns)
        weights = torch.einsum("bpn,pnm->bpm", around, self.chunk_ridge)
        linear = torch.einsum("bpm,pmv->bpv", weights, self.chunk_basis)
        added, flow, keep = self.correction(difference / self.chunk_scale, reference)
        picture = from_patches(reference, self.rows, self.columns)
        moved = to_patches(warp(picture[:, 0], flow) - picture)
        kept = (linear.unflatten(2, (CHUNK, -1)) * keep[..., None]).flatten(2)
        return moved + kept + added

    def _to_grid(self, x: Tensor) -> Tensor:
        """Turn [B, f, P, C] into [B, C, f, h, w]."""
        return x.permute(0, 3, 1, 2).unflatten(3, (self.rows, self.columns)).contiguous()


class WanVae:
    """diffusers' ``AutoencoderKLWan`` behind the same two methods; the reference is not used."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        """Wrap a loaded, frozen VAE."""
        self.vae = vae

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Encode uint8 [B, F, H, W, 3] to the posterior's mode, [B, C, f, h, w]."""
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
