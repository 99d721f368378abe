"""An expert trained under DeepSpeed equals one trained by plain torch (in a subprocess)."""

from pathlib import Path

import pytest
from tlpo_toys import report_of

pytest.importorskip("deepspeed")

SCRIPT = """
import ft2.tlpo.train as train
from ft2.lora import read_adapter
from ft2.runs import Silent

class Crash(Silent):
    def update(self, stage, done, total, note=""):
        if stage.startswith("expert") and done == 5:
            raise RuntimeError("killed")

def run(name, crash=False, **engine):
    config = toys.expert_config(world, steps=6)
    loop = config.loop.model_copy(update={"checkpoint_every": 3})
    config = config.model_copy(update={"engine": engine_of(config, **engine), "loop": loop})
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
"""


def test_deepspeed_equals_torch(tmp_path: Path) -> None:
    report = report_of(SCRIPT, tmp_path)
    for stage in ("2", "3"):
        assert report[stage]["difference"] < 1e-5, report
        assert report[stage]["resume_equal"], report
        assert report[stage]["norm_b"] > 0.1
        assert report[stage]["settings"]
