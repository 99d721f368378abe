"""Optional terms and other losses against written-out formulas, autograd and independent code."""

import math

import pytest
import torch
from test_step import adapted, draws, make_batch, one
from torch import Tensor

from ft2.errors import UsageError
from ft2.flow import add_noise
from ft2.lora import expert_parameters
from ft2.tlpo import dpo
from ft2.tlpo.config import DpoConfig, ExpertConfig, MaskConfig, SigmaConfig
from ft2.tlpo.data import Batch
from ft2.tlpo.passes import base_gate, pair_errors
from ft2.tlpo.step import PreferenceStep, Stats


def run(batch: Batch, seed: int = 6, reference=None, **settings) -> tuple[Tensor, Stats, Tensor]:
    """Loss, stats and the gradient of all expert parameters of a non-trivial policy."""
    model = adapted(seed=seed)
    trainable = {n: p for n, p in model.dit.named_parameters() if p.requires_grad}
    step = PreferenceStep(model, one, base_gate, trainable, DpoConfig(beta=5, **settings))
    loss, stats = step(batch, *draws(), reference)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in expert_parameters(model.dit)])
    return loss.detach(), stats, gradient


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "settings", [{}, {"anchor": 0.5}, {"safeguard": 0.9, "sft": 0.1}, {"loss": "kto"}]
)
def test_decomposed_backward_equals_the_plain_step(masked: bool, settings: dict) -> None:
    batch = make_batch(masked=masked)
    loss, stats, gradient = run(batch, **settings)
    loss2, stats2, gradient2 = run(batch, decomposed=True, **settings)
    torch.testing.assert_close(loss2, loss, rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient2, gradient, rtol=1e-4, atol=1e-6)
    for name in stats:
        torch.testing.assert_close(stats2[name], stats[name], rtol=1e-4, atol=1e-5)


def test_decomposed_holds_one_side_at_a_time() -> None:
    """Of two sides, the bytes saved before the backward pass starts are those of one."""

    def saved(decomposed: bool) -> int:
        model = adapted(seed=6)
        trainable = {n: p for n, p in model.dit.named_parameters() if p.requires_grad}
        config = DpoConfig(beta=5, decomposed=decomposed)
        step = PreferenceStep(model, one, base_gate, trainable, config)
        total = 0

        def pack(t: Tensor) -> Tensor:
            nonlocal total
            total += t.numel() * t.element_size()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            step(make_batch(), *draws())
        return total

    assert saved(True) < 0.6 * saved(False)


class _Logged(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, log, side):
        log.append(f"forward {side}")
        ctx.log, ctx.side = log, side
        ctx.save_for_backward(x)
        return x * weight

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        ctx.log.append(f"backward {ctx.side}")
        return None, (grad * x).sum(), None, None


def test_decomposed_is_through_with_one_side_before_the_other_is_recomputed() -> None:
    batch, (sigma, noise) = make_batch(), draws()
    weight, log = torch.nn.Parameter(torch.tensor(0.5)), []
    near = add_noise(batch.chosen, noise[:, 0], sigma[:, 0])

    class Model:
        def velocity(self, x, sigma, cond, gate=None):
            side = "chosen" if torch.equal(x[0], near[0]) else "rejected"
            return _Logged.apply(x, weight, log, side)

    settings = DpoConfig(beta=5, decomposed=True)
    step = PreferenceStep(Model(), one, base_gate, {"weight": weight}, settings)
    with torch.no_grad():
        known = step.reference_errors(batch, sigma[:, :1], noise[:, :1])
    log.clear()
    loss, _ = step(batch, sigma[:, :1], noise[:, :1], known)
    loss.backward()
    assert log == ["forward rejected", "forward chosen", "backward chosen", "forward rejected",
                   "backward rejected"]  # fmt: skip


def test_known_reference_errors_equal_the_plain_step() -> None:
    batch = make_batch(masked=True)
    loss, stats, gradient = run(batch)
    model = adapted(seed=6)
    with torch.no_grad():
        known = pair_errors(model, batch, *draws(), base_gate)
    loss2, stats2, gradient2 = run(batch, reference=known)
    torch.testing.assert_close(loss2, loss, rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient2, gradient, rtol=0, atol=1e-6)
    assert "kl_proxy" in stats
    assert "kl_proxy" not in stats2


def test_anchor_and_sft_are_added_as_written() -> None:
    batch = make_batch()
    plain, stats, _ = run(batch)
    anchored, _, _ = run(batch, anchor=0.7)
    sft, _, _ = run(batch, sft=0.3)
    assert float(anchored - plain) == pytest.approx(0.7 * float(stats["kl_proxy"].mean()), rel=1e-4)
    model = adapted(seed=6)
    error = pair_errors(model, batch, *draws(), one)[0].mean().detach()
    assert float(sft - plain) == pytest.approx(0.3 * float(error), rel=1e-5)


def closed_form_by_autograd(d_w: Tensor, d_l: Tensor, mu: float) -> float:
    """Largest scale of the rejected gradient that keeps (1 - mu) of the chosen error's descent."""
    v_w = d_w.clone().requires_grad_()
    chosen = (v_w**2).sum()
    g_w = torch.autograd.grad(chosen, v_w)[0]
    v_l = d_l.clone().requires_grad_()
    g_l = torch.autograd.grad((v_l**2).sum(), v_l)[0]
    cross = float((g_w * g_l).sum())
    return 1.0 if cross <= 0 else min(1.0, (1 - mu) * float((g_w * g_w).sum()) / cross)


@pytest.mark.parametrize("mu", [0.1, 0.6, 0.9])
def test_safeguard_weight_and_its_gradient(mu: float) -> None:
    g = torch.Generator().manual_seed(int(mu * 10))
    for _ in range(20):
        d_w, d_l = torch.randn(2, 5, generator=g, dtype=torch.float64)
        ours = dpo.safeguard_weight((d_w * d_w).sum(), (d_w * d_l).sum(), mu)
        assert float(ours) == pytest.approx(closed_form_by_autograd(d_w, d_l, mu), abs=1e-12)
    error = torch.tensor([2.0, 3.0], requires_grad=True)
    scaled = dpo.scale_gradient(error, torch.tensor([0.25, 1.0]))
    assert scaled.tolist() == [2.0, 3.0]
    scaled.sum().backward()
    assert error.grad.tolist() == [0.25, 1.0]


def test_safeguard_scales_the_rejected_side_alone() -> None:
    _, stats, gradient = run(make_batch(), safeguard=0.9)
    assert stats["safeguard"].shape == (3, 2)
    assert 0 <= float(stats["safeguard"].min()) < 1
    assert not torch.allclose(gradient, run(make_batch())[2])


def test_ipo_has_its_optimum_at_the_gap() -> None:
    d_w = torch.tensor([-0.3, 0.0], dtype=torch.float64, requires_grad=True)
    d_l = torch.tensor([0.1, 0.0], dtype=torch.float64)
    losses = dpo.ipo_losses(d_w, d_l, 0.4)
    assert losses.tolist() == pytest.approx([0.0, 1.0])
    losses.sum().backward()
    assert d_w.grad.tolist() == pytest.approx([0.0, 2 / 0.4])


def test_simpo_needs_no_reference() -> None:
    m_w, m_l = torch.tensor([0.2]), torch.tensor([0.5])
    wanted = math.log1p(math.exp(-(3 * 0.3 - 0.4)))
    assert float(dpo.simpo_losses(m_w, m_l, 6.0, 0.4)) == pytest.approx(wanted, rel=1e-6)
    batch = make_batch()
    known = tuple(torch.full((3, 2), 9.0) for _ in range(2))
    loss, _, gradient = run(batch, loss="simpo", simpo_margin=0.1)
    loss2, _, gradient2 = run(batch, reference=known, loss="simpo", simpo_margin=0.1)
    assert torch.equal(loss, loss2)
    assert torch.equal(gradient, gradient2)


def test_kto_pulls_each_side_by_itself() -> None:
    d_w = torch.tensor([-0.2, 0.1], dtype=torch.float64, requires_grad=True)
    d_l = torch.tensor([0.3, 0.0], dtype=torch.float64, requires_grad=True)
    beta, k = 2.0, (0.05 + -0.15) / 2
    losses = dpo.kto_losses(d_w, d_l, beta)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    wanted = [
        (0.8 * (1 - sigmoid(beta * (-w - k))) + (1 - sigmoid(-beta * (-x - k)))) / 2
        for w, x in zip(d_w.tolist(), d_l.tolist(), strict=True)
    ]
    assert losses.tolist() == pytest.approx(wanted)
    losses.sum().backward()
    assert (d_w.grad > 0).all()
    assert (d_l.grad < 0).all()


@pytest.mark.parametrize("loss", ["ipo", "simpo", "kto"])
def test_every_loss_trains_through_the_step(loss: str) -> None:
    value, stats, gradient = run(make_batch(masked=True), loss=loss)
    assert math.isfinite(float(value))
    assert float(gradient.abs().max()) > 0
    assert stats["margin"].shape == (3,)


def test_a_pair_of_weight_zero_has_no_gradient_and_touches_no_other() -> None:
    whole = make_batch()
    weight = torch.tensor([1.0, 0.0, 2.0])
    weighted = Batch(whole.chosen, whole.rejected, whole.cond, None, None, weight)
    spoiled = whole.chosen.clone()
    spoiled[1] = 7.0
    other = Batch(spoiled, whole.rejected, whole.cond, None, None, weight)
    loss, stats, gradient = run(weighted)
    loss2, _, gradient2 = run(other)
    torch.testing.assert_close(loss, loss2)
    torch.testing.assert_close(gradient, gradient2)
    z = stats["margin"]
    wanted = (-torch.nn.functional.logsigmoid(z) * weight).mean()
    torch.testing.assert_close(loss, wanted)


def test_each_side_may_have_its_own_mask() -> None:
    batch = make_batch(masked=True)
    other = torch.zeros_like(batch.mask)
    other[..., 0, :2] = 1
    own = Batch(batch.chosen, batch.rejected, batch.cond, batch.mask, other)
    model = adapted(seed=6)
    with torch.no_grad():
        chosen, rejected = pair_errors(model, own, *draws(), one)
        first, _ = pair_errors(model, batch, *draws(), one)
        _, second = pair_errors(
            model, Batch(batch.chosen, batch.rejected, batch.cond, other), *draws(), one
        )
    torch.testing.assert_close(chosen, first)
    torch.testing.assert_close(rejected, second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dpo": {"loss": "dop"}}, "dpo"),
        ({"dpo": {"loss": "ipo", "positive_weight": 2}}, "positive_weight"),
        ({"dpo": {"weight_power": 2}}, "pair_weight"),
        ({"dpo": {"anchor": 1}, "sigma": {"stored_draws": 4}}, "stored_draws"),
        ({"mask": {"kind": "lip", "probability": 0.8}, "sigma": {"stored_draws": 4}}, "mask"),
        ({"sigma": {"stored_draws": 3}}, "multiple"),
        ({"sigma": {"window": [0.5, 0.4]}}, "window"),
        ({"view_weights": {"lip": 2}}, "mixed"),
        ({"engine": {"kind": "torch", "zero_stage": 3}}, "zero_stage"),
    ],
)
def test_options_that_exclude_each_other_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpertConfig(**change)


def test_a_wrong_loss_is_a_usage_error_with_its_place() -> None:
    from ft2.config import load_config

    with pytest.raises(UsageError, match=r"dpo\.loss"):
        load_config(ExpertConfig, "nano/expert-lip", ["dpo.loss=dop"])


def test_defaults_are_off() -> None:
    config = DpoConfig()
    assert (config.loss, config.anchor, config.sft, config.safeguard) == ("dpo", 0, 0, 0)
    assert MaskConfig(kind="lip").sides == "union"
    assert SigmaConfig().stored_draws == 0
