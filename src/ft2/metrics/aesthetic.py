"""Aesthetic score: LAION's head on CLIP embeddings of frames."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ft2.errors import UsageError
from ft2.metrics.catalogue import FACTS
from ft2.metrics.measure import Clip, Facts, Measured
from ft2.metrics.network import MOST_FRAMES, Load, Network, pictures, spread
from ft2.metrics.weights import fill, pretrained, read_state

SIDE, WIDTH = 224, 768
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""CLIP's own normalisation of RGB in [0, 1]."""


class Aesthetic:
    """Mean score over frames, divided by 10."""

    def __init__(self, load: Load, device: str = "cpu", batch_size: int = 16) -> None:
        """See `ft2.metrics.network.Network`."""
        self._network = Network(load, device, batch_size)

    @property
    def facts(self) -> Facts:
        """What it is."""
        return FACTS["aesthetic"]

    def measure(self, clip: Clip) -> Measured:
        """Measure one clip."""
        frames = clip.frames[spread(len(clip.frames), MOST_FRAMES)]
        scores = self._network(pictures(frames, SIDE, MEAN, STD))
        return Measured({"aesthetic": float(scores.mean()) / 10})


class Scored(nn.Module):
    """CLIP's image embedding, scaled to length 1, through the head."""

    def __init__(self, clip: nn.Module, head: nn.Module) -> None:
        """Join a transformers ``CLIPVisionModelWithProjection`` and a head."""
        super().__init__()
        self.clip, self.head = clip, head

    def forward(self, pixels: Tensor) -> Tensor:
        """Return scores [B, 1] of normalised pictures [B, 3, 224, 224]."""
        found = self.clip(pixel_values=pixels).image_embeds
        scores: Tensor = self.head(found / found.norm(dim=-1, keepdim=True))
        return scores


class Perceptron(nn.Module):
    """The head of improved-aesthetic-predictor: five linear maps without activations."""

    def __init__(self) -> None:
        """Lay out the maps under their names in the file, with the dropouts' numbers left out."""
        super().__init__()
        sizes, numbers = (WIDTH, 1024, 128, 64, 16, 1), (0, 2, 4, 6, 7)
        maps = zip(numbers, sizes[:-1], sizes[1:], strict=True)
        self.layers = nn.ModuleDict({str(n): nn.Linear(a, b) for n, a, b in maps})

    def forward(self, x: Tensor) -> Tensor:
        """Return scores [B, 1] of embeddings [B, 768]."""
        for layer in self.layers.values():
            x = layer(x)
        return x


def head_of(state: Mapping[str, Tensor], source: Path) -> nn.Module:
    """Return the linear head or the perceptron, whichever the tensors are.

    Raises:
        UsageError: They are neither.
    """
    head: nn.Module = Perceptron() if "layers.0.weight" in state else nn.Linear(WIDTH, 1)
    return fill(head, state, source)


def load_aesthetic(clip: str, head: Path) -> nn.Module:
    """Return CLIP ViT-L/14 with a LAION head.

    Raises:
        UsageError: One of them is not what it should be.
    """
    from transformers import CLIPVisionModelWithProjection

    model = pretrained(CLIPVisionModelWithProjection, clip)
    width = getattr(model.config, "projection_dim", None)
    if width != WIDTH:
        raise UsageError(f"'{clip}' embeds in {width} numbers, LAION's heads take {WIDTH}",
                         "give openai/clip-vit-large-patch14")  # fmt: skip
    return Scored(model, head_of(read_state(head), head))
