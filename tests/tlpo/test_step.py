"""The preference step on the real transformer: sharing, reference, gradients."""

import math

import pytest
import torch
from tlpo_toys import SHAPE, TARGETS, toy_conditioning, toy_model
from torch import Tensor

from ft2.flow import add_noise
from ft2.lora import expert_parameters, install_experts
from ft2.tlpo.config import DpoConfig
from ft2.tlpo.data import Batch
from ft2.tlpo.gate import FusionGate, constant_gate, timestep_features
from ft2.tlpo.passes import base_gate, pair_errors
from ft2.tlpo.step import PreferenceStep
from ft2.wan.model import TalkingModel


def make_batch(same_sides: bool = False, masked: bool = False) -> Batch:
    g = torch.Generator().manual_seed(2)
    chosen, rejected = torch.randn(2, 3, *SHAPE, generator=g)
    mask = torch.zeros(3, 1, *SHAPE[1:])
    mask[..., 1:, 1:3] = 1
    return Batch(
        chosen, chosen if same_sides else rejected, toy_conditioning(3), mask if masked else None
    )


def draws(count: int = 2) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.rand(3, count, generator=g), torch.randn(3, count, *SHAPE, generator=g)


def adapted(seed: int = 0) -> TalkingModel:
    model = toy_model()
    install_experts(model.dit, TARGETS, 1, 4, 4)
    if seed:
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in expert_parameters(model.dit):
                p.copy_(torch.randn(p.shape, generator=g) * 0.3)
    return model


def one(sigma: Tensor) -> Tensor:
    return constant_gate(len(sigma), 2, [1.0])


def make_step(model: TalkingModel, beta: float = 50.0) -> PreferenceStep:
    trainable = {n: p for n, p in model.dit.named_parameters() if p.requires_grad}
    return PreferenceStep(model, one, base_gate, trainable, DpoConfig(beta=beta))


@pytest.mark.parametrize("masked", [False, True])
def test_errors_equal_one_pass_for_each_side_and_draw(masked: bool) -> None:
    model, batch = adapted(seed=4), make_batch(masked=masked)
    sigma, noise = draws()
    chosen, rejected = pair_errors(model, batch, sigma, noise, one)
    assert chosen.shape == (3, 2)
    for side, ours in ((batch.chosen, chosen), (batch.rejected, rejected)):
        for b in range(3):
            for n in range(2):
                level = sigma[b, n].reshape(1)
                noisy = add_noise(side[b : b + 1], noise[b, n][None], level)
                cond = batch.cond.select([b])
                v = model.velocity(noisy, level, cond, one(level))
                square = (v - (noise[b, n] - side[b])) ** 2
                if batch.mask is not None:
                    weight = batch.mask[b].expand(SHAPE)
                    expected = (square[0] * weight).sum() / weight.sum()
                else:
                    expected = square.mean()
                torch.testing.assert_close(ours[b, n], expected, rtol=1e-4, atol=1e-5)


def test_first_step_is_ln_2_and_only_b_has_a_gradient() -> None:
    model = adapted()
    step = make_step(model)
    loss, stats = step(make_batch(), *draws())
    assert torch.equal(loss.detach(), torch.tensor(math.log(2)))
    assert stats["margin"].tolist() == [0, 0, 0]
    loss.backward()
    gradients = {n: p.grad.abs().max() for n, p in step.named_parameters()}
    assert all(float(g) == 0 for n, g in gradients.items() if n.endswith("lora_A"))
    assert all(float(g) > 0 for n, g in gradients.items() if n.endswith("lora_B"))


def test_identical_sides_give_no_margin_and_no_gradient() -> None:
    """Holds for any weights only if noise, sigma and conditions are shared by both sides."""
    model = adapted(seed=6)
    step = make_step(model)
    loss, stats = step(make_batch(same_sides=True), *draws())
    assert float(stats["margin"].abs().max()) < 1e-5
    loss.backward()
    for p in step.parameters():
        assert float(p.grad.abs().max()) < 1e-5


def test_the_reference_is_the_base_and_leaves_no_trace() -> None:
    model, plain = adapted(seed=7), toy_model()
    step = make_step(model)
    before = {n for n, p in model.dit.named_parameters() if p.requires_grad}
    ours = step.reference_errors(make_batch(), *draws())
    theirs = pair_errors(plain, make_batch(), *draws(), base_gate)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
        assert not a.requires_grad
    assert {n for n, p in model.dit.named_parameters() if p.requires_grad} == before


def test_masked_pixels_alone_count() -> None:
    model = adapted(seed=8)
    batch = make_batch(masked=True)
    other = Batch(batch.chosen.clone(), batch.rejected, batch.cond, batch.mask)
    errors = make_step(model).policy_errors(batch, *draws())
    velocity = model.velocity
    model.velocity = lambda x, s, c, g=None: velocity(x, s, c, g) + outside  # type: ignore[method-assign]
    outside = 100.0 * (1 - torch.cat([other.mask.repeat_interleave(2, 0)] * 2))
    moved = make_step(model).policy_errors(other, *draws())
    torch.testing.assert_close(errors, moved)


def test_gate_gradient_with_and_without_checkpointing() -> None:
    def gradient(checkpointing: bool) -> Tensor:
        model = toy_model()
        install_experts(model.dit, TARGETS, 3, 4, 4)
        g = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for p in expert_parameters(model.dit):
                p.copy_(torch.randn(p.shape, generator=g) * 0.3)
        model.dit.requires_grad_(False)
        if checkpointing:
            model.dit.enable_gradient_checkpointing()
        gate = FusionGate(2, 3, 24)

        def weights(sigma: Tensor) -> Tensor:
            return gate(timestep_features(model.dit, sigma))

        step = PreferenceStep(
            model, weights, base_gate, dict(gate.named_parameters()), DpoConfig(beta=50)
        )
        step(make_batch(), *draws())[0].backward()
        assert all(p.grad is None for p in model.dit.parameters())
        return torch.cat([p.grad.flatten() for p in gate.parameters()])

    plain = gradient(False)
    assert float(plain.abs().max()) > 0
    torch.testing.assert_close(gradient(True), plain, rtol=1e-4, atol=1e-6)


def test_only_what_is_trained_is_registered() -> None:
    model = adapted()
    step = make_step(model)
    assert sum(p.numel() for p in step.parameters()) == sum(
        p.numel() for p in expert_parameters(model.dit)
    )
    whole = PreferenceStep(
        model, one, base_gate, dict(model.dit.named_parameters()), DpoConfig(), model.dit
    )
    assert len(list(whole.parameters())) == len(list(model.dit.parameters()))
