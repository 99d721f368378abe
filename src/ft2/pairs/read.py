"""Reading of a dataset directory: tables, clips with media, pairs, and the view of one store."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pyarrow as pa

from ft2.errors import UsageError
from ft2.pairs.records import (
    DIMENSIONS,
    LABELS,
    STORES,
    ClipRecord,
    PairRecord,
    Preference,
    Scores,
    Store,
)
from ft2.pairs.schema import SCHEMA_VERSION

Table = Literal["clips", "pairs", "motion", "lip", "quality", "fusion"]
_MEDIA = ["video", "audio", "reference"]


def shard_paths(dataset_dir: Path, table: Table, split: str) -> list[Path]:
    """Return the shard files of a table and split in order.

    Raises:
        UsageError: no such dataset, or the split has no shards.
    """
    paths = sorted((dataset_dir / "data" / table).glob(f"{split}-*-of-*.arrow"))
    if not paths:
        there = splits_of(dataset_dir, table)
        raise UsageError(
            f"{dataset_dir} has no {table} of split {split!r}", f"splits there: {', '.join(there)}"
        )
    return paths


def splits_of(dataset_dir: Path, table: Table) -> list[str]:
    """Return the splits of which a dataset has a table, train first, then by name.

    Raises:
        UsageError: no such directory, or one without any such table.
    """
    if not dataset_dir.is_dir():
        raise UsageError(f"there is no directory '{dataset_dir}'", "check the path")
    folder = dataset_dir / "data" / table
    splits = {p.name.split("-")[0] for p in folder.glob("*-of-*.arrow")}
    if not splits:
        raise UsageError(f"{dataset_dir} has no {table}", "build a dataset: ft2 nsq build")
    return sorted(splits, key=lambda split: (split != "train", split))


def read_table(dataset_dir: Path, table: Table, split: str) -> pa.Table:
    """Return a whole table, memory-mapped (media stay on disk until a value is read).

    Raises:
        UsageError: no such dataset or split, a damaged shard, or one of another schema.
    """
    tables = []
    for path in shard_paths(dataset_dir, table, split):
        try:
            with pa.memory_map(str(path)) as source:
                found = pa.ipc.open_stream(source).read_all()
        except (pa.ArrowInvalid, OSError) as error:
            raise UsageError(f"{path} cannot be read: {error}", "see ft2 nsq validate") from error
        version = (found.schema.metadata or {}).get(b"ft2_schema", b"none").decode()
        if version != str(SCHEMA_VERSION):
            raise UsageError(
                f"{path} has schema {version}, this ft2 reads {SCHEMA_VERSION}",
                "build the dataset anew: ft2 nsq build",
            )
        tables.append(found)
    return pa.concat_tables(tables)


def read_clips(dataset_dir: Path | str, split: str = "train") -> dict[str, ClipRecord]:
    """Return the clips of a split by `clip_id`, in file order.

    Raises:
        UsageError: no such dataset or split.
    """
    clips = {}
    for batch in read_table(Path(dataset_dir), "clips", split).to_batches():
        rows = batch.drop_columns(_MEDIA).to_pylist()
        media = {n: batch.column(n).field("bytes") for n in _MEDIA}
        for i, row in enumerate(rows):
            scores = _scores([row.pop(f"score_{d}") for d in DIMENSIONS])
            row.pop("seconds"), row.pop("has_audio"), row.pop("source_id", None)
            buffers = {name: column[i].as_buffer() for name, column in media.items()}
            clips[row["clip_id"]] = ClipRecord(**row, split=split, scores=scores, **buffers)
    return clips


def _scores(values: list[float | None]) -> Scores | None:
    """Return the scores of a clip, None where it has none; float32 may leave [0, 1] by an ulp."""
    known = [min(1.0, max(0.0, value)) for value in values if value is not None]
    return Scores(*known) if len(known) == len(DIMENSIONS) else None


def read_pair_records(dataset_dir: Path | str, split: str = "train") -> Iterator[PairRecord]:
    """Yield every pair of a split with labels and scores, without media."""
    for row in read_table(Path(dataset_dir), "pairs", split).to_pylist():
        yield PairRecord(
            pair_id=row["pair_id"],
            condition_id=row["condition_id"],
            clip_a=row["clip_a"],
            clip_b=row["clip_b"],
            labels=tuple(_label(row[f"label_{d}"]) for d in DIMENSIONS),
            scores_a=_scores([row[f"score_a_{d}"] for d in DIMENSIONS]),
            scores_b=_scores([row[f"score_b_{d}"] for d in DIMENSIONS]),
            stores=tuple(store for store in STORES if row[f"in_{store}"]),
        )


def _label(value: int | None) -> str | None:
    return None if value is None else LABELS[value]


def read_pairs(dataset_dir: Path | str, dimension: Store, split: str = "train") -> list[Preference]:
    """Return one store as chosen/rejected pairs, in file order; an empty store gives [].

    Args:
        dataset_dir: a directory that `ft2 nsq build` wrote.
        dimension: "motion", "lip" or "quality", or "fusion" for pairs that win on all three.
        split: "train", "validation", "test", ... as in the conditions.

    Raises:
        UsageError: unknown dimension, or no such dataset or split.
    """
    if dimension not in STORES:
        raise UsageError(f"unknown dimension {dimension!r}", hint=f"one of {', '.join(STORES)}")
    clips = read_clips(dataset_dir, split)
    table = read_table(Path(dataset_dir), "pairs", split)
    decided = DIMENSIONS if dimension == "fusion" else (dimension,)
    names = ["pair_id", "clip_a", "clip_b", f"label_{decided[0]}"]
    names += [f"margin_{d}" for d in decided]
    rows = table.filter(table[f"in_{dimension}"]).select(names)
    preferences = []
    for pair_id, a, b, label, *gaps in zip(*(c.to_pylist() for c in rows.columns), strict=True):
        chosen, rejected = (a, b) if LABELS[label] == "A" else (b, a)
        margin = math.nan if None in gaps else min(gaps)
        preferences.append(Preference(pair_id, dimension, clips[chosen], clips[rejected], margin))
    return preferences
