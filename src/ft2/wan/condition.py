"""What a generation is conditioned on, encoded once and shared by every pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Encoded conditions of a batch; every tensor has the batch first.

    Attributes:
        latents_mask_y: 4 mask channels (1 at the given frame) and the image latents,
            [B, 4 + C, F, h, w].
        text: prompt embeddings, [B, T, D].
        image: embedding of the reference picture, [B, I, D].
        audio: audio features in one window per latent frame, [B, F, L, D]; [B, 1, L, D] when
            every token hears the whole clip.
        audio_mask: True where an audio token is real, [B, F, L].
        reference: the reference picture, uint8 [B, H, W, 3].
        identity: face embeddings of unit length, [B, E], for a model with that branch.
        motion: strengths omega of face and body motion in [0, 1], [B, 2], likewise.
    """

    latents_mask_y: Tensor
    text: Tensor
    image: Tensor
    audio: Tensor
    audio_mask: Tensor
    reference: Tensor
    identity: Tensor | None = None
    motion: Tensor | None = None

    def __len__(self) -> int:
        """Return the batch size."""
        return self.text.shape[0]

    @classmethod
    def cat(cls, parts: Sequence[Conditioning]) -> Conditioning:
        """Join batches along the batch dimension."""
        states = [part.state() for part in parts]
        return cls(**{name: torch.cat([state[name] for state in states]) for name in states[0]})

    def repeat(self, times: int) -> Conditioning:
        """Repeat every item ``times`` times, copies of an item side by side."""
        index = torch.arange(len(self)).repeat_interleave(times)
        return self.select(index)

    def select(self, index: Tensor | Sequence[int]) -> Conditioning:
        """Return the items at ``index`` (integers, [N])."""
        place = torch.as_tensor(index, device=self.text.device)
        return Conditioning(**{name: value[place] for name, value in self.state().items()})

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> Conditioning:
        """Move to a device; ``dtype`` applies to the floating-point tensors."""
        moved = {
            name: value.to(device, dtype if value.is_floating_point() else value.dtype)
            for name, value in self.state().items()
        }
        return Conditioning(**moved)

    def with_text(self, text: Tensor) -> Conditioning:
        """Return a copy with other prompt embeddings, [1 or B, T, D]."""
        return replace(self, text=text.to(self.text).expand_as(self.text))

    def state(self) -> dict[str, Tensor]:
        """Return the tensors by name, ready for a safetensors file."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if value is not None}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Conditioning:
        """Build from :meth:`state`."""
        return cls(**state)
