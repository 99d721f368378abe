"""Processes that train together in tests: how they start, and what each of them does first."""

import inspect
import os
import socket
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

from ft2.tlpo.stage import Stage

PRELUDE = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import tlpo_toys as toys
import ft2.tlpo.views as views
from ft2.config import EngineConfig
from ft2.engine import rank_zero_first, shutdown
from ft2.tlpo.train import train_expert, train_fusion
from tlpo_workers import keep_hash

out, kind, micro, jobs = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5:]
rank = int(os.environ["RANK"])
engine = EngineConfig(kind="torch" if kind == "torch" else "deepspeed",
                      zero_stage=0 if kind == "torch" else int(kind),
                      learning_rate=1e-2, warmup_steps=3, micro_batch_size=micro)
with rank_zero_first(engine):
    world = toys.toy_world(out / "cache", num_conditions=8)
views.read_pairs = lambda _, store: world.pairs[store]
"""


def keep_hash(file: Path) -> None:
    """Have this process write a hash of the whole trained weights when a stage has ended."""
    right = Stage.train

    def train(*given: object, **more: object) -> object:
        bound = inspect.signature(right).bind(*given, **more)
        bound.apply_defaults()
        keep, trained = bound.arguments["keep"], bound.arguments["trainable"].values()

        def also() -> None:
            values = b"".join(p.detach().cpu().numpy().tobytes() for p in trained)
            file.write_text(f"{len(values)} {sha256(values).hexdigest()}")
            keep()

        bound.arguments["keep"] = also
        Stage.train = right
        return right(*bound.args, **bound.kwargs)

    Stage.train = train  # type: ignore[assignment]


def start(
    script: str, out: Path, ranks: int, kind: str, micro: int, *jobs: str
) -> list[subprocess.Popen[str]]:
    """Start processes that run PRELUDE and a script: micro pairs a process, torch or a stage."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1",
           "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}  # fmt: skip
    whole = f"{PRELUDE}\n{script}\nshutdown()\n"
    given = [str(Path(__file__).parent), str(out), kind, str(micro), *jobs]
    return [
        subprocess.Popen([sys.executable, "-c", whole, *given], stderr=subprocess.PIPE, text=True,
                         env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(ranks)
    ]  # fmt: skip


def finish(workers: list[subprocess.Popen[str]]) -> None:
    """Wait for processes; each must end well."""
    try:
        for worker in workers:
            _, stderr = worker.communicate(timeout=900)
            assert worker.returncode == 0, stderr[-3000:]
    finally:
        for worker in workers:
            worker.kill()
