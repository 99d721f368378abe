"""Two processes under DeepSpeed: equal to one with the whole batch, one writer, exact resume."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ft2.config import EngineConfig
from ft2.critic.checkpoint import read_card
from ft2.critic.train import train_critic
from ft2.runs import Silent, hash_file, load_tensors

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow

SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import ft2.critic.loop as loop
from ft2.critic.config import CriticConfig
from ft2.critic.train import train_critic
from ft2.engine import shutdown
from ft2.runs import Silent

config = CriticConfig.model_validate_json(Path(sys.argv[1]).read_text())
out, stop = Path(sys.argv[2]), int(sys.argv[3])
if stop:
    class Cut(Silent):
        def update(self, stage, done, total, note=""):
            if stage == "train critic" and done == stop:
                raise SystemExit(0)
    try:
        train_critic(config, out, True, Cut())
    except SystemExit:
        pass
train_critic(config, out, True, Silent())
shutdown()
"""


def run_ranks(config, out, ranks, port, stop=0):
    path = out.parent / f"{out.name}.json"
    path.write_text(config.model_dump_json())
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1",
           "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}  # fmt: skip
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(path), str(out), str(stop)],
            stderr=subprocess.PIPE, text=True,
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]  # fmt: skip
    for worker in workers:
        _, stderr = worker.communicate(timeout=900)
        assert worker.returncode == 0, stderr[-3000:]


@pytest.fixture
def settings(config):
    questions = {k: v for k, v in config.questions.items() if k != "motion"}
    changes = {"questions": questions, "swap": 0.0, "copies": 0, "steps": 4}
    source = Path(config.ratings)
    ratings = [json.loads(line) for line in source.read_text().splitlines()]
    for row in ratings:
        del row["motion"]  # one clip has no answer to it
    path = source.with_name("two.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in ratings))
    return config.model_copy(update=changes | {"ratings": str(path)})


def engine(stage, micro):
    return EngineConfig(
        kind="deepspeed" if stage is not None else "torch", zero_stage=stage or 0,
        learning_rate=3e-3, micro_batch_size=micro, warmup_steps=2,
    )  # fmt: skip


@pytest.mark.parametrize(("stage", "port"), [(2, 29611), (3, 29612)])
def test_two_processes_equal_one(settings, tmp_path, stage, port):
    one = settings.model_copy(update={"engine": engine(None, 8)})
    train_critic(one, tmp_path / "one", False, Silent())
    two = settings.model_copy(update={"engine": engine(stage, 4)})
    run_ranks(two, tmp_path / "two", 2, port, stop=3)
    name = "adapter/adapter_model.safetensors"
    first, second = (load_tensors(tmp_path / run / name)[0] for run in ("one", "two"))
    assert first.keys() == second.keys()
    worst = max(float((first[key] - second[key]).abs().max()) for key in first)
    assert worst < 1e-4, worst
    cards = [read_card(tmp_path / run / "adapter") for run in ("one", "two")]
    assert cards[0].thresholds == pytest.approx(cards[1].thresholds, abs=1e-3)
    logs = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("one", "two")]
    for a, b in zip(*(map(json.loads, log) for log in logs), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
    run_ranks(two, tmp_path / "whole", 2, port + 10)
    for file in (name, "adapter/critic.json", "metrics.jsonl"):
        assert hash_file(tmp_path / "whole" / file) == hash_file(tmp_path / "two" / file), file
