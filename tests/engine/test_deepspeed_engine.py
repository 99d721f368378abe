"""DeepSpeed on the CPU gives the weights of plain torch, and resumes exactly (in a subprocess)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("deepspeed")

SCRIPT = """
import contextlib, json, sys
from pathlib import Path
import torch
from torch import nn
import ft2.engine.zero as zero
from ft2.config import EngineConfig
from ft2.engine import FrozenWeights, make_engine, shutdown
from ft2.errors import RunError
from ft2.runs import load_tensors

torch.set_num_threads(1)
made = zero.deepspeed_config
def all_split(config):
    settings = made(config)
    if config.zero_stage == 3:  # weights as small as these would stay whole
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return settings
zero.deepspeed_config = all_split
out = Path(sys.argv[1])
base = dict(learning_rate=1e-2, weight_decay=0.01, max_grad_norm=0.1, warmup_steps=3,
            micro_batch_size=4, accumulation_steps=2)

class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)
        self.a.bias.requires_grad_(False).fill_(0.123)

    def forward(self, x, y):
        return ((self.b(torch.tanh(self.a(x))) - y) ** 2).mean(), {"y": float(y.mean())}

def data(steps):
    g = torch.Generator().manual_seed(1)
    pairs = [(torch.randn(4, 8, generator=g), torch.randn(4, 4, generator=g))
             for _ in range(2 * steps)]
    return [pairs[2 * i : 2 * i + 2] for i in range(steps)]

def train(engine, steps):
    for micro in steps:
        for x, y in micro:
            engine.backward(engine(x, y)[0])
        info = engine.step()
    return info

def weights(engine):
    gather = contextlib.nullcontext
    split = [p for p in engine.module.parameters() if hasattr(p, "ds_id") and not p.requires_grad]
    if split:
        from deepspeed.runtime.zero import GatheredParameters as gather
    with engine.gathered(), gather(split):
        return {n: p.detach().clone() for n, p in engine.module.named_parameters()}

def numbers(value):
    # all numbers of all tensors anywhere in what a file holds
    if isinstance(value, torch.Tensor):
        return set(value.detach().flatten().tolist())
    inner = value.values() if isinstance(value, dict) else value
    return set().union(*map(numbers, inner)) if isinstance(value, (dict, list, tuple)) else set()

def in_files(folder, engine):
    # whether a checkpoint's files hold a frozen number, and a trained one
    files = [p for p in folder.rglob("*") if p.suffix in (".pt", ".safetensors")]
    found = set()
    for path in files:
        plain = path.suffix == ".safetensors"
        found |= numbers(load_tensors(path)[0] if plain else torch.load(path, weights_only=False))
    now = weights(engine)
    return [len(files), float(now["a.bias"][0]) in found, float(now["b.bias"][0]) in found]

def seen(frozen, parameter, stage):
    # whether a changed number of a frozen weight is noticed, in the part that ZeRO-3 holds
    frozen.check()
    place = parameter.ds_tensor if stage == 3 else parameter.data
    place.view(-1)[3] += 1e-6
    try:
        frozen.check()
    except RunError as error:
        return str(error)

torch_engine = make_engine(EngineConfig(**base), Loss())
info = train(torch_engine, data(6))
expected = weights(torch_engine)
result = {"norm": info.grad_norm}
torch_engine.save(out / "torch")
result["torch"] = {"files": in_files(out / "torch", torch_engine)}
for stage in (0, 1, 2, 3):
    config = EngineConfig(kind="deepspeed", zero_stage=stage, **base)
    module = Loss()
    frozen = FrozenWeights(module, {n: p for n, p in module.named_parameters() if p.requires_grad})
    engine = make_engine(config, module, out)
    info = train(engine, data(6))
    whole = weights(engine)
    changed = seen(frozen, module.a.bias, stage)
    engine.close()
    half = make_engine(config, Loss())
    train(half, data(6)[:2])
    half.save(out / f"zero{stage}")
    files = in_files(out / f"zero{stage}", half)
    half.close()
    rest = make_engine(config, Loss())
    rest.load(out / f"zero{stage}")
    train(rest, data(6)[2:])
    resumed = weights(rest)
    rest.close()
    result[stage] = {
        "difference": max(float((whole[n] - expected[n]).abs().max()) for n in expected),
        "moved": max(float((whole[n] - p).abs().max()) for n, p in Loss().named_parameters()),
        "resume_equal": all(torch.equal(whole[n], resumed[n]) for n in whole),
        "steps": rest.steps,
        "norm": info.grad_norm,
        "files": files,
        "changed": changed,
    }
tampered = out / "zero2" / "deepspeed"
victim = sorted(tampered.iterdir())[0]
victim.write_bytes(victim.read_bytes() + b"x")
engine = make_engine(EngineConfig(kind="deepspeed", zero_stage=2, **base), Loss())
try:
    engine.load(out / "zero2")
except Exception as error:
    result["tampered"] = str(error)
engine.close()
shutdown()
again = make_engine(EngineConfig(kind="deepspeed", zero_stage=2, **base), Loss())
train(again, data(6))
result["again"] = all(torch.allclose(weights(again)[n], p, atol=1e-6) for n, p in expected.items())
again.close()
shutdown()
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    path = tmp_path_factory.mktemp("engine")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 1, "DeepSpeed printed to stdout"
    return {**json.loads(lines[0]), "path": str(path)}


@pytest.mark.parametrize("stage", ["0", "1", "2", "3"])
def test_equals_plain_torch_and_resumes_bitwise(result: dict, stage: str) -> None:
    entry = result[stage]
    assert entry["difference"] <= 1e-6
    assert entry["moved"] > 1e-2
    assert entry["resume_equal"]
    assert entry["steps"] == 6
    assert entry["norm"] == pytest.approx(result["norm"], rel=1e-4)


@pytest.mark.parametrize("engine", ["torch", "0", "1", "2", "3"])
def test_checkpoints_hold_what_is_trained_and_nothing_frozen(result: dict, engine: str) -> None:
    count, frozen, trained = result[engine]["files"]
    assert count
    assert trained
    assert not frozen


@pytest.mark.parametrize("stage", ["0", "1", "2", "3"])
def test_a_frozen_weight_that_changed_is_seen(result: dict, stage: str) -> None:
    assert "1 frozen weights changed in training, such as a.bias" in result[stage]["changed"]


def test_a_checkpoint_that_changed_is_not_unpickled(result: dict) -> None:
    assert "differs from what this run saved" in result["tampered"]


def test_a_second_run_in_one_process_finds_no_groups_of_the_first(result: dict) -> None:
    assert result["again"]


def test_the_settings_are_saved(result: dict) -> None:
    settings = json.loads((Path(result["path"]) / "deepspeed.json").read_text())
    assert settings["zero_optimization"]["stage"] == 3
    assert settings["gradient_accumulation_steps"] == 2
