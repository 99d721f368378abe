"""No split may see what another one is tested on: identities, clips, sounds, prompts, portraits."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from ft2.errors import UsageError
from ft2.media import read_image
from ft2.nsq.filters import perceptual_hash
from ft2.pairs import Condition

UNIQUE_SPLIT = "test_unique"
"""Made from `test`: one pair of each prompt."""

_KINDS = ("identity_id", "source_id", "audio_id", "prompt")


def check_splits(conditions: Sequence[Condition], portrait_bits: int | None = None) -> None:
    """Refuse conditions that share a face, source clip, sound, prompt or portrait across splits.

    Args:
        conditions: All conditions; empty prompts and source clips are not compared.
        portrait_bits: Portraits whose perceptual hashes differ by at most this are the same; None
            does not look at them.

    Raises:
        UsageError: with every overlap and where it is, or a bad name of a split.
    """
    splits = list(dict.fromkeys(c.split for c in conditions))
    for split in splits:
        if not re.fullmatch(r"[a-z][a-z0-9]*", split):
            hint = "name splits train, validation and test"
            if split == UNIQUE_SPLIT:
                hint = "it is made from the split test: leave it out"
            raise UsageError(f"no condition may be in the split {split!r}", hint)
    if len(splits) < 2:
        return
    problems = []
    for kind in _KINDS:
        where: dict[str, dict[str, str]] = {}
        for c in conditions:
            where.setdefault(getattr(c, kind), {}).setdefault(c.split, c.condition_id)
        problems += [
            f"{kind} {name!r} is in the splits {_places(found)}"
            for name, found in sorted(where.items())
            if len(found) > 1 and name
        ]
    if portrait_bits is not None:
        problems += _same_portraits(conditions, portrait_bits)
    if problems:
        more = f"\n... and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise UsageError(
            "\n".join(problems[:20]) + more,
            "a model would be tested on what it was trained on: give each identity, source clip, "
            "sound, prompt and portrait to one split",
        )


def _places(found: dict[str, str]) -> str:
    return ", ".join(f"{split} ({condition})" for split, condition in sorted(found.items()))


def _same_portraits(conditions: Sequence[Condition], bits: int) -> list[str]:
    """Return the near-duplicate portraits across splits, by perceptual hash."""

    @cache
    def hash_of(path: Path) -> bytes:
        return np.packbits(perceptual_hash(read_image(path))).tobytes()

    seen = list({(c.split, c.portrait): c for c in conditions}.values())
    hashes = np.array([np.frombuffer(hash_of(c.portrait), np.uint8) for c in seen])
    problems = []
    for index, one in enumerate(seen):
        distance = np.bitwise_count(hashes[index + 1 :] ^ hashes[index]).sum(axis=1)
        for row in np.flatnonzero(distance <= bits):
            other = seen[index + 1 + int(row)]
            if other.split != one.split:
                problems.append(
                    f"portraits {one.portrait.name} ({one.split}) and {other.portrait.name} "
                    f"({other.split}) look the same: {distance[row]} of 256 bits differ"
                )
    return problems
