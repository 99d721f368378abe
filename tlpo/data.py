"""Batches of pairs: which conditions are held out, in which order, with which noise.

Everything is a function of (seed, step, place in the step), so nothing but the step count has to
be restored to go on, and a step does not depend on how it is split into micro-batches or ranks.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ft2.errors import UsageError
from ft2.flow import sample_sigmas
from ft2.pairs import Preference
from ft2.tlpo.cache import Cache, condition_key
from ft2.tlpo.config import MaskConfig, SigmaConfig
from ft2.tlpo.masks import dilate, pair_mask
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


@dataclass(frozen=True)
class PairData:
    """The pairs of one store with their encodings."""

    pairs: Sequence[Preference]
    cache: Cache
    mask: MaskConfig

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.pairs)

    def batch(self, index: Sequence[int], device: torch.device) -> Batch:
        """Load pairs by index."""
        pairs = [self.pairs[i] for i in index]
        chosen = [pair.chosen.clip_id for pair in pairs]
        rejected = [pair.rejected.clip_id for pair in pairs]
        cond = self.cache.conditioning([condition_key(pair.chosen) for pair in pairs])
        mask = self._mask(chosen, rejected)
        return Batch(
            self.cache.latents(chosen).to(device),
            self.cache.latents(rejected).to(device),
            cond.to(device),
            None if mask is None else mask.to(device),
        )

    def _mask(self, chosen: Sequence[str], rejected: Sequence[str]) -> Tensor | None:
        if self.mask.kind == "none":
            return None
        grow = self.mask.dilation
        sides = [dilate(self.cache.lip_masks(ids), grow) for ids in (chosen, rejected)]
        return pair_mask(
            sides[0], sides[1], background=self.mask.background, skip_first=self.mask.skip_first
        )

    def without_small_masks(self) -> "PairData":
        """Return the data without pairs whose mask sums to less than ``mask.min_sum``."""
        if self.mask.kind == "none":
            return self
        kept = []
        for pair in self.pairs:
            mask = self._mask([pair.chosen.clip_id], [pair.rejected.clip_id])
            if mask is not None and float(mask.sum()) >= max(self.mask.min_sum, 1e-6):
                kept.append(pair)
        return PairData(kept, self.cache, self.mask)


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


def _seeded(*parts: object) -> torch.Generator:
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def pair_order(num_pairs: int, seed: int, start: int, count: int) -> list[int]:
    """Return the pairs at places start..start + count - 1 of an endless series of shuffles."""
    orders: dict[int, list[int]] = {}
    index = []
    for place in range(start, start + count):
        epoch, row = divmod(place, num_pairs)
        if epoch not in orders:
            generator = _seeded(seed, "order", epoch)
            orders[epoch] = torch.randperm(num_pairs, generator=generator).tolist()
        index.append(orders[epoch][row])
    return index


def step_draws(
    config: SigmaConfig,
    seed: int,
    step: int,
    places: Sequence[int],
    step_size: int,
    shape: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Return the noise levels and noise of some pairs of a step.

    Args:
        config: Distribution and number of draws N.
        seed: Seed of the run.
        step: Optimiser step.
        places: Places within the step, each in [0, step_size).
        step_size: Pairs in the whole step, over all micro-batches and ranks.
        shape: Shape of one clip's latents.

    Returns:
        sigma [B, N] (stratified over the whole step) and Gaussian noise [B, N, *shape].
    """
    sigmas = sample_sigmas(
        step_size * config.draws, _seeded(seed, "sigma", step),
        mean=config.mean, std=config.std, shift=config.shift, stratified=True,
    ).reshape(step_size, config.draws)  # fmt: skip
    noises = []
    for place in places:
        generator = _seeded(seed, "noise", step, place)
        count = config.draws // 2 if config.antithetic else config.draws
        noise = torch.randn(count, *shape, generator=generator)
        noises.append(torch.cat((noise, -noise)) if config.antithetic else noise)
    return sigmas[list(places)], torch.stack(noises)


def evaluation_noise(seed: int, pair_id: str, num_sigmas: int, shape: Sequence[int]) -> Tensor:
    """Return the fixed noise of a held-out pair, one draw for each noise level, [S, *shape]."""
    return torch.randn(num_sigmas, *shape, generator=_seeded(seed, "evaluation", pair_id))
