"""What a training reads of its ratings, refused where the objective cannot learn from it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ft2.critic.config import CriticConfig
from ft2.critic.data import PairRating, Rating, holds_pairs, read_pair_ratings, read_ratings
from ft2.critic.names import PAIR_OBJECTIVES
from ft2.critic.negatives import spoiled_answers
from ft2.critic.rows import rated_dimensions
from ft2.errors import UsageError


@dataclass(frozen=True)
class TrainingData:
    """What a training reads."""

    train: list[Rating]
    """Clips to train on; of pairs, all clips that occur, unrated."""
    dev: list[Rating]
    """Held-out clips, likewise."""
    pairs: list[PairRating] | None
    """Comparisons to train on; None where single clips are rated."""
    dev_pairs: list[PairRating]
    """Held-out comparisons."""

    @property
    def num_train(self) -> int:
        """Ratings to train on."""
        if self.pairs is not None:
            return len(self.pairs)
        return sum(rating.spoilt is None for rating in self.train)


def remarks_on(config: CriticConfig) -> list[str]:
    """Return what of the config, and of its ratings where they are there, has no effect."""
    path = Path(config.ratings)
    rated = rated_dimensions(path) if path.is_file() else []
    left = [name for name in rated if name not in config.questions]
    ignored = [f"{path.name} also rates {', '.join(left)}: not asked about, left out"]
    return config.remarks + (ignored if left else [])


def read_data(config: CriticConfig) -> TrainingData:
    """Return what the config's ratings hold, refused where its objective cannot learn from them.

    Raises:
        UsageError: Missing, broken or leaking ratings; the wrong kind for the objective; a
            dimension with one answer only.
    """
    path, dimensions = Path(config.ratings), tuple(config.questions)
    if not holds_pairs(path):
        numbers = config.objective == "regression"
        every = read_ratings(path, None, dimensions, numbers=numbers)
        train = [r for r in every if r.split == "train"]
        _check_labels([r.labels for r in train], dimensions, ("Yes", "No"))
        train += controlled_negatives(train, config)
        return TrainingData(train, [r for r in every if r.split == "dev"], None, [])
    if config.objective not in PAIR_OBJECTIVES:
        raise UsageError(
            f"{path} rates pairs of clips, objective {config.objective} learns from single ones",
            f"set objective to one of {', '.join(PAIR_OBJECTIVES)}",
        )
    if config.swap or config.negatives:
        raise UsageError(
            f"swap={config.swap} and negatives={config.negatives} change single clips, but {path} "
            "rates pairs",
            "set swap=0, and no negatives",
        )
    pairs = read_pair_ratings(path, dimensions)
    train_pairs = [pair for pair in pairs if pair.split == "train"]
    _check_labels([pair.labels for pair in train_pairs], dimensions, ("A", "B"))
    dev = [pair for pair in pairs if pair.split == "dev"]
    unrated = (None,) * len(dimensions)
    return TrainingData(_clips(train_pairs, unrated), _clips(dev, unrated), train_pairs, dev)


def controlled_negatives(train: Sequence[Rating], config: CriticConfig) -> list[Rating]:
    """Return the clips that also come spoilt, drawn by the seed, with their answers changed."""
    dimensions = tuple(config.questions)
    found = []
    for number, (kind, share) in enumerate(sorted(config.negatives.items())):
        rng = np.random.default_rng([config.seed, number])
        for index in sorted(rng.permutation(len(train))[: round(share * len(train))].tolist()):
            labels = spoiled_answers(train[index].labels, dimensions, kind)
            defect = (kind, config.seed * 1_000_003 + index)
            found.append(replace(train[index], labels=labels, spoilt=defect))
    return found


def _clips(pairs: Sequence[PairRating], labels: tuple[None, ...]) -> list[Rating]:
    found: dict[Path, Rating] = {}
    for pair in pairs:
        for video in pair.videos:
            rating = Rating(
                video, labels, pair.identity_id, pair.utterance, pair.split, pair.source
            )
            found.setdefault(video, rating)
    return list(found.values())


def _check_labels(
    rows: Sequence[Sequence[object]], dimensions: Sequence[str], words: tuple[str, str]
) -> None:
    """Refuse a dimension on which all ratings say the same: nothing could be learned."""
    for column, dimension in enumerate(dimensions):
        labels = {row[column] for row in rows} - {None}
        if words == ("A", "B") and labels & {"A", "B"}:
            continue  # sides are swapped at random, so that one is enough
        if len(labels) < 2:
            lacking = words[1] if labels == {True} else words[0]
            raise UsageError(
                f"the training ratings have no {lacking} for {dimension}",
                "rate clips of both kinds for every dimension, or name in questions={...} only "
                "those that were rated",
            )
