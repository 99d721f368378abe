"""Saved experts: PEFT layout, exact round trip, refusal of what does not fit."""

from pathlib import Path

import peft
import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import nn

from ft2.errors import UsageError
from ft2.lora import (
    expert_parameters,
    expert_state,
    fused_linears,
    install_experts,
    load_expert,
    save_expert,
)

TARGETS = [
    "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q", "attn2.to_k", "attn2.to_v",
    "ffn.net.0.proj", "ffn.net.2",
]  # fmt: skip


def dit() -> WanTransformer3DModel:
    torch.manual_seed(0)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4,
        out_channels=4, text_dim=8, freq_dim=16, ffn_dim=32, num_layers=2,
        cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip


def adapted(num_experts: int = 1, rank: int = 4, alpha: float = 8.0, seed: int = 0) -> nn.Module:
    model = dit()
    install_experts(model, TARGETS, num_experts, rank, alpha)
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in expert_parameters(model):
            p.copy_(torch.randn_like(p) * 0.1)
    return model


def fold(model: nn.Module, gate: float) -> None:
    """Add the first expert to the base weights, so that a plain forward shows it."""
    with torch.no_grad():
        for _, layer in fused_linears(model):
            rows = layer.rows(0)
            layer.weight += gate * layer.scaling * layer.lora_B[:, rows] @ layer.lora_A[rows]


def inputs() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    return {
        "hidden_states": torch.randn(2, 4, 2, 4, 4, generator=g),
        "timestep": torch.tensor([10.0, 700.0]),
        "encoder_hidden_states": torch.randn(2, 3, 8, generator=g),
    }


def test_peft_reads_a_saved_expert_and_gives_the_same_output(tmp_path: Path) -> None:
    model = adapted()
    save_expert(model, 0, tmp_path, {"base": "abc"})
    theirs = peft.PeftModel.from_pretrained(dit(), tmp_path)
    fold(model, 1.0)
    plain = dit()(**inputs()).sample
    ours = model(**inputs()).sample
    assert not torch.allclose(ours, plain, atol=1e-3)
    torch.testing.assert_close(theirs(**inputs()).sample, ours, rtol=1e-5, atol=1e-5)


def test_round_trip_into_another_slot_is_bitwise(tmp_path: Path) -> None:
    save_expert(adapted(seed=5), 0, tmp_path)
    three = adapted(num_experts=3, seed=9)
    before = expert_state(three, 0)
    load_expert(three, 2, tmp_path)
    for key, value in expert_state(adapted(seed=5), 0).items():
        assert torch.equal(expert_state(three, 2)[key], value)
        assert torch.equal(expert_state(three, 0)[key], before[key])


def test_a_smaller_rank_and_other_alpha_keep_their_effect(tmp_path: Path) -> None:
    small = adapted(rank=2, alpha=6.0, seed=5)
    save_expert(small, 0, tmp_path)
    large = adapted(num_experts=2, rank=4, alpha=1.0, seed=1)
    load_expert(large, 1, tmp_path)
    for (_, a), (_, b) in zip(fused_linears(small), fused_linears(large), strict=True):
        rows = b.rows(1)
        delta = b.scaling * b.lora_B[:, rows] @ b.lora_A[rows]
        torch.testing.assert_close(delta, a.scaling * a.lora_B @ a.lora_A)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    save_expert(adapted(), 0, tmp_path)
    fewer = dit()
    install_experts(fewer, TARGETS[:-1], 1, 4, 8.0)
    with pytest.raises(UsageError, match="unexpected"):
        load_expert(fewer, 0, tmp_path)
    with pytest.raises(UsageError, match="rank 4"):
        load_expert(adapted(rank=2), 0, tmp_path)
    with pytest.raises(UsageError, match="adapter_config"):
        load_expert(adapted(), 0, tmp_path / "nowhere")


def test_counts_per_expert() -> None:
    model = adapted(num_experts=1, rank=4)
    dim, ffn = 24, 32
    per_block = 4 * (6 * 2 * dim + 2 * (dim + ffn))
    assert sum(p.numel() for p in expert_parameters(model)) == 2 * per_block
