"""Puppet clips as arrays in memory, batches of them with on-the-fly variation, dense targets.

Only the base training of a nano Thinker reads these: they carry the curves that drove each puppet,
which the critic itself (`ft2.critic.train`) never sees.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ft2.critic.vary import recolour, retexture, soften
from ft2.errors import UsageError
from ft2.qwen.spec import QwenSpec
from ft2.runs import load_tensors

if TYPE_CHECKING:
    from transformers import Qwen2_5OmniProcessor

CURVES = (
    "open",
    "width",
    "press",
    "tuck",
    "blink",
    "brow",
    "yaw",
    "pitch",
    "roll",
    "tx",
    "ty",
    "breathe",
    "background",
)
MOUTH = (0, 1, 2, 3)
POSE = (6, 7, 8, 9, 10)
MIRRORED = (6, 8, 9)
"""Curves that change sign when a picture is mirrored: yaw, roll, tx."""


@dataclass(frozen=True)
class Arrays:
    """Clips of one split; N of them, F frames each."""

    frames: Tensor
    """uint8 [N, F, H, W, 3]."""
    mel: Tensor
    """float16 [N, mel, T]: Whisper log-mel frames, without padding."""
    loudness: Tensor
    """float32 [N, A]: log energy at each audio token."""
    spoken: Tensor
    """float32 [N, F, C]: curves that the voice asks for."""
    shown: Tensor
    """float32 [N, F, C]: curves that the picture shows, defects included."""
    labels: Tensor
    """bool [N, 3]: natural, synchronous, good."""
    kinds: Tensor
    """float32 [N, K]: 1 where a defect of that kind was applied."""
    kind_names: tuple[str, ...]
    """Names of the kinds."""
    audio_ids: np.ndarray
    """str [N]: which utterance."""
    identity_ids: np.ndarray
    """str [N]: which face."""

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.frames)


@dataclass(frozen=True)
class Batch:
    """B clips, varied, each with a sound that may be another clip's."""

    pixels: Tensor
    """uint8 [B, T, H, W, 3] composites, T even."""
    mel: Tensor
    """float32 [B, mel, T]."""
    loudness: Tensor
    """float32 [B, A]."""
    spoken: Tensor
    """float32 [B, F, C] of the sound."""
    shown: Tensor
    """float32 [B, F, C] of the picture."""
    labels: Tensor
    """bool [B, 3], the lip label False where the sound was swapped."""
    kinds: Tensor
    """float32 [B, K]."""


def loudness(audio: np.ndarray, num_tokens: int) -> np.ndarray:
    """Return log10 energy [num_tokens] of equal parts of a sound, floored at -6."""
    parts = np.array_split(audio.astype(np.float64), num_tokens)
    return np.log10(np.array([np.mean(p**2) for p in parts]) + 1e-6).astype(np.float32)


class Sampler:
    """Draws varied batches; the batch of a step depends on the seed and the step alone."""

    def __init__(
        self, arrays: Arrays, spec: QwenSpec, seed: int, swap: float = 0.25, texture: float = 0.0
    ) -> None:
        """Keep the clips; `swap` and `texture` are the shares with other sound or texture."""
        from ft2.qwen.view import view_matrices

        self.arrays, self.spec, self.seed, self.swap = arrays, spec, seed, swap
        self.texture = texture
        height, width = arrays.frames.shape[2:4]
        self.matrices = [torch.from_numpy(m) for m in view_matrices(spec, height, width)]

    def batch(self, step: int, size: int) -> Batch:
        """Return the batch of a step: clips without repetition within an epoch."""
        n = len(self.arrays)
        first = step * size
        index = torch.cat(
            [
                self._order(epoch)[max(first - epoch * n, 0) : first + size - epoch * n]
                for epoch in range(first // n, (first + size - 1) // n + 1)
            ]
        )
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        return self._vary(index, rng)

    def _order(self, epoch: int) -> Tensor:
        rng = torch.Generator().manual_seed(self.seed * 7919 + epoch)
        return torch.randperm(len(self.arrays), generator=rng)

    def _vary(self, index: Tensor, rng: torch.Generator) -> Batch:
        data, size = self.arrays, len(index)
        other = torch.randint(len(data), (size,), generator=rng)
        swapped = torch.rand(size, generator=rng) < self.swap
        sound = torch.where(swapped, other, index)
        mirror = torch.rand(size, generator=rng) < 0.5
        sign = torch.ones(data.shown.shape[2])
        sign[list(MIRRORED)] = -1
        shown = data.shown[index]
        shown = torch.where(mirror.view(-1, 1, 1), shown * sign, shown)
        frames = recolour(soften(_move(data.frames, index, mirror, rng), rng), rng)
        if self.texture:
            frames = retexture(frames, rng, self.texture).clamp_(0, 255)
        labels = data.labels[index].clone()
        labels[:, 1] &= ~(swapped & (other != index))
        return Batch(
            pixels=self.composites(frames),
            mel=data.mel[sound].float(),
            loudness=data.loudness[sound],
            spoken=data.spoken[sound],
            shown=shown,
            labels=labels,
            kinds=data.kinds[index],
        )

    def plain(self, index: Tensor, sound: Tensor | None = None) -> Batch:
        """Return clips as they are, with their own sound or that of other clips."""
        data = self.arrays
        heard = index if sound is None else sound
        labels = data.labels[index].clone()
        labels[:, 1] &= heard == index
        return Batch(
            pixels=self.composites(data.frames[index].float()),
            mel=data.mel[heard].float(),
            loudness=data.loudness[heard],
            spoken=data.spoken[heard],
            shown=data.shown[index],
            labels=labels,
            kinds=data.kinds[index],
        )

    def composites(self, frames: Tensor) -> Tensor:
        """Return float frames [B, F, H, W, 3] in 0..255 as uint8 composites of `ft2.qwen.view`."""
        if frames.shape[1] % 2:
            frames = torch.cat([frames, frames[:, -1:]], dim=1)
        rows, columns, mouth_rows, mouth_columns = self.matrices
        square = frames.shape[2] == rows.shape[0] and frames.shape[3] == columns.shape[0]
        face = frames if square else torch.einsum("yh,bfhwc,xw->bfyxc", rows, frames, columns)
        used_r, used_c = _used(mouth_rows), _used(mouth_columns)
        part = frames[:, :, used_r][:, :, :, used_c]
        part = torch.einsum("xw,bfhwc->bfhxc", mouth_columns[:, used_c], part)
        mouth = torch.einsum("yh,bfhxc->bfyxc", mouth_rows[:, used_r], part)
        return torch.cat([face, mouth], dim=2).round_().clamp_(0, 255).to(torch.uint8)


def _used(matrix: Tensor) -> slice:
    """Return the columns that a resize matrix reads."""
    columns = matrix.abs().sum(0).nonzero()[:, 0]
    return slice(int(columns[0]), int(columns[-1]) + 1)


def _move(
    frames: Tensor, index: Tensor, mirror: Tensor, rng: torch.Generator, most: int = 1
) -> Tensor:
    """Return chosen clips, some mirrored, each moved by `most` pixels: no aligner is exact."""
    height, width = frames.shape[2:4]
    moves = torch.randint(-most, most + 1, (len(index), 2), generator=rng).tolist()
    out = []
    for i, flip, (dx, dy) in zip(index.tolist(), mirror.tolist(), moves, strict=True):
        rows = (torch.arange(height) + dy).clamp(0, height - 1)
        columns = (torch.arange(width) + dx).clamp(0, width - 1)
        columns = columns.flip(0) if flip else columns
        out.append(frames[i].index_select(1, rows).index_select(2, columns))
    return torch.stack(out)


def load_arrays(path: Path, spec: QwenSpec) -> Arrays:
    """Read the shards that `ft2.puppet.dataset.build_arrays` wrote and add mel frames.

    Args:
        path: Directory with one ``.safetensors`` shard or more.
        spec: Sizes; the clips must be of its format.

    Raises:
        UsageError: No shards there, or clips of another format.
    """
    from ft2.puppet.defects import DEFECTS
    from ft2.qwen.tokens import build_processor

    shards = sorted(path.glob("*.safetensors"))
    if not shards:
        raise UsageError(f"{path} has no puppet arrays", "make them with `ft2 puppet arrays`")
    processor, names = build_processor(spec), tuple(DEFECTS)
    parts = [_read_shard(shard, spec, processor, names) for shard in shards]

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    return Arrays(
        frames=joined("frames"),
        mel=joined("mel"),
        loudness=joined("loudness"),
        spoken=joined("spoken"),
        shown=joined("shown"),
        labels=joined("labels"),
        kinds=joined("kinds"),
        kind_names=names,
        audio_ids=np.concatenate([part.audio_ids for part in parts]),
        identity_ids=np.concatenate([part.identity_ids for part in parts]),
    )


def _read_shard(
    path: Path, spec: QwenSpec, processor: "Qwen2_5OmniProcessor", names: tuple[str, ...]
) -> Arrays:
    from ft2.qwen.towers import mel_features

    tensors, metadata = load_tensors(path)
    frames, audio = tensors["frames"], tensors["audio"].numpy().astype(np.float32) / 32767
    clip = spec.clip
    if frames.shape[1] != clip.num_frames or audio.shape[1] != clip.num_samples:
        raise UsageError(
            f"{path} has clips of {frames.shape[1]} frames and {audio.shape[1]} samples, "
            f"the model takes {clip.num_frames} and {clip.num_samples}",
            "make arrays of the model's clip format",
        )
    rows = json.loads(metadata["clips"])
    mel = [
        mel_features(processor, list(audio[start : start + 32]))[0].half()
        for start in range(0, len(audio), 32)
    ]
    return Arrays(
        frames=frames,
        mel=torch.cat(mel),
        loudness=torch.from_numpy(np.stack([loudness(a, spec.num_audio_tokens) for a in audio])),
        spoken=tensors["curves"],
        shown=tensors["shown"],
        labels=tensors["labels"].bool(),
        kinds=torch.tensor([[float(n in row["defects"]) for n in names] for row in rows]),
        kind_names=names,
        audio_ids=np.array([row["audio_id"] for row in rows]),
        identity_ids=np.array([row["identity_id"] for row in rows]),
    )
