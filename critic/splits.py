"""Rated clips in train, dev and test, and the files that `ft2 critic train` reads.

A split never shares a face, an utterance, a recording or a clip with another one: clips that share
any of these form a group, and whole groups are dealt out.
"""

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from ft2.critic.answers import Answer, Imported
from ft2.critic.leaks import listed, same_files
from ft2.critic.merge import Item, Merged, majority, merge, utterance_of
from ft2.critic.rows import FACTS
from ft2.errors import UsageError
from ft2.files import write_atomic
from ft2.pairs import DIMENSIONS

SPLITS = ("train", "dev", "test")
SHARES = (0.7, 0.1, 0.2)


def write_ratings(
    found: Imported, media: Path, output: Path, shares: Sequence[float], seed: int
) -> dict[str, Any]:
    """Write the ratings of clips and, apart from them, those of pairs; return what was written.

    Answers about clips and about pairs go to two files with the same splits: `output` and the one
    that `pairs_file` names; where there is one kind only, to `output`.

    Args:
        found: People's answers.
        media: Directory that the clips' paths are relative to.
        output: The file to write; paths in it are relative to its directory.
        shares: Wanted shares of train, dev and test.
        seed: Order of groups of equal size.

    Raises:
        UsageError: Answers that disagree about a face, voice or recording; a clip that is not
            there; a dimension with the name of another key; too few groups to split; no votes.
    """
    merged = _unanimous(found)
    groups = groups_of(merged.facts, _contents(merged, media))
    splits = assign_splits(groups, shares, seed)
    kinds = sorted({item[1] is not None for item, _ in merged.votes})
    texts, written = {}, []
    for pairs in kinds:
        path = pairs_file(output) if pairs and len(kinds) > 1 else output
        dimensions = _dimensions(d for item, d in merged.votes if pairs is (item[1] is not None))
        rows = rating_rows(merged, splits, dimensions, media, path, pairs=pairs)
        texts[path] = "".join(json.dumps(row) + "\n" for row in rows)
        counts = dict(Counter(row["split"] for row in rows))
        written.append({"output": str(path), "dimensions": list(dimensions), "ratings": counts})
    for path, text in texts.items():
        write_atomic(path, text)
    split_votes = sum(majority(v) is None for v in merged.votes.values())
    return {
        **written[0],
        **({"pairs": written[1]} if len(kinds) > 1 else {}),
        "groups": len(set(groups.values())),
        "raters": {**merged.counts, "split_votes": split_votes},
    }


def _unanimous(found: Imported) -> Merged:
    """Return merged answers, refused where they name two faces of a clip or decide nothing."""
    merged = merge(found.answers, found.rows)
    if merged.conflicts:
        raise UsageError(
            listed([f"{found.path}: {line}" for line in merged.conflicts]),
            "a clip shows one face with one voice; correct the rows",
        )
    if not merged.votes:
        counts = ", ".join(f"{count} {name}" for name, count in merged.counts.items())
        raise UsageError(f"no answer of {found.path} counts: {counts}", "ask more people")
    return merged


def pairs_file(output: Path) -> Path:
    """Return where ratings of pairs go when `output` has those of single clips."""
    return output.with_name(f"{output.stem}-pairs{output.suffix}")


def _dimensions(names: Iterable[str]) -> tuple[str, ...]:
    """Return dimensions, the paper's first.

    Raises:
        UsageError: One has the name of another key of a row.
    """
    found = set(names)
    if taken := sorted(found & FACTS):
        raise UsageError(
            f"a dimension cannot be called '{taken[0]}': ratings have a key of that name",
            "give it another name in the answers",
        )
    return (*(d for d in DIMENSIONS if d in found), *sorted(found - set(DIMENSIONS)))


def _contents(merged: Merged, media: Path) -> dict[str, str]:
    """Return the hash of each clip that may be a copy of another one.

    Raises:
        UsageError: A clip is not there.
    """
    files = sorted({name for item in merged.facts for name in item if name})
    absent = [name for name in files if not (media / name).is_file()]
    if absent:
        raise UsageError(
            f"{len(absent)} of {len(files)} clips are not there, the first is {media / absent[0]}",
            "say with --media which folder the clips' paths are relative to",
        )
    hashes = same_files(media / name for name in files)
    return {name: hashes[media / name] for name in files if media / name in hashes}


def groups_of(
    facts: Mapping[Item, Answer], contents: Mapping[str, str] | None = None
) -> dict[Item, str]:
    """Return for each item the name of its group: items that share a face, voice or recording.

    An unknown face, voice or recording is shared with nothing; a clip always is with itself.

    Args:
        facts: What is known of each item.
        contents: Hash by clip: copies under several names are one clip.
    """
    contents = contents or {}
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for item, answer in facts.items():
        keys = [f"clip {name}" for name in item if name]
        keys += [f"face {answer.identity_id}"] * bool(answer.identity_id)
        keys += [f"copy {contents[name]}" for name in item if name and name in contents]
        keys += [f"voice {utterance_of(answer.audio_id)}"] * bool(answer.audio_id)
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
    *,
    pairs: bool,
) -> list[dict[str, Any]]:
    """Return the lines of a ``ratings.jsonl`` that `ft2 critic train` reads, in a fixed order.

    Args:
        merged: Votes.
        splits: Split of each item.
        dimensions: The critic's dimensions; answers on others are left out.
        media: Directory that the answers' clip paths are relative to.
        output: The file to be written; paths in it are relative to its directory.
        pairs: Whether to take pairs, or single clips.
    """
    rows = []
    for item in sorted(merged.facts, key=lambda item: (item[0], item[1] or "")):
        votes = {d: merged.votes.get((item, d), Counter()) for d in dimensions}
        if not any(votes.values()) or pairs is (item[1] is None):
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
            **({"source_clip": fact.source_clip} if fact.source_clip else {}),
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
