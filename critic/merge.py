"""From people's answers to one rating a clip (or pair): duplicates, majorities, splits.

A split never shares a face, an utterance, a recording or a clip with another one: clips that share
any of these form a group, and whole groups are dealt out.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from ft2.critic.answers import Answer
from ft2.errors import UsageError

SPLITS = ("train", "dev", "test")
SHARES = (0.7, 0.1, 0.2)
SWAPPED = {"A": "B", "B": "A", "tie": "tie"}

Item = tuple[str, str | None]
"""A clip, or the two of a pair in alphabetical order."""


@dataclass
class Merged:
    """Ratings after merging, and what became of the answers."""

    votes: dict[tuple[Item, str], Counter[str]] = field(default_factory=dict)
    """Answers per item and dimension; of a pair as seen with its sides in alphabetical order."""
    facts: dict[Item, Answer] = field(default_factory=dict)
    """The first answer about an item, for its facts (face, voice, source)."""
    margins: dict[tuple[Item, str], list[float]] = field(default_factory=dict)
    """Margins that the sources give, of side A over B in alphabetical order."""
    shares: dict[tuple[Item, str], list[float]] = field(default_factory=dict)
    """Shares of raters for A that the sources give, likewise."""
    counts: Counter[str] = field(default_factory=Counter)
    """``answers``, ``duplicate``, ``contradictory``, ``unsure``."""


def merge(answers: Iterable[Answer]) -> Merged:
    """Return the votes per item and dimension.

    A rater who answered a question twice alike counts once; one who contradicts himself counts not
    at all. Both are counted, and so is Unsure, which is no vote. Without raters' names every answer
    is a vote.
    """
    merged = Merged()
    by_rater: dict[tuple[Item, str, str], list[str]] = defaultdict(list)
    for number, answer in enumerate(answers):
        merged.counts["answers"] += 1
        item, word = canonical(answer)
        merged.facts.setdefault(item, answer)
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


def groups_of(facts: Mapping[Item, Answer]) -> dict[Item, str]:
    """Return for each item the name of its group: items that share a face, voice or recording.

    An unknown face, voice or recording is shared with nothing; a clip always is with itself.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for item, answer in facts.items():
        keys = [f"clip {name}" for name in item if name]
        keys += [f"face {answer.identity_id}"] * bool(answer.identity_id)
        keys += [f"voice {answer.audio_id.split('@')[0]}"] * bool(answer.audio_id)
        keys += [f"recording {answer.source_clip}"] * bool(answer.source_clip)
        for key in keys[1:]:
            low, high = sorted((root(keys[0]), root(key)))
            parent[high] = low
    return {item: root(f"clip {item[0]}") for item in facts}


def assign_splits(
    groups: Mapping[Item, str], shares: Sequence[float] = SHARES, seed: int = 0
) -> dict[Item, str]:
    """Return the split of each item; whole groups go to the split that lacks most clips.

    Largest groups first, ties in an order that the seed decides; the same input gives the same
    splits whatever its order.

    Raises:
        UsageError: Fewer groups than splits: nothing could be held out without leakage.
    """
    members: dict[str, list[Item]] = defaultdict(list)
    for item, name in groups.items():
        members[name].append(item)
    wanted = [split for split, share in zip(SPLITS, shares, strict=True) if share > 0]
    if len(members) < len(wanted):
        raise UsageError(
            f"the clips form {len(members)} group(s) that share a face, voice or recording; "
            f"{len(wanted)} splits need as many",
            "rate clips of other faces and other speech too",
        )
    order = sorted(members, key=lambda name: (-len(members[name]), _shuffled(name, seed)))
    total, filled = len(groups), Counter[str]()
    where: dict[Item, str] = {}
    for place, name in enumerate(order):
        empty = [s for s in wanted if not filled[s]]
        left = len(order) - place
        open_to = empty if len(empty) >= left else wanted
        lack = {s: shares[SPLITS.index(s)] * total - filled[s] for s in open_to}
        split = max(lack, key=lambda s: (lack[s], -SPLITS.index(s)))
        filled[split] += len(members[name])
        where |= dict.fromkeys(members[name], split)
    return where


def _shuffled(name: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()


def rating_rows(
    merged: Merged,
    splits: Mapping[Item, str],
    dimensions: Sequence[str],
    media: Path,
    output: Path,
) -> list[dict[str, Any]]:
    """Return the lines of a ``ratings.jsonl`` that `ft2 critic train` reads, in a fixed order.

    Args:
        merged: Votes.
        splits: Split of each item.
        dimensions: The critic's dimensions; answers on others are left out.
        media: Directory that the answers' clip paths are relative to.
        output: The file to be written; paths in it are relative to its directory.
    """
    rows = []
    for item in sorted(merged.facts, key=lambda item: (item[0], item[1] or "")):
        votes = {d: merged.votes.get((item, d), Counter()) for d in dimensions}
        if not any(votes.values()):
            continue
        fact = merged.facts[item]
        names = ("video",) if item[1] is None else ("video_a", "video_b")
        paths = [_relative(media / name, output.parent) for name in item if name]
        row: dict[str, Any] = dict(zip(names, paths, strict=True))
        row |= {d: _label(found) for d, found in votes.items()}
        row |= {
            "identity_id": fact.identity_id or f"unknown {item[0]}",
            "audio_id": fact.audio_id or f"unknown {item[0]}",
            "split": splits[item],
            "source": fact.source,
        }
        rows.append(row | (_strengths(merged, item, votes) if item[1] else {}))
    return rows


def _strengths(
    merged: Merged, item: Item, votes: Mapping[str, Counter[str]]
) -> dict[str, dict[str, float]]:
    """Return the share of raters for A (a tie counts half) and the margin, per dimension."""
    shares = {d: (v["A"] + v["tie"] / 2) / v.total() for d, v in votes.items() if v}
    shares |= {d: mean(merged.shares[item, d]) for d in votes if (item, d) in merged.shares}
    margins = {d: mean(merged.margins[item, d]) for d in votes if (item, d) in merged.margins}
    return {"share": shares} | ({"margin": margins} if margins else {})


def _label(votes: Counter[str]) -> bool | str | None:
    """Return true, false, A, B, tie, or null where nobody voted or the votes are split."""
    found = majority(votes) if votes else None
    return {"yes": True, "no": False}.get(found, found) if found else None


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
