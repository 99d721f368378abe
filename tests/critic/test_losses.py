"""Every objective against an independent computation, with gradients by finite differences."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit

from ft2.critic import losses
from ft2.critic.losses import MISSING, pair_loss, tie_width
from ft2.critic.names import PAIR_OBJECTIVES


def data(seed=0, size=12, dims=3):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, size, dims))
    labels = rng.integers(-1, 2, (size, dims))
    labels[rng.random((size, dims)) < 0.3] = MISSING
    return a, b, labels, rng.random((size, dims))


def by_hand(objective, a, b, labels, widths, extra):
    """The formulas, one pair at a time in float64."""
    columns = []
    for n in range(a.shape[1]):
        terms = []
        for i in range(a.shape[0]):
            d, label = a[i, n] - b[i, n], labels[i, n]
            if label == MISSING or (label == 0 and objective in ("bradley_terry", "margin")):
                continue
            if objective == "bradley_terry":
                terms.append(-np.log(expit(label * d)))
            elif objective == "margin":
                terms.append(-np.log(expit(label * d - extra[i, n])))
            elif objective == "soft":
                p = extra[i, n]
                terms.append(-p * np.log(expit(d)) - (1 - p) * np.log(expit(-d)))
            elif objective == "rao_kupper":
                k = widths[n]
                first, second = np.exp(d) / (np.exp(d) + k), 1 / (1 + k * np.exp(d))
                terms.append(-np.log({1: first, -1: second, 0: 1 - first - second}[label]))
            else:
                weights = {1: np.exp(a[i, n]), -1: np.exp(b[i, n])}
                weights[0] = widths[n] * np.sqrt(weights[1] * weights[-1])
                terms.append(-np.log(weights[label] / sum(weights.values())))
        if terms:
            columns.append(np.mean(terms))
    return np.mean(columns)


@pytest.mark.parametrize("objective", PAIR_OBJECTIVES)
def test_pair_losses_equal_their_formulas_and_slopes(objective):
    a, b, labels, extra = data()
    labels[:, 1] = MISSING  # a dimension without labels does not enter the mean
    raw = torch.tensor([0.3, -0.5, 1.0], dtype=torch.float64)
    widths = tie_width(raw, objective)

    def ours(x):
        return pair_loss(
            objective,
            x,
            torch.tensor(b),
            torch.tensor(labels),
            width=widths if objective in losses.WITH_TIES else None,
            extra=torch.tensor(extra),
        )

    x = torch.tensor(a, requires_grad=True)
    value = ours(x)
    want = by_hand(objective, a, b, labels, widths.numpy(), extra)
    assert value.item() == pytest.approx(want, rel=1e-6)
    value.backward()
    for place in ((0, 0), (3, 2), (5, 1)):
        shifted = [a.copy() for _ in range(2)]
        for sign, moved in zip((1, -1), shifted, strict=True):
            moved[place] += sign * 1e-4
        up, down = (by_hand(objective, m, b, labels, widths.numpy(), extra) for m in shifted)
        assert x.grad[place].item() == pytest.approx((up - down) / 2e-4, abs=1e-5)


def test_outcomes_sum_to_one_and_k_of_five_ties_two_thirds():
    d = torch.linspace(-30, 30, 121)
    for objective in losses.WITH_TIES:
        for width in (1.5, 5.0):
            chances = losses.outcome_log_probabilities(d, objective, torch.tensor(width)).exp()
            assert torch.allclose(chances.sum(-1), torch.ones(121), atol=1e-5)
            assert torch.allclose(chances, chances.flip(0).flip(-1), atol=1e-6)
    five = losses.outcome_log_probabilities(torch.tensor([0.0]), "rao_kupper", torch.tensor(5.0))
    assert five.exp()[0, 1].item() == pytest.approx(2 / 3, abs=1e-6)
    even = losses.outcome_log_probabilities(
        torch.tensor([np.log(5)]), "rao_kupper", torch.tensor(5.0)
    )
    assert even.exp()[0, 0].item() == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("objective", losses.WITH_TIES)
def test_tie_width_is_learned(objective):
    rng = np.random.default_rng(3)
    d = rng.normal(size=6000)
    true = 3.0
    chances = losses.outcome_log_probabilities(torch.tensor(d), objective, torch.tensor(true)).exp()
    u = rng.random(6000)[:, None]
    labels = 1 - (u > chances.double().numpy().cumsum(-1)).sum(-1)

    def value(raw):
        width = tie_width(torch.tensor(raw), objective)
        a, zero = torch.tensor(d)[:, None], torch.zeros(6000, 1, dtype=torch.float64)
        return pair_loss(objective, a, zero, torch.tensor(labels)[:, None], width=width).item()

    found = minimize(value, [0.0], method="Nelder-Mead").x
    assert tie_width(torch.tensor(found), objective).item() == pytest.approx(true, rel=0.1)


def test_margins_never_mix_pairs():
    scores = torch.randn(4, 1)
    with pytest.raises(AssertionError, match="extra"):
        pair_loss("margin", scores, scores, torch.ones(4, 1), extra=torch.zeros(4))
    with pytest.raises(AssertionError, match="labels"):
        pair_loss("bradley_terry", scores, scores, torch.ones(4))
    with pytest.raises(AssertionError, match=r"not \[B, N\]"):
        pair_loss("bradley_terry", scores[:, 0], scores[:, 0], torch.ones(4))


def test_regression_and_empty_batches():
    scores = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    targets = torch.tensor([[0.0, float("nan")], [1.0, float("nan")]])
    loss = losses.regression_loss(scores, targets)
    loss.backward()
    assert loss.item() == pytest.approx((1 + 4) / 2)
    assert torch.equal(scores.grad, torch.tensor([[1.0, 0.0], [2.0, 0.0]]))
    none = torch.full((2, 2), MISSING)
    assert pair_loss("bradley_terry", scores, scores, none).item() == 0
    half = pair_loss("bradley_terry", scores.bfloat16(), scores.bfloat16(), torch.ones(2, 2))
    assert half.dtype == torch.float32


def test_without_missing_labels_the_loss_is_the_plain_mean_to_the_bit():
    """So that trainings on fully rated clips end with the bytes they had when it was written so."""
    rng = torch.Generator().manual_seed(0)
    for shape in ((16, 3), (7, 5), (1, 1)):
        found = []
        for mean in (losses.mean_over_valid, lambda x, v: (x * v).sum() / v.sum().clamp(min=1)):
            x = torch.rand(shape, generator=rng.manual_seed(1), requires_grad=True)
            value = mean(x.square(), torch.ones(shape, dtype=torch.bool))
            value.backward()
            found.append((value.detach(), x.grad))
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])


def test_answers_about_clips_become_pairs():
    answers = torch.tensor([[1, 0, 1], [1, -1, 0], [0, 0, 1], [1, 1, 1]])
    want = torch.tensor([[1, 0, 0], [0, MISSING, -1]])
    assert torch.equal(losses.labels_from_answers(answers), want)
