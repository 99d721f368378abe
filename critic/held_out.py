"""Held-out ratings during training: how well they are met, and the adapter that met them best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ft2.critic.adapter import adapter_state
from ft2.critic.data import PairRating, Rating
from ft2.critic.thresholds import fit_thresholds
from ft2.critic.tokens import Tokens
from ft2.runs import load_tensors, read_json, save_tensors, write_json

if TYPE_CHECKING:
    from ft2.critic.objective import AnswerLoss, ScoreLoss

FILE = "best.safetensors"


@dataclass(frozen=True)
class HeldOut:
    """The dev split: clips with their answers, or with the choices between them."""

    tokens: Tokens
    dimensions: tuple[str, ...]
    objective: str
    pairs: Tensor | None = None
    """int64 [P, 2]: clips of side A and B; None where single clips are rated."""
    choices: Tensor | None = None
    """float32 [P, N]: 1 for A, -1 for B, 0 for a tie, nan where there is none."""

    @property
    def labels(self) -> Tensor:
        """Answers or opinion scores of the clips [clips, N], -1 where there is none."""
        return self.tokens.rows.labels[self.tokens.rows.first_windows()]

    def accuracy(self, odds: Tensor) -> dict[str, float]:
        """Return the accuracy of log-odds [clips, N] for each dimension that has held-out ratings.

        Of answers the share right, with the threshold fitted on them; of choices the share of
        decided pairs in the right order; of opinion scores the share of clip pairs in the right
        order; equal log-odds count half.
        """
        odds = odds.double().cpu()
        if self.pairs is not None and self.choices is not None:
            gaps = odds[self.pairs[:, 0]] - odds[self.pairs[:, 1]]
            columns = [_ordered(g, c) for g, c in zip(gaps.T, self.choices.T, strict=True)]
        elif self.objective == "regression":
            columns = [_concordance(x, y) for x, y in zip(odds.T, self.labels.T, strict=True)]
        else:
            cuts = fit_thresholds(odds, self.labels, self.dimensions)
            rows = zip(odds.T, self.labels.T, cuts.values(), strict=True)
            columns = [_mean(((x >= cut) == (y > 0))[y >= 0].double()) for x, y, cut in rows]
        found = zip(self.dimensions, columns, strict=True)
        return {name: value for name, value in found if value is not None}


def held_out_pairs(ratings: Sequence[PairRating], clips: Sequence[Rating]) -> tuple[Tensor, Tensor]:
    """Return `HeldOut.pairs` and `HeldOut.choices` of comparisons of some clips."""
    place = {clip.video: number for number, clip in enumerate(clips)}
    signs = {"A": 1.0, "B": -1.0, "tie": 0.0, None: float("nan")}
    sides = [[place[video] for video in rating.videos] for rating in ratings]
    choices = [[signs[label] for label in rating.labels] for rating in ratings]
    return torch.tensor(sides), torch.tensor(choices)


def _ordered(gaps: Tensor, choices: Tensor) -> float | None:
    decided = choices.abs() == 1
    return _mean((1 + gaps.sign() * choices)[decided] / 2)


def _concordance(x: Tensor, y: Tensor) -> float | None:
    x, y = x[y >= 0], y[y >= 0]
    gaps, wanted = (x[:, None] - x).flatten(), (y[:, None] - y).sign().flatten()
    return _ordered(gaps, wanted)


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None


@dataclass
class Best:
    """The adapter to keep: that of the best held-out accuracy, of equal ones the latest."""

    step: int = 0
    accuracy: dict[str, float] = field(default_factory=dict)
    """Held-out accuracy per dimension; empty without held-out ratings."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Of the adapter, under PEFT's names."""
    odds: Tensor | None = None
    """Log-odds of the dev clips [clips, N]."""
    width: Tensor | None = None
    """How wide a tie is [N]; see `ft2.critic.losses.tie_width`."""

    def offer(
        self,
        step: int,
        loss: "AnswerLoss | ScoreLoss",
        accuracy: Mapping[str, float],
        odds: Tensor | None,
    ) -> None:
        """Keep the weights of this step, if they are as good as any before."""
        if self.tensors and _total(accuracy) < _total(self.accuracy):
            return
        width = loss.width()
        self.step, self.accuracy = step, dict(accuracy)
        self.tensors = {n: t.cpu().clone() for n, t in adapter_state(loss.model).items()}
        self.odds = None if odds is None else odds.cpu()
        self.width = None if width is None else width.detach().cpu()

    def save(self, directory: Path) -> None:
        """Write ``best.safetensors`` and ``best.json`` into a checkpoint."""
        extra = {"odds": self.odds, "width": self.width}
        tensors = {f"adapter/{name}": tensor for name, tensor in self.tensors.items()}
        tensors |= {name: tensor for name, tensor in extra.items() if tensor is not None}
        save_tensors(directory / FILE, tensors)
        write_json(directory / "best.json", {"step": self.step, "accuracy": self.accuracy})

    @classmethod
    def load(cls, directory: Path) -> "Best":
        """Return what `save` wrote."""
        tensors, _ = load_tensors(directory / FILE)
        record: dict[str, Any] = read_json(directory / "best.json")
        odds, width = tensors.pop("odds", None), tensors.pop("width", None)
        own = {name.removeprefix("adapter/"): tensor for name, tensor in tensors.items()}
        return cls(record["step"], record["accuracy"], own, odds, width)


def _total(accuracy: Mapping[str, float]) -> float:
    """Return the mean over dimensions, 0 without any."""
    return float(np.mean(list(accuracy.values()))) if accuracy else 0.0
