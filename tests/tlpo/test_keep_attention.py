"""Recomputed blocks that keep their attention: equal gradients, attention run once, less memory."""

import pytest
import torch
from test_memory_plan import Nano, nano, peak
from test_step import draws, make_batch
from tlpo_toys import TARGETS, toy_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ft2.config import load_config
from ft2.errors import UsageError
from ft2.lora import expert_parameters, install_experts
from ft2.tlpo.config import DpoConfig, ExpertConfig
from ft2.tlpo.gate import FusionGate, timestep_features
from ft2.tlpo.passes import GateFunction, base_gate
from ft2.tlpo.stage import constant
from ft2.tlpo.step import PreferenceStep
from ft2.tlpo.work import pair_flops
from ft2.wan.recompute import ATTENTION, recompute_as

PAIRS = 2

LAYERS = 2
CALLS = 2 * LAYERS
"""Of such attention in the toy's forward pass: its text has as many tokens as its clip."""


class AttentionCalls(TorchDispatchMode):
    """Counts calls of attention's operators with as many keys as queries."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func in ATTENTION and args[0].shape[2] == args[1].shape[2]
        return func(*args, **(kwargs or {}))


def toy_step(stage: str, checkpointing: bool | str, decomposed: bool) -> PreferenceStep:
    model = toy_model()
    install_experts(model.dit, TARGETS, 3 if stage == "gate" else 1, 4, 4)
    g = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for p in expert_parameters(model.dit):
            p.copy_(torch.randn(p.shape, generator=g) * 0.3)
    weights: GateFunction = constant(model, (1.0,))
    trainable: dict[str, nn.Parameter] = {
        n: p for n, p in model.dit.named_parameters() if p.requires_grad
    }
    if stage == "gate":
        model.dit.requires_grad_(False)
        gate = FusionGate(LAYERS, 3, 24)
        gate.weight.data.copy_(torch.randn(gate.weight.shape, generator=g))
        trainable = dict(gate.named_parameters())

        def weights(sigma: Tensor) -> Tensor:
            return gate(timestep_features(model.dit, sigma))

    if checkpointing:
        model.dit.enable_gradient_checkpointing(recompute_as(checkpointing))
    config = DpoConfig(beta=50, decomposed=decomposed)
    later = recompute_as(checkpointing)
    return PreferenceStep(model, weights, base_gate, trainable, config, later=later)


def gradient_and_calls(step: PreferenceStep) -> tuple[Tensor, int, int]:
    """Return the gradient, and calls of attention in the forward and the backward pass."""
    with AttentionCalls() as calls:
        loss = step(make_batch(), *draws())[0]
        forward = calls.count
        loss.backward()
    whole = torch.cat([p.grad.flatten() for p in step.parameters() if p.grad is not None])
    return whole, forward, calls.count - forward


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("stage", ["expert", "gate"])
def test_gradients_are_equal_and_attention_runs_once(stage: str, decomposed: bool) -> None:
    found = {
        way: gradient_and_calls(toy_step(stage, way, decomposed))
        for way in (False, True, "keep_attention")
    }
    plain, passes, _ = found[False]
    assert float(plain.abs().max()) > 1e-4
    for gradient, forward, _ in found.values():
        torch.testing.assert_close(gradient, plain, rtol=1e-6, atol=1e-6)
        assert forward == passes == CALLS * (3 if decomposed else 2)  # the reference is one
    assert found[True][2] == CALLS * (3 if decomposed else 1)
    assert found["keep_attention"][2] == 0


def measured(given: Nano) -> tuple[int, float]:
    """Return the peak of a step's tensors in bytes, and its FLOPs a pair by torch's counter."""

    def product(out: object, a: list[int], b: list[int], **_: object) -> int:
        return 2 * a[0] * a[1] * b[1]

    in_place = {torch.ops.aten.addmm_: product}  # torch's counter leaves it out
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        given.run().backward()  # gradients exist from here on
    return peak(lambda: given.run().backward()), counter.get_total_flops() / PAIRS


@pytest.mark.parametrize("decomposed", [False, True])
def test_work_and_memory_are_the_planned_ones(decomposed: bool) -> None:
    parts = ("activations", "workspace", "cast", "passing", "waiting")
    work, memory = {}, {}
    for way in ("keep_attention",) if decomposed else (False, True, "keep_attention"):
        given = nano("expert", PAIRS, checkpointing=way, decomposed=decomposed)
        memory[way], work[way] = measured(given)
    assert given.planned(*parts) == pytest.approx(memory[way], rel=0.1)
    planned = pair_flops(given.config, given.model.architecture, given.held)
    assert planned == pytest.approx(work[way], rel=0.1)
    if not decomposed:
        assert memory[True] < memory["keep_attention"] < memory[False]
        assert work[False] < work["keep_attention"] < work[True]


def test_other_words_are_refused() -> None:
    config = load_config(ExpertConfig, "nano/expert-lip", ["gradient_checkpointing=keep_attention"])
    assert config.gradient_checkpointing == "keep_attention"
    with pytest.raises(UsageError, match="gradient_checkpointing"):
        load_config(ExpertConfig, "nano/expert-lip", ["gradient_checkpointing=keep"])
