"""Batches of encoded pairs: what is held out, what is dropped, and how much each counts."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ft2.errors import UsageError
from ft2.pairs import Preference
from ft2.tlpo.cache import Cache, condition_key
from ft2.tlpo.masks import dilate, pair_mask
from ft2.tlpo.options import MaskConfig
from ft2.wan.condition import Conditioning


@dataclass(frozen=True)
class Batch:
    """Pairs side by side; one conditioning serves all four passes."""

    chosen: Tensor
    """[B, C, f, h, w]."""
    rejected: Tensor
    """[B, C, f, h, w]."""
    cond: Conditioning
    """Of both sides."""
    mask: Tensor | None
    """[B, 1, f, h, w], or None for the plain mean."""
    rejected_mask: Tensor | None = None
    """The rejected side's own mask where the sides do not share one, as `mask`."""
    weight: Tensor | None = None
    """Weight of each pair in the loss, [B]; 0 for a pair that is dropped. None is 1 each."""

    def to(self, device: torch.device) -> "Batch":
        """Move everything to a device."""
        parts = [self.mask, self.rejected_mask, self.weight]
        moved = [None if part is None else part.to(device) for part in parts]
        chosen, rejected = self.chosen.to(device), self.rejected.to(device)
        return Batch(chosen, rejected, self.cond.to(device), *moved)


@dataclass(frozen=True)
class PairData:
    """The pairs of a view with their encodings."""

    pairs: Sequence[Preference]
    cache: Cache
    mask: MaskConfig
    weights: Sequence[float] | None = None
    """Weight of each pair in the loss; None is 1 each."""
    dropped: dict[str, int] = field(default_factory=dict)
    """How many pairs were left out, by reason."""

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.pairs)

    def batch(
        self, index: Sequence[int], device: torch.device, masked: Sequence[bool] | None = None
    ) -> Batch:
        """Load pairs by index.

        A pair with a latent that is not finite gets zeros and the weight 0: every rank still
        does the same work, and the loss of the others is not touched.

        Args:
            index: Which pairs, each in [0, len).
            device: Where to put them.
            masked: For each pair, whether its lip mask is used; None is always.
        """
        pairs = [self.pairs[i] for i in index]
        chosen = self.cache.latents([pair.chosen.clip_id for pair in pairs])
        rejected = self.cache.latents([pair.rejected.clip_id for pair in pairs])
        cond = self.cache.conditioning([condition_key(pair.chosen) for pair in pairs])
        masks = self._masks(pairs, masked)
        weight = None
        if self.weights is not None:
            weight = torch.tensor([self.weights[i] for i in index], dtype=torch.float32)
        sound = torch.isfinite(chosen).flatten(1).all(1) & torch.isfinite(rejected).flatten(1).all(
            1
        )
        if not bool(sound.all()):
            weight = (torch.ones(len(index)) if weight is None else weight) * sound
            chosen, rejected = (torch.where(_like(sound, x), x, 0.0) for x in (chosen, rejected))
        batch = Batch(chosen, rejected, cond, *masks, weight)
        return batch.to(device)

    def _masks(
        self, pairs: Sequence[Preference], masked: Sequence[bool] | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the mask, and the rejected side's if the sides do not share one."""
        config = self.mask
        if config.kind == "none":
            return None, None
        sides = [
            dilate(self.cache.lip_masks([clip.clip_id for clip in clips]), config.dilation)
            for clips in ([p.chosen for p in pairs], [p.rejected for p in pairs])
        ]
        pairings = [(sides[0], sides[1])]
        if config.sides == "own":
            pairings = [(sides[0], sides[0]), (sides[1], sides[1])]
        masks = [
            pair_mask(a, b, background=config.background, skip_first=config.skip_first)
            for a, b in pairings
        ]
        if masked is not None:
            use = torch.tensor(list(masked))
            masks = [torch.where(_like(use, mask), mask, 1.0) for mask in masks]
        return masks[0], masks[1] if len(masks) == 2 else None

    def without_small_masks(self) -> "PairData":
        """Return the data without pairs whose mask sums to less than ``mask.min_sum``."""
        if self.mask.kind == "none":
            return self
        least = max(self.mask.min_sum, 1e-6)
        kept = []
        for number, pair in enumerate(self.pairs):
            masks = [mask for mask in self._masks([pair]) if mask is not None]
            if all(float(mask.sum()) >= least for mask in masks):
                kept.append(number)
        return self._only(kept, "mask too small")

    def without_other_shapes(self, shape: Sequence[int]) -> "PairData":
        """Return the data without pairs of which a clip's latents have another shape."""
        kept = [
            number
            for number, pair in enumerate(self.pairs)
            if self.cache.shape(pair.chosen.clip_id) == self.cache.shape(pair.rejected.clip_id)
            == tuple(shape)
        ]  # fmt: skip
        return self._only(kept, "another shape")

    def _only(self, kept: Sequence[int], reason: str) -> "PairData":
        lost = len(self.pairs) - len(kept)
        if not lost:
            return self
        weights = None if self.weights is None else [self.weights[i] for i in kept]
        dropped = {**self.dropped, reason: self.dropped.get(reason, 0) + lost}
        pairs = [self.pairs[i] for i in kept]
        return replace(self, pairs=pairs, weights=weights, dropped=dropped)


def _like(flags: Tensor, tensor: Tensor) -> Tensor:
    """View flags [B] so that they broadcast over a tensor [B, ...]."""
    return flags.reshape(-1, *([1] * (tensor.ndim - 1)))


def pair_weights(margins: Sequence[float], kind: str, power: float) -> list[float] | None:
    """Return the weight of each pair, mean 1, or None for equal weights.

    Args:
        margins: Score gap of each pair, in (0, 1].
        kind: ``none``; ``confidence``: the gap itself; ``rarity``: one over the share of pairs in
            the gap's tenth of the range (VideoDPO, arXiv 2412.14167, sec. 3.3).
        power: Exponent of either.

    Raises:
        UsageError: A pair has no margin: its label was imported without one.
    """
    if kind == "none" or not margins:
        return None
    unknown = sum(map(math.isnan, margins))
    if unknown:
        raise UsageError(
            f"{unknown} of {len(margins)} pairs have no margin, which dpo.pair_weight={kind} needs",
            "their labels were imported without one: set dpo.pair_weight=none",
        )
    values = [max(margin, 1e-6) for margin in margins]
    if kind == "rarity":
        low, high = min(values), max(values)
        bins = [min(9, int(10 * (v - low) / max(high - low, 1e-12))) for v in values]
        values = [len(bins) / bins.count(place) for place in bins]
    raised = [value**power for value in values]
    mean = sum(raised) / len(raised)
    return [value / mean for value in raised]


def split_held_out(
    pairs: Sequence[Preference], fraction: float, seed: int
) -> tuple[list[Preference], list[Preference]]:
    """Split pairs by condition into (training, held-out).

    A condition's place is a hash of its id and the seed, so that it is the same for every store.

    Args:
        pairs: All pairs of a store.
        fraction: Part of the conditions to hold out, in [0, 1).
        seed: Another seed is another split.
    """
    train: list[Preference] = []
    held_out: list[Preference] = []
    for pair in pairs:
        digest = hashlib.sha256(f"{seed}/{pair.chosen.condition_id}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        (held_out if place < fraction else train).append(pair)
    return train, held_out


def check_dataset(dataset: Path) -> None:
    """Refuse a dataset that is not there.

    Raises:
        UsageError: It is no directory.
    """
    if not dataset.is_dir():
        found = "is a file, not a directory" if dataset.exists() else "does not exist"
        raise UsageError(
            f"the dataset {dataset} {found}",
            "set dataset=DIR to a directory that `ft2 nsq build` wrote",
        )


def require_pairs(pairs: Sequence[Preference], store: str, dataset: object, least: int = 1) -> None:
    """Refuse a store with too few pairs.

    Raises:
        UsageError: There are fewer than ``least`` pairs.
    """
    if len(pairs) < least:
        raise UsageError(
            f"the store '{store}' of {dataset} has {len(pairs)} training pairs, need {least}",
            hint="generate more candidates per condition, or widen the pairing's margin",
        )
