"""Two processes with half the batch each equal one with the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import tlpo_toys as toys
import ft2.tlpo.stage as stages
import ft2.tlpo.train as train
from ft2.config import EngineConfig
from ft2.engine import rank_zero_first, shutdown

out, stage, micro = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
engine = EngineConfig(kind="deepspeed", zero_stage=stage, learning_rate=1e-2, warmup_steps=3,
                      micro_batch_size=micro)
with rank_zero_first(engine):
    world = toys.toy_world(out / "cache", num_conditions=8)
stages.read_pairs = lambda _, store: world.pairs[store]
config = toys.expert_config(world, steps=5).model_copy(update={"engine": engine})
train.train_expert(config, out / f"run{micro}", model=world.model)
shutdown()
"""


def launch(out: Path, stage: int, ranks: int, port: int) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1",
           "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}  # fmt: skip
    micro = 4 // ranks
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(out), str(stage)]
    workers = [
        subprocess.Popen(
            [*command, str(micro)], stderr=subprocess.PIPE, text=True,
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]  # fmt: skip
    for worker in workers:
        _, stderr = worker.communicate(timeout=900)
        assert worker.returncode == 0, stderr[-3000:]


@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks_equal_one(tmp_path: Path, stage: int) -> None:
    from ft2.lora import read_adapter

    launch(tmp_path, stage, ranks=1, port=29610 + stage)
    launch(tmp_path, stage, ranks=2, port=29620 + stage)
    one, two = (read_adapter(tmp_path / f"run{n}" / "adapter")[1] for n in (4, 2))
    assert max(float((one[k] - two[k]).abs().max()) for k in one) < 1e-4
    logs = [(tmp_path / f"run{n}" / "metrics.jsonl").read_text().splitlines() for n in (4, 2)]
    for a, b in zip(*logs, strict=True):
        assert json.loads(a)["loss"] == pytest.approx(json.loads(b)["loss"], abs=1e-4)
