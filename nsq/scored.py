"""The judged clips of a build on disk: one Arrow file a chunk, then one a split, read by ranges."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ft2.pairs import DIMENSIONS

ROWS = 4096
"""Rows of a record batch: what is read at once."""

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("clip_id", "condition_id", "identity_id", "audio_id")),
        *((name, pa.string()) for name in ("source_id", "reference_id", "prompt", "split")),
        *((name, pa.string()) for name in ("model", "video", "portrait", "audio")),
        ("seed", pa.int64()),
        *((name, pa.int32()) for name in ("width", "height", "num_frames")),
        *((name, pa.float32()) for name in ("fps", *(f"score_{d}" for d in DIMENSIONS))),
        ("media_bytes", pa.int64()),
        ("phash", pa.binary()),
        ("dropped", pa.string()),
        ("detail", pa.string()),
    ]
)
"""One candidate: facts, scores, and, where it was dropped, which filter did it and what it saw."""


class RangeFile:
    """An Arrow IPC file whose rows are read by range, a few record batches at a time.

    Nothing is memory-mapped: the pages of a map count as the process's memory.
    """

    def __init__(self, path: Path) -> None:
        """Open the file; close it by `with`."""
        self._source = pa.OSFile(str(path))
        self._reader = pa.ipc.open_file(self._source)
        counts = [
            self._reader.get_batch(i).num_rows for i in range(self._reader.num_record_batches)
        ]
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._kept: tuple[tuple[int, int], pa.Table] | None = None

    def __enter__(self) -> "RangeFile":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._source.close()

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self._starts[-1])

    def read(self, start: int, stop: int) -> pa.Table:
        """Return rows [start, stop)."""
        if start >= stop:
            return self._reader.schema.empty_table()
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, stop, side="left"))
        if self._kept is None or self._kept[0] != (first, last):
            batches = [self._reader.get_batch(i) for i in range(first, last)]
            self._kept = ((first, last), pa.Table.from_batches(batches))
        return self._kept[1].slice(start - int(self._starts[first]), stop - start)

    def column(self, name: str) -> NDArray[Any]:
        """Return one whole numeric column."""
        parts = [  # copies: a view would keep its whole batch in memory
            np.array(self._reader.get_batch(i).column(name).to_numpy(zero_copy_only=False))
            for i in range(self._reader.num_record_batches)
        ]
        return np.concatenate(parts) if parts else np.zeros(0)


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write one chunk of judged candidates, atomically."""
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA)
    write_batches(path, table.to_batches(ROWS))


def write_batches(path: Path, batches: Iterable[pa.RecordBatch]) -> int:
    """Write record batches as one Arrow file, atomically, and return the number of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    count = 0
    try:
        with temporary.open("wb") as file:
            with pa.ipc.new_file(file, SCHEMA) as writer:
                for batch in batches:
                    writer.write_batch(batch)
                    count += batch.num_rows
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return count


def read_chunk(path: Path) -> pa.Table:
    """Return one chunk."""
    with pa.OSFile(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def split_batches(chunks: Sequence[Path], split: str) -> Iterator[pa.RecordBatch]:
    """Yield the kept rows of a split in canonical order, in batches of `ROWS`."""
    waiting: list[pa.Table] = []
    held = 0
    for path in chunks:
        table = read_chunk(path)
        wanted = pc.and_(pc.equal(table["split"], split), pc.is_null(table["dropped"]))
        part = table.filter(wanted)
        waiting.append(part)
        held += part.num_rows
        while held >= ROWS:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, ROWS).combine_chunks().to_batches()[0]
            waiting = [joined.slice(ROWS)]
            held = waiting[0].num_rows
    if held:
        yield pa.concat_tables(waiting).combine_chunks().to_batches()[0]


def scores_of(table: pa.Table) -> NDArray[np.float64]:
    """Return [N, 3] scores, with the values that float32 holds; NaN where there are none."""
    columns = [table[f"score_{d}"].to_numpy() for d in DIMENSIONS]
    return np.stack(columns, axis=1).astype(np.float64).reshape(table.num_rows, len(DIMENSIONS))
