"""Pairs of a whole split, block by block, kept on disk as a few bytes each."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ft2.nsq.pairing import NUM_PATTERNS, Pairs, Rule, mine_pairs
from ft2.nsq.scored import RangeFile, scores_of
from ft2.pairs import STORES

CORE = np.dtype(
    [("a", "<i8"), ("b", "<i8"), ("labels", "i1", 3), ("stores", "?", 4), ("given", "<f4", 3)]
)
"""A pair before its columns: rows of its clips in the split, labels, stores, and the margins that
came with the labels (NaN: the difference of the scores)."""

Core = NDArray[Any]
_BLOCK = 16_384
_CORE_BLOCK = 65_536


def mine_split(
    scored: RangeFile,
    rule: Rule,
    folder: Path,
    split: str,
    see: Callable[[pa.Table, Pairs], None],
) -> dict[str, int]:
    """Write the pairs of a split and of each of its stores under `folder` and return their counts.

    Args:
        scored: The split's clips, sorted by condition.
        rule: What makes a pair.
        folder: Where `core_path` finds the files.
        split: Name of the split.
        see: Called with every block's clips and pairs, for the counts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    counts = dict.fromkeys(("pairs", *STORES), 0)
    files = {name: core_path(folder, split, name).open("wb") for name in counts}
    turns = np.zeros(NUM_PATTERNS, np.int64)
    try:
        for start, table in blocks(scored):
            pairs = mine_pairs(
                table["condition_id"].to_pylist(),
                table["clip_id"].to_pylist(),
                scores_of(table),
                rule,
                turns,
            )
            see(table, pairs)
            core = np.zeros(len(pairs), CORE)
            core["a"], core["b"] = pairs.a + start, pairs.b + start
            core["labels"], core["stores"] = pairs.labels, pairs.stores
            core["given"] = np.nan
            for index, name in enumerate(counts):
                part = core if name == "pairs" else core[pairs.stores[:, index - 1]]
                part.tofile(files[name])
                counts[name] += len(part)
    finally:
        for file in files.values():
            file.close()
    return counts


def blocks(scored: RangeFile, rows: int = _BLOCK) -> Iterator[tuple[int, pa.Table]]:
    """Yield (first row, clips) of about `rows` rows each; no condition is cut."""
    start = 0
    while start < len(scored):
        stop = min(start + rows, len(scored))
        table = scored.read(start, stop)
        if stop < len(scored):
            names = table["condition_id"].to_pylist()
            whole = len(names) - 1
            while whole and names[whole - 1] == names[-1]:
                whole -= 1
            if not whole:
                rows *= 2
                continue
            table = table.slice(0, whole)
        yield start, table
        start += table.num_rows


def core_path(folder: Path, split: str, name: str) -> Path:
    """Return the file of a split's pairs ("pairs") or of one store."""
    return folder / f"{split}.{name}.core"


def read_core(path: Path, start: int, stop: int) -> Core:
    """Return pairs [start, stop) of a core file."""
    return np.fromfile(path, CORE, stop - start, offset=start * CORE.itemsize)


def keep_one_a_prompt(
    scored: RangeFile, folder: Path, split: str, unique: str, counts: Mapping[str, int]
) -> dict[str, int]:
    """Write the split `unique`: of each table of `split` the first pair of every prompt.

    Clips without a prompt are told apart by their condition.
    """
    kept_counts = {}
    for name, count in counts.items():
        seen: set[str] = set()
        path = core_path(folder, split, name)
        with core_path(folder, unique, name).open("wb") as file:
            kept = 0
            for start in range(0, count, _CORE_BLOCK):
                core = read_core(path, start, min(start + _CORE_BLOCK, count))
                low, high = int(core["a"].min()), int(core["a"].max()) + 1
                table = scored.read(low, high).take(core["a"] - low)
                rows = []
                names = zip(
                    *(table[c].to_pylist() for c in ("prompt", "condition_id")), strict=True
                )
                for row, (prompt, condition) in enumerate(names):
                    key = prompt or f"\0{condition}"
                    if key not in seen:
                        seen.add(key)
                        rows.append(row)
                core[rows].tofile(file)
                kept += len(rows)
        kept_counts[name] = kept
    return kept_counts
