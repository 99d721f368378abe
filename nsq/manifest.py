"""manifest.json: rows, bytes and hashes of every shard, and a hash of the dataset's content."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ft2.runs import hash_file

_MODULUS = 1 << 256
_BITS = {pa.float32(): pa.int32(), pa.float64(): pa.int64()}


class ContentHash:
    """A hash of a set of rows: the same for any order and any cutting into shards.

    The sum, modulo 2^256, of the SHA-256 of every row (the additive hash of Bellare and
    Micciancio 1997, "A new paradigm for collision-free hashing", section 4), so that nothing is
    sorted or kept. Shards carry their own SHA-256 beside it.
    """

    def __init__(self) -> None:
        """Start with no rows."""
        self._sum = 0
        self.rows = 0

    def add(self, texts: Iterable[bytes]) -> None:
        """Add rows."""
        for text in texts:
            self._sum += int.from_bytes(hashlib.sha256(text).digest(), "big")
            self.rows += 1

    def hexdigest(self) -> str:
        """Return the hash of the rows so far and of their number."""
        total = (self._sum % _MODULUS).to_bytes(32, "big")
        return hashlib.sha256(total + self.rows.to_bytes(8, "big")).hexdigest()


def row_texts(batch: pa.RecordBatch) -> list[bytes]:
    """Return one canonical byte string a row; media count by their ids, floats by their bits."""
    parts = []
    for column, kind in zip(batch.columns, batch.schema, strict=True):
        if pa.types.is_struct(kind.type):
            continue
        plain = column.view(_BITS[kind.type]) if kind.type in _BITS else column
        parts.append(pc.fill_null(plain.cast(pa.string()), "\x00"))
    joined = pc.binary_join_element_wise(*parts, "\x1f")
    return joined.cast(pa.binary()).to_pylist()


def describe_shards(root: Path, table: str, split: str, paths: Iterable[Path],
                    content: ContentHash | None = None) -> dict[str, Any]:  # fmt: skip
    """Return the manifest's entry of one table and split, and add its rows to `content`."""
    shards = []
    # Pages of a map count as this process's memory, which would grow with the shards; beside media
    # they are few, and without a map all media would be read once more.
    opened = pa.memory_map if table == "clips" else pa.OSFile
    for path in paths:
        rows = 0
        with opened(str(path)) as source, pa.ipc.open_stream(source) as reader:
            for batch in reader:
                rows += batch.num_rows
                if content is not None:
                    content.add(row_texts(batch))
        shards.append(
            {
                "path": path.relative_to(root).as_posix(),
                "rows": rows,
                "bytes": path.stat().st_size,
                "sha256": hash_file(path),
            }
        )
    return {
        "table": table,
        "split": split,
        "rows": sum(int(str(s["rows"])) for s in shards),
        "bytes": sum(int(str(s["bytes"])) for s in shards),
        "shards": shards,
    }


def public_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a build's config may be published: no paths, no machine."""
    names = ("clip", "filters", "pairing", "num_candidates", "seed", "max_failed_fraction")
    return {name: config[name] for name in names}
