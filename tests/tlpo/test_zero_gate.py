"""Three fused experts and their gate under DeepSpeed: equal to plain torch, in one process."""

import math
from pathlib import Path

import pytest
from tlpo_toys import report_of

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow

SCRIPT = """
from ft2.runs import load_tensors
from ft2.tlpo.config import DpoConfig, FusionConfig, GateConfig
from ft2.tlpo.train import train_expert, train_fusion

experts = {}
for name in ("motion", "lip", "quality"):
    train_expert(toys.expert_config(world, name, steps=3), out / name, model=world.model)
    experts[name] = out / name

def run(name, **engine):
    config = toys.expert_config(world, steps=4)
    shared = config.model_dump(exclude={"stage", "dimension", "lora"})
    fusion = FusionConfig(**{**shared, "dpo": DpoConfig(beta=60),
                             "engine": engine_of(config, **engine),
                             "experts": experts, "gate": GateConfig(bias_init=1 / 3)})
    result = train_fusion(fusion, out / name, model=world.model)
    return load_tensors(out / name / "policy" / "gate.safetensors")[0], result

plain, expected = run("torch")
report = {}
for stage in (2, 3):
    found, result = run(f"zero{stage}", kind="deepspeed", zero_stage=stage)
    report[stage] = {
        "difference": max(float((found[n] - plain[n]).abs().max()) for n in plain),
        "moved": max(float(t.abs().max()) for n, t in found.items() if "bias" not in n),
        "mean_weights": [result["mean_weights"], expected["mean_weights"]],
    }
run("bf16", kind="deepspeed", zero_stage=3, precision="bf16")
first = (out / "bf16" / "metrics.jsonl").read_text().splitlines()[0]
report["bf16_start"] = json.loads(first)["loss"]
"""


def test_a_gate_over_three_experts_equals_plain_torch(tmp_path: Path) -> None:
    """ZeRO-3 holds the base in parts after training: what is looked at then was kept before."""
    report = report_of(SCRIPT, tmp_path)
    for stage in ("2", "3"):
        assert report[stage]["difference"] < 1e-5, report
        assert report[stage]["moved"] > 1e-3, report
        found, expected = report[stage]["mean_weights"]
        assert found == pytest.approx(expected, abs=1e-5)
    assert report["bf16_start"] == pytest.approx(math.log(2), abs=1e-6)  # policy = reference
