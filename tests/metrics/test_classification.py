import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from ft2.errors import UsageError
from ft2.metrics import accuracy, auc, auc_value, classify, majority


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40).filter(
        lambda rows: len({label for _, label in rows}) == 2
    )
)
def test_auc_with_ties_equals_sklearn(rows):
    scores, truth = zip(*rows, strict=True)
    assert auc_value(scores, truth) == pytest.approx(roc_auc_score(truth, scores))


def test_auc_of_one_class_is_nan_and_its_interval_survives_such_resamples():
    assert np.isnan(auc_value([0.1, 0.2], [True, True]))
    found = auc([0.1, 0.9, 0.2, 0.8], [False, True, False, True], groups=["a", "b", "a", "b"])
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_accuracy_counts_equal_answers_by_group():
    found = accuracy([True, True, False, False], [True, False, False, False], ["a", "a", "b", "b"])
    assert (found.value, found.n, found.num_groups) == (0.75, 4, 2)
    assert (found.low, found.high) == (0.5, 1.0)


def test_majority_takes_the_commoner_answer_of_the_reference():
    truth = [True, False, False, False]
    assert majority(truth).value == 0.75
    assert majority(truth, reference=[True, True, False]).value == 0.25


def test_report_is_json_and_threshold_moves_answers():
    scores, truth = [0.2, 0.6, 0.7, 0.9], [False, False, True, True]
    report = json.loads(json.dumps(classify(scores, truth)))
    assert report["accuracy"]["value"] == 0.75
    assert report["auc"]["value"] == 1.0
    assert report["majority"]["value"] == 0.5
    assert (report["n"], report["positives"]) == (4, 2)
    assert classify(scores, truth, threshold=0.65)["accuracy"]["value"] == 1.0


def test_lengths_must_agree():
    with pytest.raises(UsageError, match="2 answers for 1 labels"):
        accuracy([True, False], [True])
    with pytest.raises(UsageError, match="at least one"):
        accuracy([], [])
