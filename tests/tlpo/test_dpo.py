"""The loss against written-out arithmetic, closed-form gradients and known defects."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ft2.tlpo.dpo import PairErrors, implicit_accuracy, masked_error, preference_loss

NUMBERS = st.floats(0, 5, allow_nan=False, width=64)


def errors(*values: list[float]) -> PairErrors:
    return PairErrors(*(torch.tensor(v, dtype=torch.float64) for v in values))


@settings(max_examples=40, deadline=None)
@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.floats(0.1, 30))
def test_loss_equals_written_out_arithmetic(
    m_w: float, m_l: float, r_w: float, r_l: float, beta: float
) -> None:
    z = -beta / 2 * ((m_w - r_w) - (m_l - r_l))
    expected = math.log1p(math.exp(-z)) if z > -700 else -z
    loss, margins = preference_loss(errors([m_w], [m_l], [r_w], [r_l]), beta)
    assert float(loss) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert float(margins) == pytest.approx(z, abs=1e-9)


def test_gradient_has_its_closed_form_and_the_reference_none() -> None:
    values = [torch.rand(5, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    beta = 7.0
    loss, _ = preference_loss(PairErrors(*values), beta)
    loss.backward()
    m_w, m_l, r_w, r_l = values
    z = -beta / 2 * ((m_w - r_w) - (m_l - r_l)).detach()
    expected = beta / 2 * torch.sigmoid(-z) / 5
    torch.testing.assert_close(m_w.grad, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(m_l.grad, -expected, rtol=0, atol=1e-14)
    assert r_w.grad is None
    assert r_l.grad is None


def test_policy_equal_to_reference_gives_ln_2() -> None:
    same = torch.rand(3, dtype=torch.float64)
    loss, margins = preference_loss(PairErrors(same, same + 1, same, same + 1), 5000)
    assert float(loss) == pytest.approx(math.log(2), abs=1e-12)
    assert margins.tolist() == [0, 0, 0]


def test_dpo_positive_subtracts_only_where_the_chosen_side_got_worse() -> None:
    batch = errors([1.2, 0.8], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0])
    _, plain = preference_loss(batch, 2.0)
    _, positive = preference_loss(batch, 2.0, positive_weight=4.0)
    # z = -(D_w - D_l) = (-0.2, +0.2); the first loses another 4 * 0.2
    assert plain.tolist() == pytest.approx([-0.2, 0.2])
    assert positive.tolist() == pytest.approx([-1.0, 0.2])


def test_target_probability_has_its_optimum_at_a_finite_margin() -> None:
    p, beta = 0.85, 2.0
    best = math.log(p / (1 - p))
    m_w = torch.tensor([1.0 - best], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, dtype=torch.float64)
    loss, _ = preference_loss(PairErrors(m_w, one, one, one), beta, target_probability=p)
    loss.backward()
    assert float(m_w.grad.abs()) < 1e-12


def test_pair_weight_scales_each_pair() -> None:
    batch = errors([1.0, 2.0], [1.5, 1.0], [1.0, 1.0], [1.0, 1.0])
    single = [
        float(preference_loss(errors(*([v[i].item()] for v in vars(batch).values())), 3.0)[0])
        for i in range(2)
    ]
    weight = torch.tensor([0.5, 2.0], dtype=torch.float64)
    loss, _ = preference_loss(batch, 3.0, pair_weight=weight)
    assert float(loss) == pytest.approx((0.5 * single[0] + 2.0 * single[1]) / 2)


def test_draws_are_averaged_before_the_sigmoid() -> None:
    draws = torch.rand(4, 2, 6, dtype=torch.float64)
    averaged = PairErrors(*(side.mean(1) for side in draws))
    many, _ = preference_loss(PairErrors(*draws), 9.0)
    one, _ = preference_loss(averaged, 9.0)
    assert float(many) == pytest.approx(float(one), abs=1e-14)


def test_error_has_one_value_a_sample_and_divides_by_the_mask() -> None:
    g = torch.Generator().manual_seed(0)
    velocity, target = (torch.randn(2, 3, 4, 5, 6, generator=g, dtype=torch.float64) for _ in "ab")
    mask = (torch.rand(2, 1, 4, 5, 6, generator=g) > 0.7).double()
    total = torch.zeros(2, dtype=torch.float64)
    count = torch.zeros(2, dtype=torch.float64)
    for b in range(2):
        for c in range(3):
            total[b] += (mask[b, 0] * (velocity[b, c] - target[b, c]) ** 2).sum()
            count[b] += mask[b, 0].sum()
    ours = masked_error(velocity, target, mask)
    assert ours.shape == (2,)
    torch.testing.assert_close(ours, total / count, rtol=0, atol=1e-14)
    plain = ((velocity - target) ** 2).mean(dim=(1, 2, 3, 4))
    torch.testing.assert_close(masked_error(velocity, target), plain, rtol=0, atol=1e-14)
    torch.testing.assert_close(masked_error(velocity, target, torch.ones(2, 1, 1, 1, 1)), plain)


def test_the_area_of_the_mask_does_not_scale_the_error() -> None:
    velocity, target = torch.full((1, 2, 2, 4, 4), 3.0), torch.zeros(1, 2, 2, 4, 4)
    small = torch.zeros(1, 1, 2, 4, 4)
    small[..., 0, 0] = 1
    assert float(masked_error(velocity, target, small)) == 9.0


def test_errors_are_computed_wide_and_bad_masks_refused() -> None:
    half = torch.full((1, 1, 1, 64, 64), 0.1, dtype=torch.bfloat16)
    assert masked_error(half, torch.zeros_like(half)).dtype == torch.float32
    with pytest.raises(ValueError, match="empty"):
        masked_error(half, half, torch.zeros(1, 1, 1, 64, 64))
    with pytest.raises(ValueError, match="velocity is"):
        masked_error(half, half[..., :32])


def test_implicit_accuracy_counts_ties_one_half() -> None:
    d_w = torch.tensor([-1.0, 1.0, 0.5])
    d_l = torch.tensor([1.0, -1.0, 0.5])
    assert implicit_accuracy(d_w, d_l).tolist() == [1.0, 0.0, 0.5]


def peers_loss(v: list[Tensor], beta: float) -> Tensor:
    """The published 4-D loss of Diffusion-DPO, its rows being chosen then rejected."""
    prediction, reference, target = v
    model = (prediction - target).pow(2).mean(dim=[1, 2, 3])
    model_w, model_l = model.chunk(2)
    ref_w, ref_l = (reference - target).pow(2).mean(dim=[1, 2, 3]).chunk(2)
    inside = -0.5 * beta * ((model_w - model_l) - (ref_w - ref_l))
    return -torch.nn.functional.logsigmoid(inside).mean()


def test_equals_the_published_formula() -> None:
    v = [torch.randn(6, 4, 3, 3, dtype=torch.float64) for _ in range(3)]
    policy, reference = masked_error(v[0], v[2]), masked_error(v[1], v[2])
    ours, _ = preference_loss(PairErrors(*policy.chunk(2), *reference.chunk(2)), 11.0)
    assert float(ours) == pytest.approx(float(peers_loss(v, 11.0)), abs=1e-13)
