"""Scores of yes/no answers: accuracy, AUC, and the majority answer they must beat."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from ft2.errors import UsageError
from ft2.metrics.bootstrap import Estimate, Groups, bootstrap, bootstrap_mean


def accuracy(answers: ArrayLike, truth: ArrayLike, groups: Groups | None = None) -> Estimate:
    """Return the share of bool `answers` [N] that equal bool `truth` [N], with its interval.

    Args:
        answers: What was answered.
        truth: What is right.
        groups: Key of each sample (utterance, face); see `ft2.metrics.bootstrap`.

    Raises:
        UsageError: No samples, or lengths differ.
    """
    given, right = _labels(answers), _labels(truth)
    if len(given) != len(right):
        raise UsageError(f"{len(given)} answers for {len(right)} labels", "give one answer a label")
    return bootstrap_mean((given == right).astype(np.float64), groups)


def auc_value(scores: ArrayLike, truth: ArrayLike) -> float:
    """Return P(score of a true sample > score of a false one), ties counting one half.

    The Mann-Whitney statistic over mid-ranks; nan when only one class is there.
    """
    numbers, right = np.asarray(scores, np.float64), _labels(truth)
    positives = int(right.sum())
    negatives = len(right) - positives
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(numbers)
    wins = float(ranks[right].sum()) - positives * (positives + 1) / 2
    return wins / (positives * negatives)


def auc(scores: ArrayLike, truth: ArrayLike, groups: Groups | None = None) -> Estimate:
    """Return `auc_value` with its (clustered) bootstrap interval."""
    return bootstrap(auc_value, np.asarray(scores, np.float64), _labels(truth), groups=groups)


def majority(
    truth: ArrayLike, groups: Groups | None = None, reference: ArrayLike | None = None
) -> Estimate:
    """Return the accuracy on `truth` of always giving the commoner answer.

    Args:
        truth: Labels that are scored.
        groups: Key of each sample.
        reference: Labels in which the commoner answer is looked up (the training set's); without
            it those of `truth`, the strictest such row. A tie answers yes.
    """
    right = _labels(truth)
    source = right if reference is None else _labels(reference)
    return accuracy(np.full(len(right), bool(source.mean() >= 0.5)), right, groups)


def classify(
    scores: ArrayLike,
    truth: ArrayLike,
    groups: Groups | None = None,
    *,
    threshold: float = 0.5,
    reference: ArrayLike | None = None,
) -> dict[str, Any]:
    """Return accuracy, AUC, majority answer and counts of one set of scores, ready for JSON.

    Args:
        scores: P(yes) or any number that grows with it, [N].
        truth: bool [N].
        groups: Key of each sample.
        threshold: Scores above or equal to it answer yes.
        reference: Labels for the majority answer; see `majority`.
    """
    right = _labels(truth)
    answers = np.asarray(scores, np.float64) >= threshold
    return {
        "n": len(right),
        "positives": int(right.sum()),
        "threshold": threshold,
        "accuracy": accuracy(answers, right, groups).to_dict(),
        "auc": auc(scores, right, groups).to_dict(),
        "majority": majority(right, groups, reference).to_dict(),
    }


def _labels(values: ArrayLike) -> NDArray[np.bool_]:
    array = np.asarray(values)
    if array.ndim != 1 or not len(array):
        raise UsageError(f"labels have shape {list(array.shape)}", "give a flat list, at least one")
    return array.astype(bool)
