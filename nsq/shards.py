"""Arrow IPC shards with fixed names and bytes: the same rows always give the same files."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Column = Any
"""A list, a numpy array or an Arrow array."""
Columns = Callable[[int, int], Mapping[str, Column]]
MEDIA_BATCH = 10
"""Rows of a record batch with media: few, so that one row is read without its neighbours."""
_TEMPORARY = ".arrow.tmp"


def shard_name(split: str, index: int, count: int) -> str:
    """Return the file name of a shard, as the Hugging Face Hub spells it."""
    return f"{split}-{index:05d}-of-{count:05d}.arrow"


def cut(sizes: NDArray[np.int64], least: int, limit: int) -> list[int]:
    """Return where to cut rows into shards of about equal bytes: [0, ..., N].

    Args:
        sizes: [N] bytes of each row.
        least: Fewest shards (no more than rows); a shuffled stream wants some dozens of files.
        limit: Most bytes of a shard; a single larger row has one for itself.
    """
    count, ends = len(sizes), np.cumsum(sizes)
    if not count:
        return [0, 0]
    total = int(ends[-1])
    shards = min(count, max(1, least, -(-total // limit)))
    while True:
        bounds = [0]
        for index in range(1, shards):
            edge = int(np.searchsorted(ends, total * index // shards)) + 1
            bounds.append(min(max(edge, bounds[-1] + 1), count - (shards - index)))
        bounds.append(count)
        filled = np.add.reduceat(sizes, bounds[:-1])
        if shards == count or np.all((filled <= limit) | (np.diff(bounds) == 1)):
            return bounds
        shards += 1


def write_table(
    folder: Path,
    split: str,
    schema: pa.Schema,
    bounds: Sequence[int],
    columns: Columns,
    batch_rows: int = MEDIA_BATCH,
) -> list[Path]:
    """Write a table of one split as shards and return their paths.

    A shard that is already there is kept: it was renamed into place complete, and a build
    directory belongs to one config. Files of another shard count are removed.

    Args:
        folder: Where the shards go, such as `OUT/data/clips`.
        split: Name of the split; part of the file names.
        schema: Arrow schema; column order is the schema's.
        bounds: Where the rows are cut, from `cut`; [0, 0] writes one shard without rows.
        columns: Returns the columns of rows [start, stop); called batch by batch, in order.
        batch_rows: Rows in one record batch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = len(bounds) - 1
    paths = [folder / shard_name(split, index, count) for index in range(count)]
    for path in [*folder.glob(f"{split}-*.arrow"), *folder.glob(f".{split}-*{_TEMPORARY}")]:
        if path not in paths:
            path.unlink()
    for path, start, stop in zip(paths, bounds[:-1], bounds[1:], strict=True):
        if not path.exists():
            _write_shard(path, schema, start, stop, batch_rows, columns)
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    return paths


def _write_shard(
    path: Path, schema: pa.Schema, start: int, stop: int, batch_rows: int, columns: Columns
) -> None:
    temporary = path.with_name(f".{path.stem}{_TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            with pa.ipc.new_stream(file, schema) as writer:
                for first in range(start, stop, batch_rows):
                    values = columns(first, min(first + batch_rows, stop))
                    arrays = [_array(values[f.name], f.type) for f in schema]
                    writer.write_batch(pa.record_batch(arrays, schema=schema))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _array(values: Column, kind: pa.DataType) -> pa.Array:
    if isinstance(values, pa.Array):
        return values if values.type == kind else values.cast(kind)
    return pa.array(values, kind)
