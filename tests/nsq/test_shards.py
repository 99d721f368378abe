"""Shards: names, sizes, batches, and contents that do not depend on how rows are cut."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft2.nsq.manifest import ContentHash, describe_shards, row_texts
from ft2.nsq.shards import cut, shard_name, write_table

SCHEMA = pa.schema([("n", pa.int64()), ("text", pa.string()), ("x", pa.float32())])


def columns(start: int, stop: int) -> dict[str, list[object]]:
    rows = range(start, stop)
    texts = [None if i % 4 == 3 else f"row {i}" for i in rows]
    return {"n": list(rows), "text": texts, "x": [i / 7 for i in rows]}


def read(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).read_all()


@pytest.mark.parametrize("bounds", [[0, 0], [0, 5], [0, 5, 6], [0, 7, 14, 21, 23]])
def test_rows_are_cut_in_order_and_counted(tmp_path: Path, bounds: list[int]) -> None:
    paths = write_table(tmp_path / "t", "train", SCHEMA, bounds, columns, batch_rows=3)
    shards = len(bounds) - 1
    assert [p.name for p in paths] == [shard_name("train", i, shards) for i in range(shards)]
    tables = [read(path) for path in paths]
    entry = describe_shards(tmp_path, "t", "train", paths)
    assert [s["rows"] for s in entry["shards"]] == [t.num_rows for t in tables]
    assert pa.concat_tables(tables)["n"].to_pylist() == list(range(bounds[-1]))
    assert all(len(batch) <= 3 for table in tables for batch in table.to_batches())
    assert [s["bytes"] for s in entry["shards"]] == [p.stat().st_size for p in paths]
    assert entry["shards"][0]["path"] == f"t/{paths[0].name}"


def test_shards_of_another_count_are_removed(tmp_path: Path) -> None:
    write_table(tmp_path, "train", SCHEMA, [0, 3, 6, 10], columns)
    write_table(tmp_path, "dev", SCHEMA, [0, 2], columns)
    write_table(tmp_path, "train", SCHEMA, [0, 5, 10], columns)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [
        "dev-00000-of-00001.arrow",
        "train-00000-of-00002.arrow",
        "train-00001-of-00002.arrow",
    ]


def test_failed_write_leaves_no_shard(tmp_path: Path) -> None:
    def broken(start: int, stop: int) -> dict[str, list[object]]:
        if start:
            raise ValueError("the disk is on fire")
        return columns(start, stop)

    with pytest.raises(ValueError, match="fire"):
        write_table(tmp_path, "train", SCHEMA, [0, 20], broken, batch_rows=10)
    assert not list(tmp_path.iterdir())
    (whole,) = write_table(tmp_path, "train", SCHEMA, [0, 20], columns, batch_rows=10)
    assert read(whole).num_rows == 20


@given(st.lists(st.integers(1, 1000), max_size=60), st.integers(1, 40), st.integers(100, 5000))
@settings(max_examples=100, deadline=None)
def test_cut_gives_enough_shards_of_bounded_bytes(sizes: list[int], least: int, limit: int) -> None:
    bounds = cut(np.array(sizes, np.int64), least, limit)
    assert bounds[0] == 0
    assert bounds[-1] == len(sizes)
    if not sizes:
        assert bounds == [0, 0]
        return
    parts = [sizes[a:b] for a, b in itertools.pairwise(bounds)]
    assert all(parts)
    assert len(parts) >= min(least, len(sizes))
    assert all(sum(part) <= limit or len(part) == 1 for part in parts)


def test_cut_follows_bytes_and_not_rows() -> None:
    sizes = np.array([1000] * 10 + [10] * 1000, np.int64)
    bounds = cut(sizes, 4, 10**9)
    filled = [int(sizes[a:b].sum()) for a, b in itertools.pairwise(bounds)]
    assert max(filled) <= 1.3 * min(filled)


@given(st.integers(1, 40), st.lists(st.integers(1, 39), max_size=5), st.randoms())
@settings(max_examples=30, deadline=None)
def test_content_hash_is_that_of_a_set_of_rows(rows: int, cuts: list[int], random: object) -> None:
    texts = row_texts(_batch(columns(0, rows)))
    whole, parts = ContentHash(), ContentHash()
    whole.add(texts)
    order = list(range(rows))
    random.shuffle(order)  # type: ignore[attr-defined]
    edges = sorted({0, rows, *(c for c in cuts if c < rows)})
    for start, stop in itertools.pairwise(edges):
        parts.add([texts[i] for i in order[start:stop]])
    assert whole.hexdigest() == parts.hexdigest()
    changed = ContentHash()
    changed.add([*texts[:-1], texts[-1] + b"x"])
    assert changed.hexdigest() != whole.hexdigest()
    twice = ContentHash()
    twice.add([*texts, texts[0]])
    assert twice.hexdigest() != whole.hexdigest()


def test_row_texts_tell_every_value_apart() -> None:
    values = {
        "n": [1, 1, 1, 11, 1],
        "text": ["a", "a", None, "a", ""],
        "x": [0.1, 0.10001, 0, 0, 0],
    }
    assert len(set(row_texts(_batch(values)))) == 5


def _batch(values: dict[str, list[object]]) -> pa.RecordBatch:
    return pa.record_batch([pa.array(values[f.name], f.type) for f in SCHEMA], schema=SCHEMA)
