"""Calibrate a trained critic on held-out ratings: a new adapter directory with the maps in it."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ft2.critic.api import TalkingCritic
from ft2.critic.calibration import (
    LEAST,
    Calibration,
    CalibrationConfig,
    calibrate_answers,
    fit_ties,
)
from ft2.critic.checkpoint import FILES, read_card, write_card
from ft2.critic.data import PairRating, Rating, holds_pairs, read_pair_ratings, read_ratings
from ft2.errors import UsageError
from ft2.metrics.preference import SIGNS
from ft2.runs import Progress, atomic_dir


def calibrate_critic(
    ratings: Path,
    adapter: Path,
    output: Path,
    config: CalibrationConfig,
    device: str,
    progress: Progress,
) -> dict[str, Any]:
    """Write the adapter with calibration to `output`; return how it was fitted, with figures.

    Ratings of clips calibrate P(yes), ratings of pairs the tie width of `TalkingCritic.compare`;
    what the adapter has of the other kind stays.

    Raises:
        UsageError: Ratings or adapter are missing or unfit, or there are too few answers.
    """
    card = read_card(adapter)
    dimensions = tuple(card.questions)
    rated: list[Rating] | list[PairRating]
    if holds_pairs(ratings):
        rated = [r for r in read_pair_ratings(ratings, dimensions) if r.split == config.split]
    else:
        rated = read_ratings(ratings, config.split, dimensions)
    if not rated:
        raise UsageError(f"{ratings} has no {config.split} ratings", "choose another: split=test")
    critic = TalkingCritic.from_pretrained(
        adapter, device=device, calibrated=False, progress=progress
    )
    videos = list(dict.fromkeys(video for rating in rated for video in rating.videos))
    scores = {s.path: s for s in critic.score(videos=videos)}
    for score in scores.values():
        if score.error:
            raise UsageError(f"{score.path}: {score.error}", "take it out of the ratings")
    odds = {path: [s.log_odds[d] for d in dimensions] for path, s in scores.items()}
    known = card.calibration.model_dump(exclude_unset=True) if card.calibration else {}
    how = {"method": config.method, "split": config.split, "ratings": ratings.name}
    figures: dict[str, Any]
    if isinstance(rated[0], PairRating):
        how["method"] = "rao_kupper"
        known["ties"] = figures = _ties(rated, odds, dimensions)
        known["ties_from"] = how
    else:
        known["maps"], figures = _maps(rated, odds, card.thresholds, config)
        known |= how
    with atomic_dir(output) as folder:
        for name in FILES[:2]:
            shutil.copyfile(adapter / name, folder / name)
        new = card.model_copy(update={"calibration": Calibration.model_validate(known)})
        write_card(folder, new)
    return {"output": str(output), **how, "figures": figures}


def _maps(
    rated: list[Rating],
    odds: dict[Path, list[float]],
    thresholds: dict[str, float],
    config: CalibrationConfig,
) -> tuple[dict[str, Any], dict[str, Any]]:
    labels = np.array([[-1 if x is None else int(x) for x in r.labels] for r in rated])
    x = np.array([odds[r.video] for r in rated])
    return calibrate_answers(x, labels, np.array([r.utterance for r in rated]), thresholds, config)


def _ties(
    rated: list[PairRating], odds: dict[Path, list[float]], dimensions: tuple[str, ...]
) -> dict[str, Any]:
    found = {}
    for column, name in enumerate(dimensions):
        pairs = [(r, r.labels[column]) for r in rated if r.labels[column] is not None]
        labels = [SIGNS[str(label)] for _, label in pairs]
        if len(pairs) < LEAST or not any(labels):
            continue
        sides = [[odds[video][column] for video in r.videos] for r, _ in pairs]
        found[name] = fit_ties(np.array([a - b for a, b in sides]), labels)
    if not found:
        raise UsageError(f"no dimension has {LEAST} choices", "rate more pairs")
    return found
