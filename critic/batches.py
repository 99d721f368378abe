"""Which clips a step sees: by the seed and the step alone, so that a resume sees the same."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ft2.critic.config import CriticConfig
from ft2.critic.data import PairRating, Rating, other_voice
from ft2.critic.losses import MISSING
from ft2.critic.tokens import Tokens

LIP = "lip"


def draw(tokens: Tokens, config: CriticConfig, place: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return micro-batch number `place` (video, audio, labels); it depends on the seed alone.

    Clips come without repetition within an epoch; with `balance`, those of rarer sources come more
    often, so that all sources have the same share. Some get another clip's voice: their lip answer
    is then No (a controlled negative), the others stay.
    """
    size = config.engine.micro_batch_size
    pool = _pool(tokens.rows.sources) if config.balance else torch.arange(len(tokens.rows))
    count = len(pool)
    rows = pool[_places(count, config.seed, place, size)]
    rng = torch.Generator().manual_seed((config.seed + 1) * 1_000_003 + place)
    labels = tokens.rows.labels[rows].clone()
    swapped = torch.rand(size, generator=rng) < config.swap
    other = rows
    if bool(swapped.any()) and LIP in config.questions:
        lip = list(config.questions).index(LIP)
        voices = other_voice(tokens.rows.utterances, rng)[rows]
        other = torch.where(swapped, voices, rows)
        labels[:, lip] = torch.where(swapped, 0, labels[:, lip])
    return (*tokens.take(rows, other), labels)


def _places(count: int, seed: int, place: int, size: int) -> Tensor:
    """Return `size` numbers below `count`, without repetition within an epoch."""
    return torch.cat(
        [
            _epoch(count, seed, epoch)[max(place * size - epoch * count, 0) :]
            for epoch in range(place * size // count, ((place + 1) * size - 1) // count + 1)
        ]
    )[:size]


def _pool(sources: np.ndarray[Any, Any]) -> Tensor:
    """Return row numbers in which every source occurs as often as the most frequent one."""
    groups = [np.flatnonzero(sources == name) for name in np.unique(sources)]
    most = max(len(group) for group in groups)
    return torch.from_numpy(np.concatenate([np.resize(group, most) for group in groups]))


def _epoch(count: int, seed: int, epoch: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed * 7919 + epoch)
    return torch.randperm(count, generator=rng)


@dataclass(frozen=True)
class Pairs:
    """Comparisons of clips among the windows of some tokens."""

    a: Tensor
    """int64 [P]: window of side A."""
    b: Tensor
    """int64 [P]: window of side B."""
    num_windows: int
    """Windows before the varied copies begin."""
    labels: Tensor
    """float32 [P, N, 2]: 1 for A, -1 for B, 0 for a tie or `MISSING`; then share or margin, nan
    where there is none."""


def draw_pairs(
    tokens: Tokens, pairs: Pairs, config: CriticConfig, place: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return micro-batch number `place`: tokens of P sides A, then of P sides B, and labels [P].

    Pairs come without repetition within an epoch; which clip is side A is drawn anew each time.
    """
    size, count = config.engine.micro_batch_size // 2, len(pairs.a)
    chosen = _places(count, config.seed, place, size)
    rng = torch.Generator().manual_seed((config.seed + 1) * 1_000_003 + place)
    swap = torch.rand(len(chosen), generator=rng) < 0.5
    varied = torch.randint(0, config.copies + 1, (len(chosen),), generator=rng) * pairs.num_windows
    a, b = pairs.a[chosen] + varied, pairs.b[chosen] + varied
    rows = torch.cat([torch.where(swap, b, a), torch.where(swap, a, b)])
    labels = pairs.labels[chosen].clone()
    turned = labels[swap]
    known = turned[..., 0] != MISSING
    turned[..., 0] = torch.where(known, -turned[..., 0], turned[..., 0])
    turned[..., 1] = 1 - turned[..., 1] if config.objective == "soft" else turned[..., 1]
    labels[swap] = turned
    return (*tokens.take(rows, rows), labels)


def pair_rows(
    ratings: Sequence[PairRating], clips: Sequence[Rating], tokens: Tokens, config: CriticConfig
) -> Pairs:
    """Return the comparisons as windows of tokens, of a longer clip its first window.

    Args:
        ratings: Comparisons.
        clips: The clips that the tokens are of, in their order.
        tokens: Tower tokens.
        config: Its objective says whether shares or margins matter.
    """
    place = {clip.video: number for number, clip in enumerate(clips)}
    first = tokens.rows.first_windows()
    sides = [[int(first[place[rating.videos[side]]]) for rating in ratings] for side in (0, 1)]
    signs = {"A": 1.0, "B": -1.0, "tie": 0.0, None: float(MISSING)}
    labels = torch.tensor([[signs[label] for label in rating.labels] for rating in ratings])
    given = [r.shares if config.objective == "soft" else r.margins for r in ratings]
    extra = [[math.nan if x is None else float(x) for x in row] for row in given]
    return Pairs(
        a=torch.tensor(sides[0]),
        b=torch.tensor(sides[1]),
        num_windows=len(tokens.rows) // (config.copies + 1),
        labels=torch.stack([labels, torch.tensor(extra)], dim=-1),
    )
