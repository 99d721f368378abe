"""Two processes: equal to one with the whole batch, in step with each other."""

import json
import math
from pathlib import Path

import pytest
import torch
from tlpo_workers import finish, start

from ft2.lora import read_adapter

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow

SCRIPT = """
for job in jobs:
    config = toys.expert_config(world, steps=20 if job == "bf16" else 6)
    loop = config.loop.model_copy(update={"checkpoint_every": 3, "eval_every": 6})
    own = engine
    if job == "bf16":
        own = engine.model_copy(update={"precision": "bf16"})
    if job == "smooth":  # AdamW then does not divide rounding by rounding
        own = engine.model_copy(update={"eps": 0.1, "learning_rate": 0.1})
    config = config.model_copy(update={"engine": own, "loop": loop})
    if "unsynced" in job:
        torch.distributed.all_reduce = lambda *a, **k: None
        torch.distributed.reduce_scatter_tensor = lambda *a, **k: None
        torch.distributed.reduce = lambda *a, **k: None
    keep_hash(out / f"{job}-{kind}-hash-{rank}")
    train_expert(config, out / f"{job}-{kind}", model=world.model)
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process of plain torch with the whole batch."""
    out = tmp_path_factory.mktemp("ranks")
    finish(start(SCRIPT, out, 1, "torch", 4, "smooth", "plain"))
    return out


def difference(a: Path, b: Path) -> float:
    one, two = (read_adapter(path / "adapter")[1] for path in (a, b))
    return max(float((one[name] - two[name]).abs().max()) for name in one)


def lines(run: Path) -> list[dict[str, object]]:
    return [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]


def check_bf16(run: Path, exact: Path) -> None:
    """The loss falls; masters stay float32; early steps differ from float32 by rounding."""
    found, plain = lines(run), lines(exact)
    losses = [float(str(line["loss"])) for line in found]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert sum(losses[-5:]) / 5 < math.log(2) - 0.05
    for name in ("margin_p95", "grad_norm"):
        a, b = float(str(found[1][name])), float(str(plain[1][name]))
        assert a != b
        assert a == pytest.approx(b, rel=0.1, abs=1e-2), name
    tensors = read_adapter(run / "adapter")[1]
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert any((t.bfloat16().float() != t).any() for t in tensors.values())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_ranks_equal_one_and_are_in_step(alone: Path, stage: int) -> None:
    """Defect 7: without gradient sync two ranks are no longer one with twice the batch.

    AdamW divides a gradient by its own size: where that is as small as the rounding of a sum in
    another order, the update differs by up to the rate. With an ``eps`` above the rounding both
    are equal to 1e-6; with the usual one to 1e-4.
    """
    jobs = {1: ["smooth"], 2: ["smooth", "plain", "bf16", "unsynced"], 3: ["smooth", "bf16"]}[stage]
    finish(start(SCRIPT, alone, 2, str(stage), 2, *jobs))
    assert difference(alone / "smooth-torch", alone / f"smooth-{stage}") < 1e-6
    for job in set(jobs) - {"unsynced"}:
        hashes = {(alone / f"{job}-{stage}-hash-{rank}").read_text() for rank in "01"}
        assert len(hashes) == 1, job
        assert int(hashes.pop().split()[0]) > 1000
    own = lines(alone / f"smooth-{stage}")
    for a, b in zip(lines(alone / "smooth-torch"), own, strict=True):
        for name in ("loss", "margin_p95", "d_rejected"):
            assert a[name] == pytest.approx(b[name], abs=1e-4), name
        assert b["perf_tflops"] > 0
    for name in ("norm_b", "weight_change"):
        assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-6), name
    if "bf16" in jobs:
        check_bf16(alone / f"bf16-{stage}", alone / "plain-torch")
    if "unsynced" in jobs:
        assert difference(alone / "plain-torch", alone / f"plain-{stage}") < 1e-4
        assert difference(alone / "plain-torch", alone / f"unsynced-{stage}") > 1e-3
