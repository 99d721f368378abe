"""A toy training killed by SIGKILL at random moments ends with the bytes of an undisturbed one."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TRAIN = """
import sys
from ft2.config import EngineConfig
from ft2.runs import RunDir, write_atomic

run = RunDir.open(sys.argv[1], config=EngineConfig(), resume=True)
state, start = 1, 0
if run.latest():
    start, folder = run.latest()
    state = int((folder / "state").read_text())
run.rewind(start)
for step in range(start + 1, 61):
    state = state * 6364136223846793005 % 2**61 + step
    run.log(step, state=str(state))
    if step % 2 == 0:
        with run.checkpoint(step) as folder:
            for part in range(5):
                (folder / f"part{part}").write_text(str(state) * 1000)
            (folder / "state").write_text(str(state))
write_atomic(run.path / "artefact", str(state))
run.finish({"state": state})
"""


def content(path: Path) -> dict[str, bytes]:
    skip = {"command.json", ".lock"}
    return {
        str(p.relative_to(path)): p.read_bytes()
        for p in sorted(path.rglob("*"))
        if p.is_file() and p.name not in skip
    }


def start(path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", TRAIN, str(path)])


@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_runs_end_as_undisturbed_ones(tmp_path: Path, kills: int):
    began = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    seconds = time.monotonic() - began
    rng = random.Random(kills)
    killed = 0
    for _ in range(kills):
        process = start(tmp_path / "killed")
        time.sleep(rng.uniform(0.4, 1.0) * seconds)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed
    assert start(tmp_path / "killed").wait() == 0
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
