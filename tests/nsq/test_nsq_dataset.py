"""The written dataset as others read it: `datasets` without ft2, streamed, on several nodes."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from nsq_fakes import ColourScorer, HashGenerator, write_conditions

from ft2.nsq.build import build
from ft2.nsq.config import NsqConfig
from ft2.pairs import STORES, read_clips, read_pairs
from ft2.runs import Silent, read_json

READ = """
    import json, sys
    from datasets import load_dataset
    root = sys.argv[1]
    pairs = load_dataset(root)
    clips = load_dataset(root, "clips", split="train")
    found = {"sizes": {k: len(v) for k, v in pairs.items()}, "clips": len(clips)}
    found["labels"] = pairs["train"].features["label_lip"].names
    row = clips[0]
    video = clips.features["video"]
    found["media"] = [len(row["video"]["bytes"]), str(video), row["reference"].size]
    for name in ("motion", "lip", "quality", "fusion"):
        view = load_dataset(root, name, split="train")
        streamed = load_dataset(root, name, split="train", streaming=True)
        assert [r["pair_id"] for r in streamed] == view["pair_id"][:], name
        for r in view:
            assert clips[r["chosen_row"]]["clip_id"] == r["chosen"]
            assert clips[r["rejected_row"]]["clip_id"] == r["rejected"]
        found[name] = [[r["pair_id"], r["chosen"], r["rejected"], r["margin"]] for r in view]
    streamed = load_dataset(root, "clips", split="train", streaming=True)
    assert [r["clip_id"] for r in streamed] == clips["clip_id"][:]
    assert "ft2" not in sys.modules
    print(json.dumps(found))
"""
NODES = """
    import json, sys
    from datasets import load_dataset
    from datasets.distributed import split_dataset_by_node
    from torch.utils.data import DataLoader
    seen = []
    for rank in range(2):
        stream = load_dataset(sys.argv[1], "lip", split="train", streaming=True)
        part = split_dataset_by_node(stream, rank=rank, world_size=2)
        loader = DataLoader(part.select_columns(["pair_id"]), batch_size=None, num_workers=2)
        seen.append([row["pair_id"] for row in loader])
    print(json.dumps(seen))
"""


def run(code: str, folder: Path) -> object:
    """Run code in an interpreter of its own, offline, with a cache of its own."""
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    env["HF_HOME"] = str(folder.parent / "hf")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(folder)],
        env=env, capture_output=True, text=True, check=False, cwd=folder.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_datasets_library_reads_tables_and_views_without_ft2(dataset: Path) -> None:
    found = run(READ, dataset)
    assert isinstance(found, dict)
    stats = read_json(dataset / "stats.json")
    sizes = {s["split"]: s["pairs"] for s in stats["splits"] if s["pairs"]}
    assert found["sizes"].pop("test_unique") == 1
    assert found["sizes"] == sizes
    assert (found["clips"], found["labels"]) == (18, ["A", "B", "tie"])
    num_bytes, video, size = found["media"]
    assert num_bytes > 500
    assert "Video" in video
    assert size == [32, 32]
    for store in STORES:
        expected = [
            [p.pair_id, p.chosen.clip_id, p.rejected.clip_id, pytest.approx(p.margin, abs=1e-6)]
            for p in read_pairs(dataset, store)
        ]
        assert found[store] == expected
        assert expected


def test_nodes_and_workers_share_a_stream_without_loss_or_repeat(dataset: Path) -> None:
    seen = run(NODES, dataset)
    assert isinstance(seen, list)
    assert sorted(seen[0] + seen[1]) == sorted(p.pair_id for p in read_pairs(dataset, "lip"))
    assert seen[0]
    assert seen[1]


def test_clip_id_is_the_hash_of_the_video(dataset: Path) -> None:
    import hashlib

    for clip_id, clip in read_clips(dataset).items():
        assert hashlib.sha256(memoryview(clip.video)).hexdigest() == clip_id


@pytest.mark.parametrize("change", ["order", "shards", "chunks", "workers"])
def test_content_does_not_depend_on_order_shards_chunks_or_workers(
    config: NsqConfig, tmp_path: Path, dataset: Path, change: str
) -> None:
    update: dict[str, object] = {}
    if change == "order":
        lines = Path(config.conditions).read_text().splitlines()
        Path(config.conditions).write_text("\n".join(lines[::-1]) + "\n")
    if change == "shards":
        update = {"train_shards": 1, "shard_bytes": 10**9}
    if change == "chunks":
        update = {"chunk_conditions": 5, "critic_batch_size": 3}
    if change == "workers":
        update = {"workers": config.workers.model_copy(update={"count": 1})}
    other = config.model_copy(update=update)
    build(other, tmp_path / "b", HashGenerator(), ColourScorer(), progress=Silent())
    manifests = [read_json(p / "manifest.json") for p in (dataset, tmp_path / "b")]
    assert manifests[0]["dataset_hash"] == manifests[1]["dataset_hash"]
    assert (manifests[0]["tables"] == manifests[1]["tables"]) == (change != "shards")
    for store in STORES:
        pairs = [[p.pair_id for p in read_pairs(d, store)] for d in (dataset, tmp_path / "b")]
        assert pairs[0] == pairs[1]


def test_test_unique_has_one_pair_of_each_prompt(config: NsqConfig, tmp_path: Path) -> None:
    folder = tmp_path / "more"
    folder.mkdir()
    path = write_conditions(folder, ["train", "test", "test", "test"])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1]["prompt"] = rows[2]["prompt"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config.model_copy(update={"conditions": str(path)})
    build(config, tmp_path / "out", HashGenerator(), ColourScorer(), progress=Silent())
    pairs = read_pairs_table(tmp_path / "out", "test")
    unique = read_pairs_table(tmp_path / "out", "test_unique")
    assert len(pairs) > len(unique) == len({row["prompt"] for row in unique}) == 2
    assert [row for row in pairs if row["pair_id"] in {u["pair_id"] for u in unique}] == unique
    card = (tmp_path / "out" / "README.md").read_text()
    assert "path: data/pairs/test_unique-*" in card


def read_pairs_table(folder: Path, split: str) -> list[dict[str, object]]:
    from ft2.pairs import read_table

    return read_table(folder, "pairs", split).to_pylist()


def test_shard_of_another_schema_and_a_damaged_one_are_refused(dataset: Path) -> None:
    import pyarrow as pa

    from ft2.errors import UsageError

    path = sorted((dataset / "data" / "pairs").glob("train-*"))[0]
    whole = path.read_bytes()
    for share in (0.0, 0.1, 0.5, 0.9):  # in the schema, in a batch's header, in its body
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UsageError, match="cannot be read"):
            read_pairs(dataset, "lip")
    with pa.OSFile(str(path), "wb") as file:
        old = pa.table({"pair_id": ["x"]}).replace_schema_metadata({"ft2_schema": "1"})
        with pa.ipc.new_stream(file, old.schema) as writer:
            writer.write_table(old)
    with pytest.raises(UsageError, match="has schema 1, this ft2 reads 2"):
        read_pairs(dataset, "lip")
