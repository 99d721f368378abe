"""SIGKILL at random moments of a build: it always goes on to the same bytes."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from nsq_fakes import ColourScorer, HashGenerator, coloured_clip
from test_build import fingerprint

from ft2.nsq.build import build
from ft2.nsq.config import NsqConfig
from ft2.runs import Silent

KILLS = 50
BUILDER = """
    import os, sys
    from pathlib import Path
    from ft2.nsq.build import build
    from ft2.nsq.config import NsqConfig
    from ft2.runs import Silent
    from nsq_fakes import ColourScorer, HashGenerator
    config = NsqConfig.model_validate_json(Path(sys.argv[1]).read_text())
    for line in sys.stdin:  # one build a line, each in a process of its own without new imports
        child = os.fork()
        if child == 0:
            try:
                build(config, Path(line.strip()), HashGenerator(), ColourScorer(), resume=True,
                      progress=Silent())
                os._exit(0)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.mark.slow
def test_fifty_kills_leave_the_same_bytes(config: NsqConfig, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    build(config, whole, HashGenerator(), ColourScorer(), progress=Silent())
    span = time.monotonic() - began
    coloured_clip.cache_clear()
    (tmp_path / "config.json").write_text(config.model_dump_json())
    builder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(BUILDER), str(tmp_path / "config.json")],
        cwd=Path(__file__).parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert builder.stdin is not None
    assert builder.stdout is not None
    rng, kills, finished = random.Random(0), 0, 0
    while kills < KILLS:
        builder.stdin.write(f"{out}\n")
        builder.stdin.flush()
        child = int(builder.stdout.readline())
        time.sleep(rng.uniform(0, 0.3 * span))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        status = int(builder.stdout.readline())
        if os.WIFSIGNALED(status):
            kills += 1
        else:
            assert status == 0
        if (out / "result.json").exists():
            finished += 1
            assert fingerprint(out) == fingerprint(whole)
            out = tmp_path / f"killed-{finished}"
    builder.stdin.close()
    builder.wait()
    build(config, out, HashGenerator(), ColourScorer(), resume=True, progress=Silent())
    assert fingerprint(out) == fingerprint(whole)
