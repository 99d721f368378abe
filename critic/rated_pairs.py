"""How often a critic agrees with people's choices in a ``ratings.jsonl`` of pairs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ft2.critic.answers import Answer
from ft2.critic.api import TalkingCritic
from ft2.critic.checkpoint import read_card
from ft2.critic.data import PairRating, read_pair_ratings
from ft2.critic.evaluate_pairs import add_sync_measure, evaluate_pairs
from ft2.critic.facts import critic_facts
from ft2.errors import UsageError
from ft2.runs import Progress


def evaluate_rated_pairs(
    ratings: Path, adapter: Path, *, split: str, device: str, progress: Progress, sync: bool
) -> dict[str, Any]:
    """Return the metrics of `evaluate_pairs` for a critic's log-odds of the clips of a split.

    Bootstraps and the eps of other prompts go by utterances. A clip that cannot be judged is
    listed with its reason under ``unreadable``, and its pairs are left out and counted.

    Raises:
        UsageError: Ratings or critic are missing or unfit, or no pair of the split has both scores.
    """
    dimensions = tuple(read_card(adapter).questions)
    rated = [r for r in read_pair_ratings(ratings, dimensions) if r.split == split]
    if not rated:
        raise UsageError(f"{ratings} has no {split} ratings", "choose another: --split dev")
    facts = critic_facts(adapter)
    critic = TalkingCritic.from_pretrained(adapter, device=device, progress=progress)
    videos = list(dict.fromkeys(video for rating in rated for video in rating.videos))
    found = critic.score(videos=videos)
    answers = [answer for rating in rated for answer in _answers(rating, dimensions)]
    result = evaluate_pairs(
        answers, {str(row.path): row.log_odds for row in found if row.error is None}
    )
    if sync and "lip" in result["dimensions"]:
        add_sync_measure(result, answers, Path(), progress)
    unreadable = {row.path.name: row.error for row in found if row.error}
    about = {"ratings": ratings.name, "split": split, "critic": facts}
    return {**about, **result, "unreadable": unreadable}


def _answers(rating: PairRating, dimensions: tuple[str, ...]) -> list[Answer]:
    a, b = map(str, rating.videos)
    return [
        Answer(a, name, label, other=b, prompt=rating.utterance, source=rating.source)
        for name, label in zip(dimensions, rating.labels, strict=True)
        if label is not None
    ]


def unreadable_lines(result: Mapping[str, Any]) -> list[str]:
    """Return a line for each clip that could not be judged."""
    return [f"left out {name}: {why}" for name, why in result["unreadable"].items()]
