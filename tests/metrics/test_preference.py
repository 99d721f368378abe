"""Named pair metrics against hand-made cases, brute force, and the faults of the usual ones."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from ft2.errors import UsageError
from ft2.metrics import calibration, ece, pair_metrics, trivial_pair_metrics
from ft2.metrics import preference as pref


def usual_accuracy_with_ties(differences, labels):
    """Move eps pair by pair in the order of |difference|, as common evaluation code does."""
    order = np.argsort(np.abs(differences), kind="stable")
    d, y = np.asarray(differences)[order], np.asarray(labels)[order]
    right = (np.sign(d) == y).sum() - ((d == 0) & (y == 0)).sum()
    best = 0.0
    for i in range(len(d)):
        right += int(y[i] == 0) - int(np.sign(d[i]) == y[i] and y[i] != 0)
        best = max(best, right / len(d))
    return best


def brute_force(d, y):
    return max(pref.three_way(d, y, e) for e in [0.0, *np.abs(d)])


def test_named_metrics_differ_by_hand():
    d = np.array([2.0, -1.0, 0.0, 0.5, -0.5, 0.0])
    y = np.array([1, -1, 1, -1, 0, 0])  # right, right, predicted tie, wrong, human ties
    assert pref.strict(d, y) == 2 / 4
    assert pref.half(d, y) == 2.5 / 4
    assert pref.decided(d, y) == (2 / 3, 3 / 4)
    assert pref.three_way(d, y, 0.0) == 3 / 6
    assert pref.three_way(d, y, 0.6) == 4 / 6
    assert pref.best_eps(d, y) == (0.75, 4 / 6)


def test_repeated_differences_do_not_make_the_order_count():
    d, y = np.array([1.0, 1.0, 1.0, 1.0]), np.array([0, 1, 0, 1])
    usual = {
        usual_accuracy_with_ties(d[list(p)], y[list(p)]) for p in itertools.permutations(range(4))
    }
    ours = {pref.best_eps(d[list(p)], y[list(p)]) for p in itertools.permutations(range(4))}
    assert {0.5, 1.0} <= usual
    assert len(ours) == 1
    assert next(iter(ours))[1] == 0.5


def test_all_right_without_ties_is_one():
    d, y = np.array([1.0, 2.0, -3.0, -4.0]), np.array([1, 1, -1, -1])
    assert usual_accuracy_with_ties(d, y) == 0.75
    assert pref.best_eps(d, y) == (0.0, 1.0)


def test_empty_and_all_tied_data_are_no_number():
    assert np.isnan(pref.best_eps([], [])[1])
    ties = np.zeros(3)
    assert np.isnan(pref.strict([1.0, 2.0, 3.0], ties))
    found = pair_metrics([1.0, 2.0, 3.0], ties, ["a", "b", "c"])
    assert found["strict"]["value"] is None
    assert found["three_way_oracle"]["value"] == 1.0
    with pytest.raises(UsageError, match="no pair"):
        pair_metrics([], [], [])


@pytest.mark.parametrize(("d", "y"), [([np.nan], [1]), ([1.0], [2]), ([1.0, 2.0], [1])])
def test_nan_and_unknown_labels_are_loud(d, y):
    with pytest.raises(UsageError):
        pref.three_way(d, y, 0.0)


PAIRS = st.lists(
    st.tuples(st.integers(-4, 4).map(lambda x: x / 2), st.sampled_from([-1, 0, 1])),
    min_size=1,
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(PAIRS, st.randoms())
def test_oracle_is_the_maximum_in_any_order_and_swap(pairs, random):
    d, y = (np.array(column) for column in zip(*pairs, strict=True))
    eps, value = pref.best_eps(d, y)
    assert value == pytest.approx(brute_force(d, y))
    assert pref.three_way(d, y, eps) == pytest.approx(value)
    shuffled = list(range(len(d)))
    random.shuffle(shuffled)
    assert pref.best_eps(d[shuffled], y[shuffled]) == (eps, value)
    assert pref.best_eps(-d, -y) == (eps, value)
    names = [f"p{i % 7}" for i in range(len(d))]
    held = pref.held_out_eps(d, y, names)
    again = pref.held_out_eps(d[shuffled], y[shuffled], [names[i] for i in shuffled])
    assert np.array_equal(held[shuffled], again)


def test_held_out_eps_never_sees_its_own_prompt():
    rng = np.random.default_rng(0)
    d, y = rng.standard_normal(200), rng.integers(-1, 2, 200)
    names = [str(i % 20) for i in range(200)]
    held = pref.held_out_eps(d, y, names)
    mine = np.array(names) == "7"
    other = y.copy()
    other[mine] = 0
    assert np.array_equal(pref.held_out_eps(d, other, names)[mine], held[mine])


def test_random_scores_look_good_where_ties_are_many():
    rng = np.random.default_rng(1)
    for rate, floor in ((0.3, 0.35), (0.5, 0.5), (0.88, 0.88)):
        y = np.where(rng.random(400) < rate, 0, rng.choice([-1, 1], 400))
        found = trivial_pair_metrics(y)
        assert found["random"]["three_way_oracle"] >= floor - 0.04
        assert found["random"]["strict"] == pytest.approx(0.5, abs=0.05)
        assert found["always_tie"]["three_way"] == (y == 0).mean()


def test_calibration_equals_scikit_learn():
    rng = np.random.default_rng(2)
    p = rng.random(500) ** 2
    y = rng.random(500) < p**0.7
    found = calibration(p, y)
    assert found["brier"]["value"] == pytest.approx(brier_score_loss(y, p))
    share, mean = calibration_curve(y, p, n_bins=10)
    assert [b["share_yes"] for b in found["reliability"]] == pytest.approx(share)
    assert [b["mean_p"] for b in found["reliability"]] == pytest.approx(mean)
    counts = np.histogram(p, 10, (0, 1))[0]
    assert found["ece"]["value"] == pytest.approx((counts / 500 * np.abs(share - mean)).sum())
    assert ece([1.0, 1.0, 0.0], [True, True, False]) == 0
    with pytest.raises(UsageError):
        calibration([0.5, float("nan")], [True, False])
