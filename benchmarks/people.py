"""Held-out people, how they hold their heads, and what a face embedding says of it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ft2.config import ClipFormat
from ft2.generator.face_training import relit, verification_auc
from ft2.puppet import identities, world
from ft2.puppet.manner import held_pitch
from ft2.wan.face import FaceEncoder, FaceTower

RIDGE = 0.1
"""Of the regression, relative to the mean variance of an embedding's numbers."""


class People:
    """People of a split with their embeddings: the manner asked of whoever has one's face."""

    def __init__(self, encoder: FaceEncoder, split: str, first: int, count: int) -> None:
        drawn = [identities.draw(split, first + number) for number in range(count)]
        self.hold = np.array([held_pitch(person) for person in drawn])
        portraits = np.stack([person.portrait(ClipFormat().width) for person in drawn])
        self.embedding = encoder.embed(torch.from_numpy(portraits))

    def extremes(self, count: int, total: int) -> dict[str, tuple[Tensor, np.ndarray]]:
        """Return embeddings and manners of the `count` lowest and highest holds, `total` rows."""
        order = np.argsort(self.hold)
        parts = {"high": order[:count], "low": order[-count:]}
        rows = {name: np.resize(part, total) for name, part in parts.items()}
        return {name: (self.embedding[row], self.hold[row]) for name, row in rows.items()}


def readable(encoder: FaceEncoder, held_out: People, people: int = 600) -> dict[str, float]:
    """Return how well a linear readout, fitted to train people, tells held-out people's manner."""
    seen = People(encoder, "train", 9_900_000, people)
    x, y = seen.embedding.double().numpy(), seen.hold
    middle = x.mean(0)
    gram = (x - middle).T @ (x - middle)
    gram += RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    weights = np.linalg.solve(gram, (x - middle).T @ (y - y.mean()))
    found = (held_out.embedding.double().numpy() - middle) @ weights + y.mean()
    wanted = held_out.hold
    rest = ((found - wanted) ** 2).mean() / wanted.var()
    return {
        "correlation": round(float(np.corrcoef(found, wanted)[0, 1]), 3),
        "R2": round(float(1 - rest), 3),
    }


@torch.no_grad()
def verification(tower: FaceTower, people: int = 60, clips: int = 3) -> dict[str, float]:
    """Return the AUC of held-out people's last frames: two clips of one against two people's.

    All clips of a person have one light; "other light" gives each frame its own.
    """
    made = [
        clip
        for number in range(people)
        for clip in world.random_clips("dev", 10_950_000 + number, clips, ClipFormat(), 0.0)
    ]
    names = [clip.identity_id for clip in made]
    plain = tower.pixels(torch.from_numpy(np.stack([clip.frames[-1] for clip in made])))
    seen = {"same light": plain, "other light": relit(plain, torch.Generator().manual_seed(0))}
    return {n: round(verification_auc(tower(pixels), names), 3) for n, pixels in seen.items()}
