"""The lip-sync measure without SyncNet as a judge of lips, beside a critic.

It reads the mouth from landmarks and predicts it from the sound (`ft2.metrics.lips`), and has
learned from no rating: a critic that hears no better than this has learned little.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ft2.critic.data import Rating
from ft2.critic.thresholds import fit_thresholds
from ft2.errors import MissingExtra, UsageError
from ft2.metrics import classify
from ft2.metrics.lips import LipSync
from ft2.metrics.measure import Clip
from ft2.runs import Progress, Silent

COLUMN = "lip_concordance"
"""Of the numbers that the measure gives, the one that a muted mouth lowers too."""


@dataclass(frozen=True)
class SyncScores:
    """Concordance of mouth and sound, by clip."""

    values: NDArray[np.float64]
    """[clips] in [-1, 1]; nan where a clip could not be measured."""
    reasons: dict[str, int] = field(default_factory=dict)
    """How many could not be, by why."""


def sync_scores(videos: Sequence[Path], progress: Progress | None = None) -> SyncScores:
    """Return the concordance of each video's mouth with its sound.

    Raises:
        MissingExtra: mediapipe or pocketsphinx is not installed.
    """
    progress, measure = progress or Silent(), LipSync()
    values, reasons = np.full(len(videos), np.nan), Counter[str]()
    for number, video in enumerate(videos):
        try:
            values[number] = measure.measure(Clip.read(video)).values[COLUMN]
        except MissingExtra:
            raise
        except UsageError as error:
            reasons[_reason(error.message)] += 1
        progress.update("measure lip sync", number + 1, len(videos))
    return SyncScores(values, dict(reasons))


def _reason(message: str) -> str:
    """Return a message without what is particular to one clip."""
    return "no face in a third of the frames" if message.startswith("no face in") else message


def sync_row(
    rated: Sequence[Rating],
    dev: Sequence[Rating],
    column: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return accuracy and AUC of the measure on rated clips, as rows of `evaluate`.

    Args:
        rated: Clips to judge; only those with an answer about the dimension count.
        dev: Clips whose answers say where Yes begins; without 20 of them, the median.
        column: The dimension's place among the answers.
        progress: Told how far it is.

    Returns:
        ``n``, ``accuracy``, ``auc``, ``majority`` of the clips that could be measured, ``left_out``
        (why the others could not); ``n`` is 0 where none could, or all have the same answer.
    """
    asked = [[r for r in part if r.labels[column] is not None] for part in (rated, dev)]
    found = sync_scores([r.video for part in asked for r in part], progress)
    known = np.isfinite(found.values)
    labels = np.array([bool(r.labels[column]) for part in asked for r in part])
    first = np.arange(len(labels)) < len(asked[0])
    shown, fitted = known & first, known & ~first
    if not shown.any():
        return {"n": 0, "accuracy": None, "auc": None, "left_out": found.reasons}
    voices = np.array([r.utterance for r in asked[0]])[known[: len(asked[0])]]
    cut = _cut(found.values[fitted], labels[fitted], found.values[shown])
    table = classify(found.values[shown], labels[shown], voices, threshold=cut)
    return {**table, "left_out": found.reasons}


def _cut(dev: NDArray[np.float64], answers: NDArray[np.bool_], shown: NDArray[np.float64]) -> float:
    """Return where Yes begins: fitted near the median, which no scale of the measure moves."""
    middle = float(np.median(dev if len(dev) else shown))
    odds, labels = torch.from_numpy(dev - middle)[:, None], torch.from_numpy(answers)[:, None]
    return middle + fit_thresholds(odds, labels.long(), ("lip",))["lip"]
