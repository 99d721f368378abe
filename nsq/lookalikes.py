"""Clips of two splits that look the same, found without comparing every clip with every other.

If two hashes of 256 bits differ in at most b bits and both are cut into b + 1 bands, then at least
one band is equal (pigeonhole). So only clips that share a band of a frame are compared.
"""

from collections.abc import Iterator, Mapping
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ft2.errors import RunError
from ft2.nsq.filters import HASH_BITS
from ft2.nsq.scored import RangeFile

_BYTES = HASH_BITS // 8
_ROWS = 65_536
_SHOWN = 20
Hashes = NDArray[np.uint8]


def check_lookalikes(scored: Mapping[str, Path], max_bits: int) -> None:
    """Refuse clips of two splits whose hashes differ by at most `max_bits` in the mean frame.

    Args:
        scored: The judged clips of each split, with their column `phash`.
        max_bits: As `max_duplicate_bits` of the filters.

    Raises:
        RunError: with both clips of the first overlaps, and how many there are.
    """
    hashes = {split: _hashes(path) for split, path in scored.items()}
    found = [
        (one, other, *pair)
        for one, other in combinations(scored, 2)
        for pair in lookalikes(hashes[one], hashes[other], max_bits)
    ]
    if not found:
        return
    lines = [
        f"  {_place(scored[one], one, a)} and {_place(scored[other], other, b)}: "
        f"{distance:.1f} of {HASH_BITS} bits differ"
        for one, other, a, b, distance in found[:_SHOWN]
    ]
    raise RunError(
        f"{len(found)} clips of two splits look the same:\n" + "\n".join(lines),
        "a model would be tested on what it was trained on: leave one of each two out, or lower "
        "filters.max_duplicate_bits",
    )


def lookalikes(one: Hashes, other: Hashes, max_bits: int) -> Iterator[tuple[int, int, float]]:
    """Yield (row of `one`, row of `other`, mean bits that differ) of all pairs within `max_bits`.

    Args:
        one: [N, F, 32] packed hashes of F frames.
        other: [M, F, 32].
        max_bits: Most bits that differ in the mean frame.
    """
    if not len(one) or not len(other):
        return
    met: set[tuple[int, int]] = set()
    bits = [np.unpackbits(hashes, axis=2) for hashes in (one, other)]
    edges = [HASH_BITS * i // (max_bits + 1) for i in range(max_bits + 2)]
    for frame in range(one.shape[1]):
        for start, stop in pairwise(edges):
            bands = [np.packbits(b[:, frame, start:stop], axis=1) for b in bits]
            keys = [np.ascontiguousarray(b).view(f"V{b.shape[1]}")[:, 0] for b in bands]
            places: dict[bytes, list[int]] = {}
            shared = set(np.unique(keys[0]).tolist()) & set(np.unique(keys[1]).tolist())
            for row, key in enumerate(keys[0].tolist()):
                if key in shared:
                    places.setdefault(key, []).append(row)
            met |= {
                (row, column)
                for column, key in enumerate(keys[1].tolist())
                for row in places.get(key, ())
            }
    for row, column in sorted(met):
        distance = float(np.bitwise_count(one[row] ^ other[column]).sum()) / one.shape[1]
        if distance <= max_bits:
            yield row, column, distance


def _hashes(path: Path) -> Hashes:
    """Return [N, F, 32] hashes of a split."""
    parts = []
    with RangeFile(path) as scored:
        for start in range(0, len(scored), _ROWS):
            column = scored.read(start, min(start + _ROWS, len(scored)))["phash"]
            parts += [np.frombuffer(value, np.uint8) for value in column.to_pylist()]
    return (
        np.stack(parts).reshape(len(parts), -1, _BYTES)
        if parts
        else np.zeros((0, 1, _BYTES), np.uint8)
    )


def _place(path: Path, split: str, row: int) -> str:
    with RangeFile(path) as scored:
        clip = scored.read(row, row + 1).to_pylist()[0]
    return f"{split}: {clip['condition_id']} ({clip['model']}, seed {clip['seed']})"
