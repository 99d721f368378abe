"""The command line as typed: `torchrun ... -m ft2 tlpo train` on files, against one process."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from tlpo_toys import World, expert_config, toy_world

from ft2.lora import read_adapter
from ft2.pairs import DIMENSIONS, LABELS, STORES, ClipRecord, Preference
from ft2.pairs.schema import clip_schema, pair_schema
from ft2.wan.own import save_model
from ft2.weights import nano_dir

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow

SETTINGS = ["engine.learning_rate=0.1", "engine.eps=0.1"]  # AdamW: no rounding over rounding
TWO = ["engine.kind=deepspeed", "engine.zero_stage=1", "engine.micro_batch_size=2"]


def write_table(path: Path, schema: pa.Schema, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True)
    columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in schema]
    with path.open("wb") as file, pa.ipc.new_stream(file, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))


def clip_row(clip: ClipRecord) -> dict[str, object]:
    row = {name: getattr(clip, name, None) for name in clip_schema().names}
    media = ("video", "audio", "reference")
    row |= {name: {"bytes": getattr(clip, name).to_pybytes(), "path": name} for name in media}
    return row | {f"score_{dimension}": 0.5 for dimension in DIMENSIONS}


def pair_row(pair: Preference) -> dict[str, object]:
    row: dict[str, object] = {"pair_id": pair.pair_id, "condition_id": pair.chosen.condition_id}
    row |= {"clip_a": pair.chosen.clip_id, "clip_b": pair.rejected.clip_id}
    row |= {f"label_{pair.store}": LABELS.index("A"), f"margin_{pair.store}": pair.margin}
    return row | {f"in_{store}": store == pair.store for store in STORES}


def write_world(world: World, folder: Path) -> Path:
    """Write the dataset of the motion pairs, the weights and a config; return the config."""
    clips = {c.clip_id: c for p in world.pairs["motion"] for c in (p.chosen, p.rejected)}
    shard = "train-00000-of-00001.arrow"
    rows = [clip_row(clip) for clip in clips.values()]
    write_table(folder / "nsq/data/clips" / shard, clip_schema(), rows)
    pairs = [pair_row(pair) for pair in world.pairs["motion"]]
    write_table(folder / "nsq/data/pairs" / shard, pair_schema(), pairs)
    save_model(world.model, folder / "weights", {}, half=False)
    shutil.copyfile(nano_dir() / "tokenizer.json", folder / "weights/tokenizer.json")
    config = expert_config(world, steps=4).model_dump(mode="json")
    config |= {"dataset": str(folder / "nsq"), "model": {"weights": str(folder / "weights")}}
    (folder / "own.yaml").write_text(yaml.safe_dump(config))
    return folder / "own.yaml"


def type_in(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True,
                          timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip


def test_two_ranks_of_zero_1_equal_one_process(tmp_path: Path) -> None:
    config = write_world(toy_world(tmp_path / "cache", num_conditions=8), tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    train = ["ft2", "tlpo", "train", str(config), *SETTINGS]
    launch = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port), "-m"]
    two = type_in(*launch, *train, *TWO, "-o", str(tmp_path / "two"), "-q")
    assert two.returncode == 0, two.stderr[-3000:]
    assert two.stdout.count("norm_b: ") == 1, "rank 0 alone prints the result"
    one = type_in(*train, "-o", str(tmp_path / "one"), "-q")
    assert one.returncode == 0, one.stderr[-3000:]
    a, b = (read_adapter(tmp_path / name / "adapter")[1] for name in ("one", "two"))
    assert max(float(t.abs().max()) for n, t in a.items() if ".lora_B." in n) > 1e-2
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-6
    assert (tmp_path / "two/deepspeed.json").is_file()

    (tmp_path / "two/result.json").unlink()
    alone = type_in(*train, *TWO, "-o", str(tmp_path / "two"), "-q", "--resume")
    assert alone.returncode == 2, alone.stderr[-3000:]
    assert "was saved by 2 processes, this run has 1" in alone.stderr
