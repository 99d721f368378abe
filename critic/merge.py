"""From people's answers to one verdict a clip (or pair): duplicates, majorities, facts."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from ft2.critic.answers import Answer

FACTS = ("identity_id", "audio_id", "source_clip")
"""What is known of an item whoever answers: face, utterance, recording."""
SWAPPED = {"A": "B", "B": "A", "tie": "tie"}

Item = tuple[str, str | None]
"""A clip, or the two of a pair in alphabetical order."""


@dataclass
class Merged:
    """Ratings after merging, and what became of the answers."""

    votes: dict[tuple[Item, str], Counter[str]] = field(default_factory=dict)
    """Answers per item and dimension; of a pair as seen with its sides in alphabetical order."""
    facts: dict[Item, Answer] = field(default_factory=dict)
    """The first answer about an item, with the face, voice and recording that any of them names."""
    margins: dict[tuple[Item, str], list[float]] = field(default_factory=dict)
    """Margins that the sources give, of side A over B in alphabetical order."""
    shares: dict[tuple[Item, str], list[float]] = field(default_factory=dict)
    """Shares of raters for A that the sources give, likewise."""
    counts: Counter[str] = field(default_factory=Counter)
    """``answers``, ``duplicate``, ``contradictory``, ``unsure``."""
    conflicts: list[str] = field(default_factory=list)
    """Answers that name another face, voice or recording than an earlier one, with their row."""


def merge(answers: Iterable[Answer], rows: Sequence[int] = ()) -> Merged:
    """Return the votes per item and dimension.

    A rater who answered a question twice alike counts once; one who contradicts himself counts not
    at all. Both are counted, and so is Unsure, which is no vote. Without raters' names every answer
    is a vote.

    Args:
        answers: Whatever people said.
        rows: Row of each answer in its file; without them they are counted from 1.
    """
    merged = Merged()
    by_rater: dict[tuple[Item, str, str], list[str]] = defaultdict(list)
    for number, answer in enumerate(answers):
        merged.counts["answers"] += 1
        item, word = canonical(answer)
        _learn(merged, item, answer, rows[number] if rows else number + 1)
        rater = answer.rater or f"\0{number}"
        by_rater[item, answer.dimension, rater].append(word)
        turned = answer.clip != item[0]
        if answer.margin is not None:
            margin = -answer.margin if turned else answer.margin
            merged.margins.setdefault((item, answer.dimension), []).append(margin)
        if answer.share is not None:
            share = 1 - answer.share if turned else answer.share
            merged.shares.setdefault((item, answer.dimension), []).append(share)
    for (item, dimension, _), words in by_rater.items():
        if len(set(words)) > 1:
            merged.counts["contradictory"] += len(words)
            continue
        merged.counts["duplicate"] += len(words) - 1
        if words[0] == "unsure":
            merged.counts["unsure"] += 1
            continue
        merged.votes.setdefault((item, dimension), Counter())[words[0]] += 1
    return merged


def canonical(answer: Answer) -> tuple[Item, str]:
    """Return the item and the answer as seen with its sides in alphabetical order."""
    if answer.other is None:
        return (answer.clip, None), answer.answer
    if answer.clip < answer.other:
        return (answer.clip, answer.other), answer.answer
    return (answer.other, answer.clip), SWAPPED[answer.answer]


def majority(votes: Counter[str]) -> str | None:
    """Return the commonest answer, or None when two are equally common."""
    first, *rest = votes.most_common(2)
    return None if rest and rest[0][1] == first[1] else first[0]


def _learn(merged: Merged, item: Item, answer: Answer, row: int) -> None:
    """Take from an answer the facts that earlier ones about the item left out."""
    known = merged.facts.setdefault(item, answer)
    new: dict[str, str] = {}
    for name in FACTS:
        before, now = getattr(known, name), getattr(answer, name)
        if not before:
            new |= {name: now} if now else {}
        elif now and not _alike(name, now, before):
            clips = " and ".join(clip for clip in item if clip)
            merged.conflicts.append(
                f"row {row}: {name} of {clips} is {now!r}, an earlier row says {before!r}"
            )
    if new:
        merged.facts[item] = replace(known, **new)  # type: ignore[arg-type]


def _alike(name: str, now: str, before: str) -> bool:
    """Return whether a fact is the same; parts of one utterance are."""
    return utterance_of(now) == utterance_of(before) if name == "audio_id" else now == before


def utterance_of(audio_id: str) -> str:
    """Return an utterance's name without the part that follows an ``@``."""
    return audio_id.split("@")[0]
