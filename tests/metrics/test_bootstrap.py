import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft2.errors import UsageError
from ft2.metrics import Estimate, bootstrap, bootstrap_mean, bootstrap_paired


def test_interval_of_independent_values_agrees_with_the_normal_one():
    values = np.random.default_rng(0).normal(2.0, 3.0, 4000)
    found = bootstrap_mean(values)
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert (found.n, found.num_groups) == (4000, 4000)


def test_clusters_widen_the_interval_by_the_design_effect():
    rng = np.random.default_rng(1)
    group_means = rng.normal(0, 1, 60)
    values = np.repeat(group_means, 10)
    groups = np.repeat(np.arange(60), 10)
    clustered, flat = bootstrap_mean(values, groups), bootstrap_mean(values)
    ratio = (clustered.high - clustered.low) / (flat.high - flat.low)
    assert ratio == pytest.approx(np.sqrt(10), rel=0.15)
    assert clustered.num_groups == 60


def test_clustered_interval_equals_the_general_bootstrap_of_the_mean():
    rng = np.random.default_rng(2)
    groups = rng.integers(0, 9, 80).tolist()
    values = rng.normal(size=80)
    fast = bootstrap_mean(values, groups, num_resamples=300, seed=5)
    slow = bootstrap(
        lambda column: float(np.mean(column)), values, groups=groups, num_resamples=300, seed=5
    )
    assert fast.low == pytest.approx(slow.low)
    assert fast.high == pytest.approx(slow.high)


def test_coverage_over_repeated_samples_is_near_the_level():
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(300):
        effects = np.repeat(rng.normal(0, 1, 40), 5) + rng.normal(0, 1, 200)
        found = bootstrap_mean(effects, np.repeat(np.arange(40), 5), num_resamples=400)
        hits += found.low <= 0.0 <= found.high
    assert 0.90 <= hits / 300 <= 0.985


def test_pairs_cancel_what_both_share():
    rng = np.random.default_rng(4)
    base = rng.normal(0, 10, 200)
    found = bootstrap_paired(base + 0.5 + rng.normal(0, 0.1, 200), base)
    assert found.value == pytest.approx(0.5, abs=0.05)
    assert found.high - found.low < 0.1


def test_nan_is_left_out_and_not_counted():
    found = bootstrap_mean([1.0, float("nan"), 3.0], ["a", "b", "c"])
    assert (found.value, found.n, found.num_groups) == (2.0, 2, 2)
    assert bootstrap_paired([1.0, float("nan")], [0.0, 0.0]).n == 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.integers(0, 1000))
def test_interval_lies_within_the_data_and_repeats(values, seed):
    found = bootstrap_mean(values, num_resamples=50, seed=seed)
    slack = 1e-9 * max(1.0, max(abs(v) for v in values))
    assert min(values) - slack <= found.low <= found.high <= max(values) + slack
    assert found == bootstrap_mean(values, num_resamples=50, seed=seed)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: bootstrap_mean([]), "no finite value"),
        (lambda: bootstrap_mean([float("nan")]), "no finite value"),
        (lambda: bootstrap_mean([1.0, 2.0], ["a"]), "1 group keys for 2"),
        (lambda: bootstrap_mean([[1.0], [2.0]]), r"\[2, 1\]"),
        (lambda: bootstrap_paired([1.0], [1.0, 2.0]), "1 values cannot be paired with 2"),
        (lambda: bootstrap(len, [1], [1, 2]), r"\[1, 2\]"),
    ],
)
def test_bad_input_is_named(call, text):
    with pytest.raises(UsageError, match=text):
        call()


def test_json_has_no_nan():
    assert Estimate(0.5, float("nan"), 1.0, 3, 2).to_dict() == {
        "value": 0.5,
        "low": None,
        "high": 1.0,
        "n": 3,
        "num_groups": 2,
    }
    assert str(Estimate(0.5, 0.25, 1.0, 3, 2)) == "0.500 [0.250, 1.000], n=3"
