"""Which pairs, noise levels and noise a step uses, as functions of (seed, step, place).

Nothing but the step count has to be restored to go on, and a step does not depend on how it is
split into micro-batches or ranks.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ft2.flow import sample_sigmas
from ft2.tlpo.options import SigmaConfig


def seeded(*parts: object) -> torch.Generator:
    """Return a generator whose stream depends on all the parts and on nothing else."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def pair_order(num_pairs: int, seed: int, start: int, count: int) -> list[int]:
    """Return the pairs at places start..start + count - 1 of an endless series of shuffles."""
    orders: dict[int, list[int]] = {}
    index = []
    for place in range(start, start + count):
        epoch, row = divmod(place, num_pairs)
        if epoch not in orders:
            generator = seeded(seed, "order", epoch)
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
    generator = seeded(seed, "sigma", step)
    sigmas = levels(config, step_size * config.draws, generator).reshape(step_size, config.draws)
    noises = []
    for place in places:
        generator = seeded(seed, "noise", step, place)
        count = config.draws // 2 if config.antithetic else config.draws
        noise = torch.randn(count, *shape, generator=generator)
        noises.append(torch.cat((noise, -noise)) if config.antithetic else noise)
    return sigmas[list(places)], torch.stack(noises)


def use_mask(probability: float, seed: int, step: int, place: int) -> bool:
    """Return whether a pair's lip mask is used in a step, which it is with this probability."""
    return bool(torch.rand((), generator=seeded(seed, "mask", step, place)) < probability)


def levels(config: SigmaConfig, count: int, generator: torch.Generator) -> Tensor:
    """Return noise levels, stratified over the quantiles of their distribution, [count]."""
    return sample_sigmas(
        count, generator, mean=config.mean, std=config.std, shift=config.shift,
        stratified=True, window=config.window,
    )  # fmt: skip


def stored_draws(
    config: SigmaConfig, seed: int, pair_id: str, numbers: Sequence[int], shape: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return some of the fixed draws of a pair: sigma [N] and noise [N, *shape].

    Its ``config.stored_draws`` noise levels are stratified; draw k is the same in every run of
    this seed.
    """
    sigmas = levels(config, config.stored_draws, seeded(seed, "stored sigma", pair_id))
    noise = [
        torch.randn(*shape, generator=seeded(seed, "stored noise", pair_id, k)) for k in numbers
    ]
    return sigmas[list(numbers)], torch.stack(noise)


def draw_numbers(config: SigmaConfig, epoch: int) -> list[int]:
    """Return which of a pair's stored draws an epoch uses; they are taken in turn."""
    first = epoch * config.draws
    return [(first + k) % config.stored_draws for k in range(config.draws)]


def evaluation_noise(seed: int, pair_id: str, num_sigmas: int, shape: Sequence[int]) -> Tensor:
    """Return the fixed noise of a held-out pair, one draw for each noise level, [S, *shape]."""
    return torch.randn(num_sigmas, *shape, generator=seeded(seed, "evaluation", pair_id))
