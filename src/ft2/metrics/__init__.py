"""Figures with their uncertainty: bootstrap intervals and classification scores."""

from ft2.metrics.bootstrap import Estimate, bootstrap, bootstrap_mean, bootstrap_paired
from ft2.metrics.calibration import brier, calibration, ece, reliability
from ft2.metrics.classification import accuracy, auc, auc_value, classify, majority
from ft2.metrics.preference import pair_metrics, trivial_pair_metrics

__all__ = [
    "Estimate",
    "accuracy",
    "auc",
    "auc_value",
    "bootstrap",
    "bootstrap_mean",
    "bootstrap_paired",
    "brier",
    "calibration",
    "classify",
    "ece",
    "majority",
    "pair_metrics",
    "reliability",
    "trivial_pair_metrics",
]
