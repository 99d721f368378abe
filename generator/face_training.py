"""Training of the small face encoder: one person's pictures together, others' apart."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ft2.generator.data import Clips
from ft2.runs import Progress
from ft2.wan.face import FaceTower

SCALE, MARGIN = 16.0, 0.2
"""Of the CosFace loss (arXiv 1801.09414)."""

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
    names = {name: index for index, name in enumerate(sorted(set(clips.identities)))}
    label = np.array([names[name] for name in clips.identities])
    rng = np.random.default_rng([seed, 31])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        centres = torch.randn(len(names), tower.out.out_features).requires_grad_()
    tower.train().requires_grad_(True)
    optimizer = torch.optim.AdamW([*tower.parameters(), centres], lr=2e-3, weight_decay=1e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, 2 * (1 - step / steps))
        rows = rng.integers(len(clips), size=BATCH)
        shown = clips.frames[rows, rng.integers(clips.frames.shape[1], size=BATCH)]
        found = tower(tower.pixels(torch.from_numpy(shown)))
        cosines = found @ F.normalize(centres, dim=1).T
        loss = cosface(cosines, torch.from_numpy(label[rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 49 or step + 1 == steps:
            progress.update("face encoder", step + 1, steps, f"loss {loss.item():.3f}")
    tower.eval().requires_grad_(False)


@torch.no_grad()
def verification_auc(tower: FaceTower, clips: Clips, seed: int = 0) -> float:
    """Return how often two clips of one person are nearer than two of different people.

    Last frames of two clips of an identity against those of two identities, all that there are (at
    most 20,000 of each); ties count half.
    """
    found = tower.embed(torch.from_numpy(clips.frames[:, -1]))
    cosines = (found @ found.T).numpy()
    names = np.array(clips.identities)
    first, second = np.triu_indices(len(names), 1)
    values, same = cosines[first, second], names[first] == names[second]
    rng = np.random.default_rng(seed)
    near, far = (rng.permutation(part)[:20000] for part in (values[same], values[~same]))
    if not len(near) or not len(far):
        return float("nan")
    order = np.searchsorted(np.sort(far), near, side="left")
    ties = np.searchsorted(np.sort(far), near, side="right")
    return float(((order + ties) / 2 / len(far)).mean())
