"""Shards: names, sizes, batches, and contents that do not depend on how rows are cut."""

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft2.nsq.shards import dataset_hash, shard_name, write_table

SCHEMA = pa.schema([pa.field("n", pa.int64()), pa.field("text", pa.string())])


def columns(start: int, stop: int) -> dict[str, list[object]]:
    return {"n": list(range(start, stop)), "text": [f"row {i}" for i in range(start, stop)]}


def read(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).read_all()


@pytest.mark.parametrize(
    ("rows", "per_shard", "shards"), [(0, 5, 1), (5, 5, 1), (6, 5, 2), (23, 7, 4)]
)
def test_rows_are_cut_in_order_and_counted(
    tmp_path: Path, rows: int, per_shard: int, shards: int
) -> None:
    entries = write_table(tmp_path, "train", SCHEMA, rows, per_shard, columns, batch_rows=3)
    names = [shard_name("train", i, shards) for i in range(shards)]
    assert [Path(e["path"]).name for e in entries] == names
    tables = [read(tmp_path / name) for name in names]
    assert [e["rows"] for e in entries] == [t.num_rows for t in tables]
    assert pa.concat_tables(tables)["n"].to_pylist() == list(range(rows))
    assert all(len(batch) <= 3 for table in tables for batch in table.to_batches())
    assert [e["bytes"] for e in entries] == [(tmp_path / n).stat().st_size for n in names]


def test_shards_of_another_count_are_removed(tmp_path: Path) -> None:
    write_table(tmp_path, "train", SCHEMA, 10, 3, columns)
    write_table(tmp_path, "dev", SCHEMA, 2, 3, columns)
    write_table(tmp_path, "train", SCHEMA, 10, 5, columns)
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
        write_table(tmp_path, "train", SCHEMA, 20, 20, broken, batch_rows=10)
    assert not list(tmp_path.glob("*.arrow"))
    whole = write_table(tmp_path, "train", SCHEMA, 20, 20, columns, batch_rows=10)
    assert whole[0]["rows"] == 20
    assert len(list(tmp_path.iterdir())) == 1


@given(st.lists(st.text(alphabet="0123456789abcdef", min_size=4, max_size=4), unique=True))
@settings(max_examples=30, deadline=None)
def test_dataset_hash_is_that_of_a_set(ids: list[str]) -> None:
    assert dataset_hash(ids) == dataset_hash(list(reversed(ids)))
    assert dataset_hash([*ids, "zzzz"]) != dataset_hash(ids)
