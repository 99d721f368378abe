"""An expert trained under DeepSpeed equals one trained by plain torch (in a subprocess)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("deepspeed")

SCRIPT = """
import json, sys, tempfile
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import tlpo_toys as toys
import ft2.tlpo.stage as stages
import ft2.tlpo.train as train
from ft2.config import EngineConfig
from ft2.engine import shutdown
from ft2.lora import read_adapter
from ft2.runs import Silent

out = Path(sys.argv[2])
world = toys.toy_world(out / "cache", num_conditions=8)
stages.read_pairs = lambda _, store: world.pairs[store]

class Crash(Silent):
    def update(self, stage, done, total, note=""):
        if stage.startswith("expert") and done == 5:
            raise RuntimeError("killed")

def run(name, crash=False, **engine):
    config = toys.expert_config(world, steps=6)
    loop = config.loop.model_copy(update={"checkpoint_every": 3})
    engine = EngineConfig(**{**config.engine.model_dump(), **engine})
    config = config.model_copy(update={"engine": engine, "loop": loop})
    if crash:
        try:
            train.train_expert(config, out / name, model=world.model, progress=Crash())
        except RuntimeError:
            pass
    result = train.train_expert(config, out / name, model=world.model, resume=crash)
    return read_adapter(out / name / "adapter")[1], result

plain, _ = run("torch")
report = {}
for stage in (2, 3):
    ours, result = run(f"zero{stage}", kind="deepspeed", zero_stage=stage)
    cut, _ = run(f"cut{stage}", crash=True, kind="deepspeed", zero_stage=stage)
    report[stage] = {
        "difference": max(float((ours[n] - plain[n]).abs().max()) for n in plain),
        "resume_equal": all(torch.equal(ours[n], cut[n]) for n in ours),
        "norm_b": result["norm_b"],
        "settings": (out / f"zero{stage}" / "deepspeed.json").exists(),
    }
shutdown()
print(json.dumps(report))
"""


def test_deepspeed_equals_torch(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    for stage in ("2", "3"):
        assert report[stage]["difference"] < 1e-5, report
        assert report[stage]["resume_equal"], report
        assert report[stage]["norm_b"] > 0.1
        assert report[stage]["settings"]
