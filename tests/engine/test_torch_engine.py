"""TorchEngine against hand-written AdamW, and its exact resume."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ft2.config import EngineConfig
from ft2.engine import (
    TorchEngine,
    deepspeed_config,
    learning_rate_at,
    local_device,
    make_engine,
)
from ft2.errors import UsageError


class Regression(nn.Module):
    """A loss as a module: mean (w x - y)^2."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(3, 2)
        self.frozen = nn.Linear(3, 2)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return ((self.inner(x) + self.frozen(x) - y) ** 2).mean()


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(4, 3, generator=g), torch.randn(4, 2, generator=g)) for _ in range(count)]


CONFIG = EngineConfig(
    learning_rate=0.05, weight_decay=0.1, betas=(0.8, 0.9), max_grad_norm=0.3,
    warmup_steps=3, accumulation_steps=2, micro_batch_size=4,
)  # fmt: skip


def train(engine: TorchEngine, data: list[tuple[Tensor, Tensor]]) -> None:
    for i in range(0, len(data), 2):
        for x, y in data[i : i + 2]:
            engine.backward(engine(x, y))
        engine.step()


def test_five_steps_equal_adamw_written_out() -> None:
    engine = TorchEngine(CONFIG, Regression())
    twin = Regression().double()
    train(engine, batches(10))
    moments = {n: [torch.zeros_like(p), torch.zeros_like(p)]
               for n, p in twin.inner.named_parameters()}  # fmt: skip
    data = batches(10)
    for step in range(1, 6):
        pair = data[2 * step - 2 : 2 * step]
        loss = sum(twin(x.double(), y.double()) for x, y in pair) / 2
        grads = torch.autograd.grad(loss, list(twin.inner.parameters()))
        norm = math.sqrt(sum(float((g**2).sum()) for g in grads))
        scale = min(1.0, 0.3 / (norm + 1e-6))
        rate = 0.05 * min(1.0, step / 3)
        with torch.no_grad():
            for (name, p), g in zip(twin.inner.named_parameters(), grads, strict=True):
                m, v = moments[name]
                m.mul_(0.8).add_(0.2 * scale * g)
                v.mul_(0.9).add_(0.1 * (scale * g) ** 2)
                p.mul_(1 - rate * 0.1)
                p -= rate * (m / (1 - 0.8**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-8)
    for ours, theirs in zip(engine.module.inner.parameters(), twin.inner.parameters(), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)


def test_resume_is_bitwise(tmp_path: Path) -> None:
    whole = TorchEngine(CONFIG, Regression())
    train(whole, batches(10))
    first = TorchEngine(CONFIG, Regression())
    train(first, batches(10)[:4])
    first.save(tmp_path)
    second = TorchEngine(CONFIG, Regression())
    second.load(tmp_path)
    assert second.steps == 2
    train(second, batches(10)[4:])
    for a, b in zip(whole.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_frozen_weights_stay_and_are_not_saved(tmp_path: Path) -> None:
    engine = TorchEngine(CONFIG, Regression())
    before = engine.module.frozen.weight.clone()
    train(engine, batches(4))
    assert torch.equal(engine.module.frozen.weight, before)
    engine.save(tmp_path)
    from ft2.runs import load_tensors

    assert not any("frozen" in name for name in load_tensors(tmp_path / "engine.safetensors")[0])


@pytest.mark.parametrize("text", ["[]", "{}", '{"kind": "torch"}'])
def test_a_checkpoint_whose_record_is_damaged_is_refused(tmp_path: Path, text: str) -> None:
    engine = TorchEngine(CONFIG, Regression())
    engine.save(tmp_path)
    (tmp_path / "engine.json").write_text(text)
    with pytest.raises(UsageError, match="does not say what saved the checkpoint"):
        engine.load(tmp_path)


def test_warmup_is_linear_then_constant() -> None:
    rates = [learning_rate_at(CONFIG, step) for step in range(5)]
    assert rates == pytest.approx([0.05 / 3, 0.1 / 3, 0.05, 0.05, 0.05])
    assert learning_rate_at(EngineConfig(warmup_steps=0, learning_rate=1e-3), 0) == 1e-3


def test_zero_grad_norm_limit_switches_clipping_off() -> None:
    engine = TorchEngine(EngineConfig(max_grad_norm=0, learning_rate=1e-3), Regression())
    x, y = batches(1)[0]
    engine.backward(engine(x, 1000 * y))
    assert engine.step().grad_norm > 100
    moments = engine._optimizer.state.values()
    assert math.sqrt(sum(float((s["exp_avg"] ** 2).sum()) for s in moments)) > 10


def test_nothing_trainable_and_many_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="nothing to train"):
        make_engine(EngineConfig(), nn.Linear(2, 2).requires_grad_(False))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="one process"):
        make_engine(EngineConfig(), nn.Linear(2, 2))


def test_deepspeed_config_takes_every_number_from_ours() -> None:
    config = EngineConfig(kind="deepspeed", zero_stage=2, micro_batch_size=3, accumulation_steps=5,
                          max_grad_norm=0.7)  # fmt: skip
    settings = deepspeed_config(config)
    assert settings["train_micro_batch_size_per_gpu"] == 3
    assert settings["gradient_accumulation_steps"] == 5
    assert settings["gradient_clipping"] == 0.7
    assert settings["zero_optimization"]["stage"] == 2  # type: ignore[index]
    assert "auto" not in str(settings)


@pytest.mark.parametrize(
    ("name", "ranks", "message"),
    [
        ("bogus", 1, "unknown device 'bogus'"),
        ("cuda:x", 1, "unknown device"),
        ("cuda", 1, "device cuda: no CUDA device is available"),
        ("cuda:3", 1, "no CUDA device is available"),
        ("cuda:0", 2, "each takes its own"),
    ],
)
def test_device_that_is_not_there(monkeypatch, name, ranks, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    with pytest.raises(UsageError, match="device") as error:
        local_device(name)
    assert message in str(error.value)


def test_each_rank_takes_its_own_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert str(local_device("cuda")) == "cuda:1"
    assert str(local_device("cuda:0")) == "cuda:0"
    assert str(local_device("cpu")) == "cpu"
    with pytest.raises(UsageError, match="2 CUDA device"):
        local_device("cuda:2")
