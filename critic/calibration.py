"""Calibrated P(yes) and the width of a tie, fitted on held-out ratings.

- ``temperature``: P = sigma((x - cut) / T) of log-odds x, cut being the dev split's threshold, so
  that 0.5 stays where it is (Guo et al. 2017).
- ``isotonic``: the monotone steps that fit the answers best (Zadrozny and Elkan 2002).
- of choices between two clips, Rao and Kupper's model with a scale a and a width k:
  P(A) = sigma(a d - log k), P(B) = sigma(-a d - log k), the rest is a tie.

Figures are cross-validated: no answer is predicted by a map that was fitted on its utterance.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Discriminator, Field, Tag, model_validator

from ft2.config import Config
from ft2.critic.losses import outcome_log_probabilities
from ft2.errors import UsageError
from ft2.metrics import calibration as calibration_figures

Vector = NDArray[np.float64]
Map = dict[str, Any]
"""The fields of a `Temperature` or of `Steps`."""

LEAST = 20
"""Answers below which nothing is fitted."""
RIDGE = 1e-4
"""Weight of scale^2 / 2 beside the log-likelihood: keeps answers that scores divide finite."""


class Temperature(Config):
    """P = sigma(scale (x - cut)) of log-odds x."""

    scale: float = Field(gt=0)
    """1 / T."""
    cut: float
    """Log-odds at which P is 0.5."""


class Steps(Config):
    """Knots of a monotone map, linear between them."""

    x: list[float] = Field(min_length=1)
    """Log-odds, rising."""
    y: list[float] = Field(min_length=1)
    """P(yes) at each."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.x) != len(self.y) or self.x != sorted(self.x) or self.y != sorted(self.y):
            raise ValueError("x and y must rise, and be of one length")
        if self.y[0] < 0 or self.y[-1] > 1:
            raise ValueError("y must lie in [0, 1]")
        return self


def _kind(given: Any) -> str:
    steps = "x" in given if isinstance(given, dict) else isinstance(given, Steps)
    return "isotonic" if steps else "temperature"


AnyMap = Annotated[
    Annotated[Temperature, Tag("temperature")] | Annotated[Steps, Tag("isotonic")],
    Discriminator(_kind),
]


class TieWidth(Config):
    """Rao and Kupper's model of a choice, as `fit_ties` gives it."""

    scale: float = Field(gt=0)
    """a."""
    k: float = Field(ge=1)
    """Width of a tie."""
    n: int = 0
    """Choices it was fitted on."""
    loss: float = 0.0
    """Their mean negative log-likelihood."""


class Calibration(Config):
    """What ``critic.json`` says of a calibrated critic."""

    maps: dict[str, AnyMap] = Field(default_factory=dict)
    """To calibrated P(yes), by dimension."""
    ties: dict[str, TieWidth] = Field(default_factory=dict)
    """Tie widths, by dimension."""
    ties_from: dict[str, str] | None = None
    """How the tie widths were made."""
    method: str = ""
    """How the maps were made."""
    split: str = ""
    """Which ratings they were fitted on."""
    ratings: str = ""
    """Those ratings' file."""


class CalibrationConfig(Config):
    """How a critic is calibrated."""

    method: Literal["temperature", "isotonic"] = "temperature"
    """``temperature`` (a number a dimension), or ``isotonic`` (steps; wants hundreds of clips)."""
    split: Literal["train", "dev", "test"] = "dev"
    """Which ratings to fit on; those that trained the critic flatter it."""
    folds: int = Field(5, ge=2)
    """Parts of the cross-validation."""


def fit_map(x: Vector, yes: NDArray[np.bool_], cut: float, method: str) -> Map:
    """Return the calibrating map of log-odds [N] and answers [N].

    Raises:
        UsageError: Higher log-odds do not go with Yes.
    """
    if method == "isotonic":
        from sklearn.isotonic import IsotonicRegression

        edge = 1 / (len(x) + 2)  # no answer is certain
        steps = IsotonicRegression(y_min=edge, y_max=1 - edge, out_of_bounds="clip")
        steps.fit(x, yes.astype(float))
        return {"x": steps.X_thresholds_.tolist(), "y": steps.y_thresholds_.tolist()}
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=1 / RIDGE, fit_intercept=False).fit(x[:, None] - cut, yes)
    scale = float(fitted.coef_[0, 0])
    if scale <= 0:
        raise UsageError(
            f"higher log-odds do not go with Yes (scale {scale:.3g})", "train the critic further"
        )
    return {"scale": scale, "cut": cut}


def apply_map(found: Map, x: Vector) -> Vector:
    """Return P(yes) of log-odds of any shape."""
    if "x" in found:
        return np.asarray(np.interp(x, found["x"], found["y"]), np.float64)
    return np.asarray(1 / (1 + np.exp(-found["scale"] * (x - found["cut"]))), np.float64)


def calibrate_answers(
    odds: Vector,
    labels: NDArray[np.int64],
    groups: NDArray[Any],
    thresholds: Mapping[str, float],
    config: CalibrationConfig,
) -> tuple[dict[str, Map], dict[str, Any]]:
    """Return the map of each dimension and its cross-validated figures.

    Dimensions with fewer than `LEAST` answers, or one answer only, are left as they are.

    Args:
        odds: Log-odds of clips [N, D].
        labels: 1, 0 or -1 [N, D].
        groups: Utterance of each clip [N].
        thresholds: Log-odds at which the answer turns, by dimension in the order of columns.
        config: Method and folds.

    Raises:
        UsageError: No dimension can be calibrated.
    """
    maps: dict[str, Map] = {}
    figures: dict[str, Any] = {}
    for column, (name, cut) in enumerate(thresholds.items()):
        rated = labels[:, column] >= 0
        x, yes, voices = odds[rated, column], labels[rated, column] > 0, groups[rated]
        if len(x) < LEAST or yes.all() or not yes.any():
            continue
        maps[name] = fit_map(x, yes, cut, config.method)
        out = _out_of_fold(x, yes, voices, cut, config)
        before = apply_map({"scale": 1.0, "cut": cut}, x)
        figures[name] = {
            "n": len(x),
            "before": calibration_figures(before, yes, voices),
            "cross_validated": calibration_figures(out, yes, voices),
        }
    if not maps:
        raise UsageError(
            f"no dimension has {LEAST} answers of both kinds", "rate more clips, or take split=test"
        )
    return maps, figures


def _out_of_fold(
    x: Vector, yes: NDArray[np.bool_], groups: NDArray[Any], cut: float, config: CalibrationConfig
) -> Vector:
    from sklearn.model_selection import GroupKFold

    folds = min(config.folds, len(set(groups.tolist())))
    if folds < 2:
        raise UsageError("all rated clips have one utterance", "rate clips of two or more")
    out = np.full(len(x), np.nan)
    for train, test in GroupKFold(folds).split(x, yes, groups):
        usable = yes[train].any() and not yes[train].all()
        found = fit_map(x[train], yes[train], cut, config.method) if usable else None
        out[test] = apply_map(found or {"scale": 1.0, "cut": cut}, x[test])
    return out


def fit_ties(gaps: Vector, labels: Sequence[int]) -> dict[str, float]:
    """Return scale and width k of Rao and Kupper's model, by maximum likelihood.

    Args:
        gaps: Log-odds of A less those of B [P].
        labels: 1 for A, -1 for B, 0 for a tie [P].
    """
    from scipy.optimize import minimize

    d = torch.tensor(gaps, dtype=torch.float64)
    place = torch.tensor([1 - label for label in labels])

    def loss(raw: Vector) -> tuple[float, Vector]:
        values = torch.tensor(raw, dtype=torch.float64, requires_grad=True)
        scale, width = values.exp()[0], 1 + values.exp()[1]
        chances = outcome_log_probabilities(scale * d, "rao_kupper", width)
        total = -chances.gather(-1, place[:, None]).mean() + RIDGE * scale.square() / 2
        total.backward()
        assert values.grad is not None
        return float(total.detach()), values.grad.numpy().astype(np.float64)

    found = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=[(-7, 7), (-9, 7)])
    scale, extra = np.exp(found.x)
    return {"scale": float(scale), "k": float(1 + extra), "n": len(gaps), "loss": float(found.fun)}
