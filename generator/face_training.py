"""Training of the small face encoder: one person's pictures together, others' apart.

Telling people apart alone gives an embedding that remembers the training people and says little of
anyone's face; so a linear layer also has to read the face's shape from it, as landmarks found on
the picture at rest. Light and colour are changed at random, so that they do not tell people apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ft2 import faces
from ft2.generator.data import Clips
from ft2.runs import Progress
from ft2.wan.face import FaceTower

SCALE, MARGIN = 16.0, 0.2
"""Of the CosFace loss (arXiv 1801.09414)."""

SHAPE_WEIGHT = 3.0
"""Weight of the landmarks' error, in shares of their variance over people, beside that loss."""

BATCH = 96


def cosface(cosines: Tensor, identity: Tensor) -> Tensor:
    """Return the loss of cosines [B, N] to the identities' centres: ``s (cos - m)`` for the own."""
    own = F.one_hot(identity, cosines.shape[1]).to(cosines)
    return F.cross_entropy(SCALE * (cosines - MARGIN * own), identity)


def train_face_tower(
    tower: FaceTower, clips: Clips, *, steps: int, seed: int, progress: Progress
) -> None:
    """Train the tower to tell the clips' identities apart, whatever the frame, in place.

    Frames are drawn from all clips, so pose, speech and spoiled pictures vary within an identity.
    """
    names, first, label = np.unique(clips.identities, return_index=True, return_inverse=True)
    shapes, known = face_shapes(clips.frames[first, 0])
    rng = np.random.default_rng([seed, 31])
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        centres = torch.randn(len(names), tower.out.out_features).requires_grad_()
        head = nn.Linear(tower.out.out_features, shapes.shape[1])
    tower.train().requires_grad_(True)
    trained = [*tower.parameters(), *head.parameters(), centres]
    optimizer = torch.optim.AdamW(trained, lr=2e-3, weight_decay=1e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, 2 * (1 - step / steps))
        rows = rng.integers(len(clips), size=BATCH)
        shown = clips.frames[rows, rng.integers(clips.frames.shape[1], size=BATCH)]
        who = torch.from_numpy(label[rows])
        found = tower(relit(tower.pixels(torch.from_numpy(shown)), generator))
        loss = cosface(found @ F.normalize(centres, dim=1).T, who)
        error = (head(found * found.shape[1] ** 0.5) - shapes[who]).square().mean(1)
        loss = loss + SHAPE_WEIGHT * (error * known[who]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 49 or step + 1 == steps:
            progress.update("face encoder", step + 1, steps, f"loss {loss.item():.3f}")
    tower.eval().requires_grad_(False)


def face_shapes(pictures: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Return the shapes of faces [N, 956], and for each 1 where a face was found, else 0, [N].

    Landmarks (x, y) on pictures uint8 [N, H, W, 3] that are aligned by eyes and mouth, less their
    mean over the faces, of variance 1 on average.
    """
    points = faces.track(pictures)[..., :2].reshape(len(pictures), -1)
    known = np.isfinite(points).all(1)
    if not known.any():
        return torch.zeros(points.shape), torch.zeros(len(points))
    points = np.nan_to_num(points) - points[known].mean(0)
    size = max(float(np.sqrt(points[known].var(0).mean())), 1e-6)
    return torch.from_numpy(points / size).float(), torch.from_numpy(known).float()


def relit(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return pixels in [-1, 1], [B, 3, H, W], each under another light.

    Gamma, brightness and tint are log-normal; brightness also falls off to a side.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(len(pixels), *shape, generator=generator).to(pixels)

    seen = ((pixels + 1) / 2).clamp_min(1e-3) ** torch.exp(0.2 * normal(1, 1, 1))
    seen = seen * torch.exp(0.25 * normal(1, 1, 1) + 0.08 * normal(3, 1, 1))
    height, width = pixels.shape[2:]
    down = torch.linspace(-1, 1, height).to(pixels)[:, None] * normal(1, 1, 1)
    right = torch.linspace(-1, 1, width).to(pixels) * normal(1, 1, 1)
    return (seen * (1 + 0.2 * (down + right))).clamp(0, 1) * 2 - 1


def verification_auc(embeddings: Tensor, identities: Sequence[str], seed: int = 0) -> float:
    """Return how often two pictures of one person are nearer than two of different people.

    All pairs of embeddings [N, E] of unit length with the names of their people (at most 20,000
    pairs of each kind); ties count half, nan without pairs of both kinds.
    """
    cosines = (embeddings @ embeddings.T).numpy()
    names = np.array(identities)
    first, second = np.triu_indices(len(names), 1)
    values, same = cosines[first, second], names[first] == names[second]
    rng = np.random.default_rng(seed)
    near, far = (rng.permutation(part)[:20000] for part in (values[same], values[~same]))
    if not len(near) or not len(far):
        return float("nan")
    order = np.searchsorted(np.sort(far), near, side="left")
    ties = np.searchsorted(np.sort(far), near, side="right")
    return float(((order + ties) / 2 / len(far)).mean())
