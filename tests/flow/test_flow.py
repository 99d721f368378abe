"""Flow matching against the published schedule and closed forms."""

import numpy as np
import pytest
import torch

from ft2 import flow


def test_thirty_steps_at_shift_five_are_wans() -> None:
    timesteps = 1000 * flow.shifted_sigmas(30, 5.0)
    assert timesteps.shape == (31,)
    published = {0: 1000, 1: 993.15, 2: 985.92, 25: 500, 26: 434.78, 27: 357.14, 28: 263.16}
    for index, value in {**published, 29: 147.06, 30: 0}.items():
        assert timesteps[index].item() == pytest.approx(value, abs=5e-3)


def test_schedule_agrees_with_diffusers_given_explicit_sigmas() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0, 13)[:-1])
    torch.testing.assert_close(flow.shifted_sigmas(12, 3.0), scheduler.sigmas, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("steps", "shift"), [(0, 5.0), (3, 0.0)])
def test_bad_schedules_are_refused(steps: int, shift: float) -> None:
    with pytest.raises(ValueError, match="num_steps"):
        flow.shifted_sigmas(steps, shift)


def test_noise_path_and_target_are_consistent() -> None:
    clean, noise = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    assert torch.equal(flow.add_noise(clean, noise, torch.zeros(3)), clean)
    assert torch.equal(flow.add_noise(clean, noise, torch.ones(3)), noise)
    low, high = torch.full((3,), 0.2), torch.full((3,), 0.7)
    slope = (flow.add_noise(clean, noise, high) - flow.add_noise(clean, noise, low)) / 0.5
    torch.testing.assert_close(slope, flow.velocity_target(clean, noise), atol=1e-6, rtol=1e-5)


def test_euler_recovers_the_data_of_a_known_flow() -> None:
    clean, noise = torch.randn(2, 5), torch.randn(2, 5)
    out = flow.euler_sample(
        lambda x, sigma: flow.velocity_target(clean, noise), noise, flow.shifted_sigmas(7, 2.0)
    )
    torch.testing.assert_close(out, clean, atol=1e-5, rtol=1e-5)


def test_euler_error_shrinks_with_the_step_on_a_gaussian() -> None:
    def velocity(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        s = sigma[:, None]
        return x * (s - (1 - s) * 4.0) / ((1 - s) ** 2 * 4.0 + s**2)

    noise = torch.randn(1, 64)
    errors = [
        (flow.euler_sample(velocity, noise, flow.shifted_sigmas(n, 1.0)) - 2 * noise).abs().max()
        for n in (10, 40, 160)
    ]
    assert errors[0] > 2.5 * errors[1] > 6 * errors[2]


def test_training_sigmas_follow_the_logit_normal() -> None:
    generator = torch.Generator().manual_seed(0)
    sigmas = flow.sample_sigmas(20000, generator, mean=0.3, std=0.8, shift=3.0)
    unshifted = sigmas / (3 - 2 * sigmas)
    logits = torch.logit(unshifted)
    assert logits.mean().item() == pytest.approx(0.3, abs=0.03)
    assert logits.std().item() == pytest.approx(0.8, abs=0.03)


def test_stratified_draws_fill_every_quantile() -> None:
    sigmas = flow.sample_sigmas(64, torch.Generator().manual_seed(0), stratified=True)
    quantiles = torch.special.ndtr(torch.logit(sigmas.double()))
    assert torch.equal((quantiles.sort().values * 64).floor().long(), torch.arange(64))
