"""Figures with their uncertainty: bootstrap intervals and classification scores."""

from ft2.metrics.bootstrap import Estimate, bootstrap, bootstrap_mean, bootstrap_paired
from ft2.metrics.classification import accuracy, auc, auc_value, classify, majority

__all__ = [
    "Estimate",
    "accuracy",
    "auc",
    "auc_value",
    "bootstrap",
    "bootstrap_mean",
    "bootstrap_paired",
    "classify",
    "majority",
]
