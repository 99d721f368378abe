"""Order, draws and the held-out split are functions of seed and place."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tlpo_toys import SHAPE, World, record

from ft2.errors import UsageError
from ft2.pairs import Preference
from ft2.tlpo.cache import Cache, condition_key
from ft2.tlpo.config import MaskConfig, SigmaConfig
from ft2.tlpo.data import PairData, require_pairs, split_held_out
from ft2.tlpo.draws import pair_order, step_draws


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(0, 5), st.integers(0, 60), st.integers(1, 40))
def test_order_visits_every_pair_once_an_epoch(n: int, seed: int, start: int, count: int) -> None:
    whole = pair_order(n, seed, 0, 120)
    assert pair_order(n, seed, start, count) == whole[start : start + count]
    for epoch in range(120 // n):
        assert sorted(whole[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_draws_do_not_depend_on_how_a_step_is_split() -> None:
    config = SigmaConfig(draws=3)
    sigma, noise = step_draws(config, 1, 5, range(8), 8, SHAPE)
    parts = [step_draws(config, 1, 5, [2 * i, 2 * i + 1], 8, SHAPE) for i in range(4)]
    assert torch.equal(sigma, torch.cat([s for s, _ in parts]))
    assert torch.equal(noise, torch.cat([n for _, n in parts]))
    assert not torch.equal(sigma, step_draws(config, 1, 6, range(8), 8, SHAPE)[0])
    assert not torch.equal(noise[0], noise[1])


def test_noise_is_gaussian_and_sigma_stratified() -> None:
    """A uniform noise (a peer's defect) would have the variance 1/12."""
    config = SigmaConfig(draws=16, mean=0.3, std=1.2)
    sigma, noise = step_draws(config, 0, 0, range(8), 8, SHAPE)
    assert float(noise.mean()) == pytest.approx(0, abs=0.03)
    assert float(noise.var()) == pytest.approx(1, abs=0.03)
    assert float((noise**4).mean()) == pytest.approx(3, abs=0.2)
    quantile = torch.special.ndtr((torch.logit(sigma.double().flatten()) - 0.3) / 1.2)
    bins = (quantile * 128).long().sort().values
    assert bins.tolist() == list(range(128))


def test_antithetic_noise_comes_in_pairs() -> None:
    noise = step_draws(SigmaConfig(draws=4, antithetic=True), 0, 0, [0], 1, SHAPE)[1][0]
    assert torch.equal(noise[:2], -noise[2:])
    with pytest.raises(ValueError, match="even"):
        SigmaConfig(draws=3, antithetic=True)


def test_a_condition_is_on_one_side_in_every_store() -> None:
    def pairs(store: str) -> list[Preference]:
        return [Preference(f"{store}{i}", store, record("a", i), record("b", i), 0.1)
                for i in range(200)]  # fmt: skip

    train, held_out = split_held_out(pairs("lip"), 0.2, seed=0)
    again = split_held_out(pairs("motion"), 0.2, seed=0)
    assert [p.chosen.condition_id for p in held_out] == [p.chosen.condition_id for p in again[1]]
    assert len(train) + len(held_out) == 200
    assert abs(len(held_out) - 40) < 4 * math.sqrt(32)
    assert split_held_out(pairs("lip"), 0.0, seed=0)[1] == []
    assert split_held_out(pairs("lip"), 0.2, seed=1)[1] != held_out


def test_batches_join_the_right_rows(world: World) -> None:
    cache = Cache(next(world.cache_dir.iterdir()))
    data = PairData(world.pairs["motion"], cache, MaskConfig(kind="lip", dilation=0))
    batch = data.batch([4, 1], torch.device("cpu"))
    pair = data.pairs[4]
    assert torch.equal(batch.chosen[0], cache.latents([pair.chosen.clip_id])[0])
    assert torch.equal(batch.rejected[0], cache.latents([pair.rejected.clip_id])[0])
    key = condition_key(pair.chosen)
    assert torch.equal(batch.cond.text[0], cache.conditioning([key]).text[0])
    assert batch.mask is not None
    assert float(batch.mask[:, :, 0].sum()) == 0
    assert float(batch.mask[:, :, 1].sum()) == 2 * 4


def test_pairs_with_small_masks_are_dropped(world: World) -> None:
    cache = Cache(next(world.cache_dir.iterdir()))
    pairs = world.pairs["lip"]
    few = PairData(pairs, cache, MaskConfig(kind="lip", dilation=0, min_sum=5))
    assert len(few.without_small_masks()) == 0
    enough = PairData(pairs, cache, MaskConfig(kind="lip", dilation=0, min_sum=4))
    assert len(enough.without_small_masks()) == len(pairs)


def test_too_few_pairs_are_an_error() -> None:
    with pytest.raises(UsageError, match="0 training pairs"):
        require_pairs([], "lip", "runs/nsq")
