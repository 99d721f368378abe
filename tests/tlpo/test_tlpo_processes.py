"""Two processes: killed, ended, with a dropped pair, with another number, with a full disk."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow

SCRIPT = """
import hashlib, os, resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import tlpo_toys as toys
import ft2.tlpo.stage as stages
from ft2.config import EngineConfig
from ft2.engine import DeepSpeedEngine, rank_zero_first, shutdown
from ft2.errors import Ft2Error
from ft2.runs import Silent
from ft2.tlpo.data import PairData
from ft2.tlpo.train import train_expert

out, jobs = Path(sys.argv[2]), sys.argv[3:]
rank = int(os.environ["RANK"])
engine = EngineConfig(kind="deepspeed", zero_stage=2, learning_rate=1e-2, warmup_steps=3,
                      micro_batch_size=2)
with rank_zero_first(engine):
    world = toys.toy_world(out / "cache", num_conditions=8)
stages.read_pairs = lambda _, store: world.pairs[store]
config = toys.expert_config(world, steps=6)
loop = config.loop.model_copy(update={"checkpoint_every": 2, "eval_every": 6})
config = config.model_copy(update={"engine": engine, "loop": loop})
save, batch = DeepSpeedEngine.save, PairData.batch


def killed_save(self, directory):
    save(self, directory)
    if self.steps == 4 and rank == 0:  # written, and not yet published
        os.kill(os.getpid(), signal.SIGKILL)


def full_save(self, directory):
    if self.steps == 4 and rank == 1:  # one process has no room
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
    try:
        save(self, directory)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


calls = 0
def dropping(self, index, device, masked=None):
    global calls
    calls += 1
    made = batch(self, index, device, masked)
    if rank == 1 and calls % 3 == 0:
        made.chosen.fill_(float("nan"))
        kept = torch.isfinite(made.chosen).flatten(1).all(1)
        made = type(made)(torch.zeros_like(made.chosen), made.rejected * 0, made.cond, made.mask,
                          made.rejected_mask, kept.float())
    return made


class Term(Silent):
    def update(self, stage, done, total, note=""):
        if rank == 1 and done == 3 and stage.startswith("expert"):
            os.kill(os.getpid(), signal.SIGTERM)


for job in jobs:
    name, _, how = job.partition("+")
    DeepSpeedEngine.save = {"kill": killed_save, "full": full_save}.get(how, save)
    PairData.batch = dropping if how == "drop" else batch
    said = "done"
    try:
        train_expert(config, out / name, model=world.model, resume=True,
                     progress=Term() if how == "term" else Silent())
    except Ft2Error as error:
        said = f"{error} {getattr(error, 'hint', '')}"
    (out / f"{job}-{rank}.txt").write_text(said)
shutdown()
"""


def start(out: Path, ranks: int, *jobs: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1",
           "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}  # fmt: skip
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(out), *jobs]
    return [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True,
                         env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(ranks)
    ]  # fmt: skip


def finish(workers: list[subprocess.Popen[str]]) -> None:
    for worker in workers:
        _, stderr = worker.communicate(timeout=900)
        assert worker.returncode == 0, stderr[-3000:]


def weights(out: Path, name: str) -> bytes:
    return (out / name / "adapter" / "adapter_model.safetensors").read_bytes()


def test_two_processes_survive_what_ends_them(tmp_path: Path) -> None:
    killed = start(tmp_path, 2, "straight", "killed+kill")
    killed[0].wait(900)
    assert killed[0].returncode == -signal.SIGKILL
    killed[1].kill()  # as torchrun does with the others
    killed[1].communicate()
    latest = (tmp_path / "killed" / "checkpoints" / "latest").read_text().strip()
    assert latest == "000002"  # the one of step 4 was being written

    jobs = ("killed", "ended+term", "ended", "dropped+drop", "full+full", "full", "cut")
    finish(start(tmp_path, 2, *jobs))

    def said(job: str) -> list[str]:
        return [(tmp_path / f"{job}-{rank}.txt").read_text() for rank in range(2)]

    assert weights(tmp_path, "killed") == weights(tmp_path, "straight")
    for text in said("ended+term"):  # the signal came to one of them
        assert "SIGTERM" in text
        assert "a checkpoint of step 3 is saved" in text
    assert weights(tmp_path, "ended") == weights(tmp_path, "straight")
    assert said("dropped+drop") == ["done", "done"]
    assert weights(tmp_path, "dropped") != weights(tmp_path, "straight")
    told = said("full+full")
    assert all("the checkpoint of step 4 could not be written" in text for text in told)
    assert all("the checkpoint of step 2 is whole" in text for text in told)
    assert "another process could not write its part" in told[0]
    assert weights(tmp_path, "full") == weights(tmp_path, "straight")

    (tmp_path / "cut" / "result.json").unlink()
    finish(start(tmp_path, 1, "cut"))
    assert "was saved by 2 processes, this run has 1" in said("cut")[0]
    assert "resume with --nproc-per-node 2" in said("cut")[0]
    lines = (tmp_path / "straight" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
