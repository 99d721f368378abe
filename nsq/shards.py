"""Arrow IPC shards with fixed names and bytes: the same rows always give the same files."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from ft2.pairs import BATCH_ROWS
from ft2.runs import hash_file

Column = Sequence[Any]
_TEMPORARY = ".arrow.tmp"


def shard_name(split: str, index: int, count: int) -> str:
    """Return the file name of a shard, as the Hugging Face Hub spells it."""
    return f"{split}-{index:05d}-of-{count:05d}.arrow"


def write_table(
    folder: Path,
    split: str,
    schema: pa.Schema,
    num_rows: int,
    rows_per_shard: int,
    columns: Callable[[int, int], Mapping[str, Column]],
    batch_rows: int = BATCH_ROWS,
) -> list[dict[str, Any]]:
    """Write a table of one split as shards and return one manifest entry for each.

    A shard that is already there is kept: it was renamed into place complete, and a build
    directory belongs to one config. Files of another shard count are removed.

    Args:
        folder: Where the shards go, such as `OUT/data/clips`.
        split: Name of the split; part of the file names.
        schema: Arrow schema; column order is the schema's.
        num_rows: Rows in all; 0 writes one shard without rows.
        rows_per_shard: Rows in one file; the last has what is left.
        columns: Returns the columns of rows [start, stop); called batch by batch.
        batch_rows: Rows in one record batch: few for media (random access), many without.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = max(1, -(-num_rows // rows_per_shard))
    names = [shard_name(split, index, count) for index in range(count)]
    for path in [*folder.glob(f"{split}-*.arrow"), *folder.glob(f".{split}-*{_TEMPORARY}")]:
        if path.name not in names:
            path.unlink()
    entries = []
    for index, name in enumerate(names):
        start, stop = index * rows_per_shard, min((index + 1) * rows_per_shard, num_rows)
        path = folder / name
        if not path.exists():
            _write_shard(path, schema, start, stop, batch_rows, columns)
        entries.append(
            {
                "path": f"{folder.parent.name}/{folder.name}/{name}",
                "rows": stop - start,
                "bytes": path.stat().st_size,
                "sha256": hash_file(path),
            }
        )
    return entries


def _write_shard(
    path: Path,
    schema: pa.Schema,
    start: int,
    stop: int,
    batch_rows: int,
    columns: Callable[[int, int], Mapping[str, Column]],
) -> None:
    temporary = path.with_name(f".{path.stem}{_TEMPORARY}")
    with temporary.open("wb") as file:
        with pa.ipc.new_stream(file, schema) as writer:
            for first in range(start, stop, batch_rows):
                values = columns(first, min(first + batch_rows, stop))
                arrays = [pa.array(values[f.name], f.type) for f in schema]
                writer.write_batch(pa.record_batch(arrays, schema=schema))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def dataset_hash(ids: Sequence[str]) -> str:
    """Return a hash of a set of content hashes, independent of order and sharding."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def manifest_tables(
    entries: Mapping[tuple[Literal["clips", "pairs"], str], list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """Return manifest rows, one a table and split: rows, bytes and shards."""
    return [
        {
            "table": table,
            "split": split,
            "rows": sum(e["rows"] for e in shards),
            "bytes": sum(e["bytes"] for e in shards),
            "shards": shards,
        }
        for (table, split), shards in entries.items()
    ]
